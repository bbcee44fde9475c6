"""The commands `tureen evaluate`, which measures accuracy at each β, and `tureen tune`, which chooses the best β."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import tureen
from training.attacks.catalogue import substitution_message, suitable_attack
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.commands.parsers import evaluate_parser, tune_parser
from training.data.datasets import Images, balanced_sample
from training.distributed import best_device, limit_threads
from training.errors import CheckpointError
from training.evaluation.accuracy import correct_by_beta, make_predictor, wilson_interval
from training.evaluation.attack_checks import LARGER_RADIUS, check_epsilon_curve
from training.evaluation.corruptions import CORRUPTIONS
from training.evaluation.measure import Measurement, measure_shifts, measure_strengths, read_images
from training.evaluation.plot import plot_accuracy, plot_epsilon_curve, plot_matrix, plot_shifts
from training.evaluation.shifts import SHIFTS
from training.evaluation.tune import tune_beta, tuned_table
from tureen.bundle.bundle import MANIFEST, read_manifest
from tureen.bundle.manifest import AccuracyRow, AttackCheck, Evaluation
from tureen.commands.report import (
    accuracy_table,
    check_results,
    clean_table,
    ensemble_table,
    epsilon_table,
    matrix_table,
    shift_table,
    strength_table,
)
from tureen.preprocess import PreprocessSpec
from tureen.remote.locate import locate_bundle
from tureen.tokens import CLEAN_BETA, ROBUST_BETA, beta_grid

BUNDLE_BETAS = "0:1:0.25"


def evaluate(arguments: list[str]) -> int:
    """Runs `tureen evaluate`: measures the accuracy of a checkpoint or a bundle at each β. Returns the exit status.

    For a checkpoint, measures the accuracy without an attack and under an attack. For a bundle, measures only the
    accuracy without an attack. arguments: those after `tureen evaluate`.
    """
    parser = evaluate_parser()
    options = parser.parse_args(arguments)
    limit_threads()
    most = 255 if options.norm == "linf" else math.inf
    if options.epsilon_255 is not None and not 0 <= options.epsilon_255 <= most:
        parser.error(f"argument --epsilon-255: {options.epsilon_255} is not between 0 and {most:g}")
    if options.beyond is not None and not 0 < options.beyond < math.inf:
        parser.error(f"argument --beyond: {options.beyond} is not a positive number")
    options.path = locate_bundle(options.path, must_exist=False)
    is_bundle = (options.path / MANIFEST).is_file()
    if options.split is not None and (is_bundle or options.data is not None):
        parser.error("--split chooses images of a checkpoint: omit it with --data and for a bundle")
    if is_bundle:
        attacks = (
            *("attack", "steps", "epsilon_255", "strengths", "matrix"),
            *("epsilon_curve", "ensembles", "beyond", "save", "plot"),
        )
        if options.norm != "linf":
            parser.error("--norm: a bundle has no gradients to attack; evaluate its checkpoint")
        if flags := [f"--{name.replace('_', '-')}" for name in attacks if getattr(options, name) not in (None, False)]:
            parser.error(f"{', '.join(flags)}: a bundle has no gradients to attack; evaluate its checkpoint")
        if options.data is None:
            parser.error("a bundle contains no images: add --data")
        return _evaluate_bundle(options)
    if options.save and (options.data is not None or options.beyond is not None or options.split == "validation"):
        parser.error(
            "--save stores results on the test images at β in [0, 1]: omit --data, --beyond and --split validation"
        )
    if options.strengths and (options.data is not None or options.split is not None):
        parser.error("--strengths measures the test and validation images of the checkpoint: omit --data and --split")
    checkpoint = load_checkpoint(options.path)
    betas = list(options.betas or checkpoint.recipe.evaluation_betas)
    if options.save and not {CLEAN_BETA, ROBUST_BETA} <= set(betas):
        parser.error("--save needs both modes, β = 0 and 1, in --betas")
    if options.save and options.epsilon_255 == 0:
        parser.error("--save stores robust accuracy, but --epsilon-255 0 means no attack")
    if options.norm != "linf":
        _check_other_norm(parser, options)
    return _evaluate_checkpoint(checkpoint, betas, options)


def _check_other_norm(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Checks that the options fit --norm l2 or l1.

    Exits with status 2 if --epsilon-255 is missing, or if an option needs --norm linf.
    """
    if options.epsilon_255 is None:
        parser.error(f"--norm {options.norm} needs --epsilon-255: the radius of the recipe is for l∞")
    linf_only = ("strengths", "matrix", "epsilon_curve", "ensembles", "plot")
    if flags := [f"--{name.replace('_', '-')}" for name in linf_only if getattr(options, name)]:
        parser.error(f"{', '.join(flags)}: only with --norm linf")


