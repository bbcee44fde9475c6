"""Measures the server under load: throughput, latency, overload, leaks, hostile clients and signals.

    python -m benchmarks.serving                              # all sections, with the full soak: hours
    python -m benchmarks.serving --only limit,saturation      # some sections
    python -m benchmarks.serving --only soak --requests 5000

Every section prints one line per target. Load generator and server share the cores of the machine. Compare absolute
figures only within one run; between runs, compare ratios. A ratio is the median over the rounds. If a round has no
response with status 200, "unavailable" is printed instead.
"""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.expensive_images import measure_expensive_images
from benchmarks.hardware_limit import measure_limit
from benchmarks.interruptions import measure_reload, measure_sigterm, measure_worker_kill
from benchmarks.machine import describe_machine
from benchmarks.overload import measure_overload
from benchmarks.saturation import measure_mixed_betas, measure_saturation
from benchmarks.slow_clients import measure_slow_clients
from benchmarks.soak import run_soak
from benchmarks.workload import (
    PHOTOGRAPHS,
    SMALL_BUNDLE,
    Workload,
    engine_options,
    load_photographs,
    make_random_bundle,
)
from tureen.bundle.bundle import load_bundle
from tureen.engines import open_engine

SECTIONS: dict[str, Callable[[Workload], None]] = {
    "limit": measure_limit,
    "saturation": measure_saturation,
    "mixed": measure_mixed_betas,
    "overload": measure_overload,
    "expensive": measure_expensive_images,
    "soak": run_soak,
    "tricklers": measure_slow_clients,
    "sigterm": measure_sigterm,
    "sigkill": measure_worker_kill,
    "reload": measure_reload,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default=",".join(SECTIONS), help="sections, separated by commas (default: %(default)s)"
    )
    parser.add_argument(
        "--images",
        type=Path,
        default=PHOTOGRAPHS,
        help="tar file of JPEG files (default: 200 photographs, or synthetic ones if that file is absent)",
    )
    parser.add_argument("--bundle", type=Path, help="bundle to serve (default: a ViT-Ti/16 of random weights)")
    parser.add_argument(
        "--seconds", type=float, default=10, help="seconds of load in each round (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="number of rounds, of which the median counts (default: %(default)s)"
    )
    parser.add_argument("--requests", type=int, default=100_000, help="requests of the soak (default: %(default)s)")
    parser.add_argument(
        "--times",
        type=int,
        default=50,
        help="how often the server is stopped, killed and reloaded (default: %(default)s)",
    )
    parser.add_argument("--flags", default="", help="additional flags for `tureen serve`, as one argument")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}")
    if options.images != PHOTOGRAPHS and not options.images.is_file():
        parser.error(f"no file {options.images}")
    print(describe_machine())
    if names == ["expensive"]:  # it generates its images, and serves the example bundle
        options.bundle = SMALL_BUNDLE
    images = load_photographs(options.images) if names != ["expensive"] else []
    with tempfile.TemporaryDirectory() as scratch:
        bundle = load_bundle(options.bundle) if options.bundle else make_random_bundle(Path(scratch) / "bundle", images)
        engine = open_engine(bundle, options=engine_options())
        workload = Workload(
            bundle=bundle,
            images=images,
            engine=engine.name,
            precision=engine.precision,
            flags=tuple(shlex.split(options.flags)),
            seconds=options.seconds,
            rounds=options.rounds,
            requests=options.requests,
            repetitions=options.times,
        )
        engine.close()
        print(f"{bundle.manifest.name}, {len(images)} images; tureen serve {' '.join(workload.server_flags)}")
        for name in names:
            print(f"\n{name}", flush=True)
            SECTIONS[name](workload)


if __name__ == "__main__":
    main()
