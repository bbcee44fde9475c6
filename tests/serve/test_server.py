"""The server as a process: start, readiness, SIGTERM, and what it says when it cannot start."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from PIL import Image

from tests.patience import DEADLINE_S
from tests.ports import free_port
from tureen.bundle.bundle import GOLDEN, MANIFEST, load_bundle, record_files


@contextmanager
def process(*arguments):
    server = subprocess.Popen(
        [sys.executable, "-m", "tureen.cli", "serve", *map(str, arguments)], stderr=subprocess.PIPE, text=True
    )
    try:
        yield server
    finally:
        server.kill()
        server.communicate()


def request(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def wait_until_ready(server, port):
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        assert server.poll() is None, server.stderr.read()
        try:
            if request(port, "GET", "/readyz")[0] == 200:
                return
        except ConnectionRefusedError:
            pass
        time.sleep(0.05)
    raise AssertionError("not ready in time")


def test_sigterm_completes_accepted_requests_and_exits_with_0(bundle_path, encode):
    port = free_port()
    slow = encode(Image.new("L", (2000, 2000)))  # they are decoded one at a time, so that many are in flight
    count = 24
    patient = ("--max-queue-ms", 60_000, "--timeout-ms", 60_000, "--drain-timeout-s", 60)  # none is refused or late
    with (
        process(bundle_path, "--port", port, "--engine", "onnxruntime", *patient) as server,
        ThreadPoolExecutor(count) as clients,
    ):
        wait_until_ready(server, port)
        answers = [clients.submit(request, port, "POST", f"/classify?beta={i / count}", slow) for i in range(count)]
        deadline = time.monotonic() + DEADLINE_S
        while f"tureen_requests_in_flight {count}.0" not in request(port, "GET", "/metrics")[1].decode():
            done = sum(answer.done() for answer in answers)
            assert time.monotonic() < deadline
            if done:  # too fast to be all in flight at the same time: SIGTERM arrives during the others
                break
        server.send_signal(signal.SIGTERM)
        for i, answer in enumerate(answers):
            status, body = answer.result()
            assert status == 200
            assert json.loads(body)["beta"] == i / count
        assert server.wait(DEADLINE_S) == 0
        with pytest.raises(ConnectionRefusedError):
            request(port, "GET", "/healthz")


def test_a_request_that_never_ends_is_given_up_after_the_drain_timeout(bundle_path):
    port = free_port()
    with process(bundle_path, "--port", port, "--drain-timeout-s", 1) as server:
        wait_until_ready(server, port)
        with socket.create_connection(("127.0.0.1", port)) as stuck:
            stuck.sendall(
                b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999\r\n\r\n" + b"a" * 200_000
            )
            while "tureen_body_bytes 0.0" in request(port, "GET", "/metrics")[1].decode():
                time.sleep(0.01)
            server.send_signal(signal.SIGTERM)
            server.send_signal(signal.SIGTERM)  # a second signal does not change the exit status
            answer = stuck.makefile("rb").read()
            assert server.wait(DEADLINE_S / 3) == 0  # well before the 30 s that are the default
    assert answer.startswith(b"HTTP/1.1 503")
    assert b'"code":"shutting_down"' in answer


def test_a_request_that_has_hardly_begun_does_not_delay_the_drain(bundle_path):
    port = free_port()
    with process(bundle_path, "--port", port, "--drain-timeout-s", 1) as server:
        wait_until_ready(server, port)
        with socket.create_connection(("127.0.0.1", port)) as stuck:
            stuck.sendall(b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\nhalf")
            time.sleep(0.1)
            server.send_signal(signal.SIGTERM)
            assert server.wait(DEADLINE_S / 3) == 0
            assert stuck.makefile("rb").read() == b""


def test_a_slow_body_gets_408_and_returns_its_permit(bundle_path, digit_png):
    port = free_port()
    with process(bundle_path, "--port", port, "--timeout-ms", 300, "--max-requests", 1) as server:
        wait_until_ready(server, port)
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(
                b"POST /classify HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 100\r\n\r\nhalf"
            )
            assert slow.makefile("rb").readline() == b"HTTP/1.1 408 Request Timeout\r\n"
        assert request(port, "POST", "/classify", digit_png(0))[0] == 200


def test_head_gets_the_response_of_get_without_its_body(bundle_path):
    port = free_port()
    with process(bundle_path, "--port", port) as server:
        wait_until_ready(server, port)
        for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/ui", "/v2", "/v2/health/ready"):
            assert request(port, "HEAD", path) == (200, b"")
        assert request(port, "HEAD", "/classify")[0] == 405
        assert request(port, "HEAD", "/nowhere")[0] == 404


def test_a_page_whose_name_was_rebound_to_loopback_is_refused(bundle_path):
    port = free_port()
    with process(bundle_path, "--port", port) as server:
        wait_until_ready(server, port)
        with socket.create_connection(("127.0.0.1", port)) as page:
            page.sendall(b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n")
            assert page.makefile("rb").readline() == b"HTTP/1.1 421 Misdirected Request\r\n"


def test_every_log_line_is_json(bundle_path, digit_png, encode):
    port = free_port()
    with process(bundle_path, "--port", port) as server:
        wait_until_ready(server, port)
        assert request(port, "POST", "/classify?beta=0.2", digit_png(0))[0] == 200
        damaged_exif = encode(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
        assert request(port, "POST", "/classify", damaged_exif)[0] == 200
        server.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in server.communicate(timeout=DEADLINE_S)[1].splitlines()]
        assert server.returncode == 0
    assert any(line["message"].startswith("ready: digits") for line in lines)
    access = [line for line in lines if line.get("route") == "/classify"]
    assert [line["beta"] for line in access] == [0.2, 0]


def test_an_engine_that_fails_its_golden_rows_never_serves(own_bundle):
    """A bundle whose golden rows are not this model's: hashes are right, answers are not."""
    golden = load_bundle(own_bundle).golden
    golden.logits[0, 0, 0] += 1
    (own_bundle / GOLDEN).write_bytes(golden.to_bytes())
    manifest = json.loads((own_bundle / MANIFEST).read_text())
    manifest["files"][GOLDEN] = record_files({GOLDEN: golden.to_bytes()})[GOLDEN].model_dump()
    (own_bundle / MANIFEST).write_text(json.dumps(manifest))
    with process(own_bundle, "--port", free_port()) as server:
        log = server.communicate(timeout=DEADLINE_S)[1]
    assert server.returncode == 1
    assert "does not reproduce the golden rows" in log
    assert "Traceback" not in log


