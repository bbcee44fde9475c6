"""A whole training run: read the images, train with progress on the terminal, measure, leave a checkpoint."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import tureen
from training.attacks.catalogue import substitution_message, suitable_attack
from training.checkpoint import CHECKPOINT, Checkpoint, save_checkpoint
from training.cotrain import Cotraining
from training.data.datasets import Dataset, load_digits, load_images
from training.data.sources import name_of_images, open_source
from training.distributed import Processes, cpus_per_process, joined
from training.errors import CheckpointError, RecipeError
from training.evaluation.measure import Measurement
from training.interruption import InterruptedRun, StopSignals
from training.models.registry import Model
from training.overfitting import look, require_sound
from training.pretrained import load_pretrained
from training.progress import Report
from training.recipes import RECIPES, Recipe
from training.resume import SaveClock, SavedRun, absolute, read_saved_run, require_same_recipe
from tureen.bundle.manifest import Evaluation
from tureen.preprocess import PreprocessSpec

STATE = "resume.safetensors"
SKIPPED = "skipped.txt"
SAVE_INTERVAL_S = 10.0
STEPS_BETWEEN_REPORTS = 50
NAMES_SHOWN = 5
CLASSES_SHOWN = 20


@dataclass(frozen=True)
class RunOptions:
    """The inputs of a run besides its recipe: what it reads, and how it is carried out.

    data, init: images, and weights to begin with. image_size: pixels, where `init` is to be trained at another size.
    save_interval_s: seconds between two saves of the state; longer where saving would take over 2 % of the time.
    """

    data: str | None = None
    init: Path | None = None
    image_size: int | None = None
    is_resumed: bool = False
    is_strict: bool = False
    is_compiled: bool = False
    tensorboard: bool = False
    workers: int = field(default_factory=cpus_per_process)
    save_interval_s: float = SAVE_INTERVAL_S

    def as_saved(self) -> dict[str, object]:
        """What the state of a run keeps, to continue it without these options."""
        return {
            "data": absolute(self.data),
            "init": absolute(None if self.init is None else str(self.init)),
            "is_strict": self.is_strict,
            "is_compiled": self.is_compiled,
            "tensorboard": self.tensorboard,
        }


def run(recipe: Recipe, out: Path, options: RunOptions | None = None) -> Checkpoint | None:
    """Train `recipe` into the directory `out`, measure the averaged weights at each β, and save the checkpoint.

    The state is saved every ten seconds, and at SIGINT and SIGTERM, so that an interrupted run can be continued: with
    `is_resumed`, by the options it was started with where `options` has none. Under torchrun every process calls this;
    the first one writes, and returns the checkpoint, the others None. Raises CheckpointError where `out` holds a
    finished run, an unfinished one and no `is_resumed`, or one of other settings; RecipeError or DataError where recipe
    and images do not fit; InterruptedRun where a signal ended the run.
    """
    signals = StopSignals()
    try:
        with signals.installed():
            return _run(recipe, out, options or RunOptions(), signals)
    except InterruptedRun as interrupted:
        saved = read_saved_run(out / STATE) if (out / STATE).exists() else None
        raise InterruptedRun(interrupted.number, "" if saved is None else str(saved)) from None


def _run(recipe: Recipe, out: Path, options: RunOptions, signals: StopSignals) -> Checkpoint | None:
    state = out / STATE
    if (out / CHECKPOINT).exists():
        raise CheckpointError(f"{out} holds a finished run: choose another --out")
    saved = read_saved_run(state) if state.exists() else None
    if saved is None:
        recipe = shaped(recipe, options)
    elif not options.is_resumed:
        raise CheckpointError(f"{out} holds an unfinished run: add --resume, or choose another --out")
    else:
        require_same_recipe(saved, recipe)
        options = continued(saved, options)
        recipe = recipe.model_copy(update={"model": saved.recipe.model})
    with joined() as (processes, device):
        signals.is_patient = processes.count > 1
        data = load_data(recipe, options, is_shown=processes.is_first)
        recipe = fitted(recipe, data, is_shown=processes.is_first)
        if processes.is_first:
            print(class_counts(data), file=sys.stderr)
        training = Cotraining(
            recipe,
            data,
            device,
            processes=processes,
            workers=options.workers,
            is_compiled=options.is_compiled,
            start=None
            if saved is not None or options.init is None
            else _start(recipe, options.init, is_shown=processes.is_first),
        )
        if saved is not None:
            training.restore(state)
            if processes.is_first:
                print(f"continuing {saved}", file=sys.stderr)
        if not processes.agree(training.step, device):
            raise CheckpointError(f"not every process found {state}: it must lie where all of them see it")
        if not processes.is_first:
            _train(training, data, out, options, processes, signals)
            return None
        out.mkdir(parents=True, exist_ok=True)
        with only_writer(out):
            if data.skipped:
                (out / SKIPPED).write_text("".join(f"{line}\n" for line in data.skipped), encoding="utf-8")
            _train(training, data, out, options, processes, signals)
            name = None if options.data is None else name_of_images(options.data)
            return _finish(training, data, out, name)


def continued(saved: SavedRun, options: RunOptions) -> RunOptions:
    """The options a saved run goes on with: its own, where `options` has none.

    Raises CheckpointError where an option names other images or weights than the run's, before the images are decoded.
    """
    init = absolute(None if options.init is None else str(options.init))
    size = saved.recipe.model.image_size
    for flag, before, asked in (("--init", saved.init, init), ("--image-size", size, options.image_size)):
        if asked is not None and asked != before:
            raise CheckpointError(
                f"{saved.path} is of a run with {flag} {before}, not {asked}: leave that out to continue the run, or "
                "choose another --out"
            )
    data = absolute(options.data) or saved.data
    labels = open_source(data).names if data is not None and saved.recipe.dataset == "folder" else saved.labels
    if differing := sorted(set(labels) ^ set(saved.labels)):
        raise CheckpointError(
            f"{saved.path} is of a run on other classes than those of --data {data}: "
            f"{', '.join(differing[:NAMES_SHOWN])} are in one of the two alone"
        )
    return replace(
        options,
        data=data,
        init=None if saved.init is None else Path(saved.init),
        is_strict=options.is_strict or saved.is_strict,
        is_compiled=options.is_compiled or saved.is_compiled,
        tensorboard=options.tensorboard or saved.tensorboard,
    )


def shaped(recipe: Recipe, options: RunOptions) -> Recipe:
    """The recipe with the shape of the weights it begins with; raises RecipeError where it takes none, or has none."""
    if recipe.start == "random":
        if options.init is not None:
            raise RecipeError(f"{recipe.name} begins with random weights: --init is for the recipe finetune")
        if options.image_size is not None:
            raise RecipeError("--image-size is for the recipe finetune: use --set model.image_size=…")
        return recipe
    if options.init is None:
        raise RecipeError(f"{recipe.name} needs --init: the weights of a single-token ViT, or a checkpoint of Tureen's")
    if recipe.model != RECIPES[recipe.name].model:
        raise RecipeError(f"the shape of {recipe.name}'s model is that of its weights: it takes no --set model.…")
    # How many classes there are, the images will tell: any number does until then.
    config = load_pretrained(options.init, image_size=options.image_size, classes=2).model.config
    return recipe.model_copy(update={"model": config})


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Hold the directory `out` for this process; raises CheckpointError where another one does."""
    directory = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise CheckpointError(f"another run is writing into {out}: wait for it, or choose another --out") from None
    finally:
        os.close(directory)


