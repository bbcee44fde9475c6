"""An int8 graph of the backbone, by NNCF: weights per channel, activations as they are on real images over many β.

The result is plain ONNX (QuantizeLinear, DequantizeLinear), which OpenVINO and ONNX Runtime both run in int8.
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
    """The fp32 ONNX graph quantised: matrix products in int8, but for the classifier; what lies between is untouched.

    pixels: uint8 (n, H, W, 3), images of the kind that will be served, none of those that accuracy is measured on.
    clean, robust: float32 (D,), the tokens. Every image is shown at a β of its own, spread over [0, 1], since the
    token moves the range of activations. Transformer preset with SmoothQuant (Xiao et al., ICML 2023).
    Raises ExportError where NNCF is missing or fails.
    """
    disable_vendor_telemetry()
    with contextlib.redirect_stdout(sys.stderr):  # where its notes and progress belong; standard output is for results
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
    # Ten times the error in OpenVINO for a thousandth of the work (docs/LOG.md).
    classifier = [node.name for node in model.graph.node if LOGITS_OUTPUT in node.output]
    try:
        quantized = nncf.quantize(
            model,
            nncf.Dataset(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
            ignored_scope=nncf.IgnoredScope(names=classifier),
        )
    except Exception as error:  # NNCF's and ONNX Runtime's exceptions have no common base
        raise ExportError("nncf cannot quantise this backbone: export it without int8") from error
    return bytes(quantized.SerializeToString(deterministic=True))


def calibration(checkpoint: Checkpoint, data: str | None) -> Callable[[], Pixels] | None:
    """What gives images to calibrate on: those at `data`, or the digits' own; None where there are none."""
    if data is not None:
        return lambda: calibration_pixels(data, checkpoint.preprocess, checkpoint.held_out.pixels)
    if checkpoint.recipe.dataset == "digits":
        return _digits
    return None


def _digits() -> Pixels:
    train = load_digits().train
    assert isinstance(train, Images)  # so few are never streamed
    return train.pixels[:CALIBRATION_IMAGES]


def calibration_pixels(location: str, spec: PreprocessSpec, measured: Pixels) -> Pixels:
    """Up to 300 of the images at `location`, spread over its training part, uint8 (n, H, W, 3).

    location: as for `tureen train --data`. measured: those on which accuracy is measured, which are left out, as is
    what cannot be decoded. Raises ExportError where nothing is left.
    """
    source = open_source(location).train
    taken = {image.tobytes() for image in measured}
    wanted = np.unique(np.linspace(0, len(source.labels) - 1, CALIBRATION_IMAGES).astype(int))
    images = (_decoded(source.read(int(i)), spec) for i in wanted)
    kept = [image for image in images if image is not None and image.tobytes() not in taken]
    if not kept:
        raise ExportError(f"{location} has no image to calibrate int8 on, other than those that are measured")
    return np.stack(kept)


def _decoded(data: bytes, spec: PreprocessSpec) -> Pixels | None:
    try:
        return pixels_from_bytes(data, spec)
    except ImageError:
        return None
