"""Measures the server while clients ignore Retry-After: the cost of a refusal, and the requests that are still served.

    python -m benchmarks.impatient_clients signs

The server admits 16 requests at a time. 16 clients that wait for their responses use all of it: their rate is the
limit. Then 64 clients send their next request immediately after each response, also after a refusal. Measures the rate
of served requests as a share of the limit, with and without the delay of refusals, in turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack

import uvloop

from benchmarks.load import ClosedLoopResult, closed_loop
from benchmarks.machine import describe_machine
from benchmarks.profile_request import thread_ns
from benchmarks.server_process import Server, others_suspended, run_tureen
from benchmarks.targets import median, ratio, report_target
from benchmarks.throughput import encode_png, png_requests
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import find_bundle

PERMITS = 16
IMPATIENT = 64
SERVERS = {
    "delayed refusals": ("--max-requests", str(PERMITS)),
    "immediate refusals": ("--max-requests", str(PERMITS), "--refusal-delay-ms", "0"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="signs", help="bundle, or name of an example (default: signs)")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of load in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each server (default: %(default)s)")
    options = parser.parse_args()
    print(describe_machine())
    bundle = load_bundle(find_bundle(options.bundle))
    requests = png_requests([encode_png(pixels) for pixels in bundle.golden.pixels], ["0.5"])
    shares: dict[str, list[float]] = {name: [] for name in SERVERS}
    refusals_us: list[float] = []
    with ExitStack() as stack:
        servers = {name: stack.enter_context(run_tureen(bundle.path, *flags)) for name, flags in SERVERS.items()}
        for turn in range(options.rounds + 1):
            for name, server in servers.items():
                with others_suspended(server, servers.values()):
                    patient, patient_us = run_load(server, requests, PERMITS, options.seconds)
                    impatient, impatient_us = run_load(server, requests, IMPATIENT, options.seconds)
                if not turn:  # the warm-up
                    continue
                shares[name].append(ratio(impatient.rate, patient.rate))
                print(f"  {name}: {patient}\n  {IMPATIENT} impatient clients: {impatient}", flush=True)
                if name == "immediate refusals" and impatient.failed:
                    served_us = patient_us / patient.responses * impatient.responses * share_of_served(impatient)
                    refused = impatient.responses * (1 - share_of_served(impatient))
                    refusals_us.append((impatient_us - served_us) / refused)
    print()
    for name, bound in (("delayed refusals", 0.9), ("immediate refusals", 0.0)):
        report_target(f"{name}: served / limit, {IMPATIENT} impatient", "≥", bound, median(shares[name]))
    if refusals_us:
        print(f"core-µs a refusal: {median(refusals_us):.0f}")


def run_load(server: Server, requests: Sequence[bytes], clients: int, seconds: float) -> tuple[ClosedLoopResult, float]:
    """Returns the counts of a closed loop, and the CPU time of the server in microseconds."""
    before = sum(thread_ns(server.pid).values())
    load = uvloop.run(closed_loop(server.port, requests, clients, seconds))
    return load, (sum(thread_ns(server.pid).values()) - before) / 1000


def share_of_served(load: ClosedLoopResult) -> float:
    return load.succeeded / (load.succeeded + load.failed)


if __name__ == "__main__":
    main()
