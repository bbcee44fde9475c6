"""Checkpoint to bundle: graph, parity, golden rows, manifest, card; written only when all of it holds."""

from __future__ import annotations

import dataclasses
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
from tqdm import tqdm

import tureen
from export.artefacts import Artefacts
from export.card import model_card
from export.errors import ExportError
from export.graph import OPSET, exportable, onnx_graph
from export.parity import ParityLimits
from export.proving import EngineRequest, add_later_opset, prove_engines
from export.reference import BETAS, Reference, attack_images, reference
from training.checkpoint import Checkpoint
from training.data.datasets import Images
from training.distributed import best_device
from training.models.vit import DualTokenViT
from tureen.bundle.bundle import GOLDEN, MODEL_CARD, TOKENS, Golden, record_files, write_bundle
from tureen.bundle.manifest import BACKBONE, Manifest
from tureen.tokens import CLEAN_BETA

Modes = Literal["two", "one", "equal"]

ALL = EngineRequest()
ATTACK_STEPS = 10  # tells engines apart as well as more do; what the model is worth was measured in training
MAX_IMAGES = 512
GOLDEN_IMAGES = 8
GOLDEN_BETAS = (0.0, 0.5, 1.0)


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    name: str | None = None,
    default_beta: float = 0.0,
    asked: EngineRequest = ALL,
    limits: ParityLimits | None = None,
    modes: Modes = "two",
    overwrite: bool = False,
    cache: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Compile the checkpoint's backbone, prove each engine against PyTorch, and write the bundle to `out`.

    name: the model's; that of its images where None, or the recipe's where these have none.
    default_beta: β of a request that names none. asked: what to prove.
    modes: of a model that is not co-trained, whether a β is refused (one) or changes nothing (equal); it needs no
    measured accuracy. cache: directory for the timings of a GPU's kernels. report: told each step.
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
    betas = BETAS if modes == "two" else (CLEAN_BETA,)
    if set(asked.precisions) == {"fp32"}:  # which is held to PyTorch's logits, not to its accuracy
        expected = reference(model, checkpoint.held_out.pixels[:MAX_IMAGES], betas)
    else:
        expected = attacked_reference(checkpoint, model, betas)
    artefacts = Artefacts(
        model, graph, expected, calibration=asked.calibration, builder=asked.builder, cache=cache, report=report
    )
    proven = prove_engines(artefacts, expected, asked, limits, report=report)
    if asked.has_later_opset:
        add_later_opset(proven, graph, model, expected, limits, report)
    tokens = safetensors.numpy.save({"clean": expected.clean_token, "robust": expected.robust_token})
    files = {BACKBONE: graph, TOKENS: tokens, GOLDEN: golden_rows(model).to_bytes(), **proven.files}
    manifest = Manifest(
        name=name or checkpoint.name or checkpoint.recipe.name,
        version=hashlib.sha256(graph + tokens).hexdigest()[:12],
        width=len(expected.clean_token),
        labels=checkpoint.labels,
        preprocess=checkpoint.preprocess,
        default_beta=default_beta,
        opset=OPSET,
        files=record_files(files),
        parity=proven.rows,
        plans=proven.plans,
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
    files[MODEL_CARD] = model_card(manifest).encode()
    manifest = manifest.model_copy(update={"files": record_files(files)})
    write_bundle(out, manifest, files, overwrite=overwrite)
    return manifest


def attacked_reference(checkpoint: Checkpoint, model: DualTokenViT, betas: Sequence[float] = BETAS) -> Reference:
    """PyTorch's answers on up to 512 held-out images at each β; where the recipe has a radius, on the same attacked."""
    recipe, held_out = checkpoint.recipe, checkpoint.held_out
    images = Images(held_out.pixels[:MAX_IMAGES], held_out.labels[:MAX_IMAGES])
    if not recipe.epsilon_255:
        return reference(model, images.pixels, betas)
    total, what = len(betas) * len(images), "attack PyTorch's soups, for the engines to classify"
    with tqdm(total=total, desc=what, unit="image", disable=None) as bar:
        attacked = attack_images(
            model.to(best_device()),
            images,
            epsilon_255=recipe.epsilon_255,
            steps=min(ATTACK_STEPS, recipe.evaluation_steps),
            betas=betas,
            on_images=lambda count: bar.update(count) and None,
        )
    return dataclasses.replace(reference(model.cpu(), images.pixels, betas), attacked=attacked)


def golden_rows(model: DualTokenViT) -> Golden:
    """PyTorch's answers to eight smooth random pictures, the same for every model of an image size.

    Made up, so that no image of a training set leaves in a bundle.
    """
    pixels = made_up_pictures(GOLDEN_IMAGES, model.config.image_size)
    answers = reference(model, pixels, GOLDEN_BETAS).images
    return Golden(pixels, np.array(GOLDEN_BETAS, dtype=np.float32), answers.logits)


def made_up_pictures(count: int, image_size: int) -> NDArray[np.uint8]:
    """Smooth random pictures, uint8 (count, image_size, image_size, 3), the same at every call."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    size = (image_size, image_size)
    return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in coarse])
