"""Reports the progress of a run: a bar on the terminal, log.jsonl, and TensorBoard events if enabled."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from training.cotrain import Cotraining, StepProgress
from training.overfitting import OverfittingProbe
from tureen.atomic_file import write_atomically

LOG = "log.jsonl"
LINES_WITHOUT_TERMINAL = 10


class RunLog:
    """Reports the progress of a run from its current step on, inside a `with` block.

    If the run continues from a saved state, removes the lines of later steps from log.jsonl.
    """

    def __init__(self, training: Cotraining, out: Path, *, tensorboard: bool) -> None:
        recipe = training.recipe
        self._name, self._epochs, self._steps = recipe.name, recipe.epochs, training.steps
        self._step = training.step
        self._log_path = out / LOG
        lines = self._log_path.read_text(encoding="utf-8").splitlines() if self._log_path.exists() else []
        # Steps after the saved state are trained and logged again. A killed run may have left an incomplete line.
        self._kept = [line for line in lines if 0 <= _step(line) <= training.step]
        self._writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(out), purge_step=training.step + 1)

    def __enter__(self) -> RunLog:
        write_atomically(self._log_path, "".join(f"{line}\n" for line in self._kept).encode())
        self._log = self._log_path.open("a", encoding="utf-8")
        self._bar = tqdm(initial=self._step, total=self._steps, desc=f"train {self._name}", unit="step", disable=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()
        self._log.close()
        if self._writer is not None:
            self._writer.close()

    @property
    def saved_probes(self) -> list[OverfittingProbe]:
        """The overfitting probes that log.jsonl had when the run was started or continued."""
        entries = [json.loads(line) for line in self._kept]
        return [OverfittingProbe(**entry) for entry in entries if "one_step" in entry]

    def add_progress(self, progress: StepProgress) -> None:
        """Advances the bar, and writes the progress to log.jsonl, and to TensorBoard if enabled."""
        fields = {
            "epoch": f"{progress.epoch:.1f}/{self._epochs}",
            "clean": f"{progress.clean_loss:.3f}",
            "robust": f"{progress.robust_loss:.3f}",
            "ε": f"{progress.epsilon_255:.1f}/255",
        }
        self._bar.set_postfix(fields, refresh=False)
        self._bar.update(progress.step - self._step)
        every = self._steps / LINES_WITHOUT_TERMINAL
        if self._bar.disable and progress.step // every > self._step // every:
            print(
                f"train {self._name}: " + ", ".join(f"{key} {value}" for key, value in fields.items()), file=sys.stderr
            )
        self._step = progress.step
        self._write(asdict(progress))

    def add_probe(self, probe: OverfittingProbe) -> None:
        """Writes the probe to log.jsonl, and to TensorBoard if enabled."""
        self._write(asdict(probe))

    def _write(self, values: dict[str, float]) -> None:
        finite = {key: None if math.isnan(value) else value for key, value in values.items()}
        self._log.write(json.dumps(finite) + "\n")
        self._log.flush()
        if self._writer is not None:
            for key, value in finite.items():
                if value is not None and key != "step":
                    self._writer.add_scalar(key, value, int(values["step"]))


def _step(line: str) -> int:
    """Returns the step in a line of log.jsonl; −1 for a damaged line."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
