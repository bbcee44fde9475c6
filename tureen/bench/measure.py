"""Measures every engine that a bundle vouches for and this machine has, in turns.

Each engine is in a process of its own (`worker`), all at once, and one at a time has its turn.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np

from tureen.bench.recommendations import best_for_latency, best_for_throughput
from tureen.bench.records import (
    BatchRate,
    Benchmark,
    EngineMeasurement,
    EngineSetup,
    ExcludedEngine,
    TimedTurn,
    TurnTimes,
)
from tureen.bench.worker import Worker
from tureen.bundle.bundle import Bundle
from tureen.engines.base import EngineOptions
from tureen.engines.timings_cache import current_conditions
from tureen.errors import EngineError
from tureen.timing import TURN_S, calls_to_fill, run_in_turns

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
MIXED_BATCH = 32
MIXED_PAIRS = 3  # in a round, unless a single call fills a turn: their ratio is near 1, and so needs the most care
LATENCY_CALLS = 34  # in each of three rounds at least: a hundred, so that p99 is not merely the slowest
SHORTEST_TURNS = 15  # a turn takes at most this part of the time there is


@dataclass(eq=False)
class _Candidate:
    """An engine in its process, and what it takes part in."""

    worker: Worker
    call_s: dict[int, float]  # seconds of one call on every stream, by the batches that are measured
    lost: str = ""

    @property
    def mixed_batch(self) -> int:
        return max(batch for batch in self.call_s if batch <= MIXED_BATCH)


def measure(
    bundle: Bundle,
    *,
    threads: int,
    streams: Sequence[int],
    max_batch: int,
    seconds: float,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Benchmark:
    """Time all engines with each number of streams; `seconds` are for the timing, loading comes on top.

    Raises EngineError where not one of them could be measured, with the reasons.
    """
    left_out: list[ExcludedEngine] = []
    contestants: list[_Candidate] = []
    max_turn_s = seconds / SHORTEST_TURNS
    with ExitStack() as processes:
        for assignment in _engine_setups(bundle, threads, streams, max_batch):
            on_progress(f"open {assignment.name}, streams {assignment.streams}")
            try:
                worker = Worker(assignment)
                processes.callback(worker.close)
                contestants.append(_Candidate(worker, _calibrate(worker, max_turn_s)))
            except EngineError as error:
                left_out.append(_excluded(assignment, str(error)))
        turns = _plan_round(contestants, max_turn_s)
        takes = [partial(_run_turn, contestant, turn, on_progress) for contestant, turn in turns]
        results = run_in_turns(takes, seconds=seconds)
    times_of: dict[_Candidate, dict[TimedTurn, list[TurnTimes]]] = {contestant: {} for contestant in contestants}
    for (contestant, turn), times in zip(turns, results, strict=True):
        times_of[contestant].setdefault(turn, []).extend(t for t in times if t is not None)
    left_out += [_excluded(c.worker.assignment, c.lost) for c in contestants if c.lost]
    measured = [_measurement(c, times_of[c], max_batch) for c in contestants if not c.lost]
    if not measured:
        reasons = "; ".join(f"{out.engine} {out.precision}: {out.reason}" for out in left_out)
        raise EngineError(f"no engine can run {bundle.path}: {reasons or 'the bundle vouches for none'}")
    conditions = current_conditions(bundle, EngineOptions(threads))
    return Benchmark(
        model=bundle.manifest.name,
        version=bundle.manifest.version,
        measured_on=datetime.datetime.now(datetime.UTC).date(),
        processor=conditions.processor,
        gpus=conditions.gpus,
        threads=threads,
        runtimes=conditions.runtimes,
        tureen=conditions.tureen,
        rounds=len(results[0]),
        max_turn_s=max_turn_s,
        engines=measured,
        left_out=left_out,
        throughput=best_for_throughput(measured),
        latency=best_for_latency(measured),
    )


def _engine_setups(bundle: Bundle, threads: int, streams: Sequence[int], max_batch: int) -> list[EngineSetup]:
    return [
        EngineSetup(
            bundle=str(bundle.path),
            engine=row.engine,
            precision=row.precision,
            threads=threads,
            streams=count,
            max_batch=max_batch,
        )
        for count in streams
        for row in bundle.manifest.parity
    ]


def _calibrate(worker: Worker, max_turn_s: float) -> dict[int, float]:
    """Warm up every batch and time it once, up to the one that would take too long: seconds by batch."""
    call_s: dict[int, float] = {}
    longest = 0.0
    for batch in BATCHES:
        if batch > worker.assignment.max_batch or 2 * longest > max_turn_s:
            break
        worker.turn(TimedTurn(batch=batch, calls=1))  # engines compile or allocate for each batch size
        longest = call_s[batch] = worker.turn(TimedTurn(batch=batch, calls=1)).seconds
    return call_s


def _plan_round(contestants: Sequence[_Candidate], max_turn_s: float) -> list[tuple[_Candidate, TimedTurn]]:
    """One round: the engines side by side at each batch; one β and as many as images, one right after the other."""
    turns = []
    for batch in BATCHES:
        for contestant in contestants:
            if batch not in contestant.call_s:
                continue
            calls = calls_to_fill(TURN_S, contestant.call_s[batch])
            if batch == 1:
                calls = min(max(calls, LATENCY_CALLS), calls_to_fill(max_turn_s, contestant.call_s[batch]))
            one = TimedTurn(batch=batch, calls=calls)
            if batch == contestant.mixed_batch:
                pair = [(contestant, one), (contestant, TimedTurn(batch=batch, calls=calls, is_mixed=True))]
                turns += pair * min(MIXED_PAIRS, calls)
            else:
                turns.append((contestant, one))
    return turns


def _run_turn(contestant: _Candidate, turn: TimedTurn, on_progress: Callable[[str], None]) -> TurnTimes | None:
    if contestant.lost:
        return None
    assignment = contestant.worker.assignment
    on_progress(f"time {assignment.name}, streams {assignment.streams}, batch {turn.batch}")
    try:
        return contestant.worker.turn(turn)
    except EngineError as error:
        contestant.lost = str(error)
        return None


def _measurement(
    contestant: _Candidate, results: dict[TimedTurn, list[TurnTimes]], max_batch: int
) -> EngineMeasurement:
    assignment, opened = contestant.worker.assignment, contestant.worker.opened
    alone = {turn.batch: (turn, times) for turn, times in results.items() if not turn.is_mixed}
    ((mixed, mixed_times),) = ((turn, times) for turn, times in results.items() if turn.is_mixed)
    one_beta = alone[mixed.batch][1]
    latencies_ms = [1000 * s for times in alone[1][1] for s in times.call_seconds]
    return EngineMeasurement(
        engine=assignment.engine,
        precision=assignment.precision,
        streams=assignment.streams,
        **opened.model_dump(),
        rates=[
            BatchRate(
                batch=batch,
                images_per_second=batch * turn.calls * assignment.streams / median(t.seconds for t in times),
            )
            for batch, (turn, times) in alone.items()
        ],
        skipped=[batch for batch in BATCHES if batch <= max_batch and batch not in alone],
        mixed_batch=mixed.batch,
        # Round by round: each pair was measured at the same moment.
        mixed_ratio=median(one.seconds / many.seconds for one, many in zip(one_beta, mixed_times, strict=True)),
        p50_ms=float(np.percentile(latencies_ms, 50)),
        p99_ms=float(np.percentile(latencies_ms, 99)),
        latency_calls=len(latencies_ms),
    )


def _excluded(assignment: EngineSetup, reason: str) -> ExcludedEngine:
    return ExcludedEngine(
        engine=assignment.engine, precision=assignment.precision, streams=assignment.streams, reason=reason
    )
