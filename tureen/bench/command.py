"""The command `tureen bench`: parses the arguments, runs the measurement, prints and saves the result."""

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
from tureen.bundle.examples import BUNDLE_HELP
from tureen.engines.timings_cache import write_ranking
from tureen.machine import available_cpus, default_cache_directory
from tureen.remote.locate import locate_bundle


def bench(arguments: list[str]) -> int:
    """Measures all engines of a bundle, prints the result and saves the ranking for engine "auto".

    arguments: those after `tureen bench`. Returns exit status 0. Raises EngineError if no engine can be measured.
    """
    cpus = available_cpus()
    parser = argparse.ArgumentParser(
        prog="tureen bench",
        description="Measure a bundle's engines on this machine: images per second by batch, latency, loading time, "
        "memory, and the cost of mixed β. Run it while the machine is idle. The result is saved: engine `auto` then "
        "opens the fastest engine immediately, until the bundle, the machine or a runtime changes.",
        epilog="example: tureen bench cifar10 --plot bench.png",
    )
    parser.add_argument("bundle", type=Path, help=BUNDLE_HELP)
    parser.add_argument("--threads", type=positive_int, default=cpus, help="CPU threads (default: all, %(default)s)")
    parser.add_argument(
        "--streams",
        type=positive_int,
        nargs="+",
        metavar="N",
        help="concurrent runs, which share the threads (default: 1, for latency, and the number of threads)",
    )
    parser.add_argument("--max-batch", type=positive_int, default=128, help="largest batch (default: %(default)s)")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=30.0,
        help="time for the measurement, without opening the engines; a batch that takes more than a fifteenth of it "
        "is skipped; each engine has at least three turns, so a slow model takes longer (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw images per second by batch")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=default_cache_directory(),
        help="directory for the result, which replaces an older one (TUREEN_CACHE_DIR; default: the user's cache)",
    )
    options = parser.parse_args(arguments)
    streams = sorted(set(options.streams or (1, options.threads)))
    if streams[-1] > options.threads:
        parser.error(f"--streams {streams[-1]} needs as many threads, and --threads is {options.threads}")
    if options.plot:
        importlib.import_module("matplotlib")  # a missing matplotlib fails here, before the measurement
    bundle = load_bundle(locate_bundle(options.bundle))
    benchmark = measure(
        bundle,
        threads=options.threads,
        streams=streams,
        max_batch=options.max_batch,
        seconds=options.seconds,
        on_progress=_show_progress,
    )
    _show_progress("")
    is_saved = [write_ranking(ranking, options.cache_dir) for ranking in rankings(bundle, benchmark)]
    if options.plot:
        from tureen.bench.plot import plot_benchmark

        plot_benchmark(benchmark, options.plot)
    if options.json:
        print(benchmark.model_dump_json(indent=2))
        return 0
    print(benchmark_text(benchmark, options.bundle))
    if all(is_saved):
        print(f"\nSaved in {options.cache_dir}: engine `auto` now opens the fastest engine immediately.")
    return 0


def _show_progress(text: str) -> None:
    """Shows `text` as the line of progress on standard error, in place of the line before.

    Prints nothing if standard error is not a terminal.
    """
    if sys.stderr.isatty():
        print(f"\r\x1b[K{f'bench: {text}' if text else ''}", end="", file=sys.stderr, flush=True)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds
