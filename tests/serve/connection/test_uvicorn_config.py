import pytest
from uvicorn.lifespan.off import LifespanOff
from uvicorn.lifespan.on import LifespanOn

from serve.connection.http_connection import HttpConnection
from serve.connection.uvicorn_config import uvicorn_config
from serve.limits import ConnectionLimits
from serve.telemetry.metrics import Metrics


async def app(scope, receive, send):
    pass


def config(*, has_lifespan=False, limits=None):
    return uvicorn_config(
        app,
        limits=limits or ConnectionLimits(),
        check_admission=lambda method, path: None,
        metrics=Metrics(),
        has_lifespan=has_lifespan,
        keep_alive_s=7,
        drain_timeout_s=11,
    )


def test_uvicorn_adds_no_header_no_log_and_no_websockets():
    loaded = config()
    loaded.load()
    assert loaded.loaded_app is app  # no middleware that believes X-Forwarded-For
    assert loaded.ws_protocol_class is None
    assert [value for name, value in loaded.encoded_headers if name == b"server"] == []
    assert not loaded.access_log
    assert loaded.log_config is None
    assert (loaded.timeout_keep_alive, loaded.timeout_graceful_shutdown) == (7, 11)


@pytest.mark.parametrize(("has_lifespan", "lifespan"), [(True, LifespanOn), (False, LifespanOff)])
def test_an_application_gets_lifespan_events_only_if_it_handles_them(has_lifespan, lifespan):
    loaded = config(has_lifespan=has_lifespan)
    loaded.load()
    assert loaded.lifespan_class is lifespan


def test_each_server_has_its_own_limits_and_counts_its_own_connections():
    strict = config(limits=ConnectionLimits(max_connections=1)).http
    usual = config().http
    assert issubclass(strict, HttpConnection)
    assert (strict.limits.max_connections, usual.limits.max_connections) == (1, ConnectionLimits().max_connections)
    assert strict.probes is not usual.probes
    assert strict.surplus is not usual.surplus
    assert strict.probes is not strict.surplus