def _evaluate_checkpoint(checkpoint: Checkpoint, betas: list[float], options: argparse.Namespace) -> int:
    recipe, classes = checkpoint.recipe, len(checkpoint.labels)
    requested = options.attack or recipe.evaluation_attack
    if (attack := suitable_attack(requested, classes)) != requested:
        print(substitution_message(requested, attack, classes), file=sys.stderr)
    if options.beyond is not None:
        betas = [CLEAN_BETA - options.beyond, *betas, ROBUST_BETA + options.beyond]
    split = (options.split or "test") if options.data is None else None
    own = checkpoint.validation if split == "validation" else checkpoint.test
    if own is None or (options.strengths and checkpoint.validation is None):
        raise CheckpointError(f"{options.path} has no validation images: train it again, or measure those of --data")
    images = _images(options, own, checkpoint.preprocess, checkpoint.labels)
    steps = options.steps or recipe.evaluation_steps
    epsilon_255 = recipe.epsilon_255 if options.epsilon_255 is None else options.epsilon_255
    measurement = Measurement(
        checkpoint.model.to(best_device()),
        images,
        betas,
        attack=attack,
        steps=steps,
        epsilon_255=epsilon_255,
        norm=options.norm,
    )
    rows = measurement.accuracy()
    checks = measurement.checks()
    measured: dict[str, object] = {}
    if options.norm == "linf":
        # A stored matrix belongs to the former table: its attack may be another.
        measured |= {"matrix": None, "classes": measurement.by_class(classes)}
    if options.strengths:
        assert checkpoint.validation is not None
        measured["strengths"], more = measure_strengths(
            checkpoint.model,
            images,
            balanced_sample(checkpoint.validation, options.images),
            attack=attack,
            steps=steps,
            epsilon_255=epsilon_255,
            checked=betas,
        )
        checks += more
    if options.matrix:
        measured["matrix"] = measurement.matrix()
    if options.epsilon_curve:
        curve = measured["epsilon_curve"] = measurement.epsilon_curve()
        checks += check_epsilon_curve(curve)
    if options.ensembles:
        measured["ensembles"] = measurement.ensembles()
    if names := _shift_names(options):
        measured["shifts"] = measure_shifts(make_predictor(checkpoint.model), images, betas, names)
    evaluation = Evaluation().model_copy(update={**measured, "checks": checks})
    _print(rows, evaluation, split, as_json=options.json)
    if options.save:
        _save(options.path, checkpoint, rows, checks, measured)
    if options.plot:
        _plot(rows, evaluation, options.plot, recipe.name)
    return 0


def _save(
    path: Path,
    checkpoint: Checkpoint,
    rows: list[AccuracyRow],
    checks: list[AttackCheck],
    measured: Mapping[str, object],
) -> None:
    """Writes new results into the checkpoint at `path`.

    rows: accuracy at each β, all under one norm. Under l∞ the rows replace the accuracy of the checkpoint. Under l2 or
    l1 the rows replace those under the same norm in the stored evaluation. measured: new values for fields of the
    evaluation, by field name. checks: results of the checks of the attack that gave `rows` and `measured`. They replace
    the stored checks of the results that this call replaces. All other stored checks are kept.
    """
    before, norm = checkpoint.evaluation, rows[0].norm
    strengths = set() if "strengths" in measured else {row.beta for row in before.strengths}
    kept = [
        check
        for check in before.checks
        if check.norm != norm
        or (check.name == LARGER_RADIUS and "epsilon_curve" not in measured)
        or (norm == "linf" and check.beta in strengths - {row.beta for row in rows})
    ]
    evaluation = before.model_copy(update={**measured, "checks": [*kept, *checks]})
    if norm != "linf":
        others = [row for row in before.other_norms if row.norm != norm]
        evaluation = evaluation.model_copy(update={"other_norms": [*others, *rows]})
        save_checkpoint(path, replace(checkpoint, evaluation=evaluation))
        return
    save_checkpoint(path, replace(checkpoint, accuracy=rows, evaluation=evaluation))


