"""Servers that start without their store, and the files of a store: real processes, SQLite and PostgreSQL."""

import contextlib
import json
import os
import shutil
import sqlite3

import pytest
from PIL import Image

from serve.control.credential_store import Credentials
from serve.control.revision_store import RevisionStore
from tests.serve.admin.conftest import Operator
from tests.serve.admin.test_settings_routes import classify, image  # noqa: F401 - a fixture
from tests.serve.inference.test_reload import replace_with
from tureen.bundle.examples import EXAMPLES

UNREACHABLE = (503, "store_unreachable")
REFUSING = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]  # root without its right to write everywhere


@pytest.fixture
def postgres_url(postgres):
    """A PostgreSQL with an empty database, running again after the test."""
    with (
        contextlib.closing(RevisionStore(postgres.url)) as admin,
        admin.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        connection.exec_driver_sql("DROP DATABASE IF EXISTS away")
        connection.exec_driver_sql("CREATE DATABASE away")
    yield f"{postgres.url.rpartition('/')[0]}/away"
    with contextlib.suppress(Exception):
        postgres.start()


def is_kept(state_dir, **settings):
    """Whether the last known settings, on disk, are these."""
    try:
        row = json.loads((state_dir / "last-known.json").read_text())["row"]
    except FileNotFoundError:
        return False
    return settings.items() <= json.loads(row["after"]).items()


def refuses_changes(operator):
    status, _, state = operator.ask("GET", "/admin/beta")
    assert (status, state["store"]["is_reachable"]) == (200, False)
    change = {"default_beta": 0.1, "reason": "a test"}
    status, _, problem = operator.ask("PUT", "/admin/beta", change, revision=state["revision"])
    assert (status, problem["code"]) == UNREACHABLE
    assert "127.0.0.1" not in problem["detail"]
    assert "/" not in problem["detail"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_starts_on_the_last_known_settings_and_follows_postgresql_once_it_is_back(
    start_server,
    postgres,
    postgres_url,
    tmp_path,
    image,  # noqa: F811
    workers,
):
    states = [tmp_path / "first", tmp_path / "second"]
    servers = [start_server("--store", postgres_url, "--state-dir", state) for state in states]
    for server in servers:
        server.wait_until_ready()
    makers = [state for state in states if (state / "admin-token").exists()]
    assert len(makers) == 1  # one of two servers that start together makes the first credential
    operator = Operator(servers[states.index(makers[0])], makers[0])
    operator.change(policies={"uploads": 0.9}, default_beta=0.7)
    status, _, made = operator.ask("PUT", "/admin/keys/ada", {"policy": "uploads", "reason": "r"}, revision=1)
    assert status == 200
    key = made["key"]
    for server, state in zip(servers, states, strict=True):
        server.wait_for(lambda state=state: is_kept(state, default_beta=0.7), "the settings kept")
        server.wait_for(lambda server=server: classify(server, image)[1]["revision"] == 2, "followed")
    for server, state in zip(servers, states, strict=True):
        server.wait_for(
            lambda state=state: json.loads((state / "last-known.json").read_text())["row"]["revision"] == 2, "kept"
        )
        server.end()
    postgres.stop()
    (other,) = set(states) - set(makers)
    server = start_server("--store", postgres_url, "--state-dir", other, "--workers", workers)
    server.wait_until_ready(workers)
    assert server.ask("GET", "/readyz")[0] == 200
    assert server.metric("tureen_control_store_reachable") == 0
    assert "the last known settings stay in force" in server.log_file.read_text()
    assert classify(server, image)[1]["beta"] == 0.7
    assert classify(server, image, x_api_key=key)[1]["beta_source"] == "key"
    assert classify(server, image, x_api_key="wrong")[0] == 401
    shutil.copy(makers[0] / "admin-token", other)
    operator = Operator(server, other)
    refuses_changes(operator)
    assert operator.ask("GET", "/admin/beta", token="wrong")[0] == 401
    postgres.start()
    server.wait_for(lambda: server.metric("tureen_control_store_reachable") == 1, "the store back")
    assert operator.change(default_beta=0.3)["revision"] == 3
    assert classify(server, image)[1]["beta"] == 0.3


def test_a_server_that_never_reached_its_store_starts_on_its_defaults_and_logs_it(
    start_server,
    postgres,
    postgres_url,
    tmp_path,
    image,  # noqa: F811
):
    postgres.stop()
    state = tmp_path / "state"
    server = start_server("--store", postgres_url, "--state-dir", state, "--default-beta", 0.4)
    server.wait_until_ready()
    assert classify(server, image)[1]["beta"] == 0.4
    assert "no settings are known from an earlier start" in server.log_file.read_text()
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody" / "admin-token").write_text("tureen_x")
    status, _, problem = Operator(server, tmp_path / "nobody").ask("GET", "/admin/beta")
    assert (status, problem["code"]) == UNREACHABLE
    postgres.start()
    server.wait_for((state / "admin-token").exists, "the operator's token")
    operator = Operator(server, state)
    server.wait_for(lambda: operator.ask("GET", "/admin/beta")[0] == 200, "the operator let in")
    assert operator.change(default_beta=0.6)["revision"] == 1


def test_a_public_admin_address_refuses_all_until_a_credential_exists(
    start_server, run_tureen, postgres, postgres_url, tmp_path
):
    postgres.stop()
    state = tmp_path / "state"
    server = start_server("--store", postgres_url, "--state-dir", state, "--admin-host", "0.0.0.0")
    server.wait_until_ready()
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody" / "admin-token").write_text("tureen_x")
    operator = Operator(server, tmp_path / "nobody")
    assert operator.ask("GET", "/admin/beta")[0] == 503
    postgres.start()
    server.wait_for(lambda: "no credential was made" in server.log_file.read_text(), "the log says so")
    status, _, problem = operator.ask("GET", "/admin/beta")
    assert (status, problem["code"]) == (503, "no_credential")
    assert not (state / "admin-token").exists()
    made = run_tureen("credentials", EXAMPLES / "cifar10", "--store", postgres_url, "make", "ada")
    assert operator.ask("GET", "/admin/beta", token=made.stdout.strip())[0] == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_whose_state_directory_cannot_be_created_serves_and_logs_it(start_server, tmp_path, image, workers):  # noqa: F811
    (tmp_path / "file").write_text("")
    server = start_server("--state-dir", tmp_path / "file" / "state", "--workers", workers)
    server.wait_until_ready(workers)
    assert classify(server, image)[0] == 200
    assert server.metric("tureen_control_store_reachable") == 0
    assert "cannot be created" in server.log_file.read_text()
    assert "Traceback" not in server.log_file.read_text()


def test_a_server_whose_sqlite_directory_is_read_only_serves_the_last_known_settings(start_operated, tmp_path, image):  # noqa: F811
    server, operator = start_operated()
    operator.change(default_beta=0.7)
    state = tmp_path / "state"
    server.wait_for(lambda: is_kept(state, default_beta=0.7), "the settings kept")
    server.end()
    state.chmod(0o555)
    try:
        prefix = REFUSING if os.geteuid() == 0 else []
        server, operator = start_operated(before=prefix)
        assert classify(server, image)[1]["beta"] == 0.7
        assert server.metric("tureen_control_store_reachable") == 0
        refuses_changes(operator)
        state.chmod(0o755)
        server.wait_for(lambda: server.metric("tureen_control_store_reachable") == 1, "the store back")
        assert operator.change(default_beta=0.3)["default_beta"] == 0.3
    finally:
        state.chmod(0o755)


def test_a_server_whose_database_is_damaged_serves_the_last_known_settings_and_overwrites_nothing(
    start_operated,
    tmp_path,
    image,  # noqa: F811
):
    server, operator = start_operated()
    operator.change(default_beta=0.7)
    state = tmp_path / "state"
    server.wait_for(lambda: is_kept(state, default_beta=0.7), "the settings kept")
    server.end()
    sound = (state / "control.db").read_bytes()
    (state / "control.db").write_bytes(b"no database" * 1000)
    server, operator = start_operated()
    assert classify(server, image)[1]["beta"] == 0.7
    assert "file is not a database" in server.log_file.read_text()
    refuses_changes(operator)
    assert (state / "control.db").read_bytes() == b"no database" * 1000
    (tmp_path / "sound").write_bytes(sound)
    (tmp_path / "sound").replace(state / "control.db")
    server.wait_for(lambda: server.metric("tureen_control_store_reachable") == 1, "the store back")


def test_the_settings_of_a_store_apply_to_another_bundle(start_server, example_bundle, tmp_path, image):  # noqa: F811
    state = tmp_path / "state"
    server = start_server("--state-dir", state, bundle=example_bundle)
    server.wait_until_ready()
    Operator(server, state).change(default_beta=0.7, beta_min=0.5)
    server.end()
    replace_with(example_bundle, name="another", version="1")
    server = start_server("--state-dir", state, bundle=example_bundle)
    server.wait_until_ready()
    answer = classify(server, image)[1]
    assert (answer["model"], answer["beta"], answer["revision"]) == ("another", 0.7, 1)
    names = {path.name.removesuffix("-wal").removesuffix("-shm") for path in state.iterdir()}
    assert names == {"admin-token", "control.db", "last-known.json"}
    modes = {path.name: path.stat().st_mode & 0o777 for path in state.iterdir()}
    assert modes == dict.fromkeys(modes, 0o600)


def as_an_earlier_version(state, model):
    """Rename the files of a state directory as versions did that named them after the model."""
    for side in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            (state / f"control.db{side}").rename(state / f"{model}.db{side}")
    (state / "last-known.json").rename(state / f"{model}.last-known.json")


@pytest.mark.parametrize("model", ["cifar10", "another"])
def test_two_servers_that_start_on_the_files_of_an_earlier_version_take_them_over_once(
    start_server,
    tmp_path,
    image,  # noqa: F811
    model,
):
    state = tmp_path / "state"
    server = start_server("--state-dir", state)
    server.wait_until_ready()
    Operator(server, state).change(default_beta=0.7)
    server.wait_for(lambda: is_kept(state, default_beta=0.7), "the settings kept")
    server.process.kill()  # leaves the change in SQLite's -wal
    server.process.wait()
    assert (state / "control.db-wal").stat().st_size > 0
    as_an_earlier_version(state, model)
    (state / f"{model}.db").chmod(0o644)
    with contextlib.closing(sqlite3.connect(state / "empty.db")) as empty:
        empty.execute("PRAGMA journal_mode=WAL")  # as a server of an earlier version leaves
    servers = [start_server("--state-dir", state) for _ in range(2)]
    for server in servers:
        server.wait_until_ready()
        assert classify(server, image)[1]["beta"] == 0.7
        assert server.metric("tureen_control_store_reachable") == 1
    assert Operator(servers[0], state).change(default_beta=0.6)["revision"] == 2
    logs = "".join(server.log_file.read_text() for server in servers)
    assert logs.count("the store of an earlier version, to control.db") == 1
    assert not list(state.glob(f"{model}.*"))
    assert (state / "control.db").stat().st_mode & 0o777 == 0o600
    with contextlib.closing(RevisionStore(f"sqlite:///{state / 'control.db'}")) as store:
        assert [one.name for one in Credentials(store).all()] == ["local"]


def test_a_store_that_a_server_of_an_earlier_version_still_uses_is_waited_for(start_server, tmp_path, image):  # noqa: F811
    state = tmp_path / "state"
    server = start_server("--state-dir", state)
    server.wait_until_ready()
    Operator(server, state).change(default_beta=0.7)
    server.wait_for(lambda: is_kept(state, default_beta=0.7), "the settings kept")
    server.end()
    as_an_earlier_version(state, "cifar10")
    with contextlib.closing(sqlite3.connect(state / "cifar10.db", isolation_level=None)) as user:
        user.execute("BEGIN")
        user.execute("SELECT * FROM tureen_revisions").fetchall()
        server = start_server("--state-dir", state)
        server.wait_until_ready()
        assert classify(server, image)[1]["beta"] == 0.7
        assert server.metric("tureen_control_store_reachable") == 0
        assert "stop the servers of the earlier version" in server.log_file.read_text()
        assert not (state / "control.db").exists()
    server.wait_for(lambda: server.metric("tureen_control_store_reachable") == 1, "the store taken over")
    assert Operator(server, state).change(default_beta=0.6)["revision"] == 2


def test_jobs_begin_once_the_store_that_was_away_is_back(start_server, postgres, postgres_url, tmp_path):
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "in" / "image.png")
    postgres.stop()
    state, roots = tmp_path / "state", ("--job-input-roots", tmp_path / "in", "--job-output-roots", tmp_path / "out")
    server = start_server("--store", postgres_url, "--state-dir", state, *roots)
    server.wait_until_ready()
    postgres.start()
    server.wait_for((state / "admin-token").exists, "the operator's token")
    operator = Operator(server, state)
    server.wait_for(lambda: operator.ask("GET", "/jobs")[0] == 200, "the store back")
    job = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out" / "job")}
    status, _, record = operator.ask("POST", "/jobs", job)
    assert status == 202
    server.wait_for(lambda: operator.ask("GET", f"/jobs/{record['id']}")[2]["state"] == "succeeded", "the job done")


def test_servers_that_start_together_on_an_empty_postgresql_all_serve(start_server, postgres_url, tmp_path):
    servers = [start_server("--store", postgres_url, "--state-dir", tmp_path / str(n)) for n in range(4)]
    for server in servers:
        server.wait_until_ready()
        assert server.metric("tureen_control_store_reachable") == 1
    assert len(list(tmp_path.glob("*/admin-token"))) == 1
