"""Measures the speed of the CPU engines on ViTs of random weights.

    python -m benchmarks.engines                     # ViT-Ti/16 and ViT-B/16 at 224: about 15 minutes
    python -m benchmarks.engines --models ti --quick

Varies the batch size, the opset, the numbers of streams and of threads, and the number of different β in a batch.
Compares Tureen's engine `openvino` with benchmark_app, the benchmark that OpenVINO provides. Compare the figures of one
run with each other; on shared cores, compare only ratios. Models with random weights have no useful accuracy.
`tureen export` measures the accuracy of trained models.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from benchmarks.machine import describe_machine
from export.graph import onnx_graph
from export.proving import LATER_OPSET
from export.quantization import int8_graph
from training.models.shapes import ViTConfig
from training.models.vit import DualTokenViT
from tureen.engines import compile_engine
from tureen.engines.base import Engine, EngineOptions
from tureen.errors import EngineError
from tureen.machine import available_cpus
from tureen.timing import median_seconds
from tureen.tokens import mix_rows

SHAPES = {"ti": ("ViT-Ti/16", 192, 12, 3), "b": ("ViT-B/16", 768, 12, 12)}
ENGINES = (
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
)
BATCH_SIZES = (1, 8, 32)
CALIBRATION_IMAGES = 32  # enough, because speed does not depend on the calibrated ranges
TOOL_S = 10

Run = Callable[[], object]


class Model:
    """A dual-token ViT with random weights, as ONNX graphs, and 64 random images.

    pixels: the images, uint8 (64, 224, 224, 3). clean, robust: the tokens, float32 (width of the ViT,).
    """

    def __init__(self, key: str) -> None:
        self.name, width, depth, heads = SHAPES[key]
        config = ViTConfig(image_size=224, patch_size=16, width=width, depth=depth, heads=heads, classes=1000)
        torch.manual_seed(0)
        model = DualTokenViT(config).eval().requires_grad_(False)
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 256, (64, 224, 224, 3), dtype=np.uint8)
        self.clean, self.robust = (model.soup(beta).numpy() for beta in (0, 1))
        self.fp32 = onnx_graph(model)
        self.later = onnx_graph(model, opset=LATER_OPSET)
        self.int8 = int8_graph(self.fp32, self.pixels[:CALIBRATION_IMAGES], self.clean, self.robust)

    def tokens(self, betas: NDArray[np.float64] | list[float]) -> NDArray[np.float32]:
        """Returns one mixed token for each β, float32 (number of β, width of the ViT)."""
        return mix_rows(self.clean, self.robust, betas)

    def graph(self, precision: str) -> bytes:
        return self.int8 if precision == "int8" else self.fp32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--quick", action="store_true", help="few rounds, for a quick trial without reliable figures")
    options = parser.parse_args()
    print(describe_machine())
    for key in options.models:
        rounds = 1 if options.quick else 5
        model = Model(key)
        print(f"\n{model.name} at 224, {len(model.fp32) / 1e6:.0f} MB, {available_cpus()} threads", flush=True)
        engines = open_all(model)
        compare_batch_sizes(model, engines, rounds)
        compare_mixed_betas(model, engines, rounds)
        for engine in engines.values():
            engine.close()
        compare_opsets(model, rounds)
        compare_streams(model, rounds)
        compare_onnxruntime_threads(model, rounds)
        measure_openvino_start(model)
        compare_with_benchmark_app(model, 1 if options.quick else 3)


def open_all(model: Model) -> dict[str, Engine]:
    engines = {}
    for name, precision in ENGINES:
        try:
            engines[f"{name} {precision}"] = compile_engine(model.graph(precision), name, precision)  # type: ignore[arg-type]
        except EngineError as error:
            print(f"  {name} {precision} skipped: {error}")
    return engines


def compare_batch_sizes(model: Model, engines: dict[str, Engine], rounds: int) -> None:
    print(f"  images per second, medians of {rounds} rounds")
    print(f"  {'batch':<20}" + "".join(f"{batch:>10}" for batch in BATCH_SIZES))
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for batch in BATCH_SIZES:
        tokens = model.tokens([0.5] * batch)
        seconds = median_seconds([run_of(e, model.pixels[:batch], tokens) for e in engines.values()], rounds=rounds)
        for name, s in zip(engines, seconds, strict=True):
            rates[name].append(batch / s)
    for name, row in rates.items():
        print(f"  {name:<20}" + "".join(f"{rate:>10.1f}" for rate in row))
    base = rates["onnxruntime fp32"]
    for name, row in rates.items():
        if name != "onnxruntime fp32":
            ratios = "".join(f"{rate / first:>9.2f}×" for rate, first in zip(row, base, strict=True))
            print(f"  {name:<20}{ratios}  onnxruntime fp32")
    sys.stdout.flush()


def compare_mixed_betas(model: Model, engines: dict[str, Engine], rounds: int) -> None:
    print("  batch 32 at 32 β against one β; and 64 β in one batch against single rows")
    for name, engine in engines.items():
        one, mixed = model.tokens([0.5] * 32), model.tokens(np.linspace(0, 1, 32))
        pixels = model.pixels[:32]
        seconds = median_seconds([run_of(engine, pixels, one), run_of(engine, pixels, mixed)], rounds=2 * rounds + 1)
        tokens = model.tokens(np.linspace(0, 1, 64))
        batched = engine.run(model.pixels, tokens)
        one_by_one = np.concatenate([engine.run(model.pixels[i : i + 1], tokens[i : i + 1]) for i in range(64)])
        same = (batched.argmax(1) == one_by_one.argmax(1)).sum()
        print(
            f"  {name:<20} ratio {seconds[0] / seconds[1]:.3f}   largest logit difference "
            f"{np.abs(batched - one_by_one).max():.1e}, same label {same}/64",
            flush=True,
        )


def compare_opsets(model: Model, rounds: int) -> None:
    print(f"  opset {LATER_OPSET} (one Attention operator) against opset 20, batch 1, 8, 32")
    for name, precision in ENGINES:
        if precision == "int8":
            continue
        try:
            pair = [compile_engine(graph, name, precision) for graph in (model.fp32, model.later)]  # type: ignore[arg-type]
        except EngineError:
            continue
        gains = []
        for batch in BATCH_SIZES:
            tokens = model.tokens([0.5] * batch)
            first, later = median_seconds([run_of(e, model.pixels[:batch], tokens) for e in pair], rounds=rounds)
            gains.append(f"{first / later:.2f}")
        print(f"  {name + ' ' + precision:<20} {'  '.join(gains)} × as fast", flush=True)
        for engine in pair:
            engine.close()


def compare_streams(model: Model, rounds: int) -> None:
    """Prints the speed of each engine with two streams as a ratio to its speed with one stream.

    In both cases two threads call the engine, and the engine uses all CPUs. Prints nothing on a machine with one CPU.
    """
    from concurrent.futures import ThreadPoolExecutor

    cpus = available_cpus()
    if cpus < 2:
        return
    print("  two callers with 8 images each: two streams against one")
    with ThreadPoolExecutor(2) as pool:
        for name, precision in ENGINES:
            try:
                engines = [
                    compile_engine(model.graph(precision), name, precision, EngineOptions(threads=cpus, streams=count))  # type: ignore[arg-type]
                    for count in (1, 2)
                ]
            except EngineError:
                continue
            tokens = model.tokens([0.5] * 8)

            def run_twice(engine: Engine, tokens: NDArray[np.float32] = tokens) -> Run:
                return lambda: list(pool.map(lambda _: engine.run(model.pixels[:8], tokens), range(2)))

            one, two = median_seconds([run_twice(engine) for engine in engines], rounds=rounds)
            print(f"  {name + ' ' + precision:<20} {one / two:.2f} × as fast, {16 / two:.1f} images/s", flush=True)
            for engine in engines:
                engine.close()


def compare_onnxruntime_threads(model: Model, rounds: int) -> None:
    print("  onnxruntime fp32, threads and spinning, images per second at batch 1, 8")
    settings = [(threads, spins) for threads in (1, available_cpus()) for spins in ("0", "1")]
    sessions = []
    for threads, spins in settings:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", spins)
        sessions.append(onnxruntime.InferenceSession(model.fp32, options, providers=["CPUExecutionProvider"]))
    rates = []
    for batch in (1, 8):
        feeds = {"pixels": model.pixels[:batch], "cls_token": model.tokens([0.5] * batch)}
        runs: list[Run] = [lambda s=session, f=feeds: s.run(None, f) for session in sessions]  # type: ignore[misc]
        rates.append([batch / s for s in median_seconds(runs, rounds=rounds)])
    for (threads, spins), *row in zip(settings, *rates, strict=True):
        print(
            f"  {threads} threads, {'spinning' if spins == '1' else 'waiting '}  "
            + "".join(f"{rate:>8.1f}" for rate in row),
            flush=True,
        )


def measure_openvino_start(model: Model) -> None:
    """Prints the seconds that OpenVINO needs to open the model: with an empty cache, then with the model in the cache.

    Each measurement runs in a new process.
    """
    program = (
        "import sys, time; from pathlib import Path; from tureen.engines import compile_engine; "
        "from tureen.engines.base import EngineOptions; data = Path(sys.argv[1]).read_bytes(); "
        "s = time.perf_counter(); "
        "compile_engine(data, 'openvino', 'fp32', EngineOptions(threads=2, cache=Path(sys.argv[2]))); "
        "print(time.perf_counter() - s)"
    )
    with tempfile.TemporaryDirectory() as directory:
        graph = Path(directory) / "backbone.onnx"
        graph.write_bytes(model.fp32)
        command = [sys.executable, "-c", program, str(graph), str(Path(directory) / "cache")]
        first, *later = [float(subprocess.check_output(command)) for _ in range(4)]
    print(f"  openvino fp32 opens in {first:.2f} s, and in {median(later):.2f} s with a full cache", flush=True)


def compare_with_benchmark_app(model: Model, turns: int) -> None:
    """Prints the throughput of Tureen's OpenVINO engine as a ratio to that of benchmark_app.

    Both use the same graph, threads, batch size and precision, and run one batch at a time. They run in turn, `turns`
    times each.
    """
    tool = Path(sys.executable).parent / "benchmark_app"
    threads = available_cpus()
    for precision in ("bf16", "fp32"):
        try:
            engine = compile_engine(model.fp32, "openvino", precision)  # type: ignore[arg-type]
        except EngineError:
            continue
        with tempfile.TemporaryDirectory() as directory:
            graph = Path(directory) / "backbone.onnx"
            graph.write_bytes(model.fp32)
            for batch in (1, 32):
                run = run_of(engine, model.pixels[:batch], model.tokens([0.5] * batch))
                command = [
                    str(tool), "-m", str(graph), "-d", "CPU", "-api", "sync", "-hint", "none", "-t", str(TOOL_S),
                    "-nstreams", "1", "-nthreads", str(threads),
                    "-infer_precision", {"fp32": "f32"}.get(precision, precision),
                    "-shape", f"pixels[{batch},224,224,3],cls_token[{batch},{len(model.clean)}]",
                ]  # fmt: skip
                ours, theirs = [], []
                for _ in range(turns):
                    ours.append(batch * runs_per_second(run, TOOL_S))
                    theirs.append(batch * benchmark_app_runs_per_second(command))
                print(
                    f"  openvino {precision}, batch {batch}: Tureen {median(ours):.1f} images/s, benchmark_app "
                    f"{median(theirs):.1f}, ratio {median(ours) / median(theirs):.3f}",
                    flush=True,
                )
        engine.close()


def runs_per_second(run: Run, seconds: float) -> float:
    """Calls `run` repeatedly for `seconds`, after one warm-up call. Returns the calls per second."""
    run()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        run()
        count += 1
    return count / (time.perf_counter() - start)


def benchmark_app_runs_per_second(command: list[str]) -> float:
    """Runs benchmark_app by its command line. Returns the inference runs per second that it reports."""
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    count, duration = re.search(r"Count:\s+(\d+)", output), re.search(r"Duration:\s+([\d.]+) ms", output)
    assert count, output
    assert duration, output
    return int(count[1]) / (float(duration[1]) / 1000)


def run_of(engine: Engine, pixels: NDArray[np.uint8], tokens: NDArray[np.float32]) -> Run:
    return lambda: engine.run(pixels, tokens)


if __name__ == "__main__":
    main()
