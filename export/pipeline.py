"""Converts a checkpoint to a bundle: graph, comparison of engines, golden rows, manifest, model card.

Golden rows are generated images with PyTorch's logits. The engine of a server must reproduce these logits before the
server serves. Writes the bundle only if all checks pass.
"""

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
from export.artefacts import BundleArtefacts
from export.calibration import MAX_FITTING_IMAGES, MAX_MEASURING_IMAGES, DialFields, measure_dial
from export.card import model_card
from export.errors import ExportError
from export.graph import OPSET, onnx_graph, require_exportable
from export.parity import MAX_IMAGES, ParityLimits
from export.proving import EngineRequest, add_later_opset, prove_engines
from export.reference import BETAS, Reference, attack_images, compute_reference
from training.checkpoint import Checkpoint
from training.data.datasets import Images, balanced_sample
from training.distributed import best_device
from training.evaluation.accuracy import make_predictor
from training.models.vit import DualTokenViT
from tureen.bundle.bundle import GOLDEN, MODEL_CARD, TOKENS, Golden, record_files, write_bundle
from tureen.bundle.gallery import GALLERY, BundleGallery
from tureen.bundle.manifest import BACKBONE, NOTE, Manifest
from tureen.tokens import CLEAN_BETA

Modes = Literal["two", "one", "equal"]

ALL = EngineRequest()
ATTACK_STEPS = 10  # enough to compare engines; `tureen train` measured the accuracy with more
GOLDEN_IMAGES = 8
GOLDEN_BETAS = (0.0, 0.5, 1.0)


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    name: str | None = None,
    default_beta: float = 0.0,
    request: EngineRequest = ALL,
    limits: ParityLimits | None = None,
    modes: Modes = "two",
    gallery: BundleGallery | None = None,
    note: str | None = None,
    overwrite: bool = False,
    cache: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Compiles the backbone, compares each engine with PyTorch, writes the bundle to `out`, and returns its manifest.

    name: name of the model; None: the name in the checkpoint, or else that of the recipe. default_beta: the β that the
    server uses for a request without β.
    modes: "two" for a co-trained model with measured accuracy. For a model with one token, "one" or "equal": with "one"
    the server rejects a request with β, with "equal" the server accepts and ignores the β.
    request: the engines and precisions to compare. limits: largest differences from PyTorch; None: the defaults.
    gallery: pictures for the console; None: the bundle has no gallery. note: Markdown text for the model card, such as
    the source of the images.
    cache: directory for kernel timings of GPUs. report: called with a message for each step.

    Raises ExportError if the model cannot be exported, if no engine passes, or if a requested one fails. Raises
    ParityError if a requested precision, or fp32 on the CPU, exceeds the limits. Raises BundleError if `out` exists and
    `overwrite` is false. After an error, `out` is unchanged.
    """
    limits = limits or ParityLimits()
    # This check comes before the long compilation.
    if modes == "two" and not {0.0, 1.0} <= {row.beta for row in checkpoint.accuracy}:
        raise ExportError("the checkpoint has no measured accuracy at β = 0 and 1: train it again")
    model = require_exportable(checkpoint.model)
    report(f"compiling {checkpoint.recipe.name} to ONNX, opset {OPSET}")
    graph = onnx_graph(model)
    report("running PyTorch for reference")
    betas = BETAS if modes == "two" else (CLEAN_BETA,)
    if set(request.precisions) == {"fp32"}:  # fp32 is compared by logits, not by accuracy
        expected = compute_reference(model, checkpoint.test.pixels[:MAX_IMAGES], betas)
    else:
        expected = attacked_reference(checkpoint, model, betas)
    artefacts = BundleArtefacts(
        model, graph, expected, calibration=request.calibration, builder=request.builder, cache=cache, report=report
    )
    proven = prove_engines(artefacts, expected, request, limits, report=report)
    if request.has_later_opset:
        add_later_opset(proven, graph, model, expected, limits, report)
    dial: DialFields = measure_on_checkpoint(checkpoint, model) if modes == "two" else {}
    tokens = safetensors.numpy.save({"clean": expected.clean_token, "robust": expected.robust_token})
    files = {BACKBONE: graph, TOKENS: tokens, GOLDEN: golden_rows(model).to_bytes(), **proven.files}
    if gallery is not None:
        files[GALLERY] = gallery.model_dump_json(indent=2).encode()
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
        **dial,
        provenance={
            **checkpoint.provenance,
            "tureen": tureen.__version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            **({"recipe": checkpoint.recipe.name, "seed": checkpoint.recipe.seed} if modes == "two" else {}),
            "model": model.config.model_dump(mode="json"),
            **({} if note is None else {NOTE: note}),
        },
    )
    files[MODEL_CARD] = model_card(manifest).encode()
    manifest = manifest.model_copy(update={"files": record_files(files)})
    write_bundle(out, manifest, files, overwrite=overwrite)
    return manifest


def attacked_reference(checkpoint: Checkpoint, model: DualTokenViT, betas: Sequence[float] = BETAS) -> Reference:
    """Returns the PyTorch logits at each β of up to 512 test images, and of the same images after an attack.

    If the radius of the recipe is 0, there are no attacked images.
    """
    recipe, held_out = checkpoint.recipe, checkpoint.test
    images = Images(held_out.pixels[:MAX_IMAGES], held_out.labels[:MAX_IMAGES])
    if not recipe.epsilon_255:
        return compute_reference(model, images.pixels, betas)
    total, description = len(betas) * len(images), "attack each soup, for the comparison of engines"
    with tqdm(total=total, desc=description, unit="image", disable=None) as bar:
        attacked = attack_images(
            model.to(best_device()),
            images,
            epsilon_255=recipe.epsilon_255,
            steps=min(ATTACK_STEPS, recipe.evaluation_steps),
            betas=betas,
            on_images=lambda count: bar.update(count) and None,
        )
    return dataclasses.replace(compute_reference(model.cpu(), images.pixels, betas), attacked=attacked)


def measure_on_checkpoint(checkpoint: Checkpoint, model: DualTokenViT) -> DialFields:
    """Returns the strength curve and the temperatures, from the PyTorch logits of the images in the checkpoint.

    Fits both on at most 1,000 validation images, and measures the calibration errors on at most 2,000 test images.
    Without validation images, uses only the test images, as `measure_dial` does. If the model has more classes than one
    of these limits, the number of classes is the limit.
    """

    def sample(images: Images, at_most: int) -> Images:
        return balanced_sample(images, max(at_most, len(checkpoint.labels)))

    validation = None if checkpoint.validation is None else sample(checkpoint.validation, MAX_FITTING_IMAGES)
    measured = measure_dial(
        make_predictor(model.to(best_device())), sample(checkpoint.test, MAX_MEASURING_IMAGES), validation
    )
    model.cpu()
    return measured


def golden_rows(model: DualTokenViT) -> Golden:
    """Returns the content of golden.npz: eight synthetic pictures, and their PyTorch logits at β = 0, ½ and 1.

    All models of one image size get the same pictures, so that no bundle contains an image of a training set.
    """
    pixels = synthetic_pictures(GOLDEN_IMAGES, model.config.image_size)
    expected = compute_reference(model, pixels, GOLDEN_BETAS).images
    return Golden(pixels, np.array(GOLDEN_BETAS, dtype=np.float32), expected.logits)


def synthetic_pictures(count: int, image_size: int) -> NDArray[np.uint8]:
    """Returns smooth random pictures, uint8 (count, image_size, image_size, 3), the same in every call."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    size = (image_size, image_size)
    return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in coarse])
