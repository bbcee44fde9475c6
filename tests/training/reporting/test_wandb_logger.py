"""A run of Weights & Biases without its server, read back from the file of the run."""

import pytest

from tests.offline_wandb import read_offline_runs
from training.reporting.loggers import open_logger
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    wandb.teardown()


def test_a_run_has_its_settings_scalars_figures_and_exit_status(tmp_path):
    rows = load_bundle(EXAMPLES / "cifar10").manifest.accuracy
    logger = open_logger("wandb", tmp_path, step=0, run_id=None)
    logger.add_settings({"model.depth": 3})
    logger.add_scalars(10, {"clean_loss": 0.5, "robust_loss": 1.5})
    logger.add_scalars(20, {"clean_loss": 0.25})
    logger.add_accuracy(rows)
    logger.add_artefact("checkpoint", tmp_path)
    logger.close("finished")
    (run,) = read_offline_runs(tmp_path)
    assert (run.run_id, run.exit_status) == (logger.run_id, 0)
    assert run.config["model.depth"] == 3
    losses = [(values["_step"], values["clean_loss"]) for values in run.history if "clean_loss" in values]
    assert losses == [(10, 0.5), (20, 0.25)]
    curve = {values["accuracy/beta"]: values["accuracy/clean"] for values in run.history if "accuracy/beta" in values}
    assert curve == {row.beta: pytest.approx(row.clean.value) for row in rows}
    assert run.summary["robust_accuracy_at_beta_1"] == pytest.approx(rows[-1].robust.value)
    assert run.summary["checkpoint"] == str(tmp_path)


def test_a_run_describes_neither_machine_nor_code(tmp_path):
    logger = open_logger("wandb", tmp_path, step=0, run_id=None)
    print("a line of the terminal")
    logger.close("finished")
    (run,) = read_offline_runs(tmp_path)
    assert run.kinds <= {"header", "run", "telemetry", "metric", "summary", "exit", "request"}
    assert run.host == ""
    assert [path.name for path in tmp_path.glob("wandb/offline-run-*/files/*")] == []


def test_a_run_continues_under_its_id(tmp_path):
    first = open_logger("wandb", tmp_path, step=0, run_id=None)
    first.add_scalars(10, {"clean_loss": 0.5})
    first.close("interrupted")
    second = open_logger("wandb", tmp_path, step=0, run_id=first.run_id)
    second.add_scalars(20, {"clean_loss": 0.25})
    second.close("failed")
    runs = read_offline_runs(tmp_path)
    assert {run.run_id for run in runs} == {first.run_id}
    assert [(run.exit_status, [values["_step"] for values in run.history]) for run in runs] == [(130, [10]), (1, [20])]
