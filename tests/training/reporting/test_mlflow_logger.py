"""A run in a local MLflow store, read back with the client of MLflow."""

from pathlib import Path

import pytest

from training.reporting.loggers import open_logger
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES

pytestmark = pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")  # MLflow's use of SQLAlchemy


@pytest.fixture
def client(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return MlflowClient()


def test_a_run_has_its_settings_scalars_figures_and_state(client, tmp_path):
    rows = load_bundle(EXAMPLES / "cifar10").manifest.accuracy
    logger = open_logger("mlflow", Path("night"), step=0, run_id=None)
    logger.add_settings({"model.depth": 3, "evaluation_betas": (0.0, 1.0)})
    logger.add_scalars(10, {"clean_loss": 0.5, "robust_loss": 1.5})
    logger.add_scalars(20, {"clean_loss": 0.25})
    assert client.get_run(logger.run_id).info.status == "RUNNING"
    logger.add_accuracy(rows)
    logger.add_artefact("checkpoint", tmp_path)
    logger.close("finished")
    run = client.get_run(logger.run_id)
    assert (run.info.run_name, run.info.status) == ("night", "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "tureen"
    assert run.data.params == {"model.depth": "3", "evaluation_betas": "(0.0, 1.0)"}
    losses = client.get_metric_history(logger.run_id, "clean_loss")
    assert [(metric.step, metric.value) for metric in losses] == [(10, 0.5), (20, 0.25)]
    assert run.data.metrics["robust_accuracy_at_beta_1"] == pytest.approx(rows[-1].robust.value)
    curve = client.get_metric_history(logger.run_id, "accuracy_at_100_beta/clean")
    assert {metric.step: metric.value for metric in curve} == {
        round(100 * row.beta): pytest.approx(row.clean.value) for row in rows
    }
    assert run.data.tags == {"mlflow.runName": "night", "checkpoint": str(tmp_path)}


def test_a_run_continues_under_its_id_in_the_experiment_of_its_start(client, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "digits")
    first = open_logger("mlflow", Path("night"), step=0, run_id=None)
    first.add_scalars(10, {"clean_loss": 0.5})
    first.close("interrupted")
    assert client.get_run(first.run_id).info.status == "KILLED"
    second = open_logger("mlflow", Path("night"), step=0, run_id=first.run_id)
    assert client.get_run(first.run_id).info.status == "RUNNING"
    second.add_scalars(20, {"clean_loss": 0.25})
    second.close("failed")
    run = client.get_run(first.run_id)
    assert (second.run_id, run.info.status) == (first.run_id, "FAILED")
    assert [metric.step for metric in client.get_metric_history(first.run_id, "clean_loss")] == [10, 20]
    assert [run.info.run_id for run in client.search_runs([run.info.experiment_id])] == [first.run_id]
    assert client.get_experiment(run.info.experiment_id).name == "digits"
