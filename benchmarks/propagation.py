"""Measures the time until all workers and servers apply a change of the settings, and the throughput during changes.

    python -m benchmarks.propagation

Measures three figures:

- on one server with four workers: the time from sending a change to the response, which the server sends when every
  worker has applied the change, after one second at the latest
- on two servers with one PostgreSQL database: the time from sending a change to one server until the other applies it
- the throughput with a change every 10 ms, as a ratio to the throughput without changes
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import uvloop

from benchmarks.load import closed_loop
from benchmarks.machine import describe_machine
from benchmarks.server_process import free_port, run_tureen
from benchmarks.soak import encode_image, golden_pixels
from benchmarks.targets import median, percentile, ratio, report_target
from benchmarks.workload import SMALL_BUNDLE, classify_requests
from serve.commands.admin_client import AdminClient
from serve.control.credential_store import Credentials, make_secret
from serve.control.revision_store import RevisionStore
from tests.serve.control.postgres import PROGRAMS, Postgres

CHANGE_INTERVAL_S = 0.01
CONNECTIONS = 16


@contextmanager
def run_operated_server(
    *flags: str, bundle: Path = SMALL_BUNDLE, token: str | None = None
) -> Iterator[tuple[int, AdminClient]]:
    """Runs a server with a bundle. Yields its port and a client of its admin listener.

    token: the bearer token of the client, for a credential in the store. None: the client uses the token that the
    server writes to its state directory.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as state:
        options = ("--state-dir", state, "--admin-port", str(port), "--engine", "onnxruntime", *flags)
        with run_tureen(bundle, *options) as server:
            secret = token or (Path(state) / "admin-token").read_text().strip()
            yield server.port, AdminClient(f"http://127.0.0.1:{port}", secret)


def change(client: AdminClient, revision: int) -> None:
    client.change(revision, {"default_beta": revision % 100 / 100, "reason": "a measurement"})


def measure_one_machine(changes: int) -> None:
    with run_operated_server("--workers", "4") as (_, client):
        seconds = []
        for revision in range(changes):
            started = time.perf_counter()
            change(client, revision)
            seconds.append(time.perf_counter() - started)
        wait_for_revision(client, changes)
    report_target(
        f"4 workers: p99 until all apply it, of {changes:,} changes, ms", "≤", 100, p99_ms(seconds), format_p50(seconds)
    )


def wait_for_revision(client: AdminClient, revision: int) -> None:
    """Waits until every worker has applied the revision. Raises RuntimeError if this takes over a minute.

    On a busy machine the server may respond to a change before every worker has applied it.
    """
    deadline = time.monotonic() + 60
    while {worker["revision"] for worker in client.state()["workers"]} != {revision}:
        if time.monotonic() > deadline:
            raise RuntimeError(f"not every worker has applied revision {revision}")
        time.sleep(0.1)


def measure_two_servers(changes: int) -> None:
    token = make_secret()
    with tempfile.TemporaryDirectory(prefix="tureen-postgres-") as directory:
        postgres = Postgres(Path(directory) / "server")
        with closing(RevisionStore(postgres.url)) as store:
            Credentials(store).make("benchmark", "operate", token)
        flags = ("--store", postgres.url)
        try:
            with (
                run_operated_server(*flags, token=token) as (_, one),
                run_operated_server(*flags, token=token) as (_, other),
            ):
                seconds = [seconds_until_other(one, other, revision) for revision in range(changes)]
        finally:
            postgres.stop()
    report_target(
        f"2 servers, PostgreSQL: p99 until the other applies it, of {changes:,}, ms",
        "≤",
        1000,
        p99_ms(seconds),
        format_p50(seconds),
    )


def seconds_until_other(one: AdminClient, other: AdminClient, revision: int) -> float:
    """Sends a change to the server `one`. Returns the seconds until the server `other` has applied it.

    revision: the current revision of both servers.
    """
    waiting = threading.Thread(target=lambda: other.state(after=revision, wait_s=30))
    waiting.start()
    started = time.perf_counter()
    change(one, revision)
    waiting.join()
    return time.perf_counter() - started


def measure_throughput(seconds: float, rounds: int) -> None:
    requests = classify_requests([encode_image(pixels, "jpeg") for pixels in golden_pixels()])
    ratios, changes = [], 0
    with run_operated_server() as (port, client):
        uvloop.run(closed_loop(port, requests, CONNECTIONS, 1))
        for _ in range(rounds):
            without = uvloop.run(closed_loop(port, requests, CONNECTIONS, seconds))
            is_over = threading.Event()
            changing = threading.Thread(target=keep_changing, args=(client, is_over))
            changing.start()
            during = uvloop.run(closed_loop(port, requests, CONNECTIONS, seconds))
            is_over.set()
            changing.join()
            changes = client.state()["revision"]
            print(f"  without {without}\n  during  {during}", flush=True)
            ratios.append(ratio(during.rate, without.rate))
    note = f"{changes / (1.1 * seconds * rounds):.0f} changes per second"
    report_target("throughput during changes / without", "≥", 0.99, median(ratios), note)


def keep_changing(client: AdminClient, is_over: threading.Event) -> None:
    revision, due = client.state()["revision"], time.perf_counter()
    while not is_over.is_set():
        change(client, revision)
        revision += 1
        due = max(due + CHANGE_INTERVAL_S, time.perf_counter() - CHANGE_INTERVAL_S)
        time.sleep(max(0.0, due - time.perf_counter()))


def p99_ms(seconds: list[float]) -> float:
    return 1000 * percentile(seconds, 99)


def format_p50(seconds: list[float]) -> str:
    return f"p50 {1000 * median(seconds):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(describe_machine())
    measure_one_machine(options.changes)
    if PROGRAMS:
        measure_two_servers(options.changes)
    else:
        print("skipped two servers: they need PostgreSQL, for example the Debian package postgresql")
    measure_throughput(options.seconds, options.rounds)


if __name__ == "__main__":
    main()
