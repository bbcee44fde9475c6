"""Quantises the backbone to int8 with the library NNCF, and loads the images for the calibration.

NNCF quantises weights per channel. It measures the ranges of activations on real images at many β. The result is an
ONNX graph with QuantizeLinear and DequantizeLinear operators. OpenVINO and ONNX Runtime run such a graph in int8.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.errors import ExportError
from training.checkpoint import Checkpoint
from training.data.datasets import Images, load_digits
from training.data.sources import open_source
from tureen.bundle.bundle import LOGITS_OUTPUT, PIXELS_INPUT, TOKEN_INPUT
from tureen.errors import ImageError
from tureen.preprocess import Pixels, PreprocessSpec, pixels_from_bytes
from tureen.tokens import CLEAN_BETA, ROBUST_BETA, mix_rows
from tureen.vendor_telemetry import disable_vendor_telemetry

CALIBRATION_IMAGES = 300


def int8_graph(graph: bytes, pixels: Pixels, clean: NDArray[np.float32], robust: NDArray[np.float32]) -> bytes:
    """Returns the ONNX graph with its matrix products in int8. The classifier and all other operators stay in fp32.

    graph: backbone.onnx in fp32. pixels: the images for the calibration, uint8 (n, H, W, 3). They must be like those in
    production, and must not include images of the accuracy measurement. clean, robust: the tokens of width D, float32
    (D,).

    Each image gets another β from [0, 1], because the token changes the range of activations. NNCF uses its transformer
    preset with SmoothQuant (Xiao et al., ICML 2023). Raises ExportError if NNCF is not installed, or if it cannot
    quantise the graph.
    """
    disable_vendor_telemetry()
    with contextlib.redirect_stdout(sys.stderr):  # NNCF prints progress; standard output is for results
        try:
            import nncf
        except ImportError:
            raise ExportError("nncf is not installed: install Tureen with its extra [export]") from None
        logging.getLogger("nncf").setLevel(logging.ERROR)
        return _quantized(nncf, graph, pixels, clean, robust)


def _quantized(
    nncf: Any, graph: bytes, pixels: Pixels, clean: NDArray[np.float32], robust: NDArray[np.float32]
) -> bytes:
    betas = np.random.default_rng(0).permutation(np.linspace(CLEAN_BETA, ROBUST_BETA, len(pixels)))
    tokens = mix_rows(clean, robust, betas)
    samples = [{PIXELS_INPUT: pixels[i : i + 1], TOKEN_INPUT: tokens[i : i + 1]} for i in range(len(pixels))]
    model = onnx.load_from_string(graph)
    # In int8 the classifier has ten times the error in OpenVINO, and saves a thousandth of the work (docs/LOG.md).
    classifier = [node.name for node in model.graph.node if LOGITS_OUTPUT in node.output]
    try:
        quantized = nncf.quantize(
            model,
            nncf.Dataset(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
            ignored_scope=nncf.IgnoredScope(names=classifier),
        )
    except Exception as error:  # the exceptions of NNCF and ONNX Runtime have no common base class
        raise ExportError("nncf cannot quantise this backbone: export it without int8") from error
    return bytes(quantized.SerializeToString(deterministic=True))


def calibration_source(checkpoint: Checkpoint, data: str | None) -> Callable[[], Pixels] | None:
    """Returns a function that loads the images for int8 calibration; None if there are no such images.

    data: location of the images, as for `tureen train --data`. If `data` is None, the images of a model that was
    trained on the digits are the training digits, and there are no images for any other model.
    """
    if data is not None:
        return lambda: calibration_pixels(data, checkpoint.preprocess, checkpoint.test.pixels)
    if checkpoint.recipe.dataset == "digits":
        return _digits
    return None


def _digits() -> Pixels:
    train = load_digits().train
    assert isinstance(train, Images)  # small enough to be in memory always
    return train.pixels[:CALIBRATION_IMAGES]


def calibration_pixels(location: str, spec: PreprocessSpec, measured: Pixels) -> Pixels:
    """Returns up to 300 training images at `location`, evenly spread over the list of images: uint8 (n, H, W, 3).

    location: as for `tureen train --data`. measured: the images of the accuracy measurement; the function leaves these
    out. Skips images that cannot be decoded. Raises ExportError if no image remains.
    """
    source = open_source(location).train
    excluded = {image.tobytes() for image in measured}
    indices = np.unique(np.linspace(0, len(source.labels) - 1, CALIBRATION_IMAGES).astype(int))
    images = (_decoded(source.read(int(i)), spec) for i in indices)
    kept = [image for image in images if image is not None and image.tobytes() not in excluded]
    if not kept:
        raise ExportError(f"{location} has no image for int8 calibration besides those of the accuracy measurement")
    return np.stack(kept)


def _decoded(data: bytes, spec: PreprocessSpec) -> Pixels | None:
    try:
        return pixels_from_bytes(data, spec)
    except ImageError:
        return None