def load_data(recipe: Recipe, options: RunOptions, *, is_shown: bool = True) -> Dataset:
    """The images the recipe trains on; images that cannot be read are named on the terminal."""
    if recipe.dataset == "digits":
        if options.data is not None:
            raise RecipeError(f"{recipe.name} trains on scikit-learn's digits: it takes no --data")
        return load_digits()
    if options.data is None:
        raise RecipeError(f"{recipe.name} needs --data: a folder with a folder of images for each class")
    spec = PreprocessSpec(image_size=recipe.model.image_size, crop_fraction=recipe.crop_fraction)
    with tqdm(desc="read images", unit="image", disable=None if is_shown else True) as bar:
        data = load_images(
            options.data,
            spec,
            held_out=recipe.evaluation_images,
            stream=recipe.augmentation.crop_scale < 1,
            strict=options.is_strict,
            workers=options.workers,
            on_images=lambda count: bar.update(count) and None,
        )
    if is_shown and data.skipped:
        print(f"left out {len(data.skipped)} images that cannot be decoded (--strict fails instead):", file=sys.stderr)
        for line in data.skipped[:NAMES_SHOWN]:
            print(f"  {line}", file=sys.stderr)
        if len(data.skipped) > NAMES_SHOWN:
            print(f"  and {len(data.skipped) - NAMES_SHOWN} more, all in {SKIPPED}", file=sys.stderr)
    return data


