"""Measures where the CPU time of a request goes, and compares it with the least that a request costs.

    python -m benchmarks.profile_request signs
    python -m benchmarks.profile_request signs --before ../earlier   # and the same of another source tree

The server runs one process of its default settings, and logs each request to a file. All figures are core-microseconds:
the CPU time that the kernel counts for the threads of the server, divided by the number of requests. Other programs
disturb them less than durations. The floor is a bare ASGI function, and a bare FastAPI route, on the same uvicorn, with
the same requests and response bytes. All servers are measured in turns.

A second server has a timer around each stage. The timers cost CPU time themselves, which the table shows separately.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from benchmarks.floor_server import FLOORS
from benchmarks.load import ClosedLoopResult, Connection, closed_loop
from benchmarks.machine import describe_machine
from benchmarks.profiled_server import STAGES
from benchmarks.server_process import Server, free_port, others_suspended, run_server
from benchmarks.targets import report_target
from benchmarks.throughput import encode_png, png_requests
from tureen.bundle.bundle import Bundle, load_bundle
from tureen.bundle.examples import find_bundle

ROOT = Path(__file__).parents[1]
CONNECTIONS = 64
WARM_UP_S = 1.0
WRITE_S = 10.0  # for the server to write its times
MAX_RATIO = 2.0  # of a request beyond decoding and engine, to the bare FastAPI route
REST = "socket, event loop, rest"
OWN_WORK = ("decode", "engine")  # the stages that the floor does not have


@dataclass(frozen=True)
class Round:
    """The CPU time of a request in one round, in microseconds.

    all_us: of all threads. loop_us: of the thread of the event loop. stages: of each stage, `REST` included, without
    the timers; empty for a server without timers. timers_us: of the timers.
    """

    all_us: float
    loop_us: float
    stages: dict[str, float]
    timers_us: float

    @property
    def own_us(self) -> float:
        """The time of OWN_WORK."""
        return sum(self.stages[stage] for stage in OWN_WORK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="signs", help="bundle, or name of an example (default: signs)")
    parser.add_argument("--before", type=Path, help="another source tree of Tureen, measured too")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of load in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each server (default: %(default)s)")
    options = parser.parse_args()
    print(describe_machine())
    bundle = load_bundle(find_bundle(options.bundle))
    requests = png_requests([encode_png(pixels) for pixels in bundle.golden.pixels], ["0.5"])
    trees = {"now": ROOT} if options.before is None else {"before": options.before.absolute(), "now": ROOT}
    with tempfile.TemporaryDirectory() as scratch:
        rounds = measure(bundle, requests, trees, options.seconds, options.rounds, Path(scratch))
    print(f"\ncore-µs a request, medians of {options.rounds} rounds with {CONNECTIONS} connections")
    for name in rounds:
        all_us, loop_us = (
            median(values) for values in zip(*((r.all_us, r.loop_us) for r in rounds[name]), strict=True)
        )
        print(f"  {name:<20} {all_us:6.0f}, of which the event loop {loop_us:6.0f}")
    print_stages({name: rounds[f"{name}, timed"] for name in trees})
    for name in trees:
        report_floor(name, rounds)


def measure(
    bundle: Bundle, requests: Sequence[bytes], trees: dict[str, Path], seconds: float, count: int, scratch: Path
) -> dict[str, list[Round]]:
    """Returns the rounds of each server: of each tree, of each tree with timers, and of each floor.

    The servers take turns. Those that are not measured are suspended.
    """
    rounds: dict[str, list[Round]] = {}
    with ExitStack() as stack:
        servers: dict[str, tuple[Server, Path | None]] = {}
        for name, tree in trees.items():
            times = scratch / f"{name}.json"
            for key, program, file in (
                (name, ["-m", "tureen.cli", "serve"], None),
                (f"{name}, timed", [str(tree / "benchmarks" / "profiled_server.py"), str(times)], times),
            ):
                servers[key] = stack.enter_context(run_tree(tree, program, bundle, scratch / f"{key}.log")), file
        body = scratch / "response.json"
        body.write_bytes(uvloop.run(respond(servers["now"][0].port, requests[0])))
        for name in FLOORS:
            servers[name] = stack.enter_context(run_floor(name, body)), None
        for turn in range(count + 1):
            for name, (server, written) in servers.items():
                with others_suspended(server, [other for other, _ in servers.values()]):
                    one, load = measure_round(server, requests, seconds if turn else WARM_UP_S, written)
                if turn:
                    rounds.setdefault(name, []).append(one)
                    print(f"  {name:<14} {one.all_us:6.0f} µs a request  {load}", flush=True)
    return rounds


def measure_round(
    server: Server, requests: Sequence[bytes], seconds: float, times: Path | None
) -> tuple[Round, ClosedLoopResult]:
    """Sends the requests for `seconds`. Returns the CPU times of a request, and the counts of the load.

    times: the file of the server's timers; None: it has none. Raises RuntimeError if a request fails.
    """
    before, timers_before = thread_ns(server.pid), None if times is None else read_times(server, times)
    load = uvloop.run(closed_loop(server.port, requests, CONNECTIONS, seconds))
    after, timers_after = thread_ns(server.pid), None if times is None else read_times(server, times)
    if load.failed:
        raise RuntimeError(f"{load.failed} requests failed")
    used = {thread: (ns - before.get(thread, 0)) / 1000 / load.responses for thread, ns in after.items()}
    all_us, loop_us = sum(used.values()), used[server.pid]
    if timers_before is None or timers_after is None:
        return Round(all_us, loop_us, {}, 0.0), load
    changes = {
        key: {stage: timers_after[key].get(stage, 0) - timers_before[key].get(stage, 0) for stage in STAGES}
        for key in ("spent_ns", "calls", "inner_calls")
    }
    inside_ns, around_ns = timers_after["timer_inside_ns"], timers_after["timer_around_ns"]
    stages = {
        stage: (spent - inside_ns * changes["calls"][stage] - around_ns * changes["inner_calls"][stage])
        / 1000
        / load.responses
        for stage, spent in changes["spent_ns"].items()
    }
    timers_us = (inside_ns + around_ns) * sum(changes["calls"].values()) / 1000 / load.responses
    stages["engine"] += sum(us for thread, us in used.items() if thread not in timers_after["threads"])  # its threads
    stages[REST] = all_us - timers_us - sum(stages.values())
    return Round(all_us, loop_us, stages, timers_us), load


def print_stages(timed: dict[str, list[Round]]) -> None:
    """Prints the medians of the stages of each tree, and their sum."""
    print(f"\n{'core-µs a request by stage':<28}" + "".join(f"{name:>9}" for name in timed))
    sums = dict.fromkeys(timed, 0.0)
    for stage in (*STAGES, REST):
        medians = {name: median(one.stages[stage] for one in rounds) for name, rounds in timed.items()}
        sums = {name: sums[name] + us for name, us in medians.items()}
        print(f"  {stage:<26}" + "".join(f"{us:9.1f}" for us in medians.values()))
    print(f"  {'sum':<26}" + "".join(f"{us:9.1f}" for us in sums.values()))
    timers = [median(one.timers_us for one in rounds) for rounds in timed.values()]
    print(f"  {'timers, in addition':<26}" + "".join(f"{us:9.1f}" for us in timers) + "\n", flush=True)


def report_floor(name: str, rounds: dict[str, list[Round]]) -> None:
    """Prints the cost of a request to a tree beyond OWN_WORK, as a ratio to the floor: the median over the rounds."""
    beyond = [one.all_us - timed.own_us for one, timed in zip(rounds[name], rounds[f"{name}, timed"], strict=True)]
    asgi, fastapi = (
        median(us / floor.all_us for us, floor in zip(beyond, rounds[key], strict=True)) for key in ("asgi", "fastapi")
    )
    note = f"{median(beyond):.0f} µs; {asgi:.1f} × the bare ASGI function"
    report_target(f"{name}: beyond decode and engine / bare FastAPI", "≤", MAX_RATIO, fastapi, note)


def read_times(server: Server, times: Path) -> dict[str, Any]:
    """Returns the times that the server of `profiled_server` has measured so far."""
    times.unlink(missing_ok=True)
    os.kill(server.pid, signal.SIGUSR1)
    deadline = time.monotonic() + WRITE_S
    while not times.exists():
        if time.monotonic() > deadline:
            raise RuntimeError("the server with timers wrote no times")
        time.sleep(0.01)
    report: dict[str, Any] = json.loads(times.read_text())
    return report


def thread_ns(pid: int) -> dict[int, int]:
    """Returns the CPU time of each thread of a process in nanoseconds, by the id of the thread.

    The thread of the event loop has the id of the process. Reads the counters of Linux, which psutil rounds to 10 ms.
    """
    return {
        int(task.name): int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()
    }


@contextmanager
def run_tree(tree: Path, program: Sequence[str], bundle: Bundle, log: Path) -> Iterator[Server]:
    """Runs the server of a source tree, which logs to a file, and yields it when it is ready.

    program: the arguments of Python before those of `tureen serve`.
    """
    port = free_port()
    command = [sys.executable, "-P", *program, str(bundle.path), "--port", str(port), "--admin-port", "0"]
    shell = ["sh", "-c", 'exec "$@" 2> "$0"', str(log), *command]
    with run_server(shell, port, "/readyz", {"PYTHONPATH": str(tree)}) as server:
        yield server


@contextmanager
def run_floor(name: str, body: Path) -> Iterator[Server]:
    """Runs a server of `floor_server`, and yields it when it is ready."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.floor_server", name, "--port", str(port), "--body", str(body)]
    with run_server(command, port, "/openapi.json") as server:
        yield server


async def respond(port: int, request: bytes) -> bytes:
    """Returns the body of the response to a request."""
    connection = await Connection.open(port)
    body = (await connection.request(request)).body
    connection.close()
    return body


if __name__ == "__main__":
    main()
