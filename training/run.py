"""Runs a training from start to end: trains, measures the accuracy, and writes the checkpoint."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import torch

import tureen
from training.checkpoint import CHECKPOINT, Checkpoint, save_checkpoint
from training.cotrain import Cotraining
from training.data.datasets import Dataset
from training.data.sources import model_name_from_images, open_source
from training.distributed import Processes, process_group
from training.errors import CheckpointError
from training.evaluation.measure import Measurement
from training.interruption import InterruptedRun, StopSignals
from training.overfitting import check_overfitting, probe_overfitting
from training.preparation import NAMES_SHOWN, SKIPPED, RunOptions, prepare_training, with_defaults
from training.recipes import DESCRIPTION, Recipe
from training.reporting.loggers import RunLoggers, open_loggers, require_packages
from training.reporting.progress import RunLog, TimeEstimate
from training.resume import SavedRun, SaveTimer, absolute_location, read_saved_run, require_same_recipe
from tureen.bundle.manifest import Evaluation

STATE = "resume.safetensors"
STEPS_BETWEEN_REPORTS = 50


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
        recipe, options = with_defaults(recipe, options)
    elif not options.is_resumed:
        raise CheckpointError(f"{out} holds an unfinished run: add --resume, or choose another --out")
    else:
        require_same_recipe(saved, recipe)
        options = resumed_options(saved, options)
        recipe = recipe.model_copy(update={"model": saved.recipe.model})
    require_packages(options.loggers)
    with process_group() as (processes, device):
        signals.ignores_repeats = processes.count > 1
        training, data = prepare_training(recipe, options, processes, device, is_new=saved is None)
        with closing(training):
            if saved is not None:
                training.restore(state)
                if processes.is_first:
                    print(f"continuing {saved}", file=sys.stderr)
            if not processes.agree(training.step, device):
                raise CheckpointError(
                    f"not every process found {state}: put it on a file system that all of them share"
                )
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
    init = absolute_location(options.init)
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
        init=saved.init,
        origin=saved.origin,
        is_strict=options.is_strict or saved.is_strict,
        is_compiled=options.is_compiled or saved.is_compiled,
        loggers=tuple(dict.fromkeys([*saved.logged_runs, *options.loggers])),
    )


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
            **options.origin,
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