def class_counts(data: Dataset) -> str:
    """How many images of each class there are to train on and held out, as text for a terminal."""
    labels, shown = data.labels, data.labels[:CLASSES_SHOWN]
    train, held_out = (np.bincount(part.labels, minlength=len(labels)) for part in (data.train, data.held_out))
    lines = [f"{len(labels)} classes: {len(data.train)} images to train on, {len(data.held_out)} held out"]
    width = max(map(len, shown))
    lines += [f"  {name:<{width}}  {train[index]:>6}  {held_out[index]:>6}" for index, name in enumerate(shown)]
    if more := len(labels) - len(shown):
        rest = train[len(shown) :]
        lines.append(f"  and {more} classes more, of {rest.min()} to {rest.max()} images to train on")
    if data.ignored:
        lines.append(f"not read, since they are neither of the two splits: {', '.join(data.ignored)}")
    return "\n".join(lines)


def fitted(recipe: Recipe, data: Dataset, *, is_shown: bool = True) -> Recipe:
    """The recipe with as many classes as the data has, and an attack that is defined for so many.

    Raises RecipeError where it does not fit the images.
    """
    classes, size = len(data.labels), data.preprocess.image_size
    if recipe.dataset == "digits" and (recipe.model.image_size, recipe.model.classes) != (size, classes):
        raise RecipeError(
            f"the digits are images of {size} pixels with {classes} labels: set model.image_size and model.classes to "
            "these"
        )
    attack = suitable_attack(recipe.evaluation_attack, classes)  # raises before a long run, not after it
    if is_shown and attack != recipe.evaluation_attack:
        print(substitution_message(recipe.evaluation_attack, attack, classes), file=sys.stderr)
    model = recipe.model.model_copy(update={"classes": classes})
    return recipe.model_copy(update={"model": model, "evaluation_attack": attack})


def _start(recipe: Recipe, init: Path, *, is_shown: bool) -> Model:
    torch.manual_seed(recipe.seed)  # a fresh classifier is random
    pretrained = load_pretrained(init, image_size=recipe.model.image_size, classes=recipe.model.classes)
    if is_shown:
        head = "a fresh classifier" if pretrained.head_is_fresh else "its classifier"
        print(f"beginning with {init}, a checkpoint of {pretrained.library}, and {head}", file=sys.stderr)
        for sentence in pretrained.assumed:
            print(f"  {sentence}", file=sys.stderr)
    return pretrained.model


def _finish(training: Cotraining, data: Dataset, out: Path, name: str | None) -> Checkpoint:
    recipe, model = training.recipe, training.average
    measurement = Measurement(
        model,
        data.held_out,
        attack=recipe.evaluation_attack,
        steps=recipe.evaluation_steps,
        epsilon_255=recipe.epsilon_255,
    )
    checkpoint = Checkpoint(
        model=model,
        held_out=data.held_out,
        recipe=recipe,
        labels=data.labels,
        preprocess=data.preprocess,
        accuracy=measurement.accuracy(recipe.evaluation_betas),
        evaluation=Evaluation(checks=measurement.checks()),
        name=name,
        provenance={
            "tureen": tureen.__version__,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if training.device.type == "cuda" else "cpu",
            "processes": training.processes.count,
            "threads": torch.get_num_threads(),
            "training_images": len(data.train),
            "training_seconds": round(training.seconds, 1),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
    )
    save_checkpoint(out, checkpoint)
    (out / STATE).unlink(missing_ok=True)
    return checkpoint


def _train(
    training: Cotraining,
    data: Dataset,
    out: Path,
    options: RunOptions,
    processes: Processes,
    signals: StopSignals,
) -> None:
    """Train to the end, or to a signal: then every process stops after the same step and raises InterruptedRun."""
    recipe, clock, received = training.recipe, SaveClock(options.save_interval_s), 0
    every = max(1, round(training.steps * recipe.monitor_share))

    def save() -> None:
        training.save(out / STATE, options.as_saved())

    def should_stop() -> bool:
        nonlocal received
        if processes.is_first and clock.is_due and training.is_sound:
            clock.save(save)
        received = processes.largest(signals.received)
        return received != 0

    with (
        Report(training, out, tensorboard=options.tensorboard) if processes.is_first else nullcontext() as report,
        signals.deferred(),
    ):
        looks = report.looks if report else []
        while not training.is_finished and not received:
            before = training.step
            progress = training.run_epoch(STEPS_BETWEEN_REPORTS, should_stop)
            if report is None:
                continue
            report.progress(progress)
            if not received and recipe.alpha < 1 and training.step // every > before // every:
                with suppress(InterruptedRun), signals.deferred(False):
                    looks.append(
                        look(training.model, data.held_out, epsilon_255=recipe.epsilon_255, step=training.step)
                    )
                    report.look(looks[-1])
                require_sound(looks)
        if report:
            save()
    if received:
        raise InterruptedRun(received)
