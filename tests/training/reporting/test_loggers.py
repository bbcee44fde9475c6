"""Loggers that cannot start, fail during a run, or continue a run, with real stores."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.patience import DEADLINE_S
from tests.ports import free_port
from training.errors import LoggerError
from training.interruption import InterruptedRun
from training.reporting.loggers import LOGGERS, PAUSE_S, RunLoggers, open_logger, open_loggers, require_packages

pytestmark = pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")  # MLflow's use of SQLAlchemy


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The address of an MLflow store in a file that is not there yet."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path / "mlflow.db"


@pytest.fixture
def client(store):
    from mlflow import MlflowClient

    return MlflowClient()


SERVER = """
import sys
from mlflow.server import app
from werkzeug.serving import make_server

make_server("127.0.0.1", int(sys.argv[1]), app).serve_forever()
"""


class TrackingServer:
    """The tracking server of MLflow, on one port and one store also after a restart."""

    def __init__(self, directory):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{directory}/server.db",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": str(directory / "artifacts"),
        }
        self.log = directory / "server.log"

    def start(self):
        with self.log.open("a") as log:
            command = [sys.executable, "-c", SERVER, str(self.port)]
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with suppress(URLError, ConnectionError), urlopen(f"{self.url}/health") as answer:
                assert answer.read() == b"OK"
                return
            time.sleep(0.05)
        raise TimeoutError(self.log.read_text())

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def mlflow_server(tmp_path):
    pytest.importorskip("flask")
    server = TrackingServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("name", LOGGERS)
def test_a_package_that_is_not_installed_is_named_with_its_extra(name, monkeypatch, tmp_path):
    require_packages(LOGGERS)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LoggerError, match=rf"--log {name} needs {name}: install Tureen with its extra \[{name}\]"):
        require_packages(LOGGERS)
    monkeypatch.delitem(sys.modules, name)
    (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # a folder of that name is not the package
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "editable" not in repr(finder)])
    sys.path_importer_cache.pop(str(tmp_path), None)
    with pytest.raises(LoggerError):
        require_packages([name])


def test_a_logger_that_cannot_start_is_an_error_and_ends_those_that_have_started(store, client, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "not a key")
    wandb.teardown()
    with pytest.raises(LoggerError, match=r"--log wandb cannot start a run: .*[Kk]ey"):
        open_loggers(["mlflow", "wandb"], tmp_path, {}, step=0, run_ids={})
    wandb.teardown()
    (run,) = client.search_runs([client.get_experiment_by_name("tureen").experiment_id])
    assert run.info.status == "FAILED"


@pytest.mark.end_to_end
def test_a_server_that_goes_away_is_reported_once_and_its_run_continues_when_it_is_back(
    mlflow_server, monkeypatch, tmp_path, capsys
):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    now = [0.0]
    loggers = RunLoggers(clock=lambda: now[0])
    for name in ("mlflow", "tensorboard"):
        loggers.add(name, open_logger(name, tmp_path / "night", step=0, run_id=None))
    loggers.add_scalars(1, {"clean_loss": 1.0})
    mlflow_server.stop()
    loggers.add_scalars(2, {"clean_loss": 0.5})
    loggers.add_scalars(3, {"clean_loss": 0.4})
    mlflow_server.start()
    loggers.add_scalars(4, {"clean_loss": 0.3})  # within the pause
    now[0] += PAUSE_S
    loggers.add_scalars(5, {"clean_loss": 0.2})
    loggers.close("finished")
    assert capsys.readouterr().err.count("mlflow fails, and the training continues: ") == 1
    client, run_id = MlflowClient(), loggers.run_ids["mlflow"]
    assert [metric.step for metric in client.get_metric_history(run_id, "clean_loss")] == [1, 5]
    assert client.get_run(run_id).info.status == "FINISHED"
    events = EventAccumulator(str(tmp_path / "night")).Reload()
    assert [event.step for event in events.Scalars("clean_loss")] == [1, 2, 3, 4, 5]


class Slow:
    """A logger that fails after ten seconds."""

    run_id = ""

    def __init__(self, now):
        self.now, self.calls = now, 0

    def add_scalars(self, step, values):
        self.calls += 1
        self.now[0] += 10
        raise OSError("no answer")


def test_failing_takes_a_twentieth_of_the_time_at_most():
    now = [0.0]
    logger = Slow(now)
    loggers = RunLoggers(clock=lambda: now[0])
    loggers.add("slow", logger)
    while now[0] < 10_000:
        now[0] += 1
        loggers.add_scalars(1, {})
    assert logger.calls > 40
    assert 10 * logger.calls / now[0] < 0.05


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (InterruptedRun(2), "KILLED"), (ValueError("loss"), "FAILED")]
)
def test_a_run_records_how_it_ended(store, client, tmp_path, error, status):
    with suppress(ValueError, InterruptedRun), open_loggers(["mlflow"], tmp_path, {}, step=0, run_ids={}) as loggers:
        if error is not None:
            raise error
    assert client.get_run(loggers.run_ids["mlflow"]).info.status == status


def test_a_run_that_cannot_be_continued_is_left_out_and_keeps_its_id(store, client, tmp_path, capsys):
    loggers = open_loggers(["mlflow", "tensorboard"], tmp_path, {}, step=5, run_ids={"mlflow": "0" * 32})
    assert "mlflow cannot continue its run, and is left out: " in capsys.readouterr().err
    assert loggers.run_ids == {"mlflow": "0" * 32, "tensorboard": ""}
    loggers.add_scalars(6, {"clean_loss": 1.0})
    loggers.close("finished")
    assert capsys.readouterr().err == ""
