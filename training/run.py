"""A whole training run: train with progress on the terminal, measure, leave a checkpoint."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import torch
from tqdm import tqdm

import tureen
from training.checkpoint import CHECKPOINT, Checkpoint, save_checkpoint
from training.cotrain import Cotraining, best_device
from training.data import DATASETS, Images
from training.errors import CheckpointError, RecipeError
from training.evaluate import BATCH, evaluate
from training.model import DualTokenViT
from training.recipes import Recipe
from tureen.bundle import AccuracyRow

STATE = "resume.safetensors"
LOG = "log.jsonl"
SECONDS_BETWEEN_SAVES = 10.0


def run(recipe: Recipe, out: Path, *, resume: bool = False) -> Checkpoint:
    """Train `recipe` into the directory `out`, measure the averaged weights at each β, and save the checkpoint.

    The state is saved every ten seconds, so that `resume` continues an interrupted run. Raises CheckpointError where
    `out` holds a finished run, or an unfinished one and `resume` is false.
    """
    state = out / STATE
    if (out / CHECKPOINT).exists():
        raise CheckpointError(f"{out} holds a finished run: choose another --out")
    if state.exists() and not resume:
        raise CheckpointError(f"{out} holds an unfinished run: add --resume, or choose another --out")
    data = DATASETS[recipe.dataset]()
    if (recipe.model.image_size, recipe.model.classes) != (data.preprocess.image_size, len(data.labels)):
        raise RecipeError(
            f"{recipe.dataset} has images of {data.preprocess.image_size} pixels and {len(data.labels)} labels: set "
            "model.image_size and model.classes to these"
        )
    device = best_device()
    training = Cotraining(recipe, data.train, device)
    if state.exists():
        training.restore(state)
    out.mkdir(parents=True, exist_ok=True)
    _train(training, out)
    model = training.average.eval()
    checkpoint = Checkpoint(
        model=model,
        held_out=data.held_out,
        recipe=recipe,
        labels=data.labels,
        preprocess=data.preprocess,
        accuracy=measure(model, data.held_out, recipe.evaluation_betas, recipe.epsilon_255, recipe.evaluation_steps),
        provenance={
            "tureen": tureen.__version__,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "training_seconds": round(training.seconds, 1),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
    )
    save_checkpoint(out, checkpoint)
    state.unlink(missing_ok=True)
    return checkpoint


def measure(
    model: DualTokenViT, images: Images, betas: tuple[float, ...] | list[float], epsilon_255: float, steps: int
) -> list[AccuracyRow]:
    """`evaluate` with a progress bar."""
    batches = len(betas) * -(-len(images) // BATCH)
    with tqdm(total=batches, desc=f"measure, PGD-{steps}", unit="batch", disable=None) as bar:
        return evaluate(
            model, images, betas=betas, epsilon_255=epsilon_255, steps=steps, on_batch=lambda: bar.update() and None
        )


def _train(training: Cotraining, out: Path) -> None:
    state = out / STATE
    recipe = training.recipe
    saved = time.monotonic()
    # Without a terminal there is no bar to look at: ten lines a run say the same.
    every = max(1, recipe.epochs // 10)
    bar = tqdm(initial=training.epoch, total=recipe.epochs, desc=f"train {recipe.name}", unit="epoch", disable=None)
    with bar, _open_log(out / LOG, training.epoch) as log:
        try:
            while not training.is_finished:
                epoch = training.run_epoch()
                shown = {
                    "clean": f"{epoch.clean_loss:.3f}",
                    "robust": f"{epoch.robust_loss:.3f}",
                    "ε": f"{epoch.epsilon_255:.0f}/255",
                }
                bar.set_postfix(shown, refresh=False)
                bar.update()
                if bar.disable and epoch.epoch % every == 0:
                    losses = ", ".join(f"{name} {value}" for name, value in shown.items())
                    print(f"train {recipe.name}: epoch {epoch.epoch}/{recipe.epochs}, {losses}", file=sys.stderr)
                entry = {name: None if math.isnan(value) else value for name, value in asdict(epoch).items()}
                log.write(json.dumps(entry) + "\n")
                if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    training.save(state)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if state.exists():
                print(f"\ninterrupted; `tureen train {recipe.name} --out {out} --resume` continues", file=sys.stderr)
            raise
    training.save(state)


def _open_log(path: Path, epoch: int) -> TextIO:
    """The log, holding the epochs up to `epoch` alone: what came after the saved state is trained and logged again."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    log = path.open("w", encoding="utf-8")
    log.writelines(line for line in lines[:epoch])
    return log
