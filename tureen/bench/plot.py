"""Draws a benchmark: images per second by batch, one line for each engine, precision and number of streams.

The colours suit colour-blind readers. The lines also differ by marker.
"""

from __future__ import annotations

from pathlib import Path

from tureen.bench.records import Benchmark
from tureen.bench.table import machine_description

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")  # Okabe & Ito, 2008
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")
WIDE_RANGE = 20  # ratio of the engines' best rates, above which the scale is logarithmic


def plot_benchmark(benchmark: Benchmark, path: Path) -> None:
    """Writes the plot of the benchmark as a PNG file to `path`. Needs matplotlib."""
    from matplotlib.figure import Figure  # not by pyplot, which would keep a reference

    figure = Figure(figsize=(8.4, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(engine.name for engine in benchmark.engines))
    streams = sorted({engine.streams for engine in benchmark.engines})
    best = {}
    for engine in benchmark.engines:
        style = names.index(engine.name)
        rates = [rate.images_per_second for rate in engine.rates]
        (line,) = axes.plot(
            [rate.batch for rate in engine.rates],
            rates,
            DASHES[streams.index(engine.streams) % len(DASHES)],
            marker=MARKERS[style % len(MARKERS)],
            color=COLOURS[style % len(COLOURS)],
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
    # Outside the axes the legend hides no line. The fastest comes first, as in the plot.
    figure.legend(handles=sorted(best, key=lambda line: -best[line]), loc="outside right upper", fontsize="small")
    figure.savefig(path, format="png")
