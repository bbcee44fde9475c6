"""The command `tureen export`: converts a checkpoint or a third-party model to a bundle that the server loads."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from export.artefacts import PlanBuilder
from export.errors import ExportError
from export.gallery import read_gallery
from export.parity import ParityLimits
from export.pipeline import MAX_IMAGES, Modes, export_bundle
from export.proving import EngineRequest
from export.quantization import calibration_source
from export.third_party import FINETUNE, ThirdPartyOptions, is_third_party, load_third_party
from training.attacks.catalogue import attack_label
from training.checkpoint import load_checkpoint
from training.data.datasets import balanced_sample
from training.distributed import limit_threads
from tureen.arguments import one_of
from tureen.bundle.manifest import NAME_PATTERN, Precision
from tureen.commands.report import accuracy_summary, parity_table
from tureen.engines import RUNTIMES
from tureen.errors import BundleError, SingleTokenError
from tureen.machine import default_cache_directory
from tureen.tokens import CLEAN_BETA, parse_beta

THIRD_PARTY_ONLY = ("labels", "epsilon_255", "crop_fraction")  # a checkpoint of Tureen has these values
THIRD_PARTY = ("data", "images", *THIRD_PARTY_ONLY)  # fields of ThirdPartyOptions that have a flag


def export(arguments: list[str]) -> int:
    """Runs `tureen export`: writes the bundle of a checkpoint or of a third-party model. Returns the exit status.

    arguments: those after `tureen export`.
    """
    limits = ParityLimits()
    parser = argparse.ArgumentParser(
        prog="tureen export",
        description="Compile the backbone of a checkpoint, compare every engine with PyTorch, and write a bundle.",
        epilog="example: tureen export runs/digits --out digits-bundle --engine openvino --precision bf16",
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="directory that `tureen train` wrote; or weights of a ViT of timm, transformers or torchvision: a file or "
        "a directory, as on the Hugging Face hub",
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
        choices=get_args(PlanBuilder),
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
    parser.add_argument("--force", action="store_true", help="overwrite BUNDLE if it exists")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    options = parser.parse_args(arguments)
    limit_threads()
    if options.out.exists() and not options.force:
        raise BundleError(f"{options.out} exists already: choose another --out, or add --force")
    if options.name is not None and not re.match(NAME_PATTERN, options.name):
        parser.error(f"argument --name: {options.name!r} is not 1 to 64 letters, digits, dots, dashes and underscores")
    try:
        limits = ParityLimits(
            fp32_max_abs_diff=options.max_logit_diff,
            top1_agreement=options.min_agreement,
            half_accuracy_points=options.max_half_points,
            int8_accuracy_points=options.max_int8_points,
        )
    except ValidationError:
        parser.error("--max-logit-diff must be above 0, --min-agreement from 0 to 1, the points from 0 to 100")
    if not options.checkpoint.exists():
        raise ExportError(
            f"{options.checkpoint} does not exist: give the directory of a finished run, or a file of weights"
        )
    default_beta = parse_beta(options.default_beta or CLEAN_BETA)
    modes, precisions = _modes(parser, options), options.precision
    if modes == "one" and options.default_beta is not None:
        raise SingleTokenError("--default-beta")
    if modes == "two":
        checkpoint = load_checkpoint(options.checkpoint)
        if options.images is not None:
            checkpoint = dataclasses.replace(
                checkpoint,
                test=balanced_sample(checkpoint.test, options.images),
                validation=checkpoint.validation and balanced_sample(checkpoint.validation, options.images),
            )
    else:
        given = {field: getattr(options, field) for field in THIRD_PARTY if getattr(options, field) is not None}
        checkpoint = load_third_party(options.checkpoint, ThirdPartyOptions(**given), report)
        precisions = precisions or ([] if options.data else ["fp32"])
    manifest = export_bundle(
        checkpoint,
        options.out,
        name=options.name,
        default_beta=default_beta,
        request=EngineRequest(
            engines=options.engine,
            precisions=precisions,
            calibration=calibration_source(checkpoint, options.data),
            has_later_opset=options.has_later_opset,
            builder=options.plan_builder,
        ),
        limits=limits,
        modes=modes,
        gallery=options.gallery and read_gallery(options.gallery, options.checkpoint),
        overwrite=options.force,
        cache=default_cache_directory(),
        report=report,
    )
    if options.json:
        print(manifest.model_dump_json(indent=2))
    else:
        print(f"{options.out}: {manifest.name} {manifest.version}\n")
        print(parity_table(manifest.parity))
        print()
        print(accuracy_summary(manifest))
        if modes != "two":
            data = options.data or "DIR"
            print(f"\nnext, for a robust mode: tureen train finetune --init {options.checkpoint} --data {data}")
    return 0


def report(line: str) -> None:
    """Prints a message on standard error, because standard output is for the result."""
    print(line, file=sys.stderr)


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


def _modes(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Modes:
    """Returns the argument `modes` of `export_bundle`.

    This is "two" for a checkpoint of Tureen. For a third-party model this is the value of --tokens, by default "one".
    Exits with status 2 if the options do not fit the model.
    """
    if options.images is not None and options.images < 1:
        parser.error("argument --images: must be 1 or more")
    if not is_third_party(options.checkpoint):
        if given := [name for name in ("tokens", *THIRD_PARTY_ONLY) if getattr(options, name) is not None]:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            parser.error(f"{flags}: only for third-party models; a checkpoint has its own values")
        return "two"
    if options.epsilon_255 is not None and not 0 <= options.epsilon_255 <= 255:
        parser.error(f"argument --epsilon-255: {options.epsilon_255} is not between 0 and 255")
    if options.crop_fraction is not None and not 0 < options.crop_fraction <= 1:
        parser.error(f"argument --crop-fraction: {options.crop_fraction} is not above 0 and up to 1")
    if options.data is None and set(options.precision) - {"fp32"}:
        parser.error("argument --precision: precisions below fp32 are compared on real images only: add --data")
    if options.gallery is not None:
        parser.error("argument --gallery: only for a checkpoint of Tureen; a third-party model has no gallery")
    modes: Modes = options.tokens or "one"
    return modes
