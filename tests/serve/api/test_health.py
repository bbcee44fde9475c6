"""The routes for load balancers and monitoring."""

import pytest
from starlette.testclient import TestClient

from serve.api.app import create_app
from serve.inference.service import Service
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tests.serve.api.test_app import is_problem, serving
from tureen.bundle.bundle import load_bundle


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({}, 200),
        ({"host": "0.0.0.0"}, 404),
        ({"host": "0.0.0.0", "public_metrics": True}, 200),
        ({"public_metrics": False}, 404),
    ],
)
def test_metrics_are_public_on_loopback(bundle_path, options, status):
    with serving(bundle_path, **options) as client:
        assert client.get("/metrics").status_code == status


def test_before_it_is_ready_the_server_reports_that_it_lives(bundle_path, digit_png):
    service = Service(Settings(bundle=bundle_path), load_bundle(bundle_path), Metrics())
    client = TestClient(create_app(service))  # without `with`, so that the engine is never opened
    assert client.get("/healthz").status_code == 200
    for response in (client.get("/readyz"), client.post("/classify", content=digit_png(0))):
        is_problem(response, 503, "not_ready")
        assert "retry-after" in response.headers
    assert "tureen_ready 0.0" in client.get("/metrics").text
