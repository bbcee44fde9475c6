"""Runs one engine in a separate process. On request it runs a turn: it times the engine at one batch size.

Engines in separate processes share no memory, and a crash ends only one engine. The parent process is `tureen bench`,
and it holds a `Worker` for each engine. The child process runs `main` of this module. Parent and child exchange lines
of JSON.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from pydantic import ValidationError

from tureen.bench.records import EngineSetup, OpenedEngine, TimedTurn, TurnTimes
from tureen.bundle.bundle import load_bundle
from tureen.engines import open_verified_engine
from tureen.engines.base import EngineOptions
from tureen.errors import EngineError, TureenError
from tureen.machine import process_memory
from tureen.soup import Soup

FIRST_BATCH = 32
FAILED = "failed: "


class Worker:
    """The parent's object for a child process that has opened an engine. `opened` has the cost of opening the engine.

    The constructor starts the child. It raises EngineError if the child cannot open the engine.
    """

    def __init__(self, setup: EngineSetup) -> None:
        self.setup = setup
        self._process = subprocess.Popen(  # noqa: S603 - our own module, by our own interpreter
            [sys.executable, "-P", "-m", "tureen.bench.worker", setup.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # an interrupt reaches only the parent, which ends its workers
        )
        try:
            self.opened = OpenedEngine.model_validate_json(self._reply())
        except BaseException:
            self.close()
            raise

    def run_turn(self, turn: TimedTurn) -> TurnTimes:
        """Runs one turn, a timing of the engine at one batch size, in the child. Returns the durations in seconds.

        These are the duration of the turn and the duration of each call. Raises EngineError if the child fails or ends.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(turn.model_dump_json() + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        return TurnTimes.model_validate_json(self._reply())

    def close(self) -> None:
        """Kills the child process and waits for its end."""
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
        return EngineError(
            f"its process ended by itself, with status {self._process.wait()}: it may have run out of memory"
        )


class StreamRunner:
    """Runs batches on one engine. Each of the `streams` threads runs one batch at a time. Used in the child process."""

    def __init__(self, soup: Soup, streams: int) -> None:
        self._soup = soup
        self._count = streams
        self._threads = ThreadPoolExecutor(streams)

    def run_turn(self, turn: TimedTurn) -> TurnTimes:
        """Runs the calls of the turn on all streams together. Returns the seconds of the turn and of each call."""
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
    """Runs the child process: opens the engine, and sends the parent an `OpenedEngine`.

    Then reads one `TimedTurn` from each line, runs this turn, and sends its `TurnTimes`. arguments: an `EngineSetup` in
    JSON. Returns exit status 0 when the parent closes the pipe, and 1 after it has sent the message of an error.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)  # the output of a runtime must not mix with the replies

        def reply(text: str) -> None:
            replies.write(text.replace("\n", " ") + "\n")
            replies.flush()

        setup = EngineSetup.model_validate_json(arguments[0])
        try:
            soup, opened = _open_soup(setup)
            reply(opened.model_dump_json())
            runner = StreamRunner(soup, setup.streams)
            for line in sys.stdin:
                reply(runner.run_turn(TimedTurn.model_validate_json(line)).model_dump_json())
        except (TureenError, ValidationError) as error:
            reply(f"{FAILED}{error}")
            return 1
    return 0


def _open_soup(setup: EngineSetup) -> tuple[Soup, OpenedEngine]:
    bundle = load_bundle(setup.bundle)
    row = bundle.parity(setup.engine, setup.precision)
    if row is None:
        raise EngineError("the bundle does not list it")
    options = EngineOptions(setup.threads, setup.streams, setup.max_batch)
    before = process_memory("VmRSS")
    started = time.perf_counter()
    engine = open_verified_engine(bundle, row, options)
    load_s = time.perf_counter() - started
    soup = Soup(replace(bundle, graph=b""), engine)  # there are many workers, so each frees the graph
    StreamRunner(soup, setup.streams).run_turn(TimedTurn(batch=min(FIRST_BATCH, setup.max_batch), calls=1))
    peak = process_memory("VmHWM")
    return soup, OpenedEngine(
        engine_version=engine.version,
        load_s=load_s,
        memory_bytes=None if before is None or peak is None else peak - before,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
