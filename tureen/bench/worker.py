"""One engine in a process of its own: what it costs to open, and turns of runs on request.

So that no engine is in another's memory or way, and one that crashes takes no other along. The parent's half is
`Worker`; the child's is run by `python -m tureen.bench.worker`. They speak in lines of JSON.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from tureen.bench.records import EngineSetup, OpenedEngine, TimedTurn, TurnTimes
from tureen.bundle.bundle import load_bundle
from tureen.engines import open_verified_engine
from tureen.engines.base import EngineOptions
from tureen.errors import EngineError, TureenError
from tureen.soup import Soup

FIRST_BATCH = 32
FAILED = "failed: "
STATUS = Path("/proc/self/status")


class Worker:
    """A process that has opened an engine; raises EngineError where it could not, or where it has died since."""

    def __init__(self, assignment: EngineSetup) -> None:
        self.assignment = assignment
        self._process = subprocess.Popen(  # noqa: S603 - our own module, by our own interpreter
            [sys.executable, "-P", "-m", "tureen.bench.worker", assignment.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # an interrupt reaches the parent alone, which ends its workers
        )
        try:
            self.opened = OpenedEngine.model_validate_json(self._reply())
        except BaseException:
            self.close()
            raise

    def turn(self, turn: TimedTurn) -> TurnTimes:
        """Let the engine have its turn."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(turn.model_dump_json() + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        return TurnTimes.model_validate_json(self._reply())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _reply(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line.startswith(FAILED):
            raise EngineError(line.removeprefix(FAILED).strip())
        if not line:
            raise self._death()
        return line

    def _death(self) -> EngineError:
        return EngineError(f"its process ended by itself, with status {self._process.wait()}: did memory run out?")


class StreamRunner:
    """The child's half: threads that run batches on one engine, all at once."""

    def __init__(self, soup: Soup, streams: int) -> None:
        self._soup = soup
        self._count = streams
        self._threads = ThreadPoolExecutor(streams)

    def turn(self, turn: TimedTurn) -> TurnTimes:
        """So many runs on every stream at once."""
        golden = self._soup.bundle.golden
        pixels = np.resize(golden.pixels, (turn.batch, *golden.pixels.shape[1:]))
        betas = np.linspace(0, 1, turn.batch).tolist() if turn.is_mixed else [0.5] * turn.batch

        def stream(_: int) -> list[float]:
            times = []
            for _ in range(turn.calls):
                started = time.perf_counter()
                self._soup.logits(pixels, betas)
                times.append(time.perf_counter() - started)
            return times

        started = time.perf_counter()
        streams = list(self._threads.map(stream, range(self._count)))
        return TurnTimes(seconds=time.perf_counter() - started, call_seconds=[s for times in streams for s in times])


def main(arguments: list[str]) -> int:
    """Open the engine, say what that took, and answer turns until the parent closes the pipe."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)  # whatever a runtime prints is no reply

        def reply(text: str) -> None:
            replies.write(text.replace("\n", " ") + "\n")
            replies.flush()

        assignment = EngineSetup.model_validate_json(arguments[0])
        try:
            soup, opened = _open_soup(assignment)
            reply(opened.model_dump_json())
            on_streams = StreamRunner(soup, assignment.streams)
            for line in sys.stdin:
                reply(on_streams.turn(TimedTurn.model_validate_json(line)).model_dump_json())
        except (TureenError, ValidationError) as error:
            reply(f"{FAILED}{error}")
            return 1
    return 0


def _open_soup(assignment: EngineSetup) -> tuple[Soup, OpenedEngine]:
    bundle = load_bundle(assignment.bundle)
    row = bundle.parity(assignment.engine, assignment.precision)
    if row is None:
        raise EngineError("the bundle does not vouch for it")
    options = EngineOptions(assignment.threads, assignment.streams, assignment.max_batch)
    before = _memory("VmRSS")
    started = time.perf_counter()
    engine = open_verified_engine(bundle, row, options)
    load_s = time.perf_counter() - started
    soup = Soup(replace(bundle, graph=b""), engine)  # as many workers as engines: none keeps what it needs no more
    StreamRunner(soup, assignment.streams).turn(TimedTurn(batch=min(FIRST_BATCH, assignment.max_batch), calls=1))
    peak = _memory("VmHWM")
    return soup, OpenedEngine(
        engine_version=engine.version,
        load_s=load_s,
        memory_bytes=None if before is None or peak is None else peak - before,
    )


def _memory(field: str) -> int | None:
    """Bytes that the kernel counts for this process: VmRSS now, VmHWM at its peak; None where it does not tell.

    Not getrusage's ru_maxrss, which a process inherits from the one that started it.
    """
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