def _evaluate_bundle(options: argparse.Namespace) -> int:
    betas = options.betas or beta_grid(BUNDLE_BETAS)
    manifest = read_manifest(options.path)
    images = _images(options, None, manifest.preprocess, manifest.labels)
    with tureen.load(options.path) as soup:
        correct = correct_by_beta(soup.logits, images, betas)
        names = _shift_names(options)
        rows = measure_shifts(soup.logits, images, betas, names) if names else []
    accuracies = [wilson_interval(int(row.sum()), len(images)) for row in correct]
    if options.json:
        clean = [{"beta": b, "n": len(images), "clean": a.model_dump()} for b, a in zip(betas, accuracies, strict=True)]
        print(json.dumps({"clean": clean, "shifts": [row.model_dump() for row in rows]}, indent=2))
        return 0
    print(clean_table(betas, accuracies, len(images)))
    if rows:
        print(f"\n{shift_table(rows)}")
    return 0


def tune(arguments: list[str]) -> int:
    """Runs `tureen tune`: prints the β at which the model is most accurate on --data. Returns the exit status.

    arguments: those after `tureen tune`.
    """
    parser = tune_parser()
    options = parser.parse_args(arguments)
    limit_threads()
    if options.data is None:
        parser.error("the following arguments are required: --data")
    options.path = locate_bundle(options.path, must_exist=False)
    if (options.path / MANIFEST).is_file():
        manifest = read_manifest(options.path)
        images = _images(options, None, manifest.preprocess, manifest.labels)
        with tureen.load(options.path) as soup:
            tuned = tune_beta(soup.logits, images, options.betas)
    else:
        checkpoint = load_checkpoint(options.path)
        images = _images(options, None, checkpoint.preprocess, checkpoint.labels)
        tuned = tune_beta(make_predictor(checkpoint.model.to(best_device())), images, options.betas)
    print(tuned.model_dump_json(indent=2) if options.json else tuned_table(tuned))
    return 0


def _images(options: argparse.Namespace, own: Images | None, preprocess: PreprocessSpec, labels: list[str]) -> Images:
    """Returns the images at --data, or `own` if --data is not given; at most as many as --images allows.

    own: the images in the checkpoint; may be None if --data is given. Prints the names of images that cannot be
    decoded.
    """
    if options.data is None:
        assert own is not None
        return balanced_sample(own, options.images)
    return read_images(
        options.data, preprocess, labels, at_most=options.images, strict=options.strict, workers=options.workers
    )


def _shift_names(options: argparse.Namespace) -> list[str]:
    return [*(CORRUPTIONS if options.corruptions else ()), *(SHIFTS if options.shifts else ())]


def _print(rows: list[AccuracyRow], evaluation: Evaluation, split: str | None, *, as_json: bool) -> None:
    if as_json:
        accuracy = [row.model_dump() for row in rows]
        print(json.dumps({"split": split, "accuracy": accuracy, "evaluation": evaluation.model_dump()}))
        return
    parts = [accuracy_table(rows, evaluation.checks, "images" if split is None else f"{split} images")]
    if evaluation.ensembles:
        parts.append(ensemble_table(evaluation.ensembles, rows, evaluation.checks))
    if evaluation.strengths:
        parts.append(strength_table(evaluation.strengths, evaluation.checks))
    if evaluation.matrix:
        parts.append(matrix_table(evaluation.matrix))
    if evaluation.epsilon_curve:
        parts.append(epsilon_table(evaluation.epsilon_curve, evaluation.checks))
    if evaluation.shifts:
        parts.append(shift_table(evaluation.shifts))
    if evaluation.checks:
        parts.append(check_results(evaluation.checks))
    print("\n\n".join(parts))


def _plot(rows: list[AccuracyRow], evaluation: Evaluation, path: Path, name: str) -> None:
    """Draws accuracy over β into the file `path`, and other results into files beside it, such as curve-matrix.png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_accuracy(rows, path, title=f"{name}: one model, every β")
    if evaluation.matrix:
        plot_matrix(evaluation.matrix, _beside(path, "matrix"), title=f"{name}: attacked at one β, served at another")
    if evaluation.epsilon_curve:
        plot_epsilon_curve(evaluation.epsilon_curve, _beside(path, "epsilon"), title=f"{name}: accuracy against ε")
    if evaluation.shifts:
        plot_shifts(evaluation.shifts, _beside(path, "shifts"), title=f"{name}: corruptions and shifts")


def _beside(path: Path, word: str) -> Path:
    return path.with_name(f"{path.stem}-{word}{path.suffix}")
