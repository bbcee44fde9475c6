"""How soon a change of the operator's settings is in force everywhere, and what changes cost those who ask meanwhile.

    python -m benchmarks.propagation

On one machine with four workers: from sending a change to its acknowledgement, which comes once every worker follows.
On two servers that share a PostgreSQL: until the other one has it. Throughput with a change every 10 ms against none.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import uvloop

from benchmarks.load import closed_loop
from benchmarks.machine import describe_machine
from benchmarks.server_process import free_port, serving
from benchmarks.soak import encoded, golden
from benchmarks.subject import SMALL_BUNDLE, classify_requests
from benchmarks.targets import line
from serve.commands.admin_client import AdminClient
from serve.control.credential_file import Credentials, make_secret
from serve.control.revision_store import RevisionStore
from tests.serve.control.postgres import PROGRAMS, Postgres

EVERY_S = 0.01
CONNECTIONS = 16


@contextmanager
def operated(*flags: str, token: str | None = None) -> Iterator[tuple[int, AdminClient]]:
    """A server of the small model with a state directory of its own: its port, and its operator.

    token: of the store's credential, where another server has made that.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as state:
        every = ("--state-dir", state, "--admin-port", str(port), "--engine", "onnxruntime", *flags)
        with serving(SMALL_BUNDLE, *every) as server:
            secret = token or (Path(state) / "admin-token").read_text().strip()
            yield server.port, AdminClient(f"http://127.0.0.1:{port}", secret)


def change(client: AdminClient, revision: int) -> None:
    client.change(revision, {"default_beta": revision % 100 / 100, "reason": "a measurement"})


def on_one_machine(changes: int) -> None:
    with operated("--workers", "4") as (_, client):
        took = []
        for revision in range(changes):
            began = time.perf_counter()
            change(client, revision)
            took.append(time.perf_counter() - began)
        workers = client.state()["workers"]
        assert all(worker["revision"] == changes for worker in workers), workers
    line(f"4 workers: p99 until all follow, of {changes:,} changes, ms", "≤", 100, percentile(took), p50(took))


def on_two_servers(changes: int) -> None:
    token = make_secret()
    with tempfile.TemporaryDirectory(prefix="tureen-postgres-") as directory:
        postgres = Postgres(Path(directory) / "server")
        with closing(RevisionStore(postgres.url)) as store:
            Credentials(store).make("benchmark", "operate", token)
        flags = ("--store", postgres.url)
        try:
            with operated(*flags, token=token) as (_, one), operated(*flags, token=token) as (_, other):
                took = [until_other(one, other, revision) for revision in range(changes)]
        finally:
            postgres.stop()
    line(f"2 servers, PostgreSQL: p99 until the other, of {changes:,}, ms", "≤", 1000, percentile(took), p50(took))


def until_other(one: AdminClient, other: AdminClient, revision: int) -> float:
    heard = threading.Thread(target=lambda: other.state(after=revision, wait_s=30))
    heard.start()
    began = time.perf_counter()
    change(one, revision)
    heard.join()
    return time.perf_counter() - began


def throughput(seconds: float, rounds: int) -> None:
    requests = classify_requests([encoded(pixels, "jpeg") for pixels in golden()])
    ratios, made = [], 0
    with operated() as (port, client):
        uvloop.run(closed_loop(port, requests, CONNECTIONS, 1))
        for _ in range(rounds):
            without = uvloop.run(closed_loop(port, requests, CONNECTIONS, seconds))
            is_over = threading.Event()
            changing = threading.Thread(target=keep_changing, args=(client, is_over))
            changing.start()
            among = uvloop.run(closed_loop(port, requests, CONNECTIONS, seconds))
            is_over.set()
            changing.join()
            made = client.state()["revision"]
            print(f"  without {without}\n  among   {among}", flush=True)
            ratios.append(among.rate / without.rate)
    note = f"{made / (1.1 * seconds * rounds):.0f} changes a second"
    line("throughput among changes / without", "≥", 0.99, median(ratios), note)


def keep_changing(client: AdminClient, is_over: threading.Event) -> None:
    revision, due = client.state()["revision"], time.perf_counter()
    while not is_over.is_set():
        change(client, revision)
        revision += 1
        due = max(due + EVERY_S, time.perf_counter() - EVERY_S)
        time.sleep(max(0.0, due - time.perf_counter()))


def percentile(seconds: list[float]) -> float:
    return 1000 * float(np.percentile(seconds, 99))


def p50(seconds: list[float]) -> str:
    return f"p50 {1000 * median(seconds):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(describe_machine())
    on_one_machine(options.changes)
    if PROGRAMS:
        on_two_servers(options.changes)
    else:
        print("two servers are left out: they take a PostgreSQL, as Debian's package postgresql brings")
    throughput(options.seconds, options.rounds)


if __name__ == "__main__":
    main()
