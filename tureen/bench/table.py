"""Formats a benchmark as text for a terminal."""

from __future__ import annotations

from pathlib import Path

from tureen.bench.records import Benchmark, EngineMeasurement


def benchmark_text(benchmark: Benchmark, bundle: Path) -> str:
    """Returns the text of a benchmark: all measurements, the engines left out, and the recommended settings.

    Each engine that was left out has a reason. The settings are `tureen serve` commands for `bundle`, the path of the
    bundle.
    """
    throughput, latency = benchmark.throughput, benchmark.latency
    parts = [
        f"{benchmark.model} {benchmark.version} on {machine_description(benchmark)}, "
        f"{', '.join(f'{name} {version}' for name, version in benchmark.runtimes.items())}",
        _rate_table(benchmark),
        _cost_table(benchmark),
    ]
    if benchmark.left_out:
        parts.append(
            "\n".join(
                f"left out: {out.engine} {out.precision}, streams {out.streams}: {out.reason}"
                for out in benchmark.left_out
            )
        )
    parts += [
        f"for throughput, {_format_rate(throughput.images_per_second)} images/s:\n"
        f"  tureen serve {bundle} {throughput.flags}",
        f"for latency, {latency.p50_ms:.3g} ms for one image:\n  tureen serve {bundle} {latency.flags}",
    ]
    return "\n\n".join(parts)


def machine_description(benchmark: Benchmark) -> str:
    """Returns a text with the processor, the number of threads and the GPUs of the benchmark."""
    threads = f"{benchmark.threads} thread{'s' if benchmark.threads > 1 else ''}"
    return ", ".join([benchmark.processor, threads, *benchmark.gpus])


def _rate_table(benchmark: Benchmark) -> str:
    batches = sorted({batch for e in benchmark.engines for batch in (*(r.batch for r in e.rates), *e.skipped)})
    lines = [
        f"images/s by batch, median of {benchmark.rounds} rounds",
        f"{'engine':<28}{'streams':>7}{''.join(f'{batch:>8}' for batch in batches)}",
    ]
    for engine in benchmark.engines:
        rates = (engine.rate(batch) for batch in batches)
        cells = "".join(f"{'—' if rate is None else _format_rate(rate):>8}" for rate in rates)
        lines.append(f"{engine.name:<28}{engine.streams:>7}{cells}")
    if any(engine.skipped for engine in benchmark.engines):
        lines.append(f"— skipped: would take longer than {benchmark.max_turn_s:.2g} s; raise --seconds to measure it")
    return "\n".join(lines)


def _format_rate(images_per_second: float) -> str:
    return f"{images_per_second:.{0 if images_per_second >= 99.5 else 1}f}"


def _cost_table(benchmark: Benchmark) -> str:
    lines = [
        f"{'engine':<28}{'streams':>7}{'load':>9}{'memory':>10}{'p50':>11}{'p99':>11}   mixed β / one β",
        *(_cost_line(engine) for engine in benchmark.engines),
        "load: runtime, backbone and golden rows; memory: peak growth of the process; p50, p99: one image",
    ]
    return "\n".join(lines)


def _cost_line(engine: EngineMeasurement) -> str:
    memory = "—" if engine.memory_bytes is None else f"{engine.memory_bytes / 1e6:.0f} MB"
    return (
        f"{engine.name:<28}{engine.streams:>7}{f'{engine.load_s:.2f} s':>9}{memory:>10}{f'{engine.p50_ms:.3g} ms':>11}"
        f"{f'{engine.p99_ms:.3g} ms':>11}   {engine.mixed_ratio:.3f} at batch {engine.mixed_batch}"
    )
