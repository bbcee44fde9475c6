"""Reports the progress of a run: a bar on the terminal, log.jsonl, and the loggers of the run."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from training.cotrain import Cotraining, StepProgress
from training.overfitting import OverfittingProbe
from training.recipes import Recipe
from training.reporting.loggers import RunLoggers
from training.schedules import relative_cost
from tureen.atomic_file import write_atomically

LOG = "log.jsonl"
LINES_WITHOUT_TERMINAL = 10
WARM_UP_STEPS = 3  # they compile, allocate and fill the queue of images
ESTIMATE_STEPS = 20
MINUTE_S, HOUR_S = 60, 3600


class ReadingProgress:
    """Shows on standard error how many images were read, inside a `with` block.

    On a terminal it is a bar. Elsewhere it is a line at the start, and a line after each tenth of the images.
    """

    def __init__(self, location: str, *, is_shown: bool) -> None:
        """location: of the images. is_shown: False if another process shows the progress."""
        self._location = location
        self._is_shown = is_shown
        self._total = self._read = 0
        self._bar = tqdm(disable=True)

    def __enter__(self) -> ReadingProgress:
        self._print(f"listing the images of {self._location}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def start(self, total: int) -> None:
        """Begins to count. total: number of images to read."""
        self._total = total
        self._bar = tqdm(total=total, desc="read images", unit="image", disable=None if self._is_shown else True)
        if self._bar.disable:
            self._print(f"reading {total:,} images")

    def advance(self, count: int) -> None:
        """Counts images that were read. After the last image, says that they are compared."""
        before, self._read = self._read, self._read + count
        self._bar.update(count)
        tenths = LINES_WITHOUT_TERMINAL * self._read // self._total
        if self._bar.disable and tenths > LINES_WITHOUT_TERMINAL * before // self._total:
            self._print(f"read {self._read:,} of {self._total:,} images")
        if self._read == self._total:
            self._bar.close()
            self._print("comparing the images, to find copies of training images")

    def _print(self, text: str) -> None:
        if self._is_shown:
            print(text, file=sys.stderr, flush=True)


class RunLog:
    """Reports the progress of a run from its current step on, inside a `with` block.

    If the run continues from a saved state, removes the lines of the steps after this state from log.jsonl.
    """

    def __init__(self, training: Cotraining, out: Path, loggers: RunLoggers) -> None:
        recipe = training.recipe
        self._name, self._epochs, self._steps = recipe.name, recipe.epochs, training.steps
        self._step = training.step
        self._log_path = out / LOG
        lines = self._log_path.read_text(encoding="utf-8").splitlines() if self._log_path.exists() else []
        # Steps after the saved state are trained and logged again. A killed run may have left an incomplete line.
        self._kept = [line for line in lines if 0 <= _step(line) <= training.step]
        self._loggers = loggers

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

    @property
    def saved_probes(self) -> list[OverfittingProbe]:
        """The overfitting probes that log.jsonl contained when the run was started or continued."""
        entries = [json.loads(line) for line in self._kept]
        return [OverfittingProbe(**entry) for entry in entries if "one_step" in entry]

    def add_progress(self, progress: StepProgress) -> None:
        """Advances the bar, and writes the progress to log.jsonl and to the loggers."""
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

    def show(self, text: str) -> None:
        """Prints a line on standard error, above the bar."""
        tqdm.write(f"train {self._name}: {text}", file=sys.stderr)

    def add_probe(self, probe: OverfittingProbe) -> None:
        """Writes the probe to log.jsonl and to the loggers."""
        self._write(asdict(probe))

    def _write(self, values: dict[str, float]) -> None:
        finite = {key: None if math.isnan(value) else value for key, value in values.items()}
        self._log.write(json.dumps(finite) + "\n")
        self._log.flush()
        scalars = {key: value for key, value in finite.items() if value is not None and key != "step"}
        self._loggers.add_scalars(int(values["step"]), scalars)


class TimeEstimate:
    """Estimates the duration of a training from its first steps after the start of the program.

    Assumes that the duration of a step is proportional to the number of its passes through the model. Later steps may
    have more passes, because the attack may start late. The estimate does not include the measurement of the accuracy
    after the training.
    """

    def __init__(
        self,
        recipe: Recipe,
        step: int,
        steps: int,
        wait: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """step: finished steps. steps: all steps of the run. wait: returns when the device has finished its work."""
        self._recipe, self._start, self._steps = recipe, step, steps
        self._wait, self._clock = wait, clock
        self._started = 0.0

    def after_step(self, step: int) -> str | None:
        """Returns the estimate as text when ESTIMATE_STEPS steps have run since the program started; else None."""
        done = step - self._start
        if done == WARM_UP_STEPS:
            self._wait()
            self._started = self._clock()
        if done != ESTIMATE_STEPS or step == self._steps:
            return None
        self._wait()
        seconds = self._clock() - self._started
        measured = relative_cost(self._recipe, step - (ESTIMATE_STEPS - WARM_UP_STEPS), step, self._steps)
        total = seconds * relative_cost(self._recipe, self._start, self._steps, self._steps) / measured
        rest = "the remaining " if self._start else ""
        return f"about {duration(total)} for {rest}{self._steps - self._start:,} steps"


def duration(seconds: float) -> str:
    """Returns a duration as text in seconds, minutes or hours, such as "12 min" or "2.5 h"."""
    if seconds < 1.5 * MINUTE_S:
        return f"{max(1, round(seconds))} s"
    if seconds < 1.5 * HOUR_S:
        return f"{round(seconds / MINUTE_S)} min"
    hours = seconds / HOUR_S
    return f"{hours:.1f} h" if hours < 10 else f"{round(hours):,} h"


def _step(line: str) -> int:
    """Returns the number of the step in a line of log.jsonl; −1 if the line is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
