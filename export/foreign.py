"""Somebody else's model, ready for export: a plain ViT of timm, transformers or torchvision as a checkpoint of ours.

It has one token until it is co-trained. What no file says of it is assumed, and told; what can be measured of it with
labelled images is measured by PyTorch before anything is compiled.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from export.errors import ExportError
from export.pipeline import MAX_IMAGES, made_up_pictures
from export.source_config import distinct, evaluation_view, read_labels, stated_labels
from training.checkpoint import CHECKPOINT, MODEL, Checkpoint
from training.data.datasets import Images, load_labelled
from training.data.sources import name_of, open_source
from training.distributed import best_device, cpus_per_process
from training.errors import CheckpointError
from training.evaluation.measure import Measurement
from training.pretrained import Pretrained, load_pretrained
from training.recipes import RECIPES, Recipe
from tureen.bundle.manifest import AccuracyRow
from tureen.preprocess import PreprocessSpec
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

FINETUNE = RECIPES["finetune"]  # what co-training would measure, so that before and after can be compared
MADE_UP_PICTURES = 64


@dataclass(frozen=True)
class ForeignOptions:
    """What whoever exports somebody else's model may say of it."""

    data: str | None = None  # labelled images, as for `training.data.datasets.load_labelled`
    labels: Path | None = None  # a text file, one label a line
    images: int | None = None  # to measure on, at most; 512 where None, or one of each class where these are more
    epsilon_255: float = FINETUNE.epsilon_255  # radius of the attack; 0: none
    crop_fraction: float | None = None  # instead of what the files say


def is_foreign(path: Path) -> bool:
    """Whether the path is of somebody else's weights: a file, or a directory that holds them and is no run of ours."""
    return path.is_file() or ((path / MODEL).is_file() and not (path / CHECKPOINT).is_file())


def load_foreign(path: Path, options: ForeignOptions, report: Callable[[str], None] = lambda line: None) -> Checkpoint:
    """The single-token model at `path` as a checkpoint: both tokens its own, its accuracy measured at β = 0 and 1.

    Its recipe is `finetune`'s, with the model's name and shape: nothing was trained by it, but it says how accuracy is
    measured. Without `data` there are made-up pictures to compare engines on, and no accuracy. report: told what was
    assumed. Raises ExportError, CheckpointError or DataError.
    """
    pretrained = _load(path)
    model = pretrained.model.eval().requires_grad_(False)
    folder = path if path.is_dir() else path.parent
    view = evaluation_view(
        pretrained.library, folder, image_size=model.config.image_size, crop_fraction=options.crop_fraction
    )
    folders = None if options.data is None else open_source(options.data).names
    labels, note = _labels(path, options, model.config.classes, folders)
    assumed = [*pretrained.assumed, *view.notes, *note]
    report(f"{path} is a checkpoint of {pretrained.library}, with one token")
    for sentence in assumed:
        report(f"  {sentence}")
    recipe = FINETUNE.model_copy(
        update={"name": name_of(path), "model": model.config, "epsilon_255": options.epsilon_255}
    )
    if options.data is None:
        pictures = made_up_pictures(MADE_UP_PICTURES, model.config.image_size)
        images, accuracy = Images(pictures, np.full(MADE_UP_PICTURES, -1)), []
        report(
            f"no --data: accuracy is not measured, and engines are proven in fp32 alone, on {MADE_UP_PICTURES} made-up "
            "pictures; lower precisions need real images"
        )
    else:
        assert folders is not None
        images = _images(options, view.preprocess, labels, at_least=len(folders))
        accuracy = _accuracy(pretrained, images, recipe)
    return Checkpoint(
        model=model,
        held_out=images,
        recipe=recipe,
        labels=labels,
        preprocess=view.preprocess,
        accuracy=accuracy,
        provenance=_provenance(path, pretrained, assumed, options.data, len(images)),
    )


def _load(path: Path) -> Pretrained:
    try:
        return load_pretrained(path)
    except CheckpointError:
        try:
            load_pretrained(path, classes=2)
        except CheckpointError as error:
            raise error from None
        raise ExportError(
            f"{path} has no linear classifier, so there is nothing to serve: give it one and co-train it with "
            f"`tureen train finetune --init {path} --data DIR`"
        ) from None


def _labels(
    path: Path, options: ForeignOptions, classes: int, folders: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """What the outputs are called, and what had to be assumed for it; `folders` are the classes of the images."""
    source, assumed = str(options.labels or "the config.json beside the weights"), []
    labels = read_labels(options.labels) if options.labels else stated_labels(path if path.is_dir() else path.parent)
    if labels is None and folders is None:
        return [str(index) for index in range(classes)], ["each output is called by its number: no file says"]
    if labels is None:
        source, labels = str(options.data), list(folders or ())
        assumed.append("the outputs are the folders of --data in alphabetical order: no file says")
    labels, note = distinct(labels)
    assumed += [note] if note else []
    if len(labels) != classes:
        raise ExportError(
            f"{source} has {len(labels)} labels, the classifier of {path} {classes} outputs: say with --labels FILE "
            "what each output is called, one a line"
        )
    counts = Counter(labels)
    if wrong := [name for name in folders or () if counts[name] != 1]:
        raise ExportError(
            f"{options.data} has images of {wrong[0]!r}, as {counts[wrong[0]] or 'none'} of the outputs are called in "
            f"{source}: call the folders as the outputs, or with --labels FILE the outputs as the folders"
        )
    return labels, assumed


def _images(options: ForeignOptions, preprocess: PreprocessSpec, labels: list[str], *, at_least: int) -> Images:
    assert options.data is not None
    with tqdm(desc="read images", unit="image", disable=None) as bar:
        images, skipped = load_labelled(
            options.data,
            preprocess,
            labels,
            at_most=options.images or max(MAX_IMAGES, at_least),
            workers=cpus_per_process(),
            on_images=lambda count: bar.update(count) and None,
        )
    for name in skipped:
        print(f"left out, it cannot be decoded: {name}", file=sys.stderr)
    return images


def _accuracy(pretrained: Pretrained, images: Images, recipe: Recipe) -> list[AccuracyRow]:
    """What the token is worth, measured once and told for both modes, which it is."""
    measurement = Measurement(
        pretrained.model.to(best_device()),
        images,
        attack=recipe.evaluation_attack,
        steps=recipe.evaluation_steps,
        epsilon_255=recipe.epsilon_255,
    )
    (row,) = measurement.accuracy([CLEAN_BETA])
    pretrained.model.cpu()
    return [row, row.model_copy(update={"beta": ROBUST_BETA})]


def _provenance(
    path: Path, pretrained: Pretrained, assumed: Sequence[str], data: str | None, images: int
) -> dict[str, object]:
    file = path / MODEL if path.is_dir() else path
    with file.open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    measured_on = f"{images} made-up pictures" if data is None else f"{images} images of {Path(data).name}"
    return {
        "library": pretrained.library,
        "weights": file.name,
        "weights_sha256": digest,
        "assumed": "; ".join(assumed) or "nothing",
        "measured_on": measured_on,
    }
