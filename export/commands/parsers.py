"""The options of the commands of `export`. Knows no PyTorch, so that `--help` and wrong options do not need it."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Final, get_args

from export.parity import MAX_IMAGES, ParityLimits
from training.attacks.names import attack_label
from training.distributed import cpus_per_process
from training.recipes import FINETUNE
from tureen.arguments import (
    add_decoding_options,
    add_picture_attack_options,
    beta_argument,
    one_of,
    positive_int,
    strength_argument,
)
from tureen.bundle.examples import BUNDLE_HELP, DEFAULT_EXAMPLE
from tureen.bundle.manifest import LICENSE_PATTERN, Precision
from tureen.bundle.token_file import SUFFIX
from tureen.engines import RUNTIMES

ADAPT_STEPS: Final = 40
LEARNING_RATE: Final = 0.01
ADAPT_IMAGES: Final = 1000
CALIBRATION_IMAGES: Final = 5000
PLAN_BUILDERS: Final = ("onnx", "torch")  # export.artefacts.PlanBuilder
PART: Final = ".part"
"""End of the name of the file in which `tureen adapt` saves finished runs."""


def export_parser() -> argparse.ArgumentParser:
    """Returns the parser of `tureen export`."""
    limits = ParityLimits()
    parser = argparse.ArgumentParser(
        prog="tureen export",
        description="Compile the backbone of a checkpoint, compare every engine with PyTorch, and write a bundle.",
        epilog="example: tureen export runs/digits --out digits-bundle --engine openvino --precision bf16",
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="directory that `tureen train` wrote; or weights of a ViT of timm, transformers or torchvision: a file, a "
        "directory as on the Hugging Face hub, hf-hub:OWNER/NAME[@REVISION] or timm:NAME",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="directory to write")
    parser.add_argument(
        "--name", help="name of the model (default: name of the folder of its images, or of the weights)"
    )
    parser.add_argument("--default-beta", metavar="BETA", help="β of a request without β (default: 0)")
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        type=one_of(RUNTIMES),
        choices=list(RUNTIMES),
        help="engine that must pass; may be repeated (default: all that this machine supports)",
    )
    parser.add_argument(
        "--precision",
        action="append",
        default=[],
        type=one_of(get_args(Precision)),
        choices=list(get_args(Precision)),
        help="precision that must pass; may be repeated (default: all, of which only fp32 on the CPU must pass)",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="images, one folder for each class: for the calibration of int8 and the accuracy of a third-party model",
    )
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help=f"maximum number of images for the measurement (default: {MAX_IMAGES}, or one of each class)",
    )
    parser.add_argument(
        "--opset-23",
        action="store_true",
        dest="has_later_opset",
        help="also build the graph in opset 23, and keep it for engines that run it at least 5 %% faster",
    )
    parser.add_argument(
        "--max-logit-diff",
        type=float,
        default=limits.fp32_max_abs_diff,
        help="largest logit difference from PyTorch in fp32 (default: %(default)g)",
    )
    parser.add_argument(
        "--min-agreement",
        type=float,
        default=limits.top1_agreement,
        help="lowest share of images with the same label as in PyTorch (default: %(default)g)",
    )
    parser.add_argument(
        "--plan-builder",
        choices=PLAN_BUILDERS,
        default="onnx",
        help="compiler of TensorRT plans: its ONNX parser (onnx), or torch-tensorrt (torch) (default: %(default)s)",
    )
    for precision, points in (("half", limits.half_accuracy_points), ("int8", limits.int8_accuracy_points)):
        parser.add_argument(
            f"--max-{precision}-points",
            type=float,
            default=points,
            help=f"largest accuracy difference of {'bf16 and fp16' if precision == 'half' else precision} from fp32, "
            "in points, clean and attacked, at every β (default: %(default)g)",
        )
    _add_third_party(parser)
    parser.add_argument(
        "--gallery",
        type=Path,
        metavar="DIR",
        help="directory that `tureen gallery` wrote for this run: the console shows its pictures",
    )
    parser.add_argument(
        "--note",
        type=Path,
        metavar="FILE",
        help="Markdown text for the model card, such as the source of the images and other measurements",
    )
    parser.add_argument(
        "--license",
        type=license_argument,
        metavar="ID",
        help="license of the model for its card, such as apache-2.0 (default: none)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite BUNDLE if it exists")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    return parser


def license_argument(text: str) -> str:
    """Returns the identifier of a license, such as "apache-2.0"."""
    if not re.fullmatch(LICENSE_PATTERN, text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the identifier of a license, such as apache-2.0")
    return text


def calibrate_parser() -> argparse.ArgumentParser:
    """Returns the parser of `tureen calibrate`."""
    parser = argparse.ArgumentParser(
        prog="tureen calibrate",
        description="Measure on labelled images how strength maps to β, and how well calibrated the probabilities are. "
        "Stores both in the manifest and the model card of the bundle; its other files stay as they are.",
        epilog="example: tureen calibrate digits-bundle --data photos --images 1000",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory that `tureen export` wrote")
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="images that did not train the model, one folder for each class. With folders val and test of classes, "
        "val fits and test measures the errors; otherwise random halves do",
    )
    parser.add_argument(
        "--images",
        type=positive_int,
        default=CALIBRATION_IMAGES,
        metavar="N",
        help="maximum number of images of each folder, drawn evenly from the classes (default: %(default)s)",
    )
    return parser


def adapt_parser() -> argparse.ArgumentParser:
    """Returns the parser of `tureen adapt`."""
    parser = argparse.ArgumentParser(
        prog="tureen adapt",
        description=(
            "Learn a token from a few labelled images, with all other weights frozen, and write it to a file. "
            "Cross-validation compares the token with the best β. If the token is not significantly better, no file is "
            "written, and the best β is printed."
        ),
        epilog="example: tureen adapt signs --data foggy-signs --name fog --out fog.token",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help=BUNDLE_HELP)
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR|CSV",
        help="labelled images: one folder for each class, or a CSV file with the columns path and label",
    )
    parser.add_argument("--name", required=True, help="name of the token, such as fog")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"token file (default: NAME{SUFFIX})")
    parser.add_argument("--robust", action="store_true", help="learn under an attack, and win under an attack")
    parser.add_argument(
        "--epsilon-255",
        type=_radius,
        metavar="N",
        help="radius of the attack under l∞, in 1/255; 0: no attack (default: that of the accuracy in the bundle)",
    )
    parser.add_argument(
        "--steps", type=positive_int, default=ADAPT_STEPS, help="maximum number of steps (default: %(default)s)"
    )
    parser.add_argument("--learning-rate", type=_rate, default=LEARNING_RATE, help="of Adam (default: %(default)s)")
    parser.add_argument("--seed", type=_seed, default=0, help="of folds, batches and attacks (default: %(default)s)")
    parser.add_argument(
        "--images",
        type=positive_int,
        default=ADAPT_IMAGES,
        help="maximum number of images, drawn evenly from the classes (default: %(default)s)",
    )
    add_decoding_options(parser, cpus_per_process())
    parser.add_argument("--resume", action="store_true", help=f"continue an interrupted command, from FILE{PART}")
    parser.add_argument("--force", action="store_true", help="write the token even if it is not better than the best β")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


def attack_parser() -> argparse.ArgumentParser:
    """Returns the parser of `tureen attack`."""
    parser = argparse.ArgumentParser(
        prog="tureen attack",
        description=(
            "Change an image slightly, so that the model misreads it, and print what each strength reads before and "
            "after. The attack is white-box: it rebuilds the model in PyTorch. One image is a demonstration; `tureen "
            "evaluate` measures robustness."
        ),
        epilog="example: tureen attack stop.png --bundle signs --out attacked.png --difference change.png",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="JPEG, PNG or WebP file")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--bundle", type=Path, help=f"{BUNDLE_HELP} (default: the example {DEFAULT_EXAMPLE})")
    model.add_argument("--checkpoint", type=Path, metavar="RUN", help="directory of a finished run")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="PNG", help="attacked image, in the size that the model sees"
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--beta", type=beta_argument, help="attack the soup at this β (default: clean)")
    target.add_argument("--strength", type=strength_argument, help="attack the soup at this strength, 0 to 1")
    target.add_argument("--joint", action="store_true", help="attack the clean and the robust token together")
    parser.add_argument("--label", metavar="NAME", help="true class (default: the class that the clean mode reads)")
    add_picture_attack_options(parser)
    parser.add_argument("--difference", type=Path, metavar="PNG", help="write the amplified difference, enlarged")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _add_third_party(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("third-party models, which have one token until they are co-trained")
    group.add_argument(
        "--tokens",
        choices=["one", "equal"],
        help="one: a request with β is rejected; equal: any β is accepted and has no effect (default: one)",
    )
    group.add_argument("--labels", type=Path, metavar="FILE", help="labels of the outputs, one a line")
    group.add_argument(
        "--epsilon-255",
        type=float,
        help=f"radius of the attack, {attack_label(FINETUNE.evaluation_attack, FINETUNE.evaluation_steps)}, in 1/255; "
        f"0: no attack (default: {FINETUNE.epsilon_255:g})",
    )
    group.add_argument(
        "--crop-fraction",
        type=float,
        help="share of the shorter side of an image to keep (default: from the files of the model)",
    )


def _radius(text: str) -> float:
    return _number(text, 0, 255)


def _rate(text: str) -> float:
    rate = _number(text, 0, 1)
    if not rate:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return rate


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _number(text: str, low: float, high: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
    return number
