import asyncio
import json
import logging

import pytest

from serve.errors import NotReadyError, SlowBodyError
from serve.http.problems import problem_type_of
from serve.http.request_log import RequestLogMiddleware, access_fields, arrived_s, request_id_of, set_refusal
from serve.telemetry.metrics import Metrics


def scope(path="/classify", **headers):
    names = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": path, "headers": names}


def respond(status):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


def run(app, scope, metrics=None):
    """The ASGI messages of the response."""
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(RequestLogMiddleware(app, metrics or Metrics())(scope, None, send))
    return sent


def counted(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels) or 0


@pytest.mark.parametrize("request_id", ["a", "0b-7_X.y", "x" * 64])
def test_a_valid_request_id_of_the_client_is_kept(request_id):
    start, _ = run(respond(200), scope(x_request_id=request_id))
    assert (b"x-request-id", request_id.encode()) in start["headers"]


@pytest.mark.parametrize("request_id", ["", "x" * 65, "a b", "é", "a\n"])
def test_another_request_id_is_replaced(request_id):
    generated = request_id_of(scope(x_request_id=request_id))
    assert generated != request_id
    assert len(generated) == 16


def test_the_id_and_the_arrival_of_a_request_stay_the_same():
    request = scope()
    assert request_id_of(request) == request_id_of(request)
    assert arrived_s(request) == arrived_s(request)


def test_a_request_is_counted_and_logged_once_with_its_fields(caplog):
    metrics, request = Metrics(), scope()
    access_fields(request).update(route="/classify", beta=0.5)
    with caplog.at_level(logging.INFO, "tureen.access"):
        run(respond(200), request, metrics)
    assert counted(metrics, "tureen_requests_total", route="/classify", method="POST", status="200") == 1
    (record,) = caplog.records
    assert {"method": "POST", "route": "/classify", "status": 200, "beta": 0.5}.items() <= record.fields.items()
    assert record.fields["request_id"] == request_id_of(request)


def test_probes_are_logged_at_the_level_debug(caplog):
    request = scope("/healthz")
    access_fields(request)["route"] = "/healthz"
    with caplog.at_level(logging.INFO, "tureen.access"):
        run(respond(200), request)
    assert caplog.records == []


def test_an_error_that_the_connection_has_sent_is_the_one_that_is_counted():
    metrics, request = Metrics(), scope()
    set_refusal(request, problem_type_of(SlowBodyError(1, 2)))
    run(respond(200), request, metrics)
    assert counted(metrics, "tureen_requests_total", route="unmatched", method="POST", status="408") == 1
    assert counted(metrics, "tureen_rejections_total", code="body_timeout") == 1


@pytest.mark.parametrize(("path", "key"), [("/classify", "code"), ("/v2/models/m/infer", "error")])
def test_an_unhandled_exception_gives_a_500_without_its_text_and_the_log_has_the_cause(path, key, caplog):
    async def fails(scope, receive, send):
        raise ZeroDivisionError("secret")

    metrics, request = Metrics(), scope(path)
    start, body = run(fails, request, metrics)
    assert start["status"] == 500
    assert key in json.loads(body["body"])
    assert b"secret" not in body["body"]
    assert counted(metrics, "tureen_rejections_total", code="internal_error") == 1
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.fields == {"request_id": request_id_of(request)}


def test_an_exception_after_the_start_of_the_response_is_raised_to_end_the_connection():
    async def fails(scope, receive, send):
        await respond(200)(scope, receive, send)
        raise NotReadyError

    with pytest.raises(NotReadyError):
        run(fails, scope())


def test_a_request_cancelled_by_the_shutdown_gets_a_503():
    async def cancelled(scope, receive, send):
        raise asyncio.CancelledError

    metrics = Metrics()
    start, body = run(cancelled, scope(), metrics)
    assert (start["status"], json.loads(body["body"])["code"]) == (503, "shutting_down")
    assert counted(metrics, "tureen_rejections_total", code="shutting_down") == 1
