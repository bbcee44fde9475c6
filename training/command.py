"""`tureen train` and `tureen evaluate`: arguments in, exit status out."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from training.checkpoint import load_checkpoint
from training.recipes import RECIPES, Recipe, load_recipe
from training.run import RunOptions, measure, run
from tureen.bundle import AccuracyRow
from tureen.errors import InvalidBetaError
from tureen.report import accuracy_table
from tureen.tokens import beta_grid


def train(arguments: list[str]) -> int:
    """Train a recipe and measure it."""
    parser = argparse.ArgumentParser(
        prog="tureen train",
        description="Train a dual-token Vision Transformer, measure every soup, and leave a checkpoint.",
        epilog="example: tureen train digits --out runs/digits --set epochs=50 --set model.depth=3",
    )
    parser.add_argument("recipe", choices=sorted(RECIPES), help="what to train")
    parser.add_argument("--out", type=Path, help="directory of the run (default: runs/RECIPE)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="change a value of the recipe"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="images: DIR/CLASS/…, or DIR/train/CLASS/… and DIR/val/CLASS/…, or hf:DATASET"
    )
    parser.add_argument("--strict", action="store_true", help="fail at an image that cannot be decoded, not skip it")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run in --out")
    parser.add_argument("--compile", action="store_true", help="run the model through torch.compile")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard events into --out")
    parser.add_argument(
        "--workers", type=_positive, default=os.cpu_count() or 1, help="that decode images (default: %(default)s)"
    )
    parser.add_argument("--show", action="store_true", help="print the recipe with its settings, and stop")
    parser.add_argument("--json", action="store_true", help="print the accuracy at each β as JSON")
    options = parser.parse_args(arguments)
    recipe = load_recipe(options.recipe, options.settings)
    if options.show:
        print(_show(recipe))
        return 0
    out = options.out or Path("runs") / recipe.name
    checkpoint = run(
        recipe,
        out,
        RunOptions(
            data=options.data,
            is_resumed=options.resume,
            is_strict=options.strict,
            is_compiled=options.compile,
            tensorboard=options.tensorboard,
            workers=options.workers,
        ),
    )
    if checkpoint is None:  # another process of a distributed run speaks
        return 0
    _print_accuracy(checkpoint.accuracy, as_json=options.json)
    if not options.json:
        print(f"\ntrained in {checkpoint.provenance['training_seconds']:.0f} s; next: tureen export {out} --out BUNDLE")
    return 0


def evaluate(arguments: list[str]) -> int:
    """Measure a checkpoint at any β, steps and radius."""
    parser = argparse.ArgumentParser(
        prog="tureen evaluate",
        description="Clean and robust accuracy of a checkpoint on its held-out images, each soup attacked itself.",
        epilog="example: tureen evaluate runs/digits --betas 0:1:0.1 --steps 100 --plot curve.png",
    )
    parser.add_argument("checkpoint", type=Path, help="directory that `tureen train` left")
    parser.add_argument("--betas", type=_betas, metavar="START:STOP:STEP", help="default: the recipe's")
    parser.add_argument("--steps", type=_positive, help="PGD steps (default: the recipe's)")
    parser.add_argument("--epsilon-255", type=float, help="radius in 1/255 (default: the recipe's)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw accuracy over β")
    options = parser.parse_args(arguments)
    checkpoint = load_checkpoint(options.checkpoint)
    recipe = checkpoint.recipe
    epsilon_255 = recipe.epsilon_255 if options.epsilon_255 is None else options.epsilon_255
    if not 0 <= epsilon_255 <= 255:
        parser.error(f"argument --epsilon-255: {epsilon_255} is not between 0 and 255")
    rows = measure(
        checkpoint.model,
        checkpoint.held_out,
        options.betas or recipe.evaluation_betas,
        epsilon_255,
        options.steps or recipe.evaluation_steps,
    )
    _print_accuracy(rows, as_json=options.json)
    if options.plot:
        from training.plot import plot_accuracy

        plot_accuracy(rows, options.plot, title=f"{recipe.name}: one model, every β")
    return 0


def _print_accuracy(rows: list[AccuracyRow], *, as_json: bool) -> None:
    print(json.dumps([row.model_dump() for row in rows], indent=2) if as_json else accuracy_table(rows))


def _show(recipe: Recipe) -> str:
    lines = [f"# {recipe.name}", f"# source: {recipe.source}", f"# expected: {recipe.expected}", f"# {recipe.command}"]
    values = recipe.model_dump(exclude={"name", "source", "expected", "command"})
    for key, value in values.items():
        nested = value.items() if isinstance(value, dict) else None
        lines += [f"{key}.{inner} = {v}" for inner, v in nested] if nested else [f"{key} = {value}"]
    return "\n".join(lines)


def _betas(text: str) -> list[float]:
    try:
        return beta_grid(text)
    except InvalidBetaError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value
