"""Prepares a training: reads the images, fits the recipe to them, and builds the model. Trains nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from training.attacks.catalogue import substitution_message, suitable_attack
from training.cotrain import Cotraining
from training.data.datasets import Dataset, load_dataset, load_digits
from training.data.duplicates import duplicates_line
from training.distributed import Processes, cpus_per_process
from training.errors import RecipeError
from training.interruption import SAVE_INTERVAL_S
from training.models.registry import Model
from training.recipes import RECIPES, Recipe
from training.reporting.progress import ReadingProgress
from training.resume import absolute_location
from training.weights.pretrained import load_pretrained
from training.weights.weight_sources import LocatedWeights, locate_weights
from tureen.preprocess import PreprocessSpec

SKIPPED = "skipped.txt"
NAMES_SHOWN = 5
CLASSES_SHOWN = 20


@dataclass(frozen=True)
class RunOptions:
    """The options of a run besides its recipe.

    data: location of the images. group_by: regular expression that finds the group of an image in its file name; all
    images of a group are in one part. init: weights to start from, as for `load_pretrained`. weights, origin: the file
    of these weights, and its entries of the provenance; `with_defaults` sets both. image_size: in pixels; None: that of
    the weights. is_resumed: continue an interrupted run. is_strict: fail if an image cannot be decoded. is_compiled:
    use torch.compile. loggers: names of the loggers that record the run. workers: number of processes or threads that
    decode images. save_interval_s: seconds between two saves of the state; more if saving would take over 2 % of the
    time. threads: CPU threads of torch in each process; None: as many as `limit_threads` allows.
    """

    data: str | None = None
    group_by: str | None = None
    init: str | None = None
    weights: LocatedWeights | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    image_size: int | None = None
    is_resumed: bool = False
    is_strict: bool = False
    is_compiled: bool = False
    loggers: tuple[str, ...] = ()
    workers: int = field(default_factory=cpus_per_process)
    save_interval_s: float = SAVE_INTERVAL_S
    threads: int | None = None

    def as_saved(self) -> dict[str, object]:
        """Returns the options that are stored in the saved state, so that a resumed run needs no options."""
        return {
            "data": absolute_location(self.data),
            "group_by": self.group_by,
            "init": absolute_location(self.init),
            "origin": dict(self.origin),
            "is_strict": self.is_strict,
            "is_compiled": self.is_compiled,
        }


def prepare_training(
    recipe: Recipe, options: RunOptions, processes: Processes, device: torch.device, *, is_new: bool
) -> tuple[Cotraining, Dataset]:
    """Returns the training before its first step, and its images. The first process prints the classes.

    is_new: False if the weights come from a saved run. Raises the errors of `load_training_data` and
    `fitted_to_images`.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    data = load_training_data(recipe, options, is_verbose=processes.is_first)
    recipe = fitted_to_images(recipe, data, is_verbose=processes.is_first)
    if processes.is_first:
        print(class_counts(data), file=sys.stderr)
        if data.duplicates:
            print(duplicates_line(data.duplicates), file=sys.stderr)
    start = None
    if is_new and options.weights is not None:
        start = _load_start(recipe, options.weights, is_verbose=processes.is_first)
    training = Cotraining(
        recipe,
        data,
        device,
        processes=processes,
        workers=options.workers,
        is_compiled=options.is_compiled,
        start=start,
    )
    return training, data


def with_defaults(recipe: Recipe, options: RunOptions) -> tuple[Recipe, RunOptions]:
    """Returns recipe and options of a new run: the option --group-by is set, and the weights at --init are located.

    The model has the shape of these weights. Raises the errors of `with_pretrained_shape`.
    """
    group_by = recipe.group_by if options.group_by is None else options.group_by
    recipe, weights = with_pretrained_shape(recipe, options)
    origin = {} if weights is None else weights.provenance("init")
    return recipe, replace(options, group_by=group_by, weights=weights, origin=origin)


def with_pretrained_shape(recipe: Recipe, options: RunOptions) -> tuple[Recipe, LocatedWeights | None]:
    """Returns the recipe with the model shape of the weights at `options.init`, and the file of these weights.

    If the recipe starts from random weights, returns the recipe unchanged, and None. Raises RecipeError if the recipe
    needs `options.init` and it is None, or if an option is not for this recipe. Raises the errors of `locate_weights`
    and `load_pretrained`.
    """
    if recipe.start == "random":
        if options.init is not None:
            raise RecipeError(f"{recipe.name} starts from random weights: --init is for the recipe finetune")
        if options.image_size is not None:
            raise RecipeError("--image-size is for the recipe finetune: use --set model.image_size=…")
        return recipe, None
    if options.init is None:
        raise RecipeError(f"{recipe.name} needs --init: the weights of a single-token ViT, or a checkpoint of Tureen")
    if recipe.model != RECIPES[recipe.name].model:
        raise RecipeError(f"the model of {recipe.name} has the shape of its weights: omit --set model.…")
    # The number of classes is known after the images are read; any number is valid until then.
    weights = locate_weights(options.init)
    config = load_pretrained(weights, image_size=options.image_size, classes=2).model.config
    return recipe.model_copy(update={"model": config}), weights


