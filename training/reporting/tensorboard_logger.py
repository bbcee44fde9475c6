"""Records a run as TensorBoard events in its directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from training.reporting.run_logger import Outcome
from tureen.bundle.manifest import AccuracyRow


class TensorBoardLogger:
    """Writes events into the directory of the run. A resumed run writes further events there, so it needs no id."""

    run_id = ""

    def __init__(self, out: Path, step: int) -> None:
        """out: directory of the run. step: number of finished steps; later events of an interrupted run are hidden."""
        self._writer = SummaryWriter(str(out), purge_step=step + 1)

    def add_settings(self, settings: Mapping[str, object]) -> None:
        lines = ["| setting | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in settings.items())]
        self._writer.add_text("settings", "\n".join(lines))

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def add_accuracy(self, rows: Sequence[AccuracyRow]) -> None:
        """Writes curves over 100 · β, because TensorBoard needs integer steps."""
        for row in rows:
            step = round(100 * row.beta)
            self._writer.add_scalar("accuracy_at_100_beta/clean", row.clean.value, step)
            self._writer.add_scalar("accuracy_at_100_beta/robust", row.robust.value, step)

    def add_artefact(self, name: str, path: Path) -> None:
        self._writer.add_text(name, str(path))

    def close(self, outcome: Outcome) -> None:
        self._writer.add_text("outcome", outcome)
        self._writer.close()
