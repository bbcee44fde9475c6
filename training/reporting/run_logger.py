"""The interface of a logger, which records one run in a program such as MLflow. Knows none of these programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from tureen.bundle.manifest import AccuracyRow

Outcome = Literal["finished", "failed", "interrupted"]


class RunLogger(Protocol):
    """Records one run. Each method may raise any error of its library; `training.reporting.loggers` handles it."""

    @property
    def run_id(self) -> str:
        """The id of the run in the program of the logger, with which a resumed run continues it."""

    def add_settings(self, settings: Mapping[str, object]) -> None:
        """Records the settings by name, such as "model.depth". Called once, when a run begins."""

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records finite values by name, such as "clean_loss", at a step of the training."""

    def add_accuracy(self, rows: Sequence[AccuracyRow]) -> None:
        """Records the final accuracy at each β."""

    def add_artefact(self, name: str, path: Path) -> None:
        """Records where an artefact lies, such as the checkpoint. path: absolute. Copies no file."""

    def close(self, outcome: Outcome) -> None:
        """Ends the recording, and records how the run ended."""


def accuracy_figures(rows: Sequence[AccuracyRow]) -> dict[str, float]:
    """Returns the accuracy in [0, 1] by name, such as "robust_accuracy_at_beta_0.25"."""
    figures: dict[str, float] = {}
    for row in rows:
        figures[f"clean_accuracy_at_beta_{row.beta:g}"] = row.clean.value
        figures[f"robust_accuracy_at_beta_{row.beta:g}"] = row.robust.value
    return figures
