"""Checkpoint to bundle: graph, parity, golden rows, manifest, card; written only when all of it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import safetensors.numpy
import torch
from numpy.typing import NDArray
from PIL import Image

import tureen
from export.card import model_card
from export.errors import ExportError, ParityError
from export.graph import OPSET, exportable, onnx_graph
from export.parity import ParityLimits, Reference, check_parity, measure_parity, reference
from training.checkpoint import Checkpoint
from training.model import DualTokenViT
from tureen.bundle import (
    BACKBONE,
    CARD,
    GOLDEN,
    TOKENS,
    Golden,
    Manifest,
    ParityRow,
    Precision,
    record_files,
    write_bundle,
)
from tureen.engines import compile_engine
from tureen.errors import EngineError

ENGINE_PRECISIONS: tuple[tuple[str, Precision], ...] = (
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
)
Modes = Literal["two", "one", "equal"]

GOLDEN_IMAGES = 8
GOLDEN_BETAS = (0.0, 0.5, 1.0)


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    name: str | None = None,
    default_beta: float = 0.0,
    engines: Sequence[str] = (),
    precisions: Sequence[str] = (),
    limits: ParityLimits | None = None,
    modes: Modes = "two",
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Compile the checkpoint's backbone, prove each engine against PyTorch, and write the bundle to `out`.

    name: the model's, the recipe's where None. default_beta: β of a request that names none. engines, precisions:
    which to prove, each of which must then pass; where empty, all that this machine has, and a lower precision that
    does not pass is left out. modes: of a model that is not co-trained, whether a β is refused (one) or changes nothing
    (equal); it needs no measured accuracy. report: told each step.
    Raises ExportError, ParityError, or BundleError where `out` exists and `overwrite` is false; nothing is written.
    """
    limits = limits or ParityLimits()
    # A table without its ends, or an occupied directory, is better known before a long compilation than after.
    if modes == "two" and not {0.0, 1.0} <= {row.beta for row in checkpoint.accuracy}:
        raise ExportError("the checkpoint has no measured accuracy at β = 0 and 1: train it again")
    model = exportable(checkpoint.model)
    report(f"compiling {checkpoint.recipe.name} to ONNX, opset {OPSET}")
    graph = onnx_graph(model)
    report("running PyTorch for reference")
    expected = reference(model, checkpoint.held_out.pixels)
    parity = _prove(graph, expected, engines, precisions, limits, report)
    tokens = safetensors.numpy.save({"clean": expected.clean, "robust": expected.robust})
    files = {BACKBONE: graph, TOKENS: tokens, GOLDEN: golden_rows(model).to_bytes()}
    manifest = Manifest(
        name=name or checkpoint.recipe.name,
        version=hashlib.sha256(graph + tokens).hexdigest()[:12],
        width=len(expected.clean),
        labels=checkpoint.labels,
        preprocess=checkpoint.preprocess,
        default_beta=default_beta,
        opset=OPSET,
        files=record_files(files),
        parity=parity,
        is_cotrained=modes == "two",
        has_two_tokens=modes != "one",
        accuracy=checkpoint.accuracy,
        evaluation=checkpoint.evaluation,
        provenance={
            **checkpoint.provenance,
            "tureen": tureen.__version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            **({"recipe": checkpoint.recipe.name, "seed": checkpoint.recipe.seed} if modes == "two" else {}),
        },
    )
    files[CARD] = model_card(manifest).encode()
    manifest = manifest.model_copy(update={"files": record_files(files)})
    write_bundle(out, manifest, files, overwrite=overwrite)
    return manifest


def _prove(
    graph: bytes,
    expected: Reference,
    engines: Sequence[str],
    precisions: Sequence[str],
    limits: ParityLimits,
    report: Callable[[str], None],
) -> list[ParityRow]:
    """Parity rows of every engine that was asked for, or of every one that this machine has."""
    rows: list[ParityRow] = []
    reasons = []
    for engine, precision in ENGINE_PRECISIONS:
        if (engines and engine not in engines) or (precisions and precision not in precisions):
            continue
        try:
            compiled = compile_engine(graph, engine, precision)
        except EngineError as error:
            reasons.append(f"{engine} {precision}: {error}")
            report(f"left out: {reasons[-1]}")
            continue
        try:
            row = measure_parity(compiled, expected)
            check_parity(row, limits)
        except ParityError as error:
            # Wrong in fp32 is wrong; a lower precision that nobody asked for has to earn its place.
            if precision == "fp32" or precision in precisions:
                raise
            reasons.append(str(error))
            report(f"left out: {error}")
            continue
        finally:
            compiled.close()
        report(
            f"proven: {engine} {precision}, largest logit difference {row.max_abs_diff:.1e}, "
            f"same label {100 * row.top1_agreement:.2f} % at the worst β"
        )
        rows.append(row)
    missing = [e for e in engines if e not in {row.engine for row in rows}]
    missing += [p for p in precisions if p not in {row.precision for row in rows}]
    if missing or not rows:
        why = "; ".join(reasons) or "no engine has it"
        raise ExportError(f"{', '.join(missing) or 'every engine'} could not be proven: {why}")
    return rows


def golden_rows(model: DualTokenViT) -> Golden:
    """PyTorch's answers to eight smooth random pictures, the same for every model of an image size.

    Made up, so that no image of a training set leaves in a bundle.
    """
    pixels = made_up_pictures(GOLDEN_IMAGES, model.config.image_size)
    return Golden(pixels, np.array(GOLDEN_BETAS, dtype=np.float32), reference(model, pixels, GOLDEN_BETAS).logits)


def made_up_pictures(count: int, image_size: int) -> NDArray[np.uint8]:
    """Smooth random pictures, uint8 (count, image_size, image_size, 3), the same at every call."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    size = (image_size, image_size)
    return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in coarse])
