"""The command `tureen train`: trains a model by a recipe, measures its accuracy, and writes a checkpoint."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from training.commands.dry_run import measure_cost
from training.commands.parsers import train_parser
from training.data.groups import group_pattern
from training.data.loading import BatchOrder
from training.data.sources import open_source
from training.data.splits import divide
from training.distributed import is_first_process
from training.errors import CheckpointError
from training.interruption import InterruptedRun
from training.preparation import RunOptions, with_pretrained_shape
from training.recipes import DESCRIPTION, RECIPES, Recipe, load_recipe, with_settings
from training.resume import read_saved_run
from training.run import STATE, run
from tureen.bundle.manifest import AccuracyRow
from tureen.commands.report import accuracy_table, check_results
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

EQUAL_MODES_POINTS = 2


def train(arguments: list[str]) -> int:
    """Runs `tureen train`. arguments: those after `tureen train`. Returns the exit status.

    The exit status is 0, or 128 + signal number if a signal interrupted the run.
    """
    parser = train_parser()
    options = parser.parse_args(arguments)
    if options.recipe is None and not (options.resume and options.out):
        parser.error("give a recipe, or the run to continue: --resume --out DIR")
    if options.dry_run and options.resume:
        parser.error("--dry-run measures a run from its start: omit --resume")
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
        loggers=tuple(dict.fromkeys(options.log)),
        workers=options.workers,
        save_interval_s=options.save_interval_s,
        threads=options.threads,
    )
    if options.dry_run:
        cost = measure_cost(recipe, run_options)
        if cost is not None:
            print(json.dumps(asdict(cost), indent=2) if options.json else cost)
        return 0
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
        if warning := equal_modes_warning(checkpoint.accuracy, checkpoint.recipe):
            print(f"\n{warning}")
        print(f"\ntrained in {checkpoint.provenance['training_seconds']:.0f} s; next: tureen export {out} --out BUNDLE")
    return 0


def equal_modes_warning(accuracy: Sequence[AccuracyRow], recipe: Recipe) -> str | None:
    """Returns a warning if clean and robust mode differ by less than EQUAL_MODES_POINTS; None if they differ by more.

    Neither the clean nor the robust accuracy may differ by more. The predictions of two nearly equal tokens are equal
    for almost every image. So a small number of images gives no false warning.
    """
    clean, robust = (next(row for row in accuracy if row.beta == beta) for beta in (CLEAN_BETA, ROBUST_BETA))
    pairs = (clean.clean, robust.clean), (clean.robust, robust.robust)
    if any(100 * abs(one.value - other.value) >= EQUAL_MODES_POINTS for one, other in pairs):
        return None
    return (
        f"clean and robust mode differ by less than {EQUAL_MODES_POINTS} points on the test images, so β has almost no "
        f"effect: train more steps, for example with --set epochs={5 * recipe.epochs} --set batch_size="
        f"{max(1, recipe.batch_size // 4)}"
    )


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
    --data, the text contains the numbers of classes, images and steps. With --init, it contains the shape of the
    weights. Raises the errors of `with_pretrained_shape`.
    """
    lines = [f"# {recipe.name}", f"# source: {recipe.source}"]
    is_measured = options.data is None and recipe == RECIPES[recipe.name]
    takes_shape = recipe.start == "pretrained" and recipe.model == RECIPES[recipe.name].model  # not in a resumed run
    if takes_shape and options.init is not None:
        recipe, _ = with_pretrained_shape(recipe, RunOptions(init=options.init, image_size=options.image_size))
        takes_shape = False
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
    if is_measured:
        lines += [f"# expected: {recipe.expected}", f"# {recipe.command}"]
    else:
        lines.append("# expected: not measured with these images and settings; --dry-run measures the time")
    values = recipe.settings(without={"name", *DESCRIPTION, *(("model",) if takes_shape else ())})
    if takes_shape:
        values = {"model": "that of the weights, with --init", **values}
    elif recipe.dataset == "folder" and options.data is None:
        values["model.classes"] = "number of classes in --data"
    lines += [f"{key} = {value}" for key, value in values.items()]
    return "\n".join(lines)
