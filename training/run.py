"""Runs a training from start to end: reads the images, trains, measures the accuracy, and writes the checkpoint."""

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

import tureen
from training.attacks.catalogue import substitution_message, suitable_attack
from training.checkpoint import CHECKPOINT, Checkpoint, save_checkpoint
from training.cotrain import Cotraining
from training.data.datasets import Dataset, load_dataset, load_digits
from training.data.duplicates import duplicates_line
from training.data.sources import model_name_from_images, open_source
from training.distributed import Processes, cpus_per_process, process_group
from training.errors import CheckpointError, RecipeError
from training.evaluation.measure import Measurement
from training.interruption import SAVE_INTERVAL_S, InterruptedRun, StopSignals
from training.models.registry import Model
from training.overfitting import check_overfitting, probe_overfitting
from training.pretrained import load_pretrained
from training.recipes import DESCRIPTION, RECIPES, Recipe
from training.reporting.loggers import RunLoggers, open_loggers, require_packages
from training.reporting.progress import ReadingProgress, RunLog, TimeEstimate
from training.resume import SavedRun, SaveTimer, absolute_location, read_saved_run, require_same_recipe
from tureen.bundle.manifest import Evaluation
from tureen.preprocess import PreprocessSpec

STATE = "resume.safetensors"
SKIPPED = "skipped.txt"
STEPS_BETWEEN_REPORTS = 50
NAMES_SHOWN = 5
CLASSES_SHOWN = 20


@dataclass(frozen=True)
class RunOptions:
    """The options of a run besides its recipe.

    data: location of the images. group_by: regular expression that finds the group of an image in its file name; all
    images of a group are in one part. init: weights to start from. image_size: in pixels; None: that of the weights.
    is_resumed: continue an interrupted run. is_strict: fail if an image cannot be decoded. is_compiled: use
    torch.compile. loggers: names of the loggers that record the run. workers: number of processes or threads that
    decode images. save_interval_s: seconds between two saves of the state; more if saving would take over 2 % of the
    time. threads: CPU threads of torch in each process; None: as many as `limit_threads` allows.
    """

    data: str | None = None
    group_by: str | None = None
    init: Path | None = None
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
            "init": absolute_location(None if self.init is None else str(self.init)),
            "is_strict": self.is_strict,
            "is_compiled": self.is_compiled,
        }


