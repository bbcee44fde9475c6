"""A header that says who asks, or what is changed, may come once: of two a proxy may read the other one."""

import base64
import contextlib
import http.client
import json

import grpc
import pytest

from serve.oip.proto import inference_pb2 as pb
from tests.ports import free_port
from tests.serve.admin.test_settings_routes import image  # noqa: F401 - a fixture


def ask(port, method, path, body, headers):
    """Status and JSON; headers are pairs, in order."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest(method, path)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def infer(port, body, metadata):
    request = pb.ModelInferRequest(model_name="cifar10")
    request.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(body)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        return call(request, metadata=metadata, timeout=60)


def test_a_duplicate_of_a_single_header_is_refused(start_operated, image):  # noqa: F811
    rpc_port = free_port()
    server, operator = start_operated("--grpc-port", rpc_port)
    server.wait_for(lambda: "gRPC listens" in server.log_file.read_text(), "gRPC")
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(image).decode()]}
    bodies = {"/classify": image, "/sweep": image}
    for name in ("X-API-Key", "X-Request-Key"):
        for path, body in bodies.items():
            status, problem = ask(server.port, "POST", path, body, [(name, "a"), (name.lower(), "a")])
            assert (status, problem["code"]) == (400, "malformed_request")
            assert problem["detail"] == f"the request has {name} 2 times: send it once"
        status, problem = ask(
            server.port,
            "POST",
            "/v2/models/cifar10/infer",
            json.dumps({"inputs": [tensor]}).encode(),
            [(name, "a"), (name, "b")],
        )
        assert (status, problem) == (400, {"error": f"the request has {name} 2 times: send it once"})
        with pytest.raises(grpc.RpcError) as refused:
            infer(rpc_port, image, [(name.lower(), "a"), (name.lower(), "b")])
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert infer(rpc_port, image, [(name.lower(), "a")]).model_name == "cifar10"
    token = ("Authorization", f"Bearer {operator.token}")
    change = json.dumps({"default_beta": 0.1, "reason": "a test"}).encode()
    for headers in ([token, token], [token, ("If-Match", '"0"'), ("If-Match", '"1"')]):
        status, problem = ask(operator.port, "PUT", "/admin/beta", change, headers)
        assert (status, problem["code"]) == (400, "malformed_request")
    assert operator.ask("GET", "/admin/beta")[2]["revision"] == 0
