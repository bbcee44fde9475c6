"""Provides the images and the bundles of the serving benchmarks: 200 photographs, and a ViT of random weights.

Random weights run as fast as trained ones, and these benchmarks measure speed, never accuracy.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from PIL import Image

from benchmarks.engines import SHAPES
from export.graph import OPSET, onnx_graph
from export.parity import measure_parity
from export.pipeline import golden_rows
from export.reference import compute_reference
from training.models.shapes import ViTConfig
from training.models.vit import DualTokenViT
from tureen.bundle.bundle import BACKBONE, GOLDEN, TOKENS, Bundle, load_bundle, record_files, write_bundle
from tureen.bundle.manifest import Manifest, ParityRow
from tureen.engines import compile_engine, open_engine
from tureen.engines.base import Engine, EngineOptions
from tureen.errors import EngineError
from tureen.machine import available_cpus, default_cache_directory
from tureen.preprocess import PreprocessSpec, pixels_from_bytes

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "imagenet-sample-200.tar"
CIFAR10 = PHOTOGRAPHS.with_name("cifar10-jpeg.tar.gz")
SMALL_BUNDLE = ROOT / "tureen" / "examples" / "cifar10"
SYNTHETIC_QUALITY = 87  # gives files of 114 kB, the mean size of the photographs
CROP_FRACTION = 0.875
PARITY_IMAGES = 4  # enough to show that an engine runs the graph; benchmarks.precisions measures how accurately
ENGINES = (("openvino", "bf16"), ("openvino", "fp32"), ("onnxruntime", "fp32"))


@dataclass(frozen=True)
class Workload:
    """The bundle, the images and the amount of load of a run of `benchmarks.serving`.

    images: encoded image files. They are the same for every server that the run measures.
    """

    bundle: Bundle
    images: list[bytes]
    engine: str  # of the server
    precision: str  # of this engine
    flags: tuple[str, ...]  # of `tureen serve`, besides engine and precision
    seconds: float  # of load in each round
    rounds: int  # number of repeated measurements of each server
    requests: int  # of the soak
    repetitions: int  # how often the server is stopped, killed and reloaded

    @property
    def server_flags(self) -> tuple[str, ...]:
        """The flags of `tureen serve`: engine, precision and `self.flags`."""
        return ("--engine", self.engine, "--precision", self.precision, *self.flags)

    def open_engine(self, streams: int) -> Engine:
        """Returns a new engine of the kind that the server uses, with all cores divided among `streams`."""
        return open_engine(self.bundle, self.engine, self.precision, engine_options(streams))  # type: ignore[arg-type]


def engine_options(streams: int = 1) -> EngineOptions:
    """Returns engine options with all cores divided among `streams`, and the cache directory that the server uses."""
    return EngineOptions(threads=available_cpus(), streams=streams, cache=default_cache_directory())


def load_photographs(archive: Path = PHOTOGRAPHS, count: int = 200) -> list[bytes]:
    """Returns at most `count` image files of the tar archive.

    If `archive` is the default, PHOTOGRAPHS, and does not exist, returns synthetic JPEG files instead.
    """
    if archive == PHOTOGRAPHS and not archive.exists():
        images = synthetic_photographs(count)
        print(f"images: {len(images)} synthetic of about 114 kB, because {archive.name} is absent: compare only ratios")
        return images
    with tarfile.open(archive) as tar:
        members = sorted((m for m in tar.getmembers() if m.isfile()), key=lambda member: member.name)
        images = [tar.extractfile(member).read() for member in members[:count]]  # type: ignore[union-attr]
    print(f"images: the {len(images)} of {archive.name}")
    return images


def synthetic_photographs(count: int) -> list[bytes]:
    """Returns `count` synthetic JPEG files that resemble photographs.

    An image has 500 × 375 pixels, a file of about 114 kB, and the spatial spectrum of natural scenes.
    """
    rng = np.random.default_rng(0)
    height, width = 375, 500
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    images = []
    for _ in range(count):
        waves = np.fft.rfft2(rng.standard_normal((3, height, width))) / frequency**0.9  # Field, 1987: about 1/f
        detail = np.fft.irfft2(waves, s=(height, width))
        grey = detail.mean(axis=0)  # the channels of a photograph are correlated
        pixels = 128 + 55 * (0.7 * grey / grey.std() + 0.3 * detail / detail.std()).transpose(1, 2, 0)
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=SYNTHETIC_QUALITY)
        images.append(buffer.getvalue())
    return images


def cifar10_files(work: Path) -> list[Path]:
    """Returns the paths of the 10,000 test images of CIFAR-10, extracted below `work`.

    If the data set is absent, writes the images in golden.npz of the example bundle to files, and returns their paths.
    """
    if CIFAR10.exists():
        return sorted(extract_cifar10_test(work).rglob("*.jpg"))
    (work / "cifar10").mkdir()
    files = []
    for n, pixels in enumerate(load_bundle(SMALL_BUNDLE).golden.pixels):
        files.append(work / "cifar10" / f"{n}.jpg")
        Image.fromarray(pixels).save(files[-1], quality=75)
    print(f"images: the {len(files)} of the example bundle, repeated, because {CIFAR10.name} is absent")
    return files


def extract_cifar10_test(work: Path) -> Path:
    """Extracts the test set of CIFAR-10 below `work`. Returns the directory, which has a folder for each class."""
    with tarfile.open(CIFAR10) as archive:
        members = [member for member in archive if member.name.startswith("test/")]
        archive.extractall(work / "cifar10", members, filter="data")
    print(f"images: the test set of {CIFAR10.name}")
    return work / "cifar10" / "test"


def classify_requests(
    images: Sequence[bytes], betas: Sequence[float] = (0.5,), media_type: str = "image/jpeg"
) -> list[bytes]:
    """Returns complete POST /classify requests, each with one image and one β.

    The images and the β repeat in turn, until each has been used at least once. media_type: of all images.
    """
    count = max(len(images), len(betas))
    return [
        f"POST /classify?beta={betas[i % len(betas)]:.3f} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\n"
        f"Content-Length: {len(images[i % len(images)])}\r\n\r\n".encode()
        + images[i % len(images)]
        for i in range(count)
    ]


def make_random_bundle(directory: Path, images: Sequence[bytes], key: str = "ti") -> Bundle:
    """Writes a bundle of a dual-token ViT at 224 × 224 pixels with random weights to `directory`. Returns the bundle.

    images: encoded images; the first PARITY_IMAGES are for the comparison of each CPU engine with PyTorch. key: the
    size of the ViT, a key of `SHAPES`.
    """
    name, width, depth, heads = SHAPES[key]
    torch.manual_seed(0)
    config = ViTConfig(image_size=224, patch_size=16, width=width, depth=depth, heads=heads, classes=1000)
    model = DualTokenViT(config).eval().requires_grad_(False)
    spec = PreprocessSpec(image_size=224, crop_fraction=CROP_FRACTION)
    pixels = np.stack([pixels_from_bytes(image, spec) for image in images[:PARITY_IMAGES]])
    expected = compute_reference(model, pixels)
    graph = onnx_graph(model)
    files = {
        BACKBONE: graph,
        TOKENS: safetensors.numpy.save({"clean": expected.clean_token, "robust": expected.robust_token}),
        GOLDEN: golden_rows(model).to_bytes(),
    }

    def parity() -> Iterator[ParityRow]:
        for engine, precision in ENGINES:
            try:
                compiled = compile_engine(graph, engine, precision)  # type: ignore[arg-type]
            except EngineError as error:
                print(f"{engine} {precision} skipped: {error}")
                continue
            yield measure_parity(compiled, expected)
            compiled.close()

    manifest = Manifest(
        name=name.lower().replace("/", "-"),
        version=hashlib.sha256(graph).hexdigest()[:12],
        width=width,
        labels=[f"class {i}" for i in range(config.classes)],
        preprocess=spec,
        default_beta=0.5,
        opset=OPSET,
        files=record_files(files),
        parity=list(parity()),
        is_cotrained=False,
        accuracy=[],
        provenance={"weights": "random"},
    )
    write_bundle(directory, manifest, files)
    return load_bundle(directory)