def load_training_data(recipe: Recipe, options: RunOptions, *, is_verbose: bool = True) -> Dataset:
    """Returns the images that the recipe trains on, in three parts: training, validation and test.

    is_verbose: whether to show progress and print the names of images that cannot be decoded. Raises RecipeError if the
    recipe needs --data and the option is missing, or if the recipe has its own images and --data or --group-by is
    given. Raises DataError if the images cannot be used.
    """
    if recipe.dataset == "digits":
        if options.data is not None:
            raise RecipeError(f"{recipe.name} trains on the digits of scikit-learn: omit --data")
        if options.group_by is not None:
            raise RecipeError("the digits of scikit-learn have no file names: omit --group-by")
        return load_digits()
    if options.data is None:
        raise RecipeError(f"{recipe.name} needs --data: a folder with one folder of images for each class")
    spec = PreprocessSpec(image_size=recipe.model.image_size, crop_fraction=recipe.crop_fraction)
    with ReadingProgress(options.data, is_shown=is_verbose) as progress:
        data = load_dataset(
            options.data,
            spec,
            test_images=recipe.evaluation_images,
            group_by=options.group_by,
            stream=recipe.augmentation.crop_scale < 1,
            strict=options.is_strict,
            workers=options.workers,
            on_start=progress.start,
            on_images=progress.advance,
            has_duplicates_counted=is_verbose,
        )
    if is_verbose and data.skipped:
        print(
            f"skipped {len(data.skipped)} images that cannot be decoded (with --strict this is an error):",
            file=sys.stderr,
        )
        for line in data.skipped[:NAMES_SHOWN]:
            print(f"  {line}", file=sys.stderr)
        if len(data.skipped) > NAMES_SHOWN:
            print(f"  and {len(data.skipped) - NAMES_SHOWN} more, all in {SKIPPED}", file=sys.stderr)
    return data


def class_counts(data: Dataset) -> str:
    """Returns a text for a terminal: the number of images of each class in the training, validation and test part."""
    labels, shown = data.labels, data.labels[:CLASSES_SHOWN]
    parts = (data.train, data.validation, data.test)
    train, validation, test = (np.bincount(part.labels, minlength=len(labels)) for part in parts)
    lines = [
        f"{len(labels)} classes: {len(data.train)} images to train on, {len(data.validation)} for validation, "
        f"{len(data.test)} to test on"
    ]
    width = max(map(len, shown))
    lines += [
        f"  {name:<{width}}  {train[index]:>6}  {validation[index]:>6}  {test[index]:>6}"
        for index, name in enumerate(shown)
    ]
    if more := len(labels) - len(shown):
        rest = train[len(shown) :]
        lines.append(f"  and {more} classes more, of {rest.min()} to {rest.max()} images to train on")
    if data.groups is not None:
        lines.append(f"{data.groups} groups of images, none of them in two parts")
    if data.ignored:
        lines.append(f"folders not read, because they are none of the splits: {', '.join(data.ignored)}")
    return "\n".join(lines)


def fitted_to_images(recipe: Recipe, data: Dataset, *, is_verbose: bool = True) -> Recipe:
    """Returns the recipe with the number of classes of the data, and with an evaluation attack that works with it.

    is_verbose: whether to print a message if the attack of the recipe needs more classes and was replaced. Raises
    RecipeError if the evaluation attack does not exist. Raises RecipeError for a recipe of the digits if its model has
    another image size or number of classes than the digits.
    """
    classes, size = len(data.labels), data.preprocess.image_size
    if recipe.dataset == "digits" and (recipe.model.image_size, recipe.model.classes) != (size, classes):
        raise RecipeError(
            f"the digits are images of {size} pixels with {classes} labels: set model.image_size and model.classes to "
            "these values"
        )
    attack = suitable_attack(recipe.evaluation_attack, classes)  # may raise, so it runs before the training
    if is_verbose and attack != recipe.evaluation_attack:
        print(substitution_message(recipe.evaluation_attack, attack, classes), file=sys.stderr)
    model = recipe.model.model_copy(update={"classes": classes})
    return recipe.model_copy(update={"model": model, "evaluation_attack": attack})


def _load_start(recipe: Recipe, weights: LocatedWeights, *, is_verbose: bool) -> Model:
    torch.manual_seed(recipe.seed)  # a new classifier is random
    pretrained = load_pretrained(weights, image_size=recipe.model.image_size, classes=recipe.model.classes)
    if is_verbose:
        head = "a new classifier" if pretrained.has_new_head else "its classifier"
        print(f"starting from {weights.location}, a checkpoint of {pretrained.library}, with {head}", file=sys.stderr)
        for sentence in pretrained.assumed:
            print(f"  {sentence}", file=sys.stderr)
    return pretrained.model
