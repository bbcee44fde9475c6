"""A benchmark as a picture: images per second over batch, a line for each engine, precision and number of streams.

Draws records, and measures nothing. Colours keep apart for colour-blind eyes; markers differ too.
"""

from __future__ import annotations

from pathlib import Path

from tureen.bench.records import Benchmark
from tureen.bench.table import machine_description

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")  # Okabe & Ito, 2008
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")
WIDE_RANGE = 20  # between the engines' best rates: beyond it the slow ones would lie on the axis


def plot_benchmark(benchmark: Benchmark, path: Path) -> None:
    """Draw it to a PNG at `path`."""
    from matplotlib.figure import Figure  # not pyplot's, which would keep it

    figure = Figure(figsize=(8.4, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(engine.name for engine in benchmark.engines))
    streams = sorted({engine.streams for engine in benchmark.engines})
    best = {}
    for engine in benchmark.engines:
        look = names.index(engine.name)
        rates = [rate.images_per_second for rate in engine.rates]
        (line,) = axes.plot(
            [rate.batch for rate in engine.rates],
            rates,
            DASHES[streams.index(engine.streams) % len(DASHES)],
            marker=MARKERS[look % len(MARKERS)],
            color=COLOURS[look % len(COLOURS)],
            label=f"{engine.name}, {engine.streams} stream{'s' if engine.streams > 1 else ''}",
        )
        best[line] = max(rates)
    axes.set_xscale("log", base=2)
    batches = sorted({rate.batch for engine in benchmark.engines for rate in engine.rates})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    if max(best.values()) > WIDE_RANGE * min(best.values()):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:,.0f}")
    axes.set(xlabel="images in one run", ylabel="images per second")
    axes.set_title(f"{benchmark.model} {benchmark.version}\n{machine_description(benchmark)}", fontsize="medium")
    axes.grid(alpha=0.3)
    # Outside the axes it hides no line; the fastest comes first, as in the picture.
    figure.legend(handles=sorted(best, key=lambda line: -best[line]), loc="outside right upper", fontsize="small")
    figure.savefig(path, format="png")
