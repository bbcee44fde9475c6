"""The command `tureen train`: trains a model by a recipe, measures its accuracy, and writes a checkpoint."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from pathlib import Path

from training.data.groups import group_pattern
from training.data.loading import BatchOrder
from training.data.sources import open_source
from training.data.splits import divide
from training.distributed import cpus_per_process, is_first_process
from training.errors import CheckpointError, DataError
from training.interruption import InterruptedRun
from training.recipes import RECIPES, Recipe, load_recipe, with_settings
from training.resume import read_saved_run
from training.run import SAVE_INTERVAL_S, STATE, RunOptions, run
from tureen.arguments import one_of, positive_int
from tureen.commands.report import accuracy_table, check_results


def train(arguments: list[str]) -> int:
    """Runs `tureen train`. arguments: those after `tureen train`. Returns the exit status.

    The exit status is 0, or 128 + signal number if a signal interrupted the run.
    """
    parser = argparse.ArgumentParser(
        prog="tureen train",
        description="Train a dual-token Vision Transformer, measure its accuracy at each β, and write a checkpoint.",
        epilog="example: tureen train digits --out runs/digits --set epochs=50 --set model.depth=3",
    )
    parser.add_argument(
        "recipe",
        nargs="?",
        type=one_of(sorted(RECIPES)),
        choices=sorted(RECIPES),
        help="recipe to train (with --resume: default is the recipe of the run in --out)",
    )
    parser.add_argument("--out", type=Path, help="directory of the run (default: runs/RECIPE)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="change a value of the recipe"
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="images: DIR/CLASS/…, or DIR/train/CLASS/…, DIR/val/CLASS/… and DIR/test/CLASS/…, or hf:DATASET",
    )
    parser.add_argument(
        "--group-by",
        type=_group_expression,
        metavar="REGEX",
        help="keep the images of a track, a writer or a patient in one part: those whose paths have the same match, or "
        "the same text in its capturing group",
    )
    parser.add_argument("--init", type=Path, metavar="PATH", help="weights to start from, for the recipe finetune")
    parser.add_argument(
        "--image-size",
        type=positive_int,
        help="image size in pixels, for the recipe finetune (default: that of the weights)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="fail if an image cannot be decoded, instead of skipping it"
    )
    parser.add_argument("--resume", action="store_true", help="continue the interrupted run in --out, with its options")
    parser.add_argument(
        "--save-interval-s",
        type=_seconds,
        default=SAVE_INTERVAL_S,
        metavar="S",
        help="seconds between two saves of the state; more if saving would take over 2 %% of the time "
        "(default: %(default)g)",
    )
    parser.add_argument("--compile", action="store_true", help="run the model through torch.compile")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard events into --out")
    parser.add_argument(
        "--threads",
        type=positive_int,
        metavar="N",
        help="CPU threads of the training (default: OMP_NUM_THREADS if it is set, or else all CPUs)",
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=cpus_per_process(),
        help="processes or threads that decode images (default: %(default)s)",
    )
    parser.add_argument("--show", action="store_true", help="print the recipe with its settings, and exit")
    parser.add_argument("--json", action="store_true", help="print the accuracy at each β as JSON")
    options = parser.parse_args(arguments)
    if options.recipe is None and not (options.resume and options.out):
        parser.error("give a recipe, or the run to continue: --resume --out DIR")
    out = options.out or Path("runs") / options.recipe
    recipe = _recipe(options, out)
    if options.show:
        print(_show(recipe, options))
        return 0
    run_options = RunOptions(
        data=options.data,
        group_by=options.group_by,
        init=options.init,
        image_size=options.image_size,
        is_resumed=options.resume,
        is_strict=options.strict,
        is_compiled=options.compile,
        tensorboard=options.tensorboard,
        workers=options.workers,
        save_interval_s=options.save_interval_s,
        threads=options.threads,
    )
    try:
        checkpoint = run(recipe, out, run_options)
    except InterruptedRun as interrupted:
        if interrupted.saved and is_first_process():
            print(f"\ninterrupted; saved: {interrupted.saved}", file=sys.stderr)
            print(f"to continue: tureen train --resume --out {shlex.quote(str(out))}", file=sys.stderr)
        elif is_first_process():
            print("\ninterrupted before the first step: there is no saved run to continue", file=sys.stderr)
        return interrupted.exit_status
    if checkpoint is None:  # the first process of a distributed run prints the result
        return 0
    checks = checkpoint.evaluation.checks
    if options.json:
        print(json.dumps([row.model_dump() for row in checkpoint.accuracy], indent=2))
    else:
        print(f"{accuracy_table(checkpoint.accuracy, checks)}\n\n{check_results(checks)}")
        print(f"\ntrained in {checkpoint.provenance['training_seconds']:.0f} s; next: tureen export {out} --out BUNDLE")
    return 0


def _recipe(options: argparse.Namespace, out: Path) -> Recipe:
    """Returns the recipe to train, changed by the settings of --set.

    With --resume, this is the recipe of the interrupted run in `out`. Without --resume, or without such a run, this is
    the recipe that the command line names. Raises CheckpointError if there is neither, or if the command line names
    another recipe than that of the interrupted run. Raises the errors of `load_recipe`.
    """
    state = out / STATE
    if not options.resume or not state.exists():
        if options.recipe is None:
            raise CheckpointError(f"{out} holds no interrupted run to continue: give a recipe to start one")
        return load_recipe(options.recipe, options.settings)
    saved = read_saved_run(state).recipe
    if options.recipe not in (None, saved.name):
        raise CheckpointError(f"{out} holds a run of the recipe {saved.name}, not {options.recipe}")
    return with_settings(saved, options.settings)


def _show(recipe: Recipe, options: argparse.Namespace) -> str:
    """Returns the values of the recipe as text, for --show.

    The text contains the fields `expected` and `command` only if --data is not given and no value was changed. With
    --data, the text contains the numbers of classes, images and steps.
    """
    lines = [f"# {recipe.name}", f"# source: {recipe.source}"]
    if options.data is not None:
        source = open_source(options.data)
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"classes": len(source.names)})})
        group_by = recipe.group_by if options.group_by is None else options.group_by
        images = len(divide(options.data, source, None if group_by is None else group_pattern(group_by)).train)
        steps = BatchOrder(recipe, images).steps_per_epoch
        lines.append(
            f"# {options.data}: {len(source.names)} classes, about {images} images to train on, {steps} steps an "
            f"epoch, {recipe.epochs * steps} steps in all"
        )
    if options.data is None and recipe == RECIPES[recipe.name]:
        lines += [f"# expected: {recipe.expected}", f"# {recipe.command}"]
    else:
        lines.append(
            "# expected: not measured with these images and settings; the training shows its speed on the terminal"
        )
    values = recipe.model_dump(exclude={"name", "source", "expected", "command"})
    if recipe.dataset == "folder" and options.data is None:
        values["model"]["classes"] = "number of classes in --data"
    for key, value in values.items():
        nested = value.items() if isinstance(value, dict) else None
        lines += [f"{key}.{inner} = {v}" for inner, v in nested] if nested else [f"{key} = {value}"]
    return "\n".join(lines)


def _group_expression(text: str) -> str:
    try:
        return group_pattern(text).pattern
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a non-negative number of seconds")
    return seconds
