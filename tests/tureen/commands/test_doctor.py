"""`tureen doctor` as a user runs it: also without the extras, without a home, and where nothing can be written."""

import getpass
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import DEADLINE_S
from tests.ports import free_port
from tureen.cli import main
from tureen.commands.diagnosis import Diagnosis
from tureen.commands.doctor import WIDTH

ROOT = Path(__file__).parents[3]
BEYOND_CORE = (
    "fastapi", "starlette", "uvicorn", "httptools", "prometheus_client", "python_multipart", "sqlalchemy", "uvloop",
    "tqdm", "onnxruntime", "openvino", "torch", "onnx", "grpc", "httpx2", "packaging",
)  # fmt: skip
CORE_ALONE = f"""
import importlib.metadata, importlib.util, sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BEYOND_CORE}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

found = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in {BEYOND_CORE} else found(name)
sys.meta_path.insert(0, Refusing())
from tureen.cli import main
sys.exit(main(sys.argv[1:]))
"""
READ_ONLY = """
for directory in / /tmp /var/tmp /dev/shm "$PWD"; do
    mount --bind "$directory" "$directory" 2>&-  # fails for a directory that is mounted already
    [ ! -d "$directory" ] || mount -o remount,ro,bind "$directory" || exit 99
done
cd "$PWD"
exec "$@"
"""


def run(*arguments, before=(), **environment):
    """Run `tureen doctor` with only these variables, and return the completed process."""
    variables = {"PATH": os.environ["PATH"], "TUREEN_PORT": "0", **environment}
    command = [*before, sys.executable, "-m", "tureen.cli", "doctor", *arguments]
    return subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)


@pytest.fixture
def home(tmp_path):
    (tmp_path / "alice-home").mkdir()
    return tmp_path / "alice-home"


def test_it_prints_one_screen_for_an_issue_and_leaves_nothing_behind(home):
    ran = run("--bundle", "cifar10", HOME=str(home))
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    lines = ran.stdout.splitlines()
    assert lines[0] == "nothing found that would stop tureen serve"
    names = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    for name in (
        "tureen",
        "system",
        "cpu",
        "features",
        "cpus",
        "memory",
        "gpu",
        "engine",
        "packages",
        "state",
        "cache",
    ):
        assert name in names
    assert names[-4:] == ["store", "ports", "clock", "bundle"]
    assert max(map(len, lines)) <= WIDTH
    assert len(lines) <= 60
    assert list(home.iterdir()) == []


def test_the_output_has_no_path_token_host_or_user(home):
    secret = "postgresql+psycopg://bob:hunter2@db.internal:1/tureen"
    for arguments in ((), ("--json",)):
        ran = run(*arguments, HOME=str(home), TUREEN_ADMIN_TOKEN="tureen_token", TUREEN_STORE=secret)
        assert "store" in ran.stdout
        for hidden in (str(home), "alice", "hunter2", "bob", "db.internal", "tureen_token", str(ROOT)):
            assert hidden not in ran.stdout + ran.stderr, ran.stdout
        if len(socket.gethostname()) > 8:
            assert socket.gethostname() not in ran.stdout
        if getpass.getuser() not in ("root", "tureen"):
            assert getpass.getuser() not in ran.stdout


def test_json_has_the_same_facts(home):
    ran = run("--json", HOME=str(home))
    assert Diagnosis.model_validate_json(ran.stdout).reasons == []
    assert json.loads(ran.stdout)["ports"][0] == {"port": 0, "use": "clients", "problem": None}


def test_a_taken_port_stops_a_server_and_comes_first(capsys, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
        listener.listen(1)
        port = listener.getsockname()[1]
        monkeypatch.setenv("TUREEN_PORT", str(port))
        assert main(["doctor"]) == 1
        assert capsys.readouterr().out.startswith(f"STOPS tureen serve: port {port}, for clients: taken\n")


def test_a_store_url_that_is_not_valid_stops_a_server(home):
    ran = run(HOME=str(home), TUREEN_STORE="hunter2")
    assert ran.returncode == 1
    assert ran.stdout.startswith("STOPS tureen serve: --store is not the URL of a store")
    assert "hunter2" not in ran.stdout


def test_a_store_of_a_later_version_and_one_that_cannot_be_reached_are_notes(home, tmp_path):
    with sqlite3.connect(tmp_path / "control.db") as connection:
        connection.execute("CREATE TABLE tureen_schema (version INTEGER, at TEXT)")
        connection.execute("INSERT INTO tureen_schema VALUES (99, '')")
    connection.close()
    ran = run(HOME=str(home), TUREEN_STATE_DIR=str(tmp_path))
    assert ran.returncode == 0
    assert "note: the store of the settings: sqlite, schema version 99, above " in ran.stdout


def test_with_the_core_dependencies_alone_it_names_the_extra_that_a_server_needs(home):
    command = [sys.executable, "-c", CORE_ALONE, "doctor"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TUREEN_PORT": "0"}
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (ran.returncode, ran.stderr) == (1, "")
    first, second, *_ = ran.stdout.splitlines()
    assert first.startswith("STOPS tureen serve: ")
    assert first.endswith(" is not installed: install Tureen with its extra [serve]")
    assert second == "STOPS tureen serve: no engine can run: install Tureen with its extra [cpu] or [openvino]"
    assert "store     not checked: the server cannot be imported" in ran.stdout


@pytest.mark.skipif(shutil.which("unshare") is None or shutil.which("setpriv") is None, reason="needs util-linux")
def test_another_user_without_a_home_gets_temporary_directories():
    user = ["unshare", "--user", "--map-user=12345", "--map-group=12345", "setpriv", "--bounding-set=-all"]
    ran = run(before=[*user, "--inh-caps=-all", "--no-new-privs"])
    if "unshare" in ran.stderr:
        pytest.skip("this system has no user namespaces")
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    assert "temporary, removed at the end, writable" in ran.stdout


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux")
def test_where_nothing_can_be_written_it_says_so(home):
    isolated = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh"]
    ran = run(before=isolated, HOME=str(home))
    if "unshare" in ran.stderr or ran.returncode == 99:
        pytest.skip("this system does not let a user mount")
    assert (ran.returncode, ran.stderr) == (1, ""), ran.stdout
    assert "STOPS tureen serve: no state directory can be created" in ran.stdout
