"""Measures the server under overload: requests arrive at random times, at multiples of the measured capacity."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np
import uvloop

from benchmarks.load import NO_RESPONSE, NO_SUCCESS, NOT_SENT, Connection, OpenLoopResult, TimedResponse, open_loop
from benchmarks.saturation import run_closed_loop
from benchmarks.server_process import Server, run_tureen
from benchmarks.targets import format_figure, median, percentile, ratio, report_target
from benchmarks.workload import Workload, classify_requests

BELOW_CAPACITY, AT_CAPACITY, OVERLOADED, AFTERWARDS = (
    0.8,
    1.0,
    5.0,
    0.5,
)  # shares of the capacity, in the order of the phases
# Keeps accepted requests fast. The default is one second, which allows bursts. Each request is one of another client,
# although the generator sends it over an open connection, so no refusal is delayed.
QUEUE_FLAGS = ("--max-queue-ms", "120", "--refusal-delay-ms", "0")
CAPACITY_CONNECTIONS = 16  # enough to saturate the machine, too few for a refusal
PROBE_S = 0.1  # between two probes of /healthz and of memory
PROBE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
RECOVERY_STEP_S = 0.1


@dataclass(frozen=True)
class OverloadPhase:
    """The measurements at one rate of requests: responses, latencies of /healthz, and memory of the server.

    largest_rss: largest resident memory in bytes, of all processes together.
    """

    load: OpenLoopResult  # the requests and their responses
    probes_ms: list[float]  # of /healthz; infinite if the status is not 200
    largest_rss: int

    @property
    def accepted(self) -> list[TimedResponse]:
        """The responses with status 200 to requests after the first tenth of the time."""
        return [o for o in self.load.of_status(200) if o.intended_s >= self.load.seconds / 10]

    @property
    def refused(self) -> list[TimedResponse]:
        """The responses whose status is not 200 to requests that were sent. A missing response is one of them."""
        return [o for o in self.load.responses if o.response.status not in (200, NOT_SENT)]

    def __str__(self) -> str:
        load = self.load
        counts: dict[int, int] = {}
        for timed in load.responses:
            counts[timed.response.status] = counts.get(timed.response.status, 0) + 1
        names = {NO_RESPONSE: "reset", NOT_SENT: "unsent"}
        statuses = ", ".join(f"{count} {names.get(status, status)}" for status, count in sorted(counts.items()))
        p50, p99, refusals, probes, late = (
            format_figure(figure, ".0f")
            for figure in (
                percentile_ms(self.accepted, 50),
                percentile_ms(self.accepted, 99),
                percentile_ms(self.refused, 99),
                percentile(self.probes_ms, 99),
                1000 * percentile(load.late_s, 99),
            )
        )
        accepted = f"accepted p50 {p50} ms, p99 {p99} ms" if self.accepted else NO_SUCCESS
        return (
            f"{load.rate:6.0f}/s: goodput {load.goodput:6.1f}/s, {accepted}; "
            f"{statuses or 'nothing sent'}; refusals p99 {refusals} ms; "
            f"/healthz p99 {probes} ms; RSS at most {self.largest_rss / 2**20:.0f} MiB; "
            f"generator {100 * load.cpu_s / load.seconds:.0f} % of a core, {load.connections} connections, "
            f"p99 {late} ms late"
        )


def measure_overload(workload: Workload) -> None:
    """Prints the results of the server under overload, each beside its target.

    The results are goodput (responses with status 200 per second), latency, refusals, memory, health and recovery.
    """
    requests = classify_requests(workload.images)
    rounds: list[dict[float, OverloadPhase]] = []
    print(f"  with {' '.join(QUEUE_FLAGS)}")
    with run_tureen(workload.bundle.path, *workload.server_flags, *QUEUE_FLAGS) as server:
        run_closed_loop(server, requests, CAPACITY_CONNECTIONS, 1)
        idle_rss = server.usage().rss_bytes
        for turn in range(workload.rounds):
            capacity = run_closed_loop(server, requests, CAPACITY_CONNECTIONS, workload.seconds).rate
            print(f"  capacity, closed loop at {CAPACITY_CONNECTIONS}: {capacity:.1f}/s", flush=True)
            phases = {}
            for share in (BELOW_CAPACITY, AT_CAPACITY, OVERLOADED, AFTERWARDS):
                phases[share] = uvloop.run(run_phase(server, requests, share * capacity, workload.seconds, seed=turn))
                print(f"  {share:g} × {phases[share]}", flush=True)
            rounds.append(phases)
    report(rounds, idle_rss)


def report(rounds: list[dict[float, OverloadPhase]], idle_rss: int) -> None:
    over = [phases[OVERLOADED] for phases in rounds]
    report_target(
        "overload: goodput at 5 × / goodput at 1 ×",
        "≥",
        0.95,
        median(ratio(phases[OVERLOADED].load.goodput, phases[AT_CAPACITY].load.goodput) for phases in rounds),
    )
    report_target(
        "overload: p99 of accepted at 5 × / p99 at 0.8 ×",
        "≤",
        2,
        median(
            ratio(percentile_ms(p[OVERLOADED].accepted, 99), percentile_ms(p[BELOW_CAPACITY].accepted, 99))
            for p in rounds
        ),
    )
    refused = [timed for phase in over for timed in phase.refused]
    with_retry_after = [o for o in refused if o.response.status == 429 and b"\r\nretry-after:" in o.response.head]
    resets = sum(timed.response.status == NO_RESPONSE for timed in refused)
    share = len(with_retry_after) / len(refused) if refused else float("nan")
    report_target(
        "overload: refusals that are 429 with Retry-After", "=", 1, share, f"{len(refused)} refusals, {resets} resets"
    )
    report_target("overload: p99 of refusals, ms", "≤", 50, median(percentile_ms(phase.refused, 99) for phase in over))
    probes = [ms for phase in over for ms in phase.probes_ms]
    report_target("overload: p99 of /healthz, ms", "≤", 200, percentile(probes, 99), f"{len(probes)} probes")
    largest = max(phase.largest_rss for phase in over)
    report_target("overload: largest RSS / idle", "≤", 2, ratio(largest, idle_rss), f"{largest / 2**20:.0f} MiB")
    recovery = median(
        recovery_s(phases[AFTERWARDS], percentile_ms(phases[BELOW_CAPACITY].accepted, 99)) for phases in rounds
    )
    report_target("overload: seconds until recovery at 0.5 ×", "≤", 5, recovery)


async def run_phase(server: Server, requests: list[bytes], rate: float, seconds: float, *, seed: int) -> OverloadPhase:
    """Sends requests at random times for `seconds`. Meanwhile measures /healthz and memory every PROBE_S seconds.

    rate: requests per second. seed: of the random times.
    """
    probes_ms: list[float] = []
    largest = 0

    async def probe() -> None:
        nonlocal largest
        while True:
            started = time.perf_counter()
            try:
                connection = await Connection.open(server.port)
                status = (await connection.request(PROBE)).status
            except OSError:
                status = NO_RESPONSE
            probes_ms.append(1000 * (time.perf_counter() - started) if status == 200 else float("inf"))
            largest = max(largest, server.usage().rss_bytes)
            await asyncio.sleep(PROBE_S)

    probing = asyncio.create_task(probe())
    load = await open_loop(server.port, requests, rate, seconds, seed=seed)
    probing.cancel()
    return OverloadPhase(load, probes_ms, largest)


def percentile_ms(responses: list[TimedResponse], percent: float) -> float:
    """Returns the percentile `percent` of the latencies in ms; NaN if there are no responses.

    A latency counts from the planned time of the request. percent: 0 to 100.
    """
    return 1000 * percentile([r.latency_s for r in responses], percent)


def recovery_s(after: OverloadPhase, normal_ms: float) -> float:
    """Returns the seconds from the start of the phase `after` until the server has recovered; infinity if it does not.

    The server has recovered when all later requests succeed, and their p99 latency is at most `normal_ms`.
    """
    responses = sorted(after.load.responses, key=lambda timed: timed.intended_s)
    for start in np.arange(0, after.load.seconds - 1, RECOVERY_STEP_S):
        rest = [r for r in responses if r.intended_s >= start]
        if all(r.response.status == 200 for r in rest) and percentile_ms(rest, 99) <= normal_ms:
            return float(start)
    return float("inf")
