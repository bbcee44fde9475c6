"""The protocol over gRPC, with a channel to a server in the same process: responses, codes, deadlines and health."""

import asyncio
import socket
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace

import grpc
import numpy as np
import pytest
from google.protobuf import message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from serve.errors import GrpcPortTakenError
from serve.inference.service import Service
from serve.oip.grpc_server import SERVICE, GrpcServer
from serve.oip.proto import inference_pb2 as pb
from serve.oip.statistics import Statistics
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tureen.bundle.strength_curve import StrengthCurve

Code = grpc.StatusCode


class Client:
    """Calls each method of the protocol by its name, on one channel."""

    def __init__(self, channel, service):
        self.channel = channel
        self.service = service

    def __getattr__(self, name):
        method = SERVICE.methods_by_name[name]
        call = self.channel.stream_stream if method.client_streaming else self.channel.unary_unary
        return call(
            f"/{SERVICE.full_name}/{name}",
            request_serializer=message_factory.GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )


@asynccontextmanager
async def serving(bundle, *, is_opened=True, **changes):
    settings = Settings(bundle=bundle.path, engine="onnxruntime", max_batch=8, grpc_port=0, **changes)
    service = Service(settings, bundle, Metrics())
    if is_opened:
        await service.open()
    server = GrpcServer(service, Statistics())
    port = await server.open()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Client(channel, service)
    await server.close(5)
    await service.close()


