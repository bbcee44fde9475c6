"""Measures how fast an operator adds tokens to a running server, and what its clients notice.

    python -m benchmarks.add_tokens [BUNDLE] --tokens 1000

Adds the tokens one after the other to a server with several workers. The tokens are random vectors between both modes
of the bundle. Measures the time of the last 200 additions, from sending the token to the response, which the server
sends when every worker uses the token. Then measures requests at a constant rate, alternately without additions and
during additions. Compare only ratios of one run.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.load import open_loop
from benchmarks.machine import describe_machine
from benchmarks.many_tokens import name_of, random_vectors, write_tokens
from benchmarks.propagation import format_p50, p99_ms, run_operated_server
from benchmarks.targets import ratio, report_target
from benchmarks.throughput import encode_png
from benchmarks.workload import classify_requests
from serve.commands.admin_client import AdminClient
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import find_bundle

MEASURED = 200  # additions, the last ones
ADD_INTERVAL_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="signs", help="bundle, or name of an example (default: signs)")
    parser.add_argument("--tokens", type=int, default=1000, help="number of tokens (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="workers of the server (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=50, help="requests per second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="seconds of load in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of load (default: %(default)s)")
    options = parser.parse_args()
    print(describe_machine())
    bundle = load_bundle(find_bundle(options.bundle))
    vectors = random_vectors(bundle, options.tokens)
    images = classify_requests([encode_png(pixels) for pixels in bundle.golden.pixels])
    with tempfile.TemporaryDirectory() as directory:
        write_tokens(bundle, vectors, Path(directory))
        files = [Path(directory) / f"{name_of(number)}.token" for number in range(options.tokens)]
        contents = {file.stem: file.read_bytes() for file in files}
    flags = ("--workers", str(options.workers), "--engine", "auto")
    with run_operated_server(*flags, bundle=bundle.path) as (port, client):
        seconds = [add(client, name, content) for name, content in contents.items()][-MEASURED:]
        report_target(
            f"{options.workers} workers: p99 until all use it, of the last {len(seconds)} of {len(contents):,}, ms",
            "≤",
            100,
            p99_ms(seconds),
            format_p50(seconds),
        )
        measure_requests(port, client, contents, images, options)


def add(client: AdminClient, name: str, content: bytes) -> float:
    """Adds a token. Returns the seconds of the request. Raises RuntimeError if not every worker uses the token then.

    The number of the revision in force is read before the time starts.
    """
    revision = client.state()["revision"]
    started = time.perf_counter()
    state = client.add_token(revision, name, content, "a measurement", may_replace=False)
    seconds = time.perf_counter() - started
    if any(worker["parked_tokens"] or worker["revision"] < state["revision"] for worker in state["workers"]):
        raise RuntimeError(f"not every worker uses {name}")
    return seconds


def measure_requests(
    port: int,
    client: AdminClient,
    contents: Mapping[str, bytes],
    requests: Sequence[bytes],
    options: argparse.Namespace,
) -> None:
    """Prints the p99 of requests during additions as a ratio to that without, and the number of lost requests."""
    latencies: dict[str, list[float]] = {"during": [], "without": []}
    lost, count = 0, [0]
    for turn in range(options.rounds):
        for name in sorted(latencies, reverse=bool(turn % 2)):
            is_over = threading.Event()
            adding = threading.Thread(target=keep_adding, args=(client, contents, is_over, count))
            if name == "during":
                adding.start()
            load = asyncio.run(open_loop(port, requests, options.rate, options.seconds, seed=turn))
            is_over.set()
            if name == "during":
                adding.join()
            answered = [timed.latency_s for timed in load.of_status(200)]
            latencies[name] += answered
            lost += len(load.responses) - len(answered)
            print(f"  {name:<8} p99 {p99_ms(answered):6.2f} ms", flush=True)
    share = ratio(p99_ms(latencies["during"]), p99_ms(latencies["without"]))
    note = f"all {options.rounds} rounds together, {count[0]} additions"
    report_target("p99 of requests during additions / without", "≤", 1.1, share, note)
    report_target("requests lost", "≤", 0, lost)


def keep_adding(client: AdminClient, contents: Mapping[str, bytes], is_over: threading.Event, count: list[int]) -> None:
    """Removes a token and adds it again, every ADD_INTERVAL_S, until `is_over` is set. Counts the additions."""
    for name, content in itertools.cycle(contents.items()):
        if is_over.wait(ADD_INTERVAL_S):
            return
        client.remove_token(client.state()["revision"], name, "a measurement")
        add(client, name, content)
        count[0] += 1


if __name__ == "__main__":
    main()
