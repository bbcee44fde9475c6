"""The server conforms to its OpenAPI for the requests that schemathesis generates, and never fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serve.api.app import TAGS, create_app
from serve.inference.service import Service
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES

HERE = Path(__file__).parent
# A schema cannot describe which bytes are an image, or which string is base64 of one. The server may refuse such data.
BEYOND_A_SCHEMA = "positive_data_acceptance"
# A request with timeout_ms=1 may get 504, which is not a failure of the server.
CONFIGURATION = 'checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "504"]'


def test_every_route_of_the_documentation_is_in_a_group_and_the_inference_protocol_among_them():
    bundle = load_bundle(EXAMPLES / "cifar10")
    app = create_app(Service(Settings(bundle=bundle.path), bundle, Metrics()))
    groups = {}
    for path, methods in app.openapi()["paths"].items():
        for operation in methods.values():
            (tag,) = operation["tags"]
            assert operation["summary"]
            groups.setdefault(tag, set()).add(path)
    assert list(groups) == ["Classify", "Health", "Open Inference Protocol"]
    assert set(groups) == {tag["name"] for tag in TAGS}
    assert {"/classify", "/sweep"} == groups["Classify"]
    assert {"/v2", "/v2/health/ready", "/v2/models/{name}/infer"} <= groups["Open Inference Protocol"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("examples", [7, pytest.param(3000, marks=pytest.mark.slow)])
def test_every_response_matches_the_openapi_document(start_server, tmp_path, examples):
    server = start_server("--log-level", "warning")
    server.wait_until_ready()
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "run", f"http://127.0.0.1:{server.port}/openapi.json"),
        *("--checks", "all", "--exclude-checks", BEYOND_A_SCHEMA, "--workers", "1", "--no-color"),
        *("--max-examples", str(examples), "--seed", "7"),
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "openapi_images", "PYTHONPATH": str(HERE)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    print(result.stdout)
    assert result.returncode == 0
    (cases,) = re.findall(r"(\d+) generated", result.stdout)
    assert int(cases) > (5000 if examples > 1000 else 100)
    assert server.metric('tureen_requests_total{method="POST",route="/classify",status="200"}') > 0
    assert server.process.poll() is None
    assert "unhandled" not in server.log_file.read_text()
