"""Records a run in MLflow: in the local store, or on the tracking server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME

from training.reporting.run_logger import Outcome, accuracy_figures
from tureen.bundle.manifest import AccuracyRow

EXPERIMENT = "tureen"
VARIABLES = {
    # The defaults of MLflow, seven retries of two minutes, would stop the training while a server is away.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output has the result of the command
}
STATUS: Mapping[Outcome, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MlflowLogger:
    """A run of MLflow. The variables of MLflow choose the store, the experiment and the credentials.

    Sends no files, no source code, and no description of the machine.
    """

    def __init__(self, name: str, run_id: str | None) -> None:
        """Starts a run with this name. run_id: of a run to continue; None: a new run."""
        for variable, value in VARIABLES.items():
            os.environ.setdefault(variable, value)
        self._client = MlflowClient()
        if run_id is None:
            run_id = self._client.create_run(self._experiment_id(), run_name=name).info.run_id
        else:
            self._client.update_run(run_id, status="RUNNING")
        self.run_id: str = run_id

    def add_settings(self, settings: Mapping[str, object]) -> None:
        self._client.log_batch(self.run_id, params=[Param(key, str(value)) for key, value in settings.items()])

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log([(name, value, step) for name, value in values.items()])

    def add_accuracy(self, rows: Sequence[AccuracyRow]) -> None:
        """Records curves over 100 · β, because MLflow needs integer steps; and each value by its name, for tables."""
        values = [(name, value, 0) for name, value in accuracy_figures(rows).items()]
        for row in rows:
            step = round(100 * row.beta)
            values.append(("accuracy_at_100_beta/clean", row.clean.value, step))
            values.append(("accuracy_at_100_beta/robust", row.robust.value, step))
        self._log(values)

    def add_artefact(self, name: str, path: Path) -> None:
        self._client.set_tag(self.run_id, name, str(path))

    def close(self, outcome: Outcome) -> None:
        self._client.set_terminated(self.run_id, STATUS[outcome])

    def _experiment_id(self) -> str:
        name = MLFLOW_EXPERIMENT_NAME.get() or EXPERIMENT
        experiment = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if experiment is None else experiment.experiment_id

    def _log(self, values: Sequence[tuple[str, float, int]]) -> None:
        """Records values, each with its name and its step."""
        now_ms = int(1000 * time.time())
        self._client.log_batch(self.run_id, metrics=[Metric(name, value, now_ms, step) for name, value, step in values])
