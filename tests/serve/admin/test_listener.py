"""The application of the operators' listener, and the uvicorn server that runs it, in the process of the test."""

import asyncio
import signal
import socket

import httpx2
import pytest

from serve.admin.listener import AdminListener, create_admin_app
from serve.control.revision_store import open_store
from serve.control.state_directory import TOKEN_FILE
from serve.errors import AdminListenerError, BrokenHistoryError, ControlStoreError
from serve.http.problems import MEDIA_TYPE
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tests.serve.admin.opened import Workers, opened
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES

SECRET = "/srv/secret/control.db"


class FailingOperations:
    """Operations whose search for a credential fails."""

    def __init__(self, error):
        self.error = error
        self.metrics = Metrics()

    async def find_credential(self, secret):
        raise self.error


def client_of(app, **headers):
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://admin", headers=headers)


@pytest.mark.parametrize(
    ("error", "status", "code", "detail"),
    [
        (ControlStoreError(SECRET), 503, "store_unreachable", "the last known settings stay in force"),
        (AdminListenerError(SECRET), 503, "no_credential", "other machines reach this address"),
        (BrokenHistoryError(3, "its hash is wrong"), 500, "history_broken", "its hash is wrong"),
    ],
)
def test_the_message_of_an_error_that_names_the_store_stays_in_the_log(error, status, code, detail):
    async def run():
        async with client_of(create_admin_app(FailingOperations(error)), Authorization="Bearer x") as client:
            response = await client.get("/admin/beta")
        assert (response.status_code, response.headers["content-type"]) == (status, MEDIA_TYPE)
        assert response.json()["code"] == code
        assert detail in response.json()["detail"]
        assert SECRET not in response.text

    asyncio.run(run())


def test_every_route_with_settings_metrics_or_jobs_requires_a_token(tmp_path):
    async def run():
        async with opened(tmp_path, Workers()) as operations:
            app = create_admin_app(operations)
            paths = app.openapi()["paths"]
            assert {"/admin/beta", "/metrics", "/jobs"} <= paths.keys()
            async with client_of(app) as client:
                for path, methods in paths.items():
                    for method in methods:
                        response = await client.request(method, path)
                        assert (response.status_code, response.json()["code"]) == (401, "unauthorized"), path

    asyncio.run(run())


def test_an_unknown_path_or_method_and_a_wrong_query_are_problems_with_a_code(tmp_path):
    async def run():
        async with opened(tmp_path, Workers()) as operations:
            token = (tmp_path / "state" / TOKEN_FILE).read_text().strip()
            async with client_of(create_admin_app(operations), Authorization=f"Bearer {token}") as client:
                for method, path, status, code in (
                    ("GET", "/none", 404, "not_found"),
                    ("GET", "/docs", 404, "not_found"),
                    ("GET", "/admin/beta/", 404, "not_found"),
                    ("PATCH", "/admin/beta", 405, "method_not_allowed"),
                    ("GET", "/admin/beta?after=x", 422, "invalid_parameter"),
                ):
                    response = await client.request(method, path)
                    assert (response.status_code, response.json()["code"]) == (status, code), path
                    assert response.headers["content-type"] == MEDIA_TYPE
                assert response.json()["detail"] == "the parameter after has an invalid value"

    asyncio.run(run())


def test_the_metrics_are_those_of_the_server(tmp_path):
    async def run():
        async with opened(tmp_path, Workers()) as operations:
            operations.metrics.in_flight.set(7)
            token = (tmp_path / "state" / TOKEN_FILE).read_text().strip()
            async with client_of(create_admin_app(operations), Authorization=f"Bearer {token}") as client:
                response = await client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        assert "\ntureen_requests_in_flight 7.0\n" in response.text

    asyncio.run(run())


def test_an_open_listener_serves_until_it_is_closed_and_leaves_the_signals(tmp_path):
    async def run():
        settings = Settings(bundle=EXAMPLES / "cifar10", state_dir=tmp_path / "state")
        manifest = load_bundle(settings.bundle).manifest
        store, workers, handler = open_store(settings, manifest.name), Workers(), signal.getsignal(signal.SIGTERM)
        with socket.create_server(("127.0.0.1", 0)) as bound:
            url = f"http://127.0.0.1:{bound.getsockname()[1]}"
            listener = await AdminListener.open(
                settings,
                manifest,
                store,
                bound,
                Metrics(),
                apply=workers.apply,
                workers=lambda: workers.states,
                check_token=workers.check_token,
            )
            assert set(workers.sent) == {(0, True)}
            token = (tmp_path / "state" / TOKEN_FILE).read_text().strip()
            listener.show_model(manifest.model_copy(update={"version": "another"}))
            async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as client:
                state = (await client.get(f"{url}/admin/beta")).json()
                foreign = await client.get(f"{url}/admin/beta", headers={"Host": "evil.example"})
                assert signal.getsignal(signal.SIGTERM) is handler
                await listener.close()
                with pytest.raises(httpx2.ConnectError):
                    await client.get(f"{url}/admin/beta")
        assert (state["revision"], state["model"]["version"]) == (0, "another")
        assert (foreign.status_code, foreign.json()["code"]) == (421, "untrusted_host")

    asyncio.run(run())