def run(recipe: Recipe, out: Path, options: RunOptions | None = None) -> Checkpoint | None:
    """Trains a model, measures its accuracy at each β, saves the checkpoint in `out`, and returns the checkpoint.

    The model of the checkpoint has the moving average of the weights. Saves the state every `save_interval_s` seconds,
    and at SIGINT and SIGTERM. With `options.is_resumed`, continues an interrupted run, and takes missing options from
    the saved state. Under torchrun every process calls this function. The first process writes and returns the
    checkpoint; the others return None.

    Raises:

    - CheckpointError if `out` has a finished run, if it has an unfinished run and `is_resumed` is False, or if its run
      has other settings
    - RecipeError if an option or a setting does not fit the recipe, the images or the weights
    - DataError if the images cannot be used
    - LoggerError if a logger is not installed, or cannot start to record the run
    - DivergedError if the loss is NaN or infinite
    - OverfittingError if the model becomes robust only against attacks with as few steps as in training
    - InterruptedRun if a signal ended the run
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
        recipe = with_pretrained_shape(recipe, options)
        options = replace(options, group_by=recipe.group_by if options.group_by is None else options.group_by)
    elif not options.is_resumed:
        raise CheckpointError(f"{out} holds an unfinished run: add --resume, or choose another --out")
    else:
        require_same_recipe(saved, recipe)
        options = resumed_options(saved, options)
        recipe = recipe.model_copy(update={"model": saved.recipe.model})
    require_packages(options.loggers)
    with process_group() as (processes, device):
        signals.ignores_repeats = processes.count > 1
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        data = load_training_data(recipe, options, is_verbose=processes.is_first)
        recipe = fitted_to_images(recipe, data, is_verbose=processes.is_first)
        if processes.is_first:
            print(class_counts(data), file=sys.stderr)
            if data.duplicates:
                print(duplicates_line(data.duplicates), file=sys.stderr)
        training = Cotraining(
            recipe,
            data,
            device,
            processes=processes,
            workers=options.workers,
            is_compiled=options.is_compiled,
            start=None
            if saved is not None or options.init is None
            else _load_start(recipe, options.init, is_verbose=processes.is_first),
        )
        if saved is not None:
            training.restore(state)
            if processes.is_first:
                print(f"continuing {saved}", file=sys.stderr)
        if not processes.agree(training.step, device):
            raise CheckpointError(f"not every process found {state}: put it on a file system that all of them share")
        if not processes.is_first:
            _train(training, data, out, options, processes, signals)
            return None
        out.mkdir(parents=True, exist_ok=True)
        with exclusive_writer(out):
            if data.skipped:
                (out / SKIPPED).write_text("".join(f"{line}\n" for line in data.skipped), encoding="utf-8")
            with open_loggers(
                options.loggers,
                out,
                training.recipe.settings(without=DESCRIPTION),
                step=training.step,
                run_ids={} if saved is None else saved.logged_runs,
            ) as loggers:
                _train(training, data, out, options, processes, signals, loggers)
                return _measure_and_save(training, data, out, options, loggers)


def resumed_options(saved: SavedRun, options: RunOptions) -> RunOptions:
    """Returns the options of a resumed run: those in `options`, and for each missing one that of the saved run.

    Raises CheckpointError if the weights, the image size or the group expression in `options` are not those of the
    saved run, or if the images have other classes. Decodes no image.
    """
    init = absolute_location(None if options.init is None else str(options.init))
    size = saved.recipe.model.image_size
    for flag, before, given in (
        ("--init", saved.init, init),
        ("--image-size", size, options.image_size),
        ("--group-by", saved.group_by, options.group_by),
    ):
        if given is not None and given != before:
            raise CheckpointError(
                f"{saved.path} is of a run with {flag} {before}, not {given}: omit that option to continue the run, or "
                "choose another --out"
            )
    data = absolute_location(options.data) or saved.data
    labels = open_source(data).names if data is not None and saved.recipe.dataset == "folder" else saved.labels
    if differing := sorted(set(labels) ^ set(saved.labels)):
        raise CheckpointError(
            f"{saved.path} is of a run on other classes than those of --data {data}: "
            f"{', '.join(differing[:NAMES_SHOWN])} are in only one of the two"
        )
    return replace(
        options,
        data=data,
        group_by=saved.group_by,
        init=None if saved.init is None else Path(saved.init),
        is_strict=options.is_strict or saved.is_strict,
        is_compiled=options.is_compiled or saved.is_compiled,
        loggers=tuple(dict.fromkeys([*saved.logged_runs, *options.loggers])),
    )


def with_pretrained_shape(recipe: Recipe, options: RunOptions) -> Recipe:
    """Returns the recipe with the model shape of the weights in the file or directory `options.init`.

    If the recipe starts from random weights, returns the recipe unchanged. Raises RecipeError if the recipe needs
    `options.init` and it is None, or if an option is not for this recipe. Raises the errors of `load_pretrained`.
    """
    if recipe.start == "random":
        if options.init is not None:
            raise RecipeError(f"{recipe.name} starts from random weights: --init is for the recipe finetune")
        if options.image_size is not None:
            raise RecipeError("--image-size is for the recipe finetune: use --set model.image_size=…")
        return recipe
    if options.init is None:
        raise RecipeError(f"{recipe.name} needs --init: the weights of a single-token ViT, or a checkpoint of Tureen")
    if recipe.model != RECIPES[recipe.name].model:
        raise RecipeError(f"the model of {recipe.name} has the shape of its weights: omit --set model.…")
    # The number of classes is known after the images are read; any number is valid until then.
    config = load_pretrained(options.init, image_size=options.image_size, classes=2).model.config
    return recipe.model_copy(update={"model": config})


@contextmanager
def exclusive_writer(out: Path) -> Iterator[None]:
    """Locks the directory `out` for this process during the `with` block.

    Raises CheckpointError if another process holds the lock.
    """
    directory = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise CheckpointError(
            f"another run is writing into {out}: wait until it ends, or choose another --out"
        ) from None
    finally:
        os.close(directory)


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


def _load_start(recipe: Recipe, init: Path, *, is_verbose: bool) -> Model:
    torch.manual_seed(recipe.seed)  # a new classifier is random
    pretrained = load_pretrained(init, image_size=recipe.model.image_size, classes=recipe.model.classes)
    if is_verbose:
        head = "a new classifier" if pretrained.has_new_head else "its classifier"
        print(f"starting from {init}, a checkpoint of {pretrained.library}, with {head}", file=sys.stderr)
        for sentence in pretrained.assumed:
            print(f"  {sentence}", file=sys.stderr)
    return pretrained.model


def _measure_and_save(
    training: Cotraining, data: Dataset, out: Path, options: RunOptions, loggers: RunLoggers
) -> Checkpoint:
    recipe, model = training.recipe, training.average
    measurement = Measurement(
        model,
        data.test,
        recipe.evaluation_betas,
        attack=recipe.evaluation_attack,
        steps=recipe.evaluation_steps,
        epsilon_255=recipe.epsilon_255,
    )
    checkpoint = Checkpoint(
        model=model,
        test=data.test,
        validation=data.validation,
        recipe=recipe,
        labels=data.labels,
        preprocess=data.preprocess,
        accuracy=measurement.accuracy(),
        evaluation=Evaluation(checks=measurement.checks(), classes=measurement.by_class(len(data.labels))),
        name=None if options.data is None else model_name_from_images(options.data),
        provenance={
            "tureen": tureen.__version__,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if training.device.type == "cuda" else "cpu",
            "processes": training.processes.count,
            "threads": torch.get_num_threads(),
            "training_images": len(data.train),
            **({"group_by": options.group_by} if options.group_by is not None else {}),
            **({"near_duplicates": _duplicate_counts(data)} if data.duplicates else {}),
            "training_seconds": round(training.seconds, 1),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
    )
    save_checkpoint(out, checkpoint)
    loggers.add_accuracy(checkpoint.accuracy)
    loggers.add_artefact("checkpoint", out.absolute())
    (out / STATE).unlink(missing_ok=True)
    return checkpoint


def _duplicate_counts(data: Dataset) -> dict[str, int]:
    """Returns the numbers of near and exact duplicates of training images, with keys such as "test", "test_exact"."""
    counts: dict[str, int] = {}
    for part, found in data.duplicates.items():
        counts |= {part: found.near, f"{part}_exact": found.exact}
    return counts


def _train(
    training: Cotraining,
    data: Dataset,
    out: Path,
    options: RunOptions,
    processes: Processes,
    signals: StopSignals,
    loggers: RunLoggers | None = None,
) -> None:
    """Trains to the last step. With `loggers`, in the first process, writes progress and state.

    After a signal, every process stops after the same step and raises InterruptedRun. Raises DivergedError and
    OverfittingError, as `Cotraining.run_epoch` and `check_overfitting` do.
    """
    recipe, clock, received = training.recipe, SaveTimer(options.save_interval_s), 0
    every = max(1, round(training.steps * recipe.monitor_share))
    wait = torch.cuda.synchronize if training.device.type == "cuda" else lambda: None
    estimate = TimeEstimate(recipe, training.step, training.steps, wait)

    def save() -> None:
        training.save(out / STATE, options.as_saved() | ({} if loggers is None else {"logged_runs": loggers.run_ids}))

    def should_stop() -> bool:
        nonlocal received
        if log and (estimated := estimate.after_step(training.step)):
            log.show(estimated)
        if processes.is_first and clock.is_due and training.is_sound:
            clock.save(save)
        received = processes.largest(signals.received)
        return received != 0

    with (
        nullcontext() if loggers is None else RunLog(training, out, loggers) as log,
        signals.deferred(),
    ):
        probes = log.saved_probes if log else []
        while not training.is_finished and not received:
            before = training.step
            progress = training.run_epoch(STEPS_BETWEEN_REPORTS, should_stop)
            if log is None:
                continue
            log.add_progress(progress)
            if not received and recipe.alpha < 1 and training.step // every > before // every:
                with suppress(InterruptedRun), signals.deferred(False):
                    probe = probe_overfitting(
                        training.model, data.validation, epsilon_255=recipe.epsilon_255, step=training.step
                    )
                    probes.append(probe)
                    log.add_probe(probe)
                check_overfitting(probes)
        if log:
            save()
    if number := received or signals.received:  # or during the last save
        raise InterruptedRun(number)
