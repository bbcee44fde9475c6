"""The command `tureen adapt`: learns a token from a few labelled images, and keeps the best β unless the token wins."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from export.commands.parsers import PART, adapt_parser
from export.errors import ExportError
from export.torch_soup import model_of_bundle
from training.adapt.comparison import compare, compare_under_attack, has_won
from training.adapt.cross_validation import FOLDS, RUNS, FinishedRuns, cross_validate, token_after
from training.adapt.learning import FrozenModel, LearningSettings, token_forward
from training.adapt.saved_runs import read_runs, save_runs
from training.data.datasets import Images
from training.distributed import best_device, limit_threads
from training.errors import DataError
from training.evaluation.measure import progress_bar, read_images
from training.interruption import InterruptedRun, StopSignals
from training.models.vit import images_from_pixels
from tureen.bundle.bundle import MANIFEST, Bundle, load_bundle
from tureen.bundle.manifest import BACKBONE, Manifest
from tureen.bundle.token_file import SUFFIX, Token, TokenAccuracy, TokenRecord, write_token
from tureen.commands.token_report import token_accuracy_table
from tureen.remote.locate import locate_bundle
from tureen.tokens import CLEAN, CLEAN_BETA, ROBUST, TOKEN_NAME, beta_grid

MIN_IMAGES = 5  # with fewer, no result of the sign test is significant
BETAS = beta_grid("0:1:0.1")
BETAS_UNDER_ATTACK = beta_grid("0:1:0.25")


class AdaptReport(BaseModel):
    """The result of `tureen adapt`, as --json prints it."""

    model_config = ConfigDict(frozen=True)

    kept: Literal["token", "beta"]
    name: str
    model: str
    best_beta: float = Field(description="the β that is best on all images")
    steps: int = Field(description="steps of learning")
    images: int
    accuracy: list[TokenAccuracy] = Field(description="first without an attack")
    file: str | None = Field(description="the token file; null: none was written")


@dataclass(frozen=True)
class _Adaptation:
    report: AdaptReport
    token: Token


def adapt(arguments: list[str]) -> int:
    """Runs `tureen adapt`. arguments: those after `tureen adapt`. Returns the exit status.

    The exit status is 0 if the token or the best β was kept, or 128 + signal number after an interruption.
    """
    parser = adapt_parser()
    options = parser.parse_args(arguments)
    if not re.fullmatch(TOKEN_NAME, options.name) or options.name in (CLEAN, ROBUST):
        parser.error(
            f"argument --name: {options.name!r} cannot be the name of a token: it has a-z, 0-9, - and _, and is not "
            f"{CLEAN} or {ROBUST}"
        )
    limit_threads()
    out = options.out or Path(f"{options.name}{SUFFIX}")
    if out.exists():
        raise DataError(f"{out} exists already: choose another --out, or delete it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out.parent} cannot be created: {error.strerror}; choose another --out") from error
    path = locate_bundle(options.bundle, must_exist=False)
    if not (path / MANIFEST).is_file() and (path / "checkpoint.json").is_file():
        raise ExportError(
            f"{path} is a run, and a token belongs to the graph of a bundle: export it first: tureen export "
            f"{shlex.quote(str(path))} --out BUNDLE"
        )
    bundle = load_bundle(locate_bundle(path))
    epsilon_255 = _epsilon_255(parser, options, bundle.manifest)
    images = read_images(
        options.data,
        bundle.manifest.preprocess,
        bundle.manifest.labels,
        at_most=options.images,
        strict=options.strict,
        workers=options.workers,
    )
    check_images(images, bundle.manifest.labels)
    settings = LearningSettings(
        steps=options.steps,
        learning_rate=options.learning_rate,
        seed=options.seed,
        epsilon_255=epsilon_255 if options.robust else 0.0,
    )
    part = out.with_name(f"{out.name}{PART}")
    try:
        with StopSignals().installed():
            adaptation = _adapt(bundle, images, options.name, settings, epsilon_255, part, is_resumed=options.resume)
    except InterruptedRun as interrupted:
        saved = f"saved: {part}; to continue, add --resume" if part.exists() else "no run has finished"
        print(f"\ninterrupted; {saved}", file=sys.stderr)
        return interrupted.exit_status
    is_written = options.force or adaptation.report.kept == "token"
    report = adaptation.report.model_copy(update={"file": str(out) if is_written else None})
    if is_written:
        write_token(out, adaptation.token)
    part.unlink(missing_ok=True)
    print(report.model_dump_json(indent=2) if options.json else report_text(report, options.bundle))
    return 0


def check_images(images: Images, labels: list[str]) -> None:
    """Raises DataError if the images are too few to learn a token, or if all of them have one class."""
    if len(images) < MIN_IMAGES:
        raise DataError(f"{len(images)} images are too few to learn a token: give at least 10, better 50")
    classes = np.unique(images.labels)
    if len(classes) < 2:
        raise DataError(f"all {len(images)} images have one class, {labels[classes[0]]!r}: give images of two or more")


def _adapt(
    bundle: Bundle,
    images: Images,
    name: str,
    settings: LearningSettings,
    epsilon_255: float,
    part: Path,
    *,
    is_resumed: bool,
) -> _Adaptation:
    """Learns a token from the images, and compares it with the best β.

    epsilon_255: radius of the attack that measures robust accuracy; 0: none. part: file of the finished runs.
    """
    manifest = bundle.manifest
    backbone, images_sha256 = manifest.files[BACKBONE].sha256, _sha256(images)
    inputs = {
        "bundle": backbone,
        "--data": images_sha256,
        "--steps": str(settings.steps),
        "--learning-rate": str(settings.learning_rate),
        "--seed": str(settings.seed),
        "--robust or --epsilon-255": str(settings.epsilon_255),
    }
    finished = read_runs(part, inputs) if is_resumed else FinishedRuns()
    model = model_of_bundle(bundle).to(best_device())
    frozen = FrozenModel(model, images)
    betas = [CLEAN_BETA] if not manifest.has_two_tokens else BETAS_UNDER_ATTACK if settings.epsilon_255 else BETAS
    with progress_bar("learn", RUNS - finished.count + 1, "run") as advance:

        def on_run(runs: FinishedRuns) -> None:
            save_runs(part, inputs, runs)
            advance()

        validation = cross_validate(frozen, betas, settings, finished, on_run)
        token = token_after(frozen, np.arange(len(images)), validation.start, settings, steps=validation.steps)
        advance()
    accuracy = [compare(frozen, validation)]
    if epsilon_255:
        with progress_bar("attack", 2 * FOLDS, "attack") as advance:
            accuracy.append(compare_under_attack(frozen, validation, settings, epsilon_255, advance))
    record = TokenRecord(
        name=name,
        model=manifest.name,
        backbone_sha256=backbone,
        best_beta=validation.start,
        steps=validation.steps,
        images=len(images),
        images_sha256=images_sha256,
        is_robust=bool(settings.epsilon_255),
        seed=settings.seed,
        accuracy=accuracy,
    )
    decisive = accuracy[-1] if settings.epsilon_255 else accuracy[0]
    report = AdaptReport(
        kept="token" if has_won(decisive) and validation.steps else "beta",
        name=name,
        model=manifest.name,
        best_beta=validation.start,
        steps=validation.steps,
        images=len(images),
        accuracy=accuracy,
        file=None,
    )
    golden = _logits(frozen, token, bundle.golden.pixels)
    return _Adaptation(report, Token(record, token.cpu().numpy(), golden))


@torch.no_grad()
def _logits(frozen: FrozenModel, token: torch.Tensor, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    x = images_from_pixels(torch.from_numpy(pixels).to(frozen.device))
    logits: NDArray[np.float32] = token_forward(frozen.model, token)(x).float().cpu().numpy()
    return logits


def report_text(report: AdaptReport, bundle: Path) -> str:
    """Returns the report as text for a terminal. bundle: as the command line names it."""
    lines = [*token_accuracy_table(report.accuracy), ""]
    if report.kept == "token":
        lines.append(
            f"{report.name}: the token is better than the best β; {report.steps} steps from β = {report.best_beta:g}"
        )
        lines += _robustness(report)
    else:
        lines.append(
            f"{report.name}: the token is not significantly better than the best β, so β = {report.best_beta:g} is kept"
        )
    name = shlex.quote(str(bundle))
    if report.file is None:
        lines.append(f"no file is written; next: tureen classify IMAGE --bundle {name} --beta {report.best_beta:g}")
        if report.images < 50:
            lines.append(f"{report.images} images rarely suffice: give 50 or more")
    else:
        lines.append(
            f"{report.file}; next: tureen classify IMAGE --bundle {name} --token-file {shlex.quote(report.file)} "
            f"--token {report.name}"
        )
    return "\n".join(lines)


def _robustness(report: AdaptReport) -> list[str]:
    """Returns a line with the robust accuracy that the token loses, if it was measured and is lower."""
    attacked = [row for row in report.accuracy if row.attack]
    lost = [row.best_beta.value - row.token.value for row in attacked]
    return [f"the token loses {100 * share:.1f} points of robust accuracy" for share in lost if share > 0]


def _epsilon_255(parser: argparse.ArgumentParser, options: argparse.Namespace, manifest: Manifest) -> float:
    """Returns the radius of --epsilon-255, or that of the accuracy in the manifest; 0 if there is neither.

    Exits with status 2 if --robust has no radius.
    """
    rows = manifest.accuracy
    radius: float = (rows[0].epsilon_255 if rows else 0.0) if options.epsilon_255 is None else options.epsilon_255
    if options.robust and not radius:
        parser.error("--robust needs an attack: give --epsilon-255, above 0")
    return radius


def _sha256(images: Images) -> str:
    digest = hashlib.sha256(json.dumps(images.pixels.shape).encode())
    digest.update(np.ascontiguousarray(images.pixels).data)
    digest.update(images.labels.astype("<i8").tobytes())
    return digest.hexdigest()
