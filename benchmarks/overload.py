"""What happens when more is asked than the server can do: open loop at multiples of its own measured capacity."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from statistics import median

import numpy as np
import uvloop

from benchmarks.load import LOST, UNSENT, Connection, OpenLoad, Outcome, open_loop
from benchmarks.server_process import Server, serving
from benchmarks.speed import ask
from benchmarks.subject import Subject, classify_requests
from benchmarks.targets import line

BELOW, FULL, OVER, AFTER = 0.8, 1.0, 5.0, 0.5  # of capacity, one phase after the other
# What an operator sets who wants those that are taken to stay fast; by default a second, for bursts.
QUEUE_FLAGS = ("--max-queue-ms", "120")
FULL_CONNECTIONS = 16  # enough to fill the machine, and few enough that none of them has to be refused
PROBE_S = 0.1  # between two looks at /healthz and at the server's memory
PROBE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
NORMAL_STEP_S = 0.1


@dataclass(frozen=True)
class Phase:
    """One rate of requests, what came of them, and what the server was like meanwhile."""

    load: OpenLoad
    probes_ms: list[float]  # of /healthz; infinite where there was no 200
    largest_rss: int

    @property
    def accepted(self) -> list[Outcome]:
        """Answered with 200; of the last nine tenths of the time, as the goodput is."""
        return [o for o in self.load.of_status(200) if o.intended_s >= self.load.seconds / 10]

    @property
    def refused(self) -> list[Outcome]:
        """Not served, and told so or not."""
        return [o for o in self.load.outcomes if o.answer.status not in (200, UNSENT)]

    def __str__(self) -> str:
        load = self.load
        answers: dict[int, int] = {}
        for outcome in load.outcomes:
            answers[outcome.answer.status] = answers.get(outcome.answer.status, 0) + 1
        names = {LOST: "reset", UNSENT: "unsent"}
        shown = ", ".join(f"{count} {names.get(status, status)}" for status, count in sorted(answers.items()))
        accepted_ms = [percentile_ms(self.accepted, share) for share in (50, 99)]
        return (
            f"{load.rate:6.0f}/s: goodput {load.goodput:6.1f}/s, accepted p50 {accepted_ms[0]:.0f} ms, "
            f"p99 {accepted_ms[1]:.0f} ms; {shown}; refusals p99 {percentile_ms(self.refused, 99):.0f} ms; "
            f"/healthz p99 {np.percentile(self.probes_ms, 99):.0f} ms; RSS at most {self.largest_rss / 2**20:.0f} MiB; "
            f"generator {100 * load.cpu_s / load.seconds:.0f} % of a core, {load.connections} connections, "
            f"p99 {1000 * np.percentile(load.late_s, 99):.0f} ms late"
        )


def overload(subject: Subject) -> None:
    """Goodput, latency of what is accepted, refusals, memory, health and recovery."""
    requests = classify_requests(subject.images)
    rounds: list[dict[float, Phase]] = []
    print(f"  with {' '.join(QUEUE_FLAGS)}")
    with serving(subject.bundle.path, *subject.server_flags, *QUEUE_FLAGS) as server:
        ask(server, requests, FULL_CONNECTIONS, 1)
        idle_rss = server.cost().rss_bytes
        for turn in range(subject.rounds):
            capacity = ask(server, requests, FULL_CONNECTIONS, subject.seconds).rate
            print(f"  capacity, closed loop at {FULL_CONNECTIONS}: {capacity:.1f}/s", flush=True)
            phases = {}
            for share in (BELOW, FULL, OVER, AFTER):
                phases[share] = uvloop.run(phase(server, requests, share * capacity, subject.seconds, seed=turn))
                print(f"  {share:g} × {phases[share]}", flush=True)
            rounds.append(phases)
    report(rounds, idle_rss)


def report(rounds: list[dict[float, Phase]], idle_rss: int) -> None:
    over = [phases[OVER] for phases in rounds]
    line(
        "overload: goodput at 5 × / goodput at 1 ×",
        "≥",
        0.95,
        median(phases[OVER].load.goodput / phases[FULL].load.goodput for phases in rounds),
    )
    line(
        "overload: p99 of accepted at 5 × / p99 at 0.8 ×",
        "≤",
        2,
        median(percentile_ms(p[OVER].accepted, 99) / percentile_ms(p[BELOW].accepted, 99) for p in rounds),
    )
    refused = [outcome for each in over for outcome in each.refused]
    told = [o for o in refused if o.answer.status == 429 and b"\r\nretry-after:" in o.answer.head]
    resets = sum(outcome.answer.status == LOST for outcome in refused)
    share = len(told) / len(refused) if refused else float("nan")
    line("overload: refusals that are 429 with Retry-After", "=", 1, share, f"{len(refused)} refusals, {resets} resets")
    line("overload: p99 of refusals, ms", "≤", 50, median(percentile_ms(each.refused, 99) for each in over))
    probes = [ms for each in over for ms in each.probes_ms]
    line("overload: p99 of /healthz meanwhile, ms", "≤", 200, float(np.percentile(probes, 99)), f"{len(probes)} probes")
    largest = max(each.largest_rss for each in over)
    line("overload: largest RSS / idle", "≤", 2, largest / idle_rss, f"{largest / 2**20:.0f} MiB; bounded, if it stays")
    normal = median(normal_after_s(phases[AFTER], percentile_ms(phases[BELOW].accepted, 99)) for phases in rounds)
    line("overload: seconds until normal again at 0.5 ×", "≤", 5, normal)


async def phase(server: Server, requests: list[bytes], rate: float, seconds: float, *, seed: int) -> Phase:
    """An open loop, with probes beside it until it ends."""
    probes_ms: list[float] = []
    largest = 0

    async def look() -> None:
        nonlocal largest
        while True:
            started = time.perf_counter()
            try:
                connection = await Connection.open(server.port)
                status = (await connection.answer(PROBE)).status
            except OSError:
                status = LOST
            probes_ms.append(1000 * (time.perf_counter() - started) if status == 200 else float("inf"))
            largest = max(largest, server.cost().rss_bytes)
            await asyncio.sleep(PROBE_S)

    looking = asyncio.create_task(look())
    load = await open_loop(server.port, requests, rate, seconds, seed=seed)
    looking.cancel()
    return Phase(load, probes_ms, largest)


def percentile_ms(outcomes: list[Outcome], share: float) -> float:
    """Of the latencies from the intended time; not a number where there are none."""
    return 1000 * float(np.percentile([o.latency_s for o in outcomes], share)) if outcomes else float("nan")


def normal_after_s(after: Phase, normal_ms: float) -> float:
    """From when on nothing is refused and 99 in 100 take no longer than `normal_ms`; infinite where never."""
    outcomes = sorted(after.load.outcomes, key=lambda outcome: outcome.intended_s)
    for start in np.arange(0, after.load.seconds - 1, NORMAL_STEP_S):
        rest = [o for o in outcomes if o.intended_s >= start]
        if all(o.answer.status == 200 for o in rest) and percentile_ms(rest, 99) <= normal_ms:
            return float(start)
    return float("inf")
