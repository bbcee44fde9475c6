"""A whole training run: read the images, train with progress on the terminal, measure, leave a checkpoint."""

from __future__ import annotations

import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import tureen
from training.checkpoint import CHECKPOINT, Checkpoint, save_checkpoint
from training.cotrain import Cotraining
from training.data import Dataset, load_digits, load_images
from training.errors import CheckpointError, RecipeError
from training.evaluate import BATCH, evaluate
from training.model import DualTokenViT
from training.monitor import look, require_sound
from training.processes import Processes, joined
from training.progress import Report
from training.recipes import Recipe
from tureen.bundle import AccuracyRow
from tureen.preprocess import PreprocessSpec

STATE = "resume.safetensors"
SKIPPED = "skipped.txt"
SECONDS_BETWEEN_SAVES = 10.0
STEPS_BETWEEN_REPORTS = 50
NAMES_SHOWN = 5


@dataclass(frozen=True)
class RunOptions:
    """What a run may be told besides its recipe; none of it changes what is learned."""

    data: str | None = None
    is_resumed: bool = False
    is_strict: bool = False
    is_compiled: bool = False
    tensorboard: bool = False
    workers: int = max(1, os.cpu_count() or 1)


def run(recipe: Recipe, out: Path, options: RunOptions | None = None) -> Checkpoint | None:
    """Train `recipe` into the directory `out`, measure the averaged weights at each β, and save the checkpoint.

    The state is saved every ten seconds, so that an interrupted run can be continued. Under torchrun every process
    calls this; the first one writes, and returns the checkpoint, the others None. Raises CheckpointError where `out`
    holds a finished run, or an unfinished one that was not to be continued; RecipeError or DataError where recipe and
    images do not fit.
    """
    options = options or RunOptions()
    state = out / STATE
    if (out / CHECKPOINT).exists():
        raise CheckpointError(f"{out} holds a finished run: choose another --out")
    if state.exists() and not options.is_resumed:
        raise CheckpointError(f"{out} holds an unfinished run: add --resume, or choose another --out")
    with joined() as (processes, device):
        data = load_data(recipe, options, is_shown=processes.is_first)
        recipe = fitted(recipe, data)
        training = Cotraining(
            recipe,
            data,
            device,
            processes=processes,
            workers=options.workers,
            is_compiled=options.is_compiled,
            start=_start(recipe),
        )
        if state.exists():
            training.restore(state)
        if processes.is_first:
            out.mkdir(parents=True, exist_ok=True)
            if data.skipped:
                (out / SKIPPED).write_text("".join(f"{line}\n" for line in data.skipped), encoding="utf-8")
        _train(training, data, out, options, processes)
        if not processes.is_first:
            return None
        return _finish(training, data, out)


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


def fitted(recipe: Recipe, data: Dataset) -> Recipe:
    """The recipe with as many classes as the data has; raises RecipeError where it fixes another image size."""
    if recipe.model.image_size != data.preprocess.image_size:
        raise RecipeError(
            f"{recipe.name} has model.image_size {recipe.model.image_size}, its images {data.preprocess.image_size}"
        )
    model = recipe.model.model_copy(update={"classes": len(data.labels)})
    return recipe.model_copy(update={"model": model})


def measure(
    model: DualTokenViT, data: Any, betas: tuple[float, ...] | list[float], epsilon_255: float, steps: int
) -> list[AccuracyRow]:
    """`evaluate` with a progress bar."""
    batches = len(betas) * -(-len(data) // BATCH)
    with tqdm(total=batches, desc=f"measure, PGD-{steps}", unit="batch", disable=None) as bar:
        return evaluate(
            model, data, betas=betas, epsilon_255=epsilon_255, steps=steps, on_batch=lambda: bar.update() and None
        )


def _start(recipe: Recipe) -> DualTokenViT | None:
    return None


def _finish(training: Cotraining, data: Dataset, out: Path) -> Checkpoint:
    recipe, model = training.recipe, training.average
    accuracy = measure(model, data.held_out, recipe.evaluation_betas, recipe.epsilon_255, recipe.evaluation_steps)
    checkpoint = Checkpoint(
        model=model,
        held_out=data.held_out,
        recipe=recipe,
        labels=data.labels,
        preprocess=data.preprocess,
        accuracy=accuracy,
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


def _train(training: Cotraining, data: Dataset, out: Path, options: RunOptions, processes: Processes) -> None:
    state, recipe = out / STATE, training.recipe
    saved = time.monotonic()
    every = max(1, round(training.steps * recipe.monitor_share))
    with Report(training, out, tensorboard=options.tensorboard) if processes.is_first else nullcontext() as report:
        looks = report.looks if report else []
        try:
            while not training.is_finished:
                before = training.step
                progress = training.run_epoch(STEPS_BETWEEN_REPORTS)
                if report is None:
                    continue
                report.progress(progress)
                if recipe.alpha < 1 and training.step // every > before // every:
                    looks.append(
                        look(training.model, data.held_out, epsilon_255=recipe.epsilon_255, step=training.step)
                    )
                    report.look(looks[-1])
                    require_sound(looks)
                if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    training.save(state)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if report and state.exists():
                print(f"\ninterrupted; the same command with --resume continues from {state}", file=sys.stderr)
            raise
        if report:
            training.save(state)
