"""Measures the speed of all engines that a bundle lists and this machine can run.

Each engine runs in a separate process (`worker`). All processes exist at the same time, but only one of them computes
at a time.
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
MIXED_PAIRS = 3  # per round, unless a single call fills a turn; many, because the ratio is near 1
LATENCY_CALLS = 34  # per round; three rounds have 100 calls, so that p99 is not just the slowest call
SHORTEST_TURNS = 15  # a turn takes at most this fraction of the time


@dataclass(eq=False)
class _Candidate:
    """An engine in a worker process. The keys of `call_s` are the batch sizes at which the engine is timed.

    failure: the message of the error that ended the measurement of this engine; empty if there was none.
    """

    worker: Worker
    call_s: dict[int, float]  # by batch size: seconds of one call on all streams
    failure: str = ""

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
    """Measures every engine of the bundle with each number of streams. Returns all measurements.

    threads: CPU threads of all streams together. streams: the numbers of concurrent runs to measure. max_batch: largest
    batch size. seconds: duration of the timing, without the loading of engines. on_progress: called with a text before
    each step. Raises EngineError, with the reason for each engine, if no engine could be measured.
    """
    left_out: list[ExcludedEngine] = []
    candidates: list[_Candidate] = []
    max_turn_s = seconds / SHORTEST_TURNS
    with ExitStack() as processes:
        for setup in _engine_setups(bundle, threads, streams, max_batch):
            on_progress(f"open {setup.name}, streams {setup.streams}")
            try:
                worker = Worker(setup)
                processes.callback(worker.close)
                candidates.append(_Candidate(worker, _calibrate(worker, max_turn_s)))
            except EngineError as error:
                left_out.append(_excluded(setup, str(error)))
        turns = _plan_round(candidates, max_turn_s)
        functions = [partial(_run_turn, candidate, turn, on_progress) for candidate, turn in turns]
        results = run_in_turns(functions, seconds=seconds)
    times_of: dict[_Candidate, dict[TimedTurn, list[TurnTimes]]] = {candidate: {} for candidate in candidates}
    for (candidate, turn), times in zip(turns, results, strict=True):
        times_of[candidate].setdefault(turn, []).extend(t for t in times if t is not None)
    left_out += [_excluded(c.worker.setup, c.failure) for c in candidates if c.failure]
    measured = [_measurement(c, times_of[c], max_batch) for c in candidates if not c.failure]
    if not measured:
        reasons = "; ".join(f"{out.engine} {out.precision}: {out.reason}" for out in left_out)
        raise EngineError(f"no engine can run {bundle.path}: {reasons or 'the bundle lists none'}")
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
    """Times one call of the engine for each batch size, after a warm-up. Returns the seconds by batch size.

    Begins with the smallest batch size. Stops before a batch size at which one call would probably take more than
    `max_turn_s` seconds.
    """
    call_s: dict[int, float] = {}
    longest = 0.0
    for batch in BATCHES:
        if batch > worker.setup.max_batch or 2 * longest > max_turn_s:
            break
        worker.run_turn(TimedTurn(batch=batch, calls=1))  # engines compile or allocate for each batch size
        longest = call_s[batch] = worker.run_turn(TimedTurn(batch=batch, calls=1)).seconds
    return call_s


def _plan_round(candidates: Sequence[_Candidate], max_turn_s: float) -> list[tuple[_Candidate, TimedTurn]]:
    """Returns the turns of one round, in order. A turn is one timing of an engine at one batch size.

    Each engine has a turn at each of its batch sizes in `call_s`. At its `mixed_batch`, turns with one β for all images
    and turns with a separate β per image alternate, up to MIXED_PAIRS times. A turn has as many calls as fill TURN_S
    seconds. A turn at batch size 1 has at least LATENCY_CALLS calls, if these fit into `max_turn_s` seconds.
    """
    turns = []
    for batch in BATCHES:
        for candidate in candidates:
            if batch not in candidate.call_s:
                continue
            calls = calls_to_fill(TURN_S, candidate.call_s[batch])
            if batch == 1:
                calls = min(max(calls, LATENCY_CALLS), calls_to_fill(max_turn_s, candidate.call_s[batch]))
            turn = TimedTurn(batch=batch, calls=calls)
            if batch == candidate.mixed_batch:
                pair = [(candidate, turn), (candidate, TimedTurn(batch=batch, calls=calls, is_mixed=True))]
                turns += pair * min(MIXED_PAIRS, calls)
            else:
                turns.append((candidate, turn))
    return turns


def _run_turn(candidate: _Candidate, turn: TimedTurn, on_progress: Callable[[str], None]) -> TurnTimes | None:
    if candidate.failure:
        return None
    setup = candidate.worker.setup
    on_progress(f"time {setup.name}, streams {setup.streams}, batch {turn.batch}")
    try:
        return candidate.worker.run_turn(turn)
    except EngineError as error:
        candidate.failure = str(error)
        return None


def _measurement(candidate: _Candidate, results: dict[TimedTurn, list[TurnTimes]], max_batch: int) -> EngineMeasurement:
    setup, opened = candidate.worker.setup, candidate.worker.opened
    with_one_beta = {turn.batch: (turn, times) for turn, times in results.items() if not turn.is_mixed}
    ((mixed, mixed_times),) = ((turn, times) for turn, times in results.items() if turn.is_mixed)
    one_beta = with_one_beta[mixed.batch][1]
    latencies_ms = [1000 * s for times in with_one_beta[1][1] for s in times.call_seconds]
    return EngineMeasurement(
        engine=setup.engine,
        precision=setup.precision,
        streams=setup.streams,
        **opened.model_dump(),
        rates=[
            BatchRate(
                batch=batch,
                images_per_second=batch * turn.calls * setup.streams / median(t.seconds for t in times),
            )
            for batch, (turn, times) in with_one_beta.items()
        ],
        skipped=[batch for batch in BATCHES if batch <= max_batch and batch not in with_one_beta],
        mixed_batch=mixed.batch,
        # The median of the ratios, because the two turns of a pair are measured one after the other.
        mixed_ratio=median(one.seconds / many.seconds for one, many in zip(one_beta, mixed_times, strict=True)),
        p50_ms=float(np.percentile(latencies_ms, 50)),
        p99_ms=float(np.percentile(latencies_ms, 99)),
        latency_calls=len(latencies_ms),
    )


def _excluded(setup: EngineSetup, reason: str) -> ExcludedEngine:
    return ExcludedEngine(engine=setup.engine, precision=setup.precision, streams=setup.streams, reason=reason)
