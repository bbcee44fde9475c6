"""Opens the loggers of a run, and keeps a logger that fails from ending the training.

Imports the library of a logger when the logger is opened.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from training.errors import LoggerError
from training.interruption import InterruptedRun
from training.reporting.run_logger import Outcome, RunLogger
from tureen.bundle.manifest import AccuracyRow

LOGGERS = ("tensorboard", "mlflow", "wandb")  # each is the name of a package, and of the extra that installs it
PAUSE_S = 60.0
FAILING_SHARE = 0.05  # of the time of the training


def require_packages(names: Iterable[str]) -> None:
    """Raises LoggerError if the package of a logger is not installed. names: of loggers."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder `wandb` in the working directory is not the package
            raise LoggerError(f"--log {name} needs {name}: install Tureen with its extra [{name}]")


def open_logger(name: str, out: Path, *, step: int, run_id: str | None) -> RunLogger:
    """Returns the logger `name`. Raises the errors of its library if the logger cannot start.

    out: directory of the run, whose name the run gets. step: number of finished steps. run_id: as in
    `RunLogger.run_id`, to continue a run; None: a new run.
    """
    if name == "tensorboard":
        from training.reporting.tensorboard_logger import TensorBoardLogger

        return TensorBoardLogger(out, step)
    if name == "mlflow":
        from training.reporting.mlflow_logger import MlflowLogger

        return MlflowLogger(out.name, run_id)
    from training.reporting.wandb_logger import WandbLogger

    return WandbLogger(out.name, run_id, out)


def open_loggers(
    names: Iterable[str], out: Path, settings: Mapping[str, object], *, step: int, run_ids: Mapping[str, str]
) -> RunLoggers:
    """Returns the open loggers of a run, which have recorded its settings.

    names: of loggers. out: directory of the run. step: number of finished steps. run_ids: those of an interrupted run,
    by the name of the logger; empty for a new run. Raises LoggerError if a logger cannot start a run. A logger that
    cannot continue its run is left out, and a message on standard error says so.
    """
    loggers = RunLoggers(run_ids)
    for name in names:
        try:
            logger = open_logger(name, out, step=step, run_id=run_ids.get(name))
            if name not in run_ids:
                logger.add_settings(settings)
        except Exception as error:
            if name not in run_ids:
                loggers.close("failed")
                raise LoggerError(
                    f"--log {name} cannot start a run: {first_line(error)}: correct its settings, or omit --log {name}"
                ) from error
            print(f"{name} cannot continue its run, and is left out: {first_line(error)}", file=sys.stderr)
        else:
            loggers.add(name, logger)
    return loggers


class RunLoggers:
    """The open loggers of a run, as one. A logger that fails does not end the training.

    The first failure of a logger is printed on standard error. After a failure the logger gets no scalars for PAUSE_S,
    or longer if failing would take over 5 % of the time. log.jsonl has these scalars. Closes the loggers at the end of
    the `with` block.
    """

    def __init__(self, run_ids: Mapping[str, str] = {}, clock: Callable[[], float] = time.monotonic) -> None:
        """run_ids: ids of the runs by the name of the logger, for a later continuation."""
        self.run_ids = dict(run_ids)
        self._clock = clock
        self._loggers: dict[str, RunLogger] = {}
        self._paused_until: dict[str, float] = {}  # of the loggers that have failed

    def __enter__(self) -> RunLoggers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        outcome: Outcome = "finished" if error is None else "failed"
        self.close("interrupted" if isinstance(error, InterruptedRun) else outcome)

    def add(self, name: str, logger: RunLogger) -> None:
        """Adds an open logger."""
        self._loggers[name] = logger
        self.run_ids[name] = logger.run_id

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = self._clock()
        active = [name for name in self._loggers if now >= self._paused_until.get(name, now)]
        self._record(active, lambda logger: logger.add_scalars(step, values))

    def add_accuracy(self, rows: Sequence[AccuracyRow]) -> None:
        self._record(self._loggers, lambda logger: logger.add_accuracy(rows))

    def add_artefact(self, name: str, path: Path) -> None:
        self._record(self._loggers, lambda logger: logger.add_artefact(name, path))

    def close(self, outcome: Outcome) -> None:
        self._record(self._loggers, lambda logger: logger.close(outcome))

    def _record(self, names: Iterable[str], record: Callable[[RunLogger], None]) -> None:
        for name in names:
            started = self._clock()
            try:
                record(self._loggers[name])
            except Exception as error:  # noqa: BLE001 - libraries raise many errors
                if name not in self._paused_until:
                    from tqdm import tqdm

                    tqdm.write(f"{name} fails, and the training continues: {first_line(error)}", file=sys.stderr)
                now = self._clock()
                self._paused_until[name] = now + max(PAUSE_S, (now - started) / FAILING_SHARE)


def first_line(error: Exception) -> str:
    """Returns the first line of the message of an error, or the name of its class if there is no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
