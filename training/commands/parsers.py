"""The options of the commands of `training`. Knows no PyTorch, so that `--help` and wrong options do not need it."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import get_args

from training.attacks.names import ATTACK_LABELS
from training.data.groups import group_pattern
from training.distributed import cpus_per_process
from training.errors import DataError
from training.interruption import SAVE_INTERVAL_S
from training.recipes import RECIPES
from training.reporting.loggers import LOGGERS
from tureen.arguments import (
    add_decoding_options,
    add_picture_attack_options,
    betas_argument,
    one_of,
    positive_int,
)
from tureen.bundle.gallery import GALLERY
from tureen.bundle.manifest import Norm
from tureen.tokens import beta_grid

ALL_IMAGES = 2**31
DRAWINGS = 20


def train_parser() -> argparse.ArgumentParser:
    """Returns the parser of `tureen train`."""
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
    parser.add_argument(
        "--init",
        metavar="FILE",
        help="weights to start from, for the recipe finetune: a file, a directory, hf-hub:OWNER/NAME[@REVISION] or "
        "timm:NAME",
    )
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
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        type=one_of(LOGGERS),
        choices=list(LOGGERS),
        help="also record the run with this logger; may be repeated (default: none)",
    )
    parser.add_argument(
        "--tensorboard", action="append_const", dest="log", const="tensorboard", help="same as --log tensorboard"
    )
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
    without_run = parser.add_mutually_exclusive_group()
    without_run.add_argument("--show", action="store_true", help="print the recipe with its settings, and exit")
    without_run.add_argument(
        "--dry-run",
        action="store_true",
        help="train a few steps, print time, memory and disk space of the whole training, and exit; writes nothing",
    )
    parser.add_argument("--json", action="store_true", help="print the accuracy at each β, or the dry run, as JSON")
    return parser


def evaluate_parser() -> argparse.ArgumentParser:
    """Returns the parser of `tureen evaluate`."""
    parser = argparse.ArgumentParser(
        prog="tureen evaluate",
        description=(
            "Measure clean and robust accuracy of a checkpoint at each β, with an attack on each soup. A bundle has no "
            "gradients, so only its clean accuracy is measured."
        ),
        epilog="example: tureen evaluate runs/digits --betas 0:1:0.1 --attack apgd --steps 50 --plot curve.png",
    )
    parser.add_argument("path", type=Path, metavar="CHECKPOINT|BUNDLE", help="directory of a run, or of a bundle")
    _add_images(parser, data="images to measure on (default: those of the checkpoint)")
    parser.add_argument(
        "--split",
        choices=["test", "validation"],
        help="images of the checkpoint: test for figures to publish, validation for choices (default: test)",
    )
    parser.add_argument(
        "--betas", type=betas_argument, metavar="START:STOP:STEP", help="values of β (default: those of the recipe)"
    )
    parser.add_argument(
        "--beyond", type=float, metavar="D", help="also measure at β = −D and 1 + D, which are never served"
    )
    parser.add_argument(
        "--attack",
        type=one_of(ATTACK_LABELS),
        choices=list(ATTACK_LABELS),
        help="attack (default: that of the recipe); fgsm, pgd and mi-fgsm are for diagnosis, not for figures",
    )
    parser.add_argument("--steps", type=positive_int, help="steps of the attack (default: those of the recipe)")
    parser.add_argument("--epsilon-255", type=float, help="radius in 1/255 (default: that of the recipe)")
    parser.add_argument(
        "--norm",
        choices=get_args(Norm),
        default="linf",
        help="norm of the radius; l2 and l1 need --epsilon-255, such as 128 for l2 (default: %(default)s)",
    )
    parser.add_argument(
        "--strengths",
        action="store_true",
        help="accuracy at five strengths, beside the robust accuracy that attacked validation images predict",
    )
    parser.add_argument(
        "--matrix",
        action="store_true",
        help="transfer matrix: attack each β, and all β together, and measure every other β",
    )
    parser.add_argument("--epsilon-curve", action="store_true", help="accuracy at several radii")
    parser.add_argument(
        "--ensembles", action="store_true", help="also measure mixed predictions of both modes, at twice the cost"
    )
    parser.add_argument(
        "--corruptions",
        action="store_true",
        help="accuracy under noise, blur, weather and digital corruptions at five severities",
    )
    parser.add_argument(
        "--shifts",
        action="store_true",
        help="accuracy under rotation, greyscale, sketch and other shifts at five severities",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help="draw accuracy over β into PNG, and other results into files beside it"
    )
    parser.add_argument(
        "--save", action="store_true", help="store the results in the checkpoint, for manifest and model card"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def tune_parser() -> argparse.ArgumentParser:
    """Returns the parser of `tureen tune`."""
    parser = argparse.ArgumentParser(
        prog="tureen tune",
        description="Choose the most accurate β for a few labelled images, and print its interval.",
        epilog="example: tureen tune digits-bundle --data rainy-days --images 50",
    )
    parser.add_argument("path", type=Path, metavar="CHECKPOINT|BUNDLE", help="directory of a run, or of a bundle")
    _add_images(parser, data="images: one folder for each class, or a CSV file with path and label")
    parser.add_argument(
        "--betas",
        type=betas_argument,
        default=beta_grid("0:1:0.1"),
        help="β to choose from (default: 0:1:0.1)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def gallery_parser() -> argparse.ArgumentParser:
    """Returns the parser of `tureen gallery`."""
    parser = argparse.ArgumentParser(
        prog="tureen gallery",
        description=(
            "Draw ten traffic signs, attack each for the clean token and for both tokens, and write the pictures with "
            "the readings at five strengths. A sign is drawn again if the attack on the clean token fails; the failed "
            "attacks are counted."
        ),
        epilog="example: tureen gallery runs/signs --out gallery",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a finished run of traffic signs")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=f"directory for pictures and {GALLERY}")
    add_picture_attack_options(parser)
    parser.add_argument(
        "--drawings",
        type=positive_int,
        default=DRAWINGS,
        help="most drawings of a sign to try, until an attack misleads the clean mode (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help=f"print the content of {GALLERY} instead of a table")
    return parser


def _add_images(parser: argparse.ArgumentParser, *, data: str) -> None:
    parser.add_argument("--data", metavar="DIR|CSV", help=data)
    parser.add_argument(
        "--images",
        type=positive_int,
        default=ALL_IMAGES,
        help="maximum number of images, drawn evenly from the classes",
    )
    add_decoding_options(parser, cpus_per_process())


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
