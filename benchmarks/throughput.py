"""Measures the throughput with many β as a ratio to that with one β, on the engines alone and through HTTP.

    python -m benchmarks.throughput tureen-demo/bundle

Compare the figures of one run with each other; on shared cores, compare only ratios. The load generator shares the
cores of the server, which lowers the HTTP figures.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.load import closed_loop
from benchmarks.machine import describe_machine
from benchmarks.server_process import run_tureen
from benchmarks.targets import format_figure, median, ratio
from tureen.bundle.bundle import Bundle, load_bundle
from tureen.bundle.examples import EXAMPLES
from tureen.engines import open_engine
from tureen.engines.base import Engine
from tureen.errors import EngineError
from tureen.preprocess import pixels_from_bytes
from tureen.timing import median_seconds
from tureen.tokens import mix_rows

BATCH = 64
CONNECTIONS = 64
HTTP_ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "bundle", type=Path, nargs="?", help="default: the bundle of `tureen demo --train digits`, or else the example"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="seconds of load in each HTTP round (default: %(default)s)"
    )
    options = parser.parse_args()
    print(describe_machine())
    demo = Path("tureen-demo/bundle")
    bundle = load_bundle(options.bundle or (demo if demo.exists() else EXAMPLES / "cifar10"))
    print(f"{bundle.manifest.name} {bundle.manifest.version}, batch {BATCH}\n")
    print("Mixed β against one β, on the bare engine:")
    for row in bundle.manifest.parity:
        try:
            engine = open_engine(bundle, row.engine, row.precision)
        except EngineError as error:
            print(f"  {row.engine} {row.precision} skipped: {error}")
            continue
        print_mixed_against_single(engine, bundle)
        engine.close()
    print(f"\nThrough HTTP, {CONNECTIONS} connections, {options.seconds:g} s each:")
    print_through_http(bundle, options.seconds)


def print_mixed_against_single(engine: Engine, bundle: Bundle) -> None:
    """Prints the throughput of the engine with BATCH different β in a batch, that with one β, and the ratio.

    Then prints the largest difference between the logits of a row in the mixed batch and those of the row alone.
    """
    pixels = np.resize(bundle.golden.pixels, (BATCH, *bundle.golden.pixels.shape[1:]))
    betas = np.linspace(0, 1, BATCH)
    mixed = lambda: engine.run(pixels, mix_rows(bundle.clean_token, bundle.robust_token, betas))  # noqa: E731
    single = lambda: engine.run(pixels, mix_rows(bundle.clean_token, bundle.robust_token, [0.5] * BATCH))  # noqa: E731
    seconds = median_seconds([mixed, single])
    rates = [BATCH / s for s in seconds]
    one_by_one = np.concatenate([engine.run(pixels[i : i + 1], token_row(bundle, betas[i])) for i in range(BATCH)])
    batched = mixed()
    print(
        f"  {engine.name} {engine.precision:<5} {BATCH} β {rates[0]:9.0f} images/s   one β {rates[1]:9.0f} images/s   "
        f"ratio {rates[0] / rates[1]:.3f}   batch of {BATCH} β against single rows: "
        f"largest logit difference {np.abs(batched - one_by_one).max():.1e}, "
        f"same label {(batched.argmax(1) == one_by_one.argmax(1)).sum()}/{BATCH}",
        flush=True,
    )


def token_row(bundle: Bundle, beta: float) -> NDArray[np.float32]:
    """Returns the mixed token at β, float32 (1, width of the token)."""
    return mix_rows(bundle.clean_token, bundle.robust_token, [beta])


def print_through_http(bundle: Bundle, seconds: float) -> None:
    """Prints the requests per second with many β and with one β through HTTP.

    Then prints the speed of the engine alone and of the decoder alone.
    """
    images = [encode_png(pixels) for pixels in bundle.golden.pixels]
    with run_tureen(bundle.path) as server:
        rates: dict[str, list[float]] = {"one β": [], "mixed β": []}
        mixes = {"one β": ["0.5"] * BATCH, "mixed β": [f"{beta:.3f}" for beta in np.linspace(0, 1, BATCH)]}
        for turn in range(HTTP_ROUNDS):
            for name in sorted(mixes, reverse=bool(turn % 2)):
                result = asyncio.run(closed_loop(server.port, png_requests(images, mixes[name]), CONNECTIONS, seconds))
                rates[name].append(result.rate)
                print(f"  {name:<8} {result}", flush=True)
        one, mixed = (math.nan if 0 in rates[name] else median(rates[name]) for name in ("one β", "mixed β"))
        alone = asyncio.run(closed_loop(server.port, png_requests(images, ["0.5"]), 1, seconds))
        print(f"  one connection {alone}", flush=True)
    engine = open_engine(bundle)
    pixels = np.resize(bundle.golden.pixels, (32, *bundle.golden.pixels.shape[1:]))
    tokens = np.repeat(token_row(bundle, 0.5), 32, axis=0)
    (engine_s,) = median_seconds([lambda: engine.run(pixels, tokens)])
    (decode_s,) = median_seconds([lambda: pixels_from_bytes(images[0], bundle.manifest.preprocess)])
    engine.close()
    bare, share = 32 / engine_s, ratio(mixed, one)
    print(f"  mixed against one β through HTTP, medians of {HTTP_ROUNDS}: ratio {format_figure(share, '.3f')}")
    print(f"  bare engine, {engine.name} {engine.precision}, batch 32: {bare:.0f} images/s")
    print(f"  through HTTP against the bare engine: ratio {format_figure(ratio(one, bare), '.3f')}")
    print(f"  decoding one of these PNG files: {1e6 * decode_s:.0f} µs on one core")


def png_requests(images: Sequence[bytes], betas: Sequence[str]) -> list[bytes]:
    """Returns a complete HTTP request for every image at every β. images: PNG files. betas: as text."""
    return [
        f"POST /classify?beta={beta}&top_k=1 HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        f"Content-Length: {len(image)}\r\n\r\n".encode()
        + image
        for beta in betas
        for image in images
    ]


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Returns the pixels, uint8 (H, W, 3), as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
