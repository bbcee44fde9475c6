"""Loads a third-party model for export: a plain ViT of timm, transformers or torchvision.

The model has one token until it is co-trained. If no file beside the weights has a setting, this module assumes the
default of the library and reports it. If there are labelled images, PyTorch measures the accuracy before the export.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.errors import ExportError
from export.parity import MAX_IMAGES
from export.pipeline import synthetic_pictures
from export.source_config import evaluation_view, labels_from_config, read_labels, unique_labels
from training.attacks.catalogue import suitable_attack
from training.checkpoint import CHECKPOINT, MODEL, Checkpoint
from training.data.datasets import Images
from training.data.sources import model_name, open_source
from training.distributed import best_device
from training.errors import CheckpointError
from training.evaluation.measure import Measurement, read_images
from training.recipes import FINETUNE, Recipe
from training.weights.pretrained import Pretrained, load_pretrained
from training.weights.weight_sources import LocatedWeights, has_weights, is_remote, locate_weights
from tureen.bundle.manifest import AccuracyRow
from tureen.preprocess import PreprocessSpec
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

SYNTHETIC_PICTURES = 64


@dataclass(frozen=True)
class ThirdPartyOptions:
    """The options of `tureen export` for a third-party model."""

    data: str | None = None  # labelled images, as for `training.data.datasets.load_evaluation_images`
    labels: Path | None = None  # a text file, one label a line
    images: int | None = None  # maximum for the measurement; None: 512, or the number of classes if that is larger
    epsilon_255: float = FINETUNE.epsilon_255  # radius of the attack; 0: none
    crop_fraction: float | None = None  # share of the shorter side to keep; None: as in the files of the model


def is_third_party(path: Path) -> bool:
    """Returns whether `path` names weights on the hub, a file of weights, or a directory with weights.

    A directory with a checkpoint of Tureen is not a third-party model.
    """
    return is_remote(path) or path.is_file() or (has_weights(path) and not (path / CHECKPOINT).is_file())


def load_third_party(
    path: Path, options: ThirdPartyOptions, report: Callable[[str], None] = lambda line: None
) -> Checkpoint:
    """Returns the single-token model at `path` as a checkpoint with two equal tokens and accuracy rows at β = 0 and 1.

    The model was not trained by a recipe of Tureen. So the recipe of the checkpoint only describes how accuracy is
    measured: it is `finetune`, with the name and shape of the model. Without `options.data` the checkpoint has no
    accuracy, and it has synthetic pictures for the comparison of engines.

    path: the location of the weights, on this machine or on the hub, as for `locate_weights`. report: called with each
    line for the terminal. The lines give the library of the model, and each setting that this function assumes because
    no file has it, such as the crop or the labels.
    Raises CheckpointError if the weights cannot be found, or are not those of a supported ViT. Raises ExportError if
    the model has no classifier, or if its labels do not fit its outputs. Raises DataError if the images cannot be used.
    """
    weights = locate_weights(path)
    pretrained = _load(weights)
    model = pretrained.model.eval().requires_grad_(False)
    folder = weights.file.parent
    view = evaluation_view(
        pretrained.library, folder, image_size=model.config.image_size, crop_fraction=options.crop_fraction
    )
    folders = None if options.data is None else open_source(options.data).names
    labels, note = _labels(weights, options, model.config.classes, folders)
    assumed = [*pretrained.assumed, *view.notes, *note]
    report(f"{path} is a checkpoint of {pretrained.library}, with one token")
    for sentence in assumed:
        report(f"  {sentence}")
    # The attack of this recipe makes the accuracies before and after co-training comparable.
    recipe = FINETUNE.model_copy(
        update={"name": _name(weights), "model": model.config, "epsilon_255": options.epsilon_255}
    )
    if options.data is None:
        pictures = synthetic_pictures(SYNTHETIC_PICTURES, model.config.image_size)
        images, accuracy = Images(pictures, np.full(SYNTHETIC_PICTURES, -1)), []
        report(
            f"no --data: accuracy is not measured, and engines are proven in fp32 only, on {SYNTHETIC_PICTURES} "
            "synthetic pictures; lower precisions need real images"
        )
    else:
        assert folders is not None
        images = _images(options, view.preprocess, labels, at_least=len(folders))
        accuracy = _accuracy(pretrained, images, recipe)
    return Checkpoint(
        model=model,
        test=images,
        recipe=recipe,
        labels=labels,
        preprocess=view.preprocess,
        accuracy=accuracy,
        provenance=_provenance(weights, pretrained, assumed, options.data, len(images)),
    )


def _name(weights: LocatedWeights) -> str:
    """Returns the name of the model: that of the file, of its directory, or of the model on the hub."""
    if weights.repository is None:
        return model_name(Path(weights.location))
    return model_name(Path(f"{weights.architecture or weights.repository}{Path(MODEL).suffix}"))


def _load(weights: LocatedWeights) -> Pretrained:
    try:
        return load_pretrained(weights)
    except CheckpointError:
        try:
            load_pretrained(weights, classes=2)
        except CheckpointError as error:
            raise error from None
        raise ExportError(
            f"{weights.location} has no linear classifier, so it cannot be served: add one and co-train the model with "
            f"`tureen train finetune --init {weights.location} --data DIR`"
        ) from None


def _labels(
    weights: LocatedWeights, options: ThirdPartyOptions, classes: int, folders: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Returns the labels of the model's outputs, and a sentence for each assumption.

    The labels come from the file `options.labels`, or else from the config.json beside `weights`, or else
    from `folders`. classes: number of outputs. folders: class names of the images; None without images. Raises
    ExportError if the number of labels differs from `classes`, or if a folder's name does not equal exactly one label.
    """
    source, assumed = str(options.labels or "the config.json beside the weights"), []
    labels = read_labels(options.labels) if options.labels else labels_from_config(weights.file.parent)
    if labels is None and folders is None:
        return [str(index) for index in range(classes)], [
            "the label of each output is its number (assumed: no file sets it)"
        ]
    if labels is None:
        source, labels = str(options.data), list(folders or ())
        assumed.append("the outputs are the folders of --data in alphabetical order (assumed: no file sets it)")
    labels, note = unique_labels(labels)
    assumed += [note] if note else []
    if len(labels) != classes:
        hint = f"; for a classifier of the folders: tureen train finetune --init {weights.location} --data {source}"
        raise ExportError(
            f"{source} has {len(labels)} labels, the classifier of {weights.location} has {classes} outputs: name each "
            f"output with --labels FILE, one label a line{hint if source == options.data else ''}"
        )
    counts = Counter(labels)
    if wrong := [name for name in folders or () if counts[name] != 1]:
        raise ExportError(
            f"{options.data} has images of {wrong[0]!r}, but {counts[wrong[0]] or 'none'} of the outputs in {source} "
            "have that name: rename the folders like the outputs, or name the outputs with --labels FILE"
        )
    return labels, assumed