def image_request(images, *, name="cifar10", raw=True, **parameters):
    request = pb.ModelInferRequest(model_name=name, id="order-66")
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[len(images), 1])
    if raw:
        request.raw_input_contents.append(b"".join(len(i).to_bytes(4, "little") + i for i in images))
    else:
        tensor.contents.bytes_contents.extend(images)
    for parameter, value in parameters.items():
        kind = {float: "double_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(request.parameters[parameter], kind, value)
    return request


def logits(response):
    assert [output.name for output in response.outputs] == ["logits", "probabilities"]
    return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(response.outputs[0].shape)


async def refused(call, code, words=None):
    with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
        await call
    assert caught.value.code() == code, caught.value.details()


def test_an_image_gets_the_result_of_the_library_raw_or_as_contents(bundle, library, images, pixels):
    expected = library.logits(pixels, [0.7] * 3)

    async def scenario():
        async with serving(bundle) as client:
            for raw in (True, False):
                response = await client.ModelInfer(image_request(images, raw=raw, beta=0.7))
                assert (response.model_name, response.id) == ("cifar10", "order-66")
                assert response.model_version == bundle.manifest.version
                assert response.parameters["beta"].double_param == 0.7
                assert response.parameters["beta_source"].string_param == "request"
                np.testing.assert_allclose(logits(response), expected, atol=1e-4)

    asyncio.run(scenario())


def test_a_strength_as_a_parameter_has_the_beta_of_the_bundle(bundle, library, images, pixels):
    curve = StrengthCurve(betas=[0, 0.6, 1], strengths=[0, 0.5, 1], n=9)
    curved = replace(bundle, manifest=bundle.manifest.model_copy(update={"strength": curve}))
    expected = library.logits(pixels, [0.6] * 3)

    async def scenario():
        async with serving(curved) as client:
            for strength in (0.5, "0.5"):
                response = await client.ModelInfer(image_request(images, strength=strength))
                parameters = response.parameters
                assert (parameters["strength"].double_param, parameters["beta"].double_param) == (0.5, 0.6)
                np.testing.assert_allclose(logits(response), expected, atol=1e-4)
            both = image_request(images, strength=0.5, beta=0.5)
            await refused(client.ModelInfer(both), Code.INVALID_ARGUMENT, "beta and strength exclude each other")
            wrong = image_request(images, strength=2)
            await refused(client.ModelInfer(wrong), Code.INVALID_ARGUMENT, "the strength is 2")

    asyncio.run(scenario())


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff garbage", b"\n\x7fcut short"])
def test_bytes_that_are_no_message_are_an_invalid_argument_of_every_method(bundle, garbage):
    async def scenario():
        async with serving(bundle) as client:
            paths = [f"/{SERVICE.full_name}/{method.name}" for method in SERVICE.methods if not method.client_streaming]
            for path in (*paths, "/grpc.health.v1.Health/Check"):
                words = "the request is not a message of the type (inference|grpc.health.v1)"
                await refused(client.channel.unary_unary(path)(garbage), Code.INVALID_ARGUMENT, words)
            series = {"route": f"/{SERVICE.full_name}/ModelInfer", "method": "RPC", "status": "INVALID_ARGUMENT"}
            assert client.service.metrics.registry.get_sample_value("tureen_requests_total", series) == 1

    asyncio.run(scenario())


def test_bytes_that_are_no_message_fail_alone_in_a_stream(bundle, images):
    async def scenario():
        async with serving(bundle) as client:
            sound = image_request(images[:1]).SerializeToString()
            call = client.channel.stream_stream(f"/{SERVICE.full_name}/ModelStreamInfer")(iter([b"\xff", sound]))
            bad, good = [pb.ModelStreamInferResponse.FromString(data) async for data in call]
            assert "not a message of the type inference.ModelInferRequest" in bad.error_message
            assert (good.error_message, good.infer_response.id) == ("", "order-66")

    asyncio.run(scenario())


def test_mixed_betas_of_pixels_equal_single_requests(bundle, pixels):
    betas = np.array([[0.0], [0.3], [1.0]], np.float32)

    def request(rows):
        request = pb.ModelInferRequest(model_name="cifar10")
        for name, datatype, array in (("pixels", "UINT8", pixels[rows]), ("beta", "FP32", betas[rows])):
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        return request

    async def scenario():
        async with serving(bundle) as client:
            twice = request(slice(0, 3))
            twice.parameters["beta"].double_param = 0.9
            await refused(client.ModelInfer(twice), Code.INVALID_ARGUMENT, "beta is given more than once")
            mixed = await client.ModelInfer(request(slice(0, 3)))
            alone = await asyncio.gather(*(client.ModelInfer(request(slice(i, i + 1))) for i in range(3)))
            assert mixed.parameters["beta"].string_param == "0.0,0.3,1.0"
            # Another batch size sums float32 in another order.
            np.testing.assert_allclose(logits(mixed), np.concatenate([logits(a) for a in alone]), atol=1e-4)

    asyncio.run(scenario())


def test_the_server_describes_itself_and_its_model(bundle, images):
    async def scenario():
        async with serving(bundle) as client:
            assert (await client.ServerLive(pb.ServerLiveRequest())).live
            assert (await client.ServerReady(pb.ServerReadyRequest())).ready
            assert (await client.ModelReady(pb.ModelReadyRequest(name="cifar10"))).ready
            assert not (await client.ModelReady(pb.ModelReadyRequest(name="other"))).ready
            assert (await client.ServerMetadata(pb.ServerMetadataRequest())).name == "tureen"
            metadata = await client.ModelMetadata(pb.ModelMetadataRequest(name="cifar10"))
            assert {i.name: list(i.shape) for i in metadata.inputs}["pixels"] == [-1, 32, 32, 3]
            config = (await client.ModelConfig(pb.ModelConfigRequest(name="cifar10"))).config
            assert (config.max_batch_size, config.input[1].data_type) == (64, pb.TYPE_UINT8)
            assert config.HasField("dynamic_batching")
            index = await client.RepositoryIndex(pb.RepositoryIndexRequest())
            assert [(model.name, model.state) for model in index.models] == [("cifar10", "READY")]
            await client.ModelInfer(image_request(images))
            (stats,) = (await client.ModelStatistics(pb.ModelStatisticsRequest())).model_stats
            assert (stats.inference_count, stats.inference_stats.success.count) == (3, 1)
            assert stats.inference_stats.compute_infer.ns > 0

    asyncio.run(scenario())


def test_errors_have_codes_by_which_a_client_decides_to_retry(bundle, images):
    async def scenario():
        async with serving(bundle, max_requests=1, max_request_bytes=100_000) as client:
            await refused(client.ModelInfer(image_request(images, name="other")), Code.NOT_FOUND, "'cifar10'")
            wrong_version = pb.ModelMetadataRequest(name="cifar10", version="9")
            await refused(client.ModelMetadata(wrong_version), Code.NOT_FOUND)
            await refused(client.ModelInfer(image_request([b"x"])), Code.INVALID_ARGUMENT, "not a JPEG")
            await refused(client.ModelInfer(image_request(images, beta="0,7")), Code.INVALID_ARGUMENT, "β is")
            await refused(client.ModelInfer(image_request([bytes(100_000)])), Code.RESOURCE_EXHAUSTED)
            with client.service.admit():
                await refused(client.ModelInfer(image_request(images)), Code.RESOURCE_EXHAUSTED, "try again")
            await refused(
                client.ModelInfer(image_request(images, timeout=1)), Code.DEADLINE_EXCEEDED, "the deadline passed"
            )
            assert logits(await client.ModelInfer(image_request(images[:1]))).shape == (1, 10)

    asyncio.run(scenario())


def test_before_it_is_ready_the_server_lives_and_refuses(bundle, images):
    async def scenario():
        async with serving(bundle, is_opened=False) as client:
            assert (await client.ServerLive(pb.ServerLiveRequest())).live
            assert not (await client.ServerReady(pb.ServerReadyRequest())).ready
            assert not (await client.ModelReady(pb.ModelReadyRequest(name="cifar10"))).ready
            await refused(client.ModelInfer(image_request(images)), Code.UNAVAILABLE)
            health = health_pb2_grpc.HealthStub(client.channel)
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING

    asyncio.run(scenario())


def test_health_and_metadata_are_served_while_every_permit_is_taken(bundle, images):
    async def scenario():
        async with serving(bundle, max_requests=4) as client:
            with ExitStack() as permits:
                for _ in range(4):
                    permits.enter_context(client.service.admit())
                calls = [client.ModelInfer(image_request(images)) for _ in range(50)]
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
                assert {outcome.code() for outcome in outcomes} == {Code.RESOURCE_EXHAUSTED}
                assert (await client.ServerReady(pb.ServerReadyRequest())).ready
            assert logits(await client.ModelInfer(image_request(images))).shape == (3, 10)

    asyncio.run(scenario())


def test_the_health_service_covers_the_server_and_the_protocol(bundle):
    async def scenario():
        async with serving(bundle) as client:
            health = health_pb2_grpc.HealthStub(client.channel)
            for name in ("", SERVICE.full_name):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            await refused(health.Check(health_pb2.HealthCheckRequest(service="other")), Code.NOT_FOUND)

    asyncio.run(scenario())


def test_a_client_that_gives_up_gives_its_permit_back_and_its_rows_never_run(bundle, encode):
    large = encode(Image.new("L", (5000, 5000)))  # takes about 20 ms to decode

    async def scenario():
        async with serving(bundle, max_requests=1) as client:
            await refused(client.ModelInfer(image_request([large]), timeout=0.005), Code.DEADLINE_EXCEEDED)
            call = client.ModelInfer(image_request([large]))
            while not client.service._permits.taken:
                await asyncio.sleep(0.001)
            call.cancel()
            while client.service._permits.taken:
                await asyncio.sleep(0.001)
            small = encode(Image.new("L", (40, 40)))
            assert logits(await client.ModelInfer(image_request([small]))).shape == (1, 10)
            samples = client.service.metrics.registry.get_sample_value
            assert samples("tureen_batch_images_count") == 1

    asyncio.run(scenario())


def test_a_stream_responds_in_order_and_an_error_affects_one_request_alone(bundle, images):
    requests = [image_request([image], beta=beta) for image, beta in zip(images, (0.0, 7.0, 1.0), strict=True)]

    async def scenario():
        async with serving(bundle) as client:
            responses = [response async for response in client.ModelStreamInfer(iter(requests))]
            assert [bool(response.error_message) for response in responses] == [False, True, False]
            assert "β is 7.0" in responses[1].error_message
            betas = [responses[i].infer_response.parameters["beta"].double_param for i in (0, 2)]
            assert betas == [0.0, 1.0]

    asyncio.run(scenario())


def test_compressed_messages_are_refused_before_they_are_inflated(bundle, images):
    async def scenario():
        async with serving(bundle) as client:
            call = client.ModelInfer(image_request(images * 10), compression=grpc.Compression.Gzip)
            await refused(call, Code.UNIMPLEMENTED)

    asyncio.run(scenario())


def test_an_internal_defect_is_internal_without_details(bundle, images, caplog):
    class Failing:
        def admit(self, images, *, timeout_ms):
            raise KeyError("/etc/passwd")

    async def scenario():
        async with serving(bundle) as client:
            client.service.admit = Failing().admit
            await refused(client.ModelInfer(image_request(images)), Code.INTERNAL, "the server log has the cause")

    asyncio.run(scenario())
    assert any(record.exc_info for record in caplog.records)


def test_every_request_is_logged_and_counted_by_its_route_and_code(bundle, images, caplog):
    caplog.set_level("INFO", logger="tureen.access")
    route = "/inference.GRPCInferenceService/ModelInfer"

    async def scenario():
        async with serving(bundle) as client:
            await client.ModelInfer(image_request(images))
            await refused(client.ModelInfer(image_request([b""])), Code.INVALID_ARGUMENT)
            return client.service.metrics.render()[0].decode()

    text = asyncio.run(scenario())
    assert f'tureen_requests_total{{method="RPC",route="{route}",status="OK"}} 1.0' in text
    assert f'tureen_requests_total{{method="RPC",route="{route}",status="INVALID_ARGUMENT"}} 1.0' in text
    assert 'tureen_rejections_total{code="empty_image"} 1.0' in text
    fields = [record.fields for record in caplog.records if record.name == "tureen.access"]
    assert [(event["route"], event["status"]) for event in fields] == [(route, "OK"), (route, "INVALID_ARGUMENT")]


def test_a_taken_port_is_reported(bundle):
    async def scenario(port):
        settings = Settings(bundle=bundle.path, grpc_port=port)
        await GrpcServer(Service(settings, bundle, Metrics()), Statistics()).open()

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(GrpcPortTakenError, match="choose another --grpc-port"):
            asyncio.run(scenario(taken.getsockname()[1]))
