"""Measures the time of a co-training step as a ratio to two other times: a nominal step (no attack), and a lower bound.

    python -m benchmarks.training_speed --recipe cifar10-cpu --attack-steps 1 2 3
    python -m benchmarks.training_speed --recipe cifar10 --compile

The lower bound ("floor") depends on the number k of attack steps. It is the time of k passes that compute the gradient
of the images, plus the time of one forward and backward pass over twice the batch. It includes no optimiser, moving
average, augmentation or random start. All parts run in turn in one process, so the ratios are valid even if the speed
of the machine varies. Prints medians over rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks.machine import describe_machine
from training.cotrain import Cotraining, bf16_autocast
from training.data.datasets import Dataset, Images
from training.distributed import best_device
from training.models.vit import images_from_pixels
from training.recipes import RECIPES, Recipe, load_recipe
from tureen.preprocess import PreprocessSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="cifar10-cpu")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--attack-steps", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="run the model through torch.compile")
    options = parser.parse_args()
    device = best_device()
    print(describe_machine())
    for steps in options.attack_steps:
        recipe = load_recipe(options.recipe, [*options.settings, f"attack_steps={steps}"])
        report(recipe, measure(recipe, device, rounds=options.rounds, is_compiled=options.compile))


def measure(recipe: Recipe, device: torch.device, *, rounds: int, is_compiled: bool) -> dict[str, float]:
    """Returns the median seconds of each part by name, over `rounds` rounds after a warm-up round. The parts are:

    - "nominal": a training step on clean images, without an attack
    - "cotraining": a co-training step of the recipe
    - "input gradient": a forward and backward pass for the gradient of the images of a batch
    - "double pass": a forward and backward pass over twice the batch, for the gradient of the parameters

    The two steps include augmentation, optimiser and moving average; the two passes do not. is_compiled: whether to run
    the models through torch.compile.
    """
    data = random_images(recipe)
    nominal_recipe = recipe.model_copy(update={"alpha": 1.0})
    nominal, cotraining = (Cotraining(r, data, device, is_compiled=is_compiled) for r in (nominal_recipe, recipe))
    model = torch.compile(cotraining.model) if is_compiled else cotraining.model
    parameters = list(cotraining.model.parameters())
    images = images_from_pixels(torch.from_numpy(data.train.pixels[: recipe.batch_size]).to(device))
    labels = torch.from_numpy(data.train.labels[: recipe.batch_size]).to(device)
    betas = torch.ones(len(images), device=device)

    def input_gradient() -> None:
        x = images.clone().requires_grad_(True)
        with bf16_autocast(recipe, device):
            loss = F.cross_entropy(model(x, betas).float(), labels)
        torch.autograd.grad(loss, x)

    def double_pass() -> None:
        with bf16_autocast(recipe, device):
            logits = model(torch.cat([images, images]), torch.cat([betas, betas]))
            loss = F.cross_entropy(logits.float(), torch.cat([labels, labels]))
        torch.autograd.grad(loss, parameters)

    parts: dict[str, Callable[[], object]] = {
        "nominal": lambda: nominal.run_epoch(1),
        "cotraining": lambda: cotraining.run_epoch(1),
        "input gradient": input_gradient,
        "double pass": double_pass,
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for index in tqdm(range(rounds + 1), desc=f"k = {recipe.attack_steps}", disable=None, leave=False):
        for name, run in parts.items():
            synchronise(device)
            started = time.perf_counter()
            run()
            synchronise(device)
            if index:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}


def report(recipe: Recipe, seconds: dict[str, float]) -> None:
    floor = recipe.attack_steps * seconds["input gradient"] + seconds["double pass"]
    rates = {name: recipe.batch_size / value for name, value in (*seconds.items(), ("floor", floor))}
    print(
        f"{recipe.name}, batch {recipe.batch_size}, k = {recipe.attack_steps}: "
        f"nominal {rates['nominal']:,.0f} images/s, co-training {rates['cotraining']:,.0f} images/s "
        f"({seconds['cotraining'] / seconds['nominal']:.2f} × the time), floor {rates['floor']:,.0f} images/s; "
        f"co-training takes {seconds['cotraining'] / floor:.2f} × the floor",
        flush=True,
    )


def random_images(recipe: Recipe) -> Dataset:
    """Returns random images of the recipe's shape, enough for four steps. Their content does not affect the time."""
    size, count = recipe.model.image_size, 4 * recipe.batch_size
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    images = Images(pixels, rng.integers(0, recipe.model.classes, count))
    labels = [str(index) for index in range(recipe.model.classes)]
    return Dataset(images, images, images, labels, PreprocessSpec(image_size=size))


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
