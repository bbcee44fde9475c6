"""Measures the speed of the image decoders, and what decoding a JPEG at reduced size costs in accuracy.

    python -m benchmarks.decoding

Speed is measured on the 200 photographs, on one core, in turns. Accuracy is that of the example bundle on CIFAR-10 test
images (JPEG 75), enlarged to 512 × 512 and saved at quality 90: photograph-sized images with labels of the model.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from collections.abc import Callable

import numpy as np
from PIL import Image

import tureen
from benchmarks.machine import describe_machine
from benchmarks.workload import CIFAR10, load_photographs
from tureen import preprocess
from tureen.commands.demo import EXAMPLES
from tureen.preprocess import Pixels, PreprocessSpec, pixels_from_bytes
from tureen.timing import interleaved

SPEC = PreprocessSpec(image_size=224, crop_fraction=0.875)
ENLARGED = 512
BETAS = (0.0, 0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, default=2000, help="number of CIFAR-10 test images (default: %(default)s)"
    )
    parser.add_argument(
        "--photographs", type=int, default=200, help="number of photographs to time (default: %(default)s)"
    )
    options = parser.parse_args()
    print(describe_machine())
    measure_speed(load_photographs(count=options.photographs))
    if CIFAR10.exists():
        measure_accuracy(options.images)
    else:
        print(f"\nskipped accuracy: it needs labelled images, and {CIFAR10.name} is absent")


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
        "JPEG scaling (--jpeg-scaling)": lambda data: pixels_from_bytes(data, SPEC, jpeg_scaling=True),
    }
    seconds = interleaved(
        [lambda decode=decode: [decode(data) for data in images] for decode in decoders.values()], rounds=5
    )
    print(f"\n{len(images)} photographs to {SPEC.image_size} × {SPEC.image_size}, one core")
    for (name, decode), s in zip(decoders.items(), seconds, strict=True):
        differences = np.stack([np.abs(decode(data).astype(int) - decode_with_pillow(data)) for data in images])
        print(
            f"  {name:<30}{len(images) / s:6.0f} images/s   {seconds[0] / s:.2f} × Pillow   "
            f"pixel difference: mean {differences.mean():.2f}, largest {differences.max()} of 255"
        )


def measure_accuracy(count: int) -> None:
    """Print clean accuracy at three β with and without scaling, and how often the labels agree."""
    with tureen.load(EXAMPLES / "cifar10") as soup:
        spec = soup.bundle.manifest.preprocess
        truth, files = enlarged_test_images(count, soup.labels)
        whole = np.stack([pixels_from_bytes(data, spec) for data in files])
        scaled = np.stack([pixels_from_bytes(data, spec, jpeg_scaling=True) for data in files])
        print(f"\nCIFAR-10 (JPEG 75), {len(files)} test images enlarged to {ENLARGED} × {ENLARGED}, clean accuracy")
        for beta in BETAS:
            labels = [
                np.concatenate(
                    [soup.logits(p[i : i + 100], [beta] * len(p[i : i + 100])) for i in range(0, len(p), 100)]
                ).argmax(axis=1)
                for p in (whole, scaled)
            ]
            in_full, in_part = (100 * (found == truth).mean() for found in labels)
            differences = (labels[1] == truth).astype(float) - (labels[0] == truth)
            half_width = 196 * differences.std() / np.sqrt(len(truth))
            print(
                f"  β = {beta:<4g} in full {in_full:.1f} %   scaled {in_part:.1f} %   "
                f"difference {in_part - in_full:+.2f} ± {half_width:.2f} points (95 %, paired)   "
                f"same label {100 * (labels[0] == labels[1]).mean():.1f} %"
            )


def enlarged_test_images(count: int, labels: list[str]) -> tuple[np.ndarray, list[bytes]]:
    """Return the indices of the true labels, and the enlarged JPEG files; equally many per class."""
    truth, files = [], []
    with tarfile.open(CIFAR10) as archive:
        for member in archive:
            parts = member.name.split("/")
            if not member.isfile() or "test" not in parts or int(parts[-1].split(".")[0]) >= 1 + count // len(labels):
                continue
            content = archive.extractfile(member)
            assert content is not None
            image = Image.open(io.BytesIO(content.read())).convert("RGB")
            buffer = io.BytesIO()
            image.resize((ENLARGED, ENLARGED), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            truth.append(labels.index(parts[-2]))
            files.append(buffer.getvalue())
    return np.array(truth), files


if __name__ == "__main__":
    main()
