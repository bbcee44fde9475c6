"""Records a run in Weights & Biases. With WANDB_MODE=offline it stays in the directory of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import wandb

from training.reporting.run_logger import Outcome, accuracy_figures
from tureen.bundle.manifest import AccuracyRow

PROJECT = "tureen"
FINISH_TIMEOUT_S = 60.0  # of uploads after the run; what was not uploaded stays on the disk, for `wandb sync`
EXIT_STATUS: Mapping[Outcome, int] = {"finished": 0, "failed": 1, "interrupted": 130}
SETTINGS: Mapping[str, object] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "host": "",
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "quiet": True,  # no table of all values on the terminal
    "finish_timeout": FINISH_TIMEOUT_S,
    "finish_timeout_raises": True,
}


class WandbLogger:
    """A run of Weights & Biases. The variables of wandb choose the server, the project and the credentials.

    Sends no files, no source code, no terminal output, no list of packages, and no description of the machine besides
    the versions of Python and wandb and the kind of platform.
    """

    def __init__(self, name: str, run_id: str | None, out: Path) -> None:
        """Starts a run with this name, in the directory `out`. run_id: of a run to continue; None: a new run."""
        self._run = wandb.init(
            project=wandb.setup().settings.project or PROJECT,
            name=name,
            id=run_id,
            resume=None if run_id is None else "allow",
            dir=str(out),
            save_code=False,
            settings=dict(SETTINGS),
        )
        self._run.define_metric("accuracy/*", step_metric="accuracy/beta")

    @property
    def run_id(self) -> str:
        return str(self._run.id)

    def add_settings(self, settings: Mapping[str, object]) -> None:
        self._run.config.update(dict(settings))

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def add_accuracy(self, rows: Sequence[AccuracyRow]) -> None:
        """Records curves over β, and each value by its name, for tables."""
        for row in rows:
            self._run.log(
                {
                    "accuracy/beta": row.beta,
                    "accuracy/clean": row.clean.value,
                    "accuracy/robust": row.robust.value,
                }
            )
        self._run.summary.update(accuracy_figures(rows))

    def add_artefact(self, name: str, path: Path) -> None:
        self._run.summary[name] = str(path)

    def close(self, outcome: Outcome) -> None:
        self._run.finish(exit_code=EXIT_STATUS[outcome])
