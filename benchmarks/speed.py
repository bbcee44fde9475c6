"""How near the server comes to the limit, what one connection waits, and what mixed β cost, all through HTTP."""

from __future__ import annotations

from statistics import median

import numpy as np
import uvloop

from benchmarks.bare import Bare, print_cost
from benchmarks.load import Load, closed_loop
from benchmarks.server_process import Server, serving
from benchmarks.subject import Subject, classify_requests
from benchmarks.targets import line
from tureen.machine import available_cpus
from tureen.timing import in_turns

CONNECTIONS = 64


def saturation(subject: Subject) -> None:
    """Throughput at 64 connections as a share of the limit; p50 at one against decoding and inference alone."""
    requests = classify_requests(subject.images)
    bare = Bare(subject)
    busy: list[Load] = []
    alone: list[Load] = []
    server_s = 0.0
    with serving(subject.bundle.path, *subject.server_flags) as server:
        ask(server, requests, CONNECTIONS, 1)
        for turn in range(subject.rounds):
            with server.suspended():
                bare.measure()
            before = server.cost().cpu_s
            busy.append(ask(server, requests, CONNECTIONS, subject.seconds))
            server_s += server.cost().cpu_s - before
            alone.append(ask(server, requests, 1, subject.seconds))
            print(f"  64 connections {busy[turn]}\n   1 connection  {alone[turn]}", flush=True)
    bare.close()
    cost = bare.cost
    print_cost(cost, subject)
    rate = median(load.rate for load in busy)
    p50_ms = median(load.percentile_ms(50) for load in alone)
    line("saturation: throughput at 64 connections / limit", "≥", 0.92, rate / cost.limit, f"{rate:.1f}/s")
    extra_ms = p50_ms - 1000 * cost.alone_s
    line("one connection: p50 beyond decode + inference, ms", "≤", 1, extra_ms, f"p50 {p50_ms:.2f} ms")
    # The warm-up tenth of each round is in both CPU figures, so in the count of requests too.
    answered = sum(load.answered for load in busy) * 1.1
    generator_s = sum(load.cpu_s for load in busy)
    wall_s = sum(load.seconds for load in busy) * 1.1
    engine_and_decode_ms = 1000 * (cost.decode_s + cost.engine_s)
    print(
        f"  core-milliseconds a request at 64 connections: server {1000 * server_s / answered:.2f}, of which "
        f"bare decode and engine {engine_and_decode_ms:.2f}; load generator {1000 * generator_s / answered:.2f}; "
        f"idle, or others' {1000 * (available_cpus() * wall_s - server_s - generator_s) / answered:.2f}",
        flush=True,
    )


def mixed_betas(subject: Subject) -> None:
    """64 different β against one, in turns on one server."""
    count = len(subject.images)
    one = classify_requests(subject.images)
    mixed = classify_requests(subject.images, np.linspace(0, 1, count).tolist())
    with serving(subject.bundle.path, *subject.server_flags) as server:
        ask(server, one, CONNECTIONS, 1)
        runs = [lambda r=requests: ask(server, r, CONNECTIONS, subject.seconds) for requests in (mixed, one)]  # type: ignore[misc]
        mixed_loads, one_loads = in_turns(runs, rounds=2 * subject.rounds)
    ratio = median(m.rate / o.rate for m, o in zip(mixed_loads, one_loads, strict=True))
    note = f"{median(m.rate for m in mixed_loads):.1f}/s against {median(o.rate for o in one_loads):.1f}/s"
    line(f"mixed β ({count} of them) / one β at 64 connections", "≥", 0.99, ratio, note)


def ask(server: Server, requests: list[bytes], connections: int, seconds: float) -> Load:
    """A closed loop, on an event loop of its own."""
    load: Load = uvloop.run(closed_loop(server.port, requests, connections, seconds))
    if load.failed:
        print(f"  {load.failed} requests were not answered with 200", flush=True)
    return load
