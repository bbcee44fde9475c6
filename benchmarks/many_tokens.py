"""Measures a server with many tokens: throughput with a token for each image against one token, memory and start.

    python -m benchmarks.many_tokens [BUNDLE] --tokens 1000

The tokens are random vectors between both modes of the bundle. First runs batches of 64 images at 64 tokens and at one
token on each engine. Then does the same through HTTP, with a server that has all the tokens. Compare only ratios of one
run.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.load import closed_loop
from benchmarks.machine import describe_machine
from benchmarks.server_process import Server, run_tureen
from benchmarks.targets import median, ratio, report_target
from benchmarks.throughput import encode_png
from tureen.bundle.bundle import Bundle, load_bundle
from tureen.bundle.examples import find_bundle
from tureen.bundle.manifest import BACKBONE, Accuracy, ParityRow
from tureen.bundle.token_file import Token, TokenAccuracy, TokenRecord, write_token
from tureen.engines import open_engine
from tureen.errors import EngineError
from tureen.timing import median_seconds

BATCH = 64
CONNECTIONS = 64
ROUNDS = 5
MAX_BYTES = 10 * 2**20  # of all tokens in one process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="signs", help="bundle, or name of an example (default: signs)")
    parser.add_argument("--tokens", type=int, default=1000, help="number of tokens (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="seconds of load in each round (default: %(default)s)"
    )
    options = parser.parse_args()
    print(describe_machine())
    bundle = load_bundle(find_bundle(options.bundle))
    vectors = random_vectors(bundle, max(options.tokens, BATCH))
    print(f"{bundle.manifest.name}, {options.tokens:,} tokens of {bundle.manifest.width} numbers\n")
    for row in bundle.manifest.parity:
        compare_on_engine(bundle, row, vectors)
    with tempfile.TemporaryDirectory() as directory:
        write_tokens(bundle, vectors[: options.tokens], Path(directory))
        compare_through_http(bundle, Path(directory), options.tokens, options.seconds)


def random_vectors(bundle: Bundle, count: int) -> NDArray[np.float32]:
    """Returns `count` tokens, float32 (count, D), each at random between both modes, with noise."""
    rng = np.random.default_rng(0)
    clean, robust = bundle.clean_token, bundle.robust_token
    shares = rng.uniform(size=(count, 1))
    noise = rng.normal(0, np.abs(robust - clean).mean() / 10, (count, len(clean)))
    return ((1 - shares) * clean + shares * robust + noise).astype(np.float32)


def compare_on_engine(bundle: Bundle, row: ParityRow, vectors: NDArray[np.float32]) -> None:
    """Prints the throughput of batches of BATCH images at BATCH tokens, as a ratio to that at one token."""
    name = f"{row.engine} {row.precision}"
    try:
        opened = open_engine(bundle, row.engine, row.precision)
    except EngineError as error:
        print(f"{name} skipped: {error}")
        return
    pixels = np.resize(bundle.golden.pixels, (BATCH, *bundle.golden.pixels.shape[1:]))
    one = np.tile(vectors[0], (BATCH, 1))
    many_s, one_s = median_seconds([lambda: opened.run(pixels, vectors[:BATCH]), lambda: opened.run(pixels, one)])
    opened.close()
    note = f"{BATCH / many_s:.0f} images/s"
    report_target(f"{name}: {BATCH} tokens / one token", "≥", 0.99, one_s / many_s, note)


def write_tokens(bundle: Bundle, vectors: NDArray[np.float32], directory: Path) -> None:
    """Writes a token file for each vector. Its golden logits are those of an engine, not of PyTorch."""
    share = Accuracy(value=0.5, low=0, high=1)
    accuracy = [TokenAccuracy(n=1, token=share, best_beta=share, wins=0, losses=0, p_value=1)]
    pixels = bundle.golden.pixels
    engine = open_engine(bundle)
    for number, vector in enumerate(vectors):
        record = TokenRecord(
            name=name_of(number),
            model=bundle.manifest.name,
            backbone_sha256=bundle.manifest.files[BACKBONE].sha256,
            best_beta=0,
            steps=0,
            images=1,
            images_sha256="0" * 64,
            is_robust=False,
            seed=number,
            accuracy=accuracy,
        )
        logits = engine.run(pixels, np.tile(vector, (len(pixels), 1)))
        write_token(directory / f"{name_of(number)}.token", Token(record, vector, logits))
    engine.close()


def name_of(number: int) -> str:
    return f"token-{number:04}"


def compare_through_http(bundle: Bundle, directory: Path, tokens: int, seconds: float) -> None:
    """Prints the throughput with a random token for each request against one token, the memory and the start."""
    images = [encode_png(pixels) for pixels in bundle.golden.pixels]
    numbers = np.random.default_rng(0).integers(0, tokens, 8 * BATCH)
    requests = {
        "one token": token_requests(images, [0] * len(numbers)),
        "many tokens": token_requests(images, numbers.tolist()),
    }
    started = time.perf_counter()
    with run_tureen(bundle.path) as server:
        start_s, bytes_without = time.perf_counter() - started, resident_bytes(server)
    rates: dict[str, list[float]] = {name: [] for name in requests}
    started = time.perf_counter()
    with run_tureen(bundle.path, "--token-dir", str(directory)) as server:
        start_with_s, bytes_with = time.perf_counter() - started, resident_bytes(server)
        for turn in range(ROUNDS):
            for name in sorted(requests, reverse=bool(turn % 2)):
                result = asyncio.run(closed_loop(server.port, requests[name], CONNECTIONS, seconds))
                rates[name].append(result.rate)
                print(f"  {name:<12} {result}", flush=True)
    share = ratio(median(rates["many tokens"]), median(rates["one token"]))
    report_target(f"HTTP: {tokens:,} tokens / one token", "≥", 0.99, share, f"medians of {ROUNDS} rounds")
    added = bytes_with - bytes_without
    note = f"{added / 2**20:.1f} MiB more than without tokens"
    report_target(f"memory of {tokens:,} tokens / 10 MiB", "≤", 1, added / MAX_BYTES, note)
    print(f"seconds until ready: {start_s:.1f} without tokens, {start_with_s:.1f} with {tokens:,}")


def token_requests(images: Sequence[bytes], tokens: Sequence[int]) -> list[bytes]:
    """Returns a complete HTTP request for each token, each with the next image. images: PNG files."""
    return [
        f"POST /classify?token={name_of(token)}&top_k=1 HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        f"Content-Length: {len(image)}\r\n\r\n".encode()
        + image
        for token, image in ((token, images[index % len(images)]) for index, token in enumerate(tokens))
    ]


def resident_bytes(server: Server) -> int:
    """Returns the resident memory of the server, in bytes."""
    return int(psutil.Process(server.process.pid).memory_info().rss)


if __name__ == "__main__":
    main()
