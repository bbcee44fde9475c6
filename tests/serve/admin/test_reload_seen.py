"""After a reload operators see the model that serves: its default β and what it promises, over every way to ask."""

import json
import os
import signal

import pytest

from serve.commands.beta import format_state
from tests.serve.admin.conftest import Operator
from tests.serve.admin.test_settings_routes import classify, image  # noqa: F401 - a fixture
from tests.serve.inference.test_reload import replace_with
from tureen.bundle.bundle import MANIFEST

PROMISED = {"value": 0.5, "low": 0.4, "high": 0.6}


def seen(server, operator):
    """What each way to ask says of the model: its version, default β, and clean accuracy there."""
    state = operator.ask("GET", "/admin/beta")[2]
    change = {"beta_max": 1.0, "reason": "a test"}
    dry_run = operator.ask("PUT", "/admin/beta?dry_run=true", change, revision=state["revision"])[2]
    page = json.loads(type(server)(None, operator.port, None).ask("GET", "/ui/model")[2])
    public = json.loads(server.ask("GET", "/ui/model")[2])
    clean = {row["beta"]: row["clean"] for row in page["accuracy"]}
    assert dry_run["before"] == dry_run["expected"] == state["expected"]
    assert public["accuracy"] == page["accuracy"]
    assert clean[page["default_beta"]] == state["expected"]["clean"]
    assert page["default_beta"] == state["default_beta"] == dry_run["default_beta"]
    assert page["version"] == state["model"]["version"]
    return state["model"]["version"], state["default_beta"], state["expected"]["clean"]


def replace_with_following(bundle):
    """Put another model there: another version, another default β, other promises."""
    rows = json.loads((bundle / MANIFEST).read_text())["accuracy"]
    beta = rows[1]["beta"]
    replace_with(bundle, version="following", default_beta=beta, accuracy=[{**row, "clean": PROMISED} for row in rows])
    return "following", beta, PROMISED


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_reload_operators_see_the_accuracy_of_the_active_bundle(
    start_server,
    example_bundle,
    tmp_path,
    image,  # noqa: F811
    break_golden_rows,
    workers,
):
    server = start_server("--state-dir", tmp_path / "state", "--workers", workers, bundle=example_bundle)
    server.wait_until_ready(workers)
    operator = Operator(server, tmp_path / "state")
    before = seen(server, operator)
    following = replace_with_following(example_bundle)
    assert seen(server, operator) == before
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: operator.ask("GET", "/admin/beta")[2]["model"]["version"] == "following", "shown")
    assert seen(server, operator) == following
    assert classify(server, image)[1]["beta"] == following[1]
    example_bundle.with_name("before").rename(tmp_path / "first")
    replace_with(example_bundle, version="broken")
    break_golden_rows(example_bundle)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.metric('tureen_reloads_total{outcome="failed"}') == 1, "refused")
    assert seen(server, operator) == following


def test_while_workers_serve_different_models_operators_see_which(
    start_server, run_tureen, example_bundle, tmp_path, monkeypatch
):
    server = start_server("--state-dir", tmp_path / "state", "--workers", 2, bundle=example_bundle)
    server.wait_until_ready(2)
    operator = Operator(server, tmp_path / "state")
    monkeypatch.setenv("TUREEN_ADMIN_URL", operator.url)
    monkeypatch.setenv("TUREEN_ADMIN_TOKEN", operator.token)
    assert "models" not in run_tureen("beta", "get").stdout
    version = operator.ask("GET", "/admin/beta")[2]["model"]["version"]
    replace_with_following(example_bundle)
    os.kill(server.worker_pids()[0], signal.SIGKILL)  # its successor loads what lies there now

    def models():
        return {one["worker"]: one["model"] for one in operator.ask("GET", "/admin/beta")[2]["workers"]}

    server.wait_for(lambda: models() == {0: "cifar10 following", 1: f"cifar10 {version}"}, "two models")
    assert operator.ask("GET", "/admin/beta")[2]["model"]["version"] == version
    (line,) = [line for line in run_tureen("beta", "get").stdout.splitlines() if line.startswith("models")]
    assert "0 serves cifar10 following" in line
    assert f"1 serves cifar10 {version}" in line
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: operator.ask("GET", "/admin/beta")[2]["model"]["version"] == "following", "one model")
    assert "models" not in run_tureen("beta", "get").stdout


def test_the_state_of_a_server_of_an_earlier_version_is_shown(start_server, tmp_path):
    server = start_server("--state-dir", tmp_path / "state")
    server.wait_until_ready()
    state = Operator(server, tmp_path / "state").ask("GET", "/admin/beta")[2]
    for worker in state["workers"]:
        del worker["model"]  # which that version does not send

    assert "workers   0 at 0" in format_state(state)
