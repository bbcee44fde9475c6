"""`tureen bench`: measure a bundle's engines on this machine, and say which settings to serve it with."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from tureen.arguments import positive_int
from tureen.bench.measure import measure
from tureen.bench.recommendations import rankings
from tureen.bench.table import benchmark_text
from tureen.bundle.bundle import load_bundle
from tureen.engines.timings_cache import write_ranking
from tureen.machine import available_cpus, default_cache_directory


def bench(arguments: list[str]) -> int:
    """Time every engine, show and keep the result."""
    cpus = available_cpus()
    parser = argparse.ArgumentParser(
        prog="tureen bench",
        description="Time a bundle's engines on this machine: images per second by batch, latency, loading, memory, "
        "and what mixing β costs. Best while nothing else runs. What was measured is kept: from then on engine `auto` "
        "opens the best one without a race, until the bundle, the machine or a runtime changes. Run it again to "
        "measure anew.",
        epilog="example: tureen bench tureen-demo/bundle --plot bench.png",
    )
    parser.add_argument("bundle", type=Path, help="directory that `tureen export` wrote")
    parser.add_argument("--threads", type=positive_int, default=cpus, help="CPU threads (default: all, %(default)s)")
    parser.add_argument(
        "--streams",
        type=positive_int,
        nargs="+",
        metavar="N",
        help="runs at a time, each with its share of the threads (default: 1 for latency, and as many as threads)",
    )
    parser.add_argument("--max-batch", type=positive_int, default=128, help="largest batch (default: %(default)s)")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=30.0,
        help="for the timing, opening the engines comes on top; a batch that takes more than a fifteenth of it is "
        "skipped, and a slow model takes longer, since each engine has three turns at least (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw images per second over batch")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=default_cache_directory(),
        help="where the result is kept, in place of an older one (TUREEN_CACHE_DIR; default: the user's cache)",
    )
    options = parser.parse_args(arguments)
    streams = sorted(set(options.streams or (1, options.threads)))
    if streams[-1] > options.threads:
        parser.error(f"--streams {streams[-1]} needs as many threads, and there are {options.threads}")
    if options.plot:
        importlib.import_module("matplotlib")  # missing, it is better missed before the measuring than after
    bundle = load_bundle(options.bundle)
    benchmark = measure(
        bundle,
        threads=options.threads,
        streams=streams,
        max_batch=options.max_batch,
        seconds=options.seconds,
        on_progress=_show_progress,
    )
    _show_progress("")
    kept = [write_ranking(ranking, options.cache_dir) for ranking in rankings(bundle, benchmark)]
    if options.plot:
        from tureen.bench.plot import plot_benchmark

        plot_benchmark(benchmark, options.plot)
    if options.json:
        print(benchmark.model_dump_json(indent=2))
        return 0
    print(benchmark_text(benchmark, options.bundle))
    if all(kept):
        print(f"\nKept in {options.cache_dir}: engine `auto` opens the best one here without a race.")
    return 0


def _show_progress(text: str) -> None:
    """One line of progress on a terminal, in place of the last one; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{f'bench: {text}' if text else ''}", end="", file=sys.stderr, flush=True)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds
