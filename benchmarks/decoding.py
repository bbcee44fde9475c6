"""Measures the speed of the image decoders: simplejpeg and Pillow.

    python -m benchmarks.decoding

Decodes, crops and resizes the 200 photographs on one core, in turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.workload import load_photographs
from tureen import preprocess
from tureen.preprocess import Pixels, PreprocessSpec, pixels_from_bytes
from tureen.timing import median_seconds

SPEC = PreprocessSpec(image_size=224, crop_fraction=0.875)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--photographs", type=int, default=200, help="number of photographs to time (default: %(default)s)"
    )
    options = parser.parse_args()
    print(describe_machine())
    measure_speed(load_photographs(count=options.photographs))


def decode_with_pillow(data: bytes) -> Pixels:
    """Decode as if simplejpeg were not installed."""
    fast, preprocess.simplejpeg = preprocess.simplejpeg, None
    try:
        return pixels_from_bytes(data, SPEC)
    finally:
        preprocess.simplejpeg = fast


def measure_speed(images: list[bytes]) -> None:
    """Print images per second of each decoder, and the difference of its pixels from those of Pillow."""
    decoders: dict[str, Callable[[bytes], Pixels]] = {
        "Pillow": decode_with_pillow,
        "simplejpeg (the default)": lambda data: pixels_from_bytes(data, SPEC),
    }
    seconds = median_seconds(
        [lambda decode=decode: [decode(data) for data in images] for decode in decoders.values()], rounds=5
    )
    print(f"\n{len(images)} photographs to {SPEC.image_size} × {SPEC.image_size}, one core")
    for (name, decode), s in zip(decoders.items(), seconds, strict=True):
        differences = np.stack([np.abs(decode(data).astype(int) - decode_with_pillow(data)) for data in images])
        print(
            f"  {name:<30}{len(images) / s:6.0f} images/s   {seconds[0] / s:.2f} × Pillow   "
            f"pixel difference: mean {differences.mean():.2f}, largest {differences.max()} of 255"
        )


if __name__ == "__main__":
    main()
