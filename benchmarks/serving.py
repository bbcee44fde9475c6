"""What the server must show under load: throughput, latency, overload, leaks, hostile clients and signals.

    python -m benchmarks.serving                              # everything, with the full soak: hours
    python -m benchmarks.serving --only limit,saturation      # some of it
    python -m benchmarks.serving --only soak --requests 5000

Every section prints one line for each thing asked. Load and server share the machine's cores: figures of one run are
comparable with each other, and ratios alone with those of another. A limit asked of a ratio is of the median of rounds.
"""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.bare import limit
from benchmarks.beside_litserve import beside_litserve
from benchmarks.expensive import expensive
from benchmarks.interruptions import killed_worker, reload, sigterm
from benchmarks.machine import describe_machine
from benchmarks.overload import overload
from benchmarks.soak import soak
from benchmarks.speed import mixed_betas, saturation
from benchmarks.subject import PHOTOGRAPHS, SMALL_BUNDLE, Subject, engine_options, photographs, random_bundle
from benchmarks.tricklers import tricklers
from tureen.bundle.bundle import load_bundle
from tureen.engines import open_engine

SECTIONS: dict[str, Callable[[Subject], None]] = {
    "limit": limit,
    "saturation": saturation,
    "litserve": beside_litserve,
    "mixed": mixed_betas,
    "overload": overload,
    "expensive": expensive,
    "soak": soak,
    "tricklers": tricklers,
    "sigterm": sigterm,
    "sigkill": killed_worker,
    "reload": reload,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by comma (default: %(default)s)")
    parser.add_argument(
        "--images",
        type=Path,
        default=PHOTOGRAPHS,
        help="tar file of JPEG files (default: 200 photographs, or drawn ones)",
    )
    parser.add_argument("--bundle", type=Path, help="to be served instead of a ViT-Ti/16 of random weights")
    parser.add_argument("--seconds", type=float, default=10, help="of load in each round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=100_000, help="of the soak (default: %(default)s)")
    parser.add_argument("--times", type=int, default=50, help="that the server is stopped (default: %(default)s)")
    parser.add_argument("--flags", default="", help="more flags of `tureen serve`, as one argument")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}: choose among {', '.join(SECTIONS)}")
    if options.images != PHOTOGRAPHS and not options.images.is_file():
        parser.error(f"there is no {options.images}")
    print(describe_machine())
    if names == ["expensive"]:  # it draws its images, and serves the bundle of the package
        options.bundle = SMALL_BUNDLE
    images = photographs(options.images) if names != ["expensive"] else []
    with tempfile.TemporaryDirectory() as scratch:
        bundle = load_bundle(options.bundle) if options.bundle else random_bundle(Path(scratch) / "bundle", images)
        engine = open_engine(bundle, options=engine_options())
        subject = Subject(
            bundle=bundle,
            images=images,
            engine=engine.name,
            precision=engine.precision,
            flags=tuple(shlex.split(options.flags)),
            seconds=options.seconds,
            rounds=options.rounds,
            requests=options.requests,
            times=options.times,
        )
        engine.close()
        print(f"{bundle.manifest.name}, {len(images)} images; tureen serve {' '.join(subject.server_flags)}")
        for name in names:
            print(f"\n{name}", flush=True)
            SECTIONS[name](subject)


if __name__ == "__main__":
    main()
