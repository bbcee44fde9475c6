"""The public HTTP application in one process: its responses, and a 4xx with a stable code for every wrong input."""

import io
import json
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from serve.api.app import create_app
from serve.http.problems import MEDIA_TYPE, PROBLEM_TYPES
from serve.inference.service import Service
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tureen.bundle.bundle import load_bundle

PNG = {"content-type": "image/png"}


def serving(bundle_path, **changes):
    options = Settings(bundle=bundle_path, engine="onnxruntime", max_batch=8, **changes)
    return TestClient(create_app(Service(options, load_bundle(bundle_path), Metrics())), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(bundle_path):
    with serving(bundle_path) as client:
        yield client


def is_problem(response, status, code):
    body = response.json()
    assert (response.status_code, body["code"]) == (status, code), body
    assert response.headers["content-type"] == MEDIA_TYPE
    assert body["status"] == status
    assert set(body) == {"type", "title", "status", "code", "detail"}
    assert not re.search("0x[0-9a-f]{6}", response.text)  # the address of an object
    for leak in ("PIL", "Traceback", ".py", "/work", "site-packages", "object at"):
        assert leak not in response.text
    return body


def test_a_digit_is_classified_at_the_beta_of_the_request(client, digit_png, held_out):
    response = client.post("/classify?beta=0.7&top_k=3", content=digit_png(0), headers=PNG)
    assert response.status_code == 200
    answer = response.json()
    assert (answer["model"], answer["beta"], answer["beta_source"], answer["revision"]) == ("digits", 0.7, "request", 0)
    assert len(answer["predictions"]) == 3
    assert answer["predictions"][0]["index"] == held_out.labels[0]
    assert [part.split(";")[0] for part in response.headers["server-timing"].split(", ")] == [
        "decode",
        "queue",
        "inference",
    ]


@pytest.mark.parametrize(
    ("query", "beta", "source"),
    [("", 0, "bundle"), ("?beta=clean", 0, "request"), ("?beta=robust", 1, "request"), ("?beta=1e-1", 0.1, "request")],
)
def test_which_beta_and_whose(client, digit_png, query, beta, source):
    answer = client.post(f"/classify{query}", content=digit_png(0)).json()
    assert (answer["beta"], answer["beta_source"]) == (beta, source)
    assert len(answer["predictions"]) == 5


def test_the_operator_default_precedes_that_of_the_bundle(bundle_path, digit_png):
    with serving(bundle_path, default_beta=0.4) as client:
        answer = client.post("/classify", content=digit_png(0)).json()
        assert (answer["beta"], answer["beta_source"]) == (0.4, "operator")
        assert client.post("/classify?beta=0", content=digit_png(0)).json()["beta"] == 0


def test_the_result_over_http_equals_that_of_the_library(client, soup, digit_png):
    for index, beta in enumerate([0, 0.25, 0.5, 0.75, 1]):
        (expected,) = soup.classify([digit_png(index)], beta=beta)
        found = client.post(f"/classify?beta={beta}", content=digit_png(index)).json()["predictions"]
        assert [p["index"] for p in found] == [p.index for p in expected.predictions]
        # Another batch size sums in another order.
        assert [p["probability"] for p in found] == pytest.approx(
            [p.probability for p in expected.predictions], abs=1e-5
        )


def test_a_multipart_form_carries_the_image(client, digit_png):
    raw = client.post("/classify", content=digit_png(1)).json()
    assert client.post("/classify", files={"image": ("7.png", digit_png(1), "image/png")}).json() == raw
    assert client.post("/classify", files={"image": (None, digit_png(1))}).json() == raw


@pytest.mark.parametrize(
    "beta", ["nan", "inf", "-inf", "1e309", "2", "-0.1", "abc", "", "0,7", "true", "null", "٠", "1" * 500, "%00", "🙂"]
)
def test_an_invalid_beta_is_refused(client, digit_png, beta):
    body = is_problem(client.post("/classify", params={"beta": beta}, content=digit_png(0)), 422, "invalid_beta")
    assert len(body["detail"]) < 200


@pytest.mark.parametrize(
    "query",
    [
        "beta=0.5&beta=0.5",
        "beta=0&beta=1",
        "top_k=1&top_k=2",
        "top_k=0",
        "top_k=-1",
        "top_k=1.5",
        "top_k=1001",
        "top_k=x",
        "top_k=",
        "top_k=" + "9" * 5000,
        "betta=1",
        "Beta=1",
        "beta=1&x",
        "=1",
    ],
)
def test_an_unknown_parameter_is_refused(client, digit_png, query):
    is_problem(client.post(f"/classify?{query}", content=digit_png(0)), 422, "invalid_parameter")


def test_top_k_beyond_the_labels_gives_all_of_them(client, digit_png):
    assert len(client.post("/classify?top_k=1000", content=digit_png(0)).json()["predictions"]) == 10


def bomb():
    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(10_000))), (b"IEND", b"")]
    )