def test_a_taken_port_is_an_error_and_not_a_hang(bundle_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with process(bundle_path, "--port", taken.getsockname()[1]) as server:
            log = server.communicate(timeout=DEADLINE_S)[1]
    assert server.returncode == 1
    assert "address already in use" in log.lower()
    assert "golden rows" not in log


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_batches_on_two_streams_give_every_request_its_result(bundle_path, engine, digit_png, soup):
    port = free_port()
    images = [digit_png(index) for index in range(48)]
    betas = [index / 47 for index in range(48)]
    flags = ("--port", port, "--engine", engine, "--precision", "fp32", "--threads", 2, "--streams", 2)
    with process(bundle_path, *flags, "--max-batch", 4) as server, ThreadPoolExecutor(16) as clients:
        wait_until_ready(server, port)
        paths = [f"/classify?beta={beta}&top_k=10" for beta in betas]
        answers = list(clients.map(lambda path, image: request(port, "POST", path, image), paths, images))
    expected = soup.classify(images, betas, top_k=10)
    for (status, body), classification in zip(answers, expected, strict=True):
        assert status == 200
        served = {p["label"]: p["probability"] for p in json.loads(body)["predictions"]}
        # Another engine sums float32 in another order.
        assert served == pytest.approx({p.label: p.probability for p in classification.predictions}, abs=1e-4)


def test_a_user_without_home_and_passwd_entry_is_served_by_the_engine_that_can_be_imported(
    start_server, without_capabilities, tmp_path
):
    broken = tmp_path / "broken"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (broken / "openvino").mkdir(parents=True)
    (broken / "openvino" / "__init__.py").write_text("raise RuntimeError('no home directory')\n")
    paths = os.pathsep.join(filter(None, [str(broken), os.environ.get("PYTHONPATH")]))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": paths, "TMPDIR": str(temporary)}
    server = start_server("--admin-port", 0, engine="auto", before=without_capabilities, env=environment)
    server.wait_until_ready()
    left_out = [line["message"] for line in server.log() if line["message"].startswith("engine left out")]
    assert left_out
    assert all("openvino is installed and its import fails: RuntimeError: no home directory" in m for m in left_out)
    (warning,) = [line["message"] for line in server.log() if "--state-dir" in line["message"]]
    assert str(temporary) in warning
    assert server.end() == 0
    assert list(temporary.iterdir()) == []