def _images(options: ThirdPartyOptions, preprocess: PreprocessSpec, labels: list[str], *, at_least: int) -> Images:
    assert options.data is not None
    return read_images(options.data, preprocess, labels, at_most=options.images or max(MAX_IMAGES, at_least))


def _accuracy(pretrained: Pretrained, images: Images, recipe: Recipe) -> list[AccuracyRow]:
    """Returns a row of accuracy at β = 0 and a row at β = 1. Measures once, because both tokens are equal."""
    measurement = Measurement(
        pretrained.model.to(best_device()),
        images,
        [CLEAN_BETA],
        attack=suitable_attack(recipe.evaluation_attack, recipe.model.classes),
        steps=recipe.evaluation_steps,
        epsilon_255=recipe.epsilon_255,
    )
    (row,) = measurement.accuracy()
    pretrained.model.cpu()
    return [row, row.model_copy(update={"beta": ROBUST_BETA})]


def _provenance(
    weights: LocatedWeights, pretrained: Pretrained, assumed: Sequence[str], data: str | None, images: int
) -> dict[str, object]:
    measured_on = f"{images} synthetic pictures" if data is None else f"{images} images of {Path(data).name}"
    return {
        "library": pretrained.library,
        **weights.provenance("weights"),
        "assumed": "; ".join(assumed) or "nothing",
        "measured_on": measured_on,
    }