def test_a_body_that_is_no_image_is_refused(client, digit_png, encode, photograph):
    wrong = {
        "empty": (b"", 400, "empty_image"),
        "a text file named .jpg": (b"hello, I am a text", 415, "unsupported_image_type"),
        "half a PNG": (digit_png(0)[: len(digit_png(0)) // 2], 400, "undecodable_image"),
        "half a JPEG": (encode(photograph, "JPEG")[:400], 400, "undecodable_image"),
        "a bomb": (bomb(), 413, "image_too_large"),
        "a GIF": (encode(photograph.convert("P"), "GIF"), 415, "unsupported_image_type"),
        "a TIFF": (encode(photograph, "TIFF"), 415, "unsupported_image_type"),
        "JSON": (b'{"image": "..."}', 415, "unsupported_image_type"),
    }
    for name, (body, status, code) in wrong.items():
        for answer in (
            client.post("/classify", content=body, headers={"content-type": "image/jpeg"}),
            client.post("/classify", files={"image": ("photo.jpg", body, "image/jpeg")}),
        ):
            assert is_problem(answer, status, code), name


def test_odd_images_are_classified(client, encode, photograph):
    palette = photograph.convert("P")
    odd = {
        "1×1": encode(Image.new("RGB", (1, 1))),
        "CMYK": encode(photograph.convert("CMYK"), "JPEG"),
        "16-bit": encode(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)),
        "palette with alpha": encode(palette, transparency=0),
        "RGBA": encode(photograph.convert("RGBA")),
        "1 bit": encode(photograph.convert("1")),
        "WebP": encode(photograph, "WEBP"),
        "65535 × 1": encode(Image.new("L", (65_535, 1))),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        odd[f"EXIF {orientation}"] = encode(photograph, "JPEG", exif=exif)
    for name, body in odd.items():
        response = client.post("/classify?beta=0.5", content=body)
        assert response.status_code == 200, (name, response.text)
        assert sum(p["probability"] for p in response.json()["predictions"]) <= 1 + 1e-6


def test_the_declared_type_must_be_an_image(client, digit_png):
    for media_type in ("text/plain", "application/xml", "image/gif", "image/svg+xml", "application/pickle"):
        response = client.post("/classify", content=digit_png(0), headers={"content-type": media_type})
        assert "Content-Type" in is_problem(response, 415, "unsupported_image_type")["detail"]
    for media_type in ("IMAGE/PNG", "image/jpeg; q=1", "application/octet-stream", "application/x-www-form-urlencoded"):
        assert client.post("/classify", content=digit_png(0), headers={"content-type": media_type}).status_code == 200


def test_a_compressed_body_is_refused(client, digit_png):
    response = client.post("/classify", content=digit_png(0), headers={"content-encoding": "gzip"})
    is_problem(response, 415, "unsupported_image_type")


def test_a_form_holds_images_and_their_betas_and_nothing_else(client, digit_png):
    image = ("7.png", digit_png(0), "image/png")
    for files in (
        [("file", image)],
        [("image", image), ("top_k", (None, b"1"))],
        [("beta", (None, b"1"))],
        [("image", image), ("image", image), ("beta", (None, b"1"))],
    ):
        is_problem(client.post("/classify", files=files), 422, "invalid_parameter")
    files = [("image", image), ("beta", (None, b"2"))]
    is_problem(client.post("/classify", files=files), 422, "invalid_beta")
    part = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
    for body, status, code in (
        (part + digit_png(0), 400, "malformed_form"),  # without an end
        (part + digit_png(0) + b"\r\n--x\r\nContent-Disp", 400, "malformed_form"),  # with an end within the second part
        ((part + b"1\r\n") * 100_000 + b"--x--\r\n", 422, "invalid_parameter"),
    ):
        response = client.post("/classify", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
        is_problem(response, status, code)
    for content_type in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=other",
    ):
        response = client.post("/classify", content=b"--x\r\n", headers={"content-type": content_type})
        is_problem(response, 400, "malformed_form")


def test_bytes_and_pixels_have_limits_that_are_settings(bundle_path, encode, photograph, digit_png):
    big = encode(photograph.resize((300, 300)), "PNG", compress_level=0)
    with serving(bundle_path, max_image_bytes=2000, max_image_pixels=1000) as client:
        is_problem(client.post("/classify", content=big), 413, "image_too_large")
        is_problem(client.post("/classify", files={"image": big}), 413, "image_too_large")
        is_problem(client.post("/classify", content=iter([big[:1500], big[1500:]])), 413, "image_too_large")
        body = is_problem(
            client.post("/classify", content=encode(photograph, "JPEG", quality=5)), 413, "image_too_large"
        )
        assert "1,000 pixels" in body["detail"]
        assert client.post("/classify", content=digit_png(0)).status_code == 200


def test_a_request_beyond_the_permits_gets_a_retry_after(bundle_path, digit_png):
    with serving(bundle_path, max_requests=1) as client:
        service = client.app.state.service
        with service.admit():
            response = client.post("/classify", content=digit_png(0))
            is_problem(response, 429, "overloaded")
            assert int(response.headers["retry-after"]) >= 1
        assert client.post("/classify", content=digit_png(0)).status_code == 200


def test_a_late_result_is_a_504(bundle_path, encode):
    large = encode(Image.new("L", (4000, 4000)))  # takes about 10 ms to decode
    with serving(bundle_path, timeout_ms=1) as client:
        is_problem(client.post("/classify", content=large), 504, "deadline_exceeded")


def test_unknown_paths_and_methods_are_problems(client):
    is_problem(client.get("/nothing/here"), 404, "not_found")
    is_problem(client.post("/classify/", follow_redirects=False), 404, "not_found")
    is_problem(client.get("/docs/static/nothing.js"), 404, "not_found")
    response = client.get("/classify")
    is_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


class Failing:
    name, precision, version = "onnxruntime", "fp32", "0"

    def run(self, pixels, tokens):
        raise RuntimeError("CUDA error at /usr/lib/libfoo.so 0x7f")

    def close(self):
        pass


def test_a_failing_engine_is_a_500_without_internal_details(bundle_path, digit_png):
    with serving(bundle_path) as client:
        soup = client.app.state.service.model.soup
        sound, soup.engine = soup.engine, Failing()
        is_problem(client.post("/classify", content=digit_png(0)), 500, "inference_failed")
        soup.engine = sound
        assert client.post("/classify", content=digit_png(0)).status_code == 200


def test_an_internal_defect_is_a_500_with_an_id_that_the_log_has_too(bundle_path, caplog):
    with serving(bundle_path) as client:

        @client.app.get("/defect")
        async def defect():
            raise KeyError("/etc/passwd")

        response = client.get("/defect", headers={"x-request-id": "find-me"})
        is_problem(response, 500, "internal_error")
        assert "passwd" not in response.text
        assert response.headers["x-request-id"] == "find-me"
        assert 'route="/defect",status="500"' in client.get("/metrics").text
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.fields == {"request_id": "find-me"}


def test_metrics_count_requests(bundle_path, digit_png):
    with serving(bundle_path) as client:
        for beta in ("clean", "robust", "0.5", "0.123456"):
            client.post(f"/classify?beta={beta}", content=digit_png(0))
        client.post("/classify", content=digit_png(0))
        client.post("/classify?beta=2", content=digit_png(0))
        text = client.get("/metrics").text
    assert 'tureen_requests_total{method="POST",route="/classify",status="200"} 5.0' in text
    assert 'tureen_classifications_total{beta="below 0.25",beta_source="request"} 1.0' in text
    assert 'tureen_classifications_total{beta="below 0.75",beta_source="request"} 1.0' in text
    assert 'tureen_classifications_total{beta="0",beta_source="bundle"} 1.0' in text
    assert 'tureen_rejections_total{code="invalid_beta"} 1.0' in text
    assert 'tureen_stage_seconds_count{stage="inference"} 5.0' in text
    assert "tureen_batch_images_count 5.0" in text
    assert "tureen_ready 1.0" in text
    assert 'engine="onnxruntime"' in text
    assert "0.123456" not in text  # a raw β is never a label


def test_every_response_has_an_id_and_keeps_a_valid_one(client, digit_png):
    assert len(client.get("/healthz").headers["x-request-id"]) == 16
    given = client.post("/classify", content=digit_png(0), headers={"x-request-id": "order-66"})
    assert given.headers["x-request-id"] == "order-66"
    assert client.get("/nothing", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"


def test_one_structured_log_event_a_request(client, digit_png, caplog):
    caplog.set_level("INFO", logger="tureen.access")
    client.post("/classify?beta=0.5", content=digit_png(0), headers={"x-request-id": "mine"})
    client.get("/healthz")
    (record,) = [record for record in caplog.records if record.name == "tureen.access"]
    assert record.fields["request_id"] == "mine"
    assert (record.fields["route"], record.fields["status"], record.fields["beta"]) == ("/classify", 200, 0.5)
    assert {"decode", "queue", "inference", "ms"} <= set(record.fields)


def test_openapi_has_every_status_of_the_table(client):
    schema = client.get("/openapi.json").json()
    classify = schema["paths"]["/classify"]["post"]
    assert {str(kind.status) for kind in PROBLEM_TYPES.values()} | {"200"} == set(classify["responses"])
    assert {parameter["name"] for parameter in classify["parameters"]} == {
        "beta",
        "strength",
        "token",
        "mix",
        "normalize",
        "policy",
        "top_k",
        "timeout_ms",
    }
    assert all(list(r["content"]) == [MEDIA_TYPE] for status, r in classify["responses"].items() if status != "200")
    assert "multipart/form-data" in classify["requestBody"]["content"]
    json.dumps(schema)


@settings(max_examples=200)
@given(body=st.binary(max_size=200), query=st.text(max_size=30), content_type=st.text(max_size=30))
def test_no_request_is_a_500(client, body, query, content_type):
    headers = {"content-type": content_type.encode("utf-8", "ignore").replace(b"\r", b"").replace(b"\n", b"")}
    response = client.post("/classify", params={"beta": query}, content=body, headers=headers)
    assert 400 <= response.status_code < 500
    is_problem(response, response.status_code, response.json()["code"])


def test_a_png_cut_anywhere_is_a_4xx(client, digit_png):
    data = digit_png(0)
    for length in range(0, len(data) - 30, 7):
        assert client.post("/classify", content=io.BytesIO(data[:length]).read()).status_code in (400, 415)
