"""`tureen train`: arguments in, exit status out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from training.recipes import RECIPES, Recipe, load_recipe
from training.run import RunOptions, run
from tureen.machine import available_cpus
from tureen.report import accuracy_table, check_list


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
    parser.add_argument("--init", type=Path, metavar="PATH", help="weights to begin with, for the recipe finetune")
    parser.add_argument("--image-size", type=_positive, help="pixels, to finetune at (default: that of the weights)")
    parser.add_argument("--strict", action="store_true", help="fail at an image that cannot be decoded, not skip it")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run in --out")
    parser.add_argument("--compile", action="store_true", help="run the model through torch.compile")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard events into --out")
    parser.add_argument(
        "--workers", type=_positive, default=available_cpus(), help="that decode images (default: %(default)s)"
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
            init=options.init,
            image_size=options.image_size,
            is_resumed=options.resume,
            is_strict=options.strict,
            is_compiled=options.compile,
            tensorboard=options.tensorboard,
            workers=options.workers,
        ),
    )
    if checkpoint is None:  # another process of a distributed run speaks
        return 0
    if options.json:
        print(json.dumps([row.model_dump() for row in checkpoint.accuracy], indent=2))
    else:
        print(f"{accuracy_table(checkpoint.accuracy)}\n\n{check_list(checkpoint.evaluation.checks)}")
        print(f"\ntrained in {checkpoint.provenance['training_seconds']:.0f} s; next: tureen export {out} --out BUNDLE")
    return 0


def _show(recipe: Recipe) -> str:
    lines = [f"# {recipe.name}", f"# source: {recipe.source}", f"# expected: {recipe.expected}", f"# {recipe.command}"]
    values = recipe.model_dump(exclude={"name", "source", "expected", "command"})
    for key, value in values.items():
        nested = value.items() if isinstance(value, dict) else None
        lines += [f"{key}.{inner} = {v}" for inner, v in nested] if nested else [f"{key} = {value}"]
    return "\n".join(lines)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)
