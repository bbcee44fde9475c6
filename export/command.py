"""`tureen export`: arguments in, exit status out."""

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
from export.foreign import FINETUNE, ForeignOptions, is_foreign, load_foreign
from export.parity import ParityLimits
from export.pipeline import MAX_IMAGES, Modes, export_bundle
from export.proving import EngineRequest
from export.quantization import calibration
from training.checkpoint import load_checkpoint
from training.data.datasets import drawn_evenly
from training.distributed import limit_threads
from tureen.bundle.manifest import NAME_PATTERN, Precision
from tureen.commands.report import accuracy_summary, parity_table
from tureen.engines import RUNTIMES
from tureen.errors import BundleError, SingleTokenError
from tureen.machine import default_cache_directory
from tureen.tokens import CLEAN_BETA, parse_beta

UNTOLD = ("labels", "epsilon_255", "crop_fraction")  # what a checkpoint of ours says itself
FOREIGN = ("data", "images", *UNTOLD)  # fields of ForeignOptions, and flags


def export(arguments: list[str]) -> int:
    """Compile a checkpoint, or somebody else's model, into a bundle."""
    limits = ParityLimits()
    parser = argparse.ArgumentParser(
        prog="tureen export",
        description="Compile a checkpoint's backbone, prove every engine against PyTorch, and write a bundle.",
        epilog="example: tureen export runs/digits --out digits-bundle --engine openvino --precision bf16",
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="directory that `tureen train` left; or weights of a ViT of timm, transformers or torchvision: a file, or "
        "a directory as on the Hugging Face hub",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="directory to write")
    parser.add_argument("--name", help="the model's name (default: that of its images' folder, or of the weights)")
    parser.add_argument("--default-beta", metavar="BETA", help="β of a request that names none (default: 0)")
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        choices=list(RUNTIMES),
        help="engine that must pass; may be repeated (default: all that this machine has)",
    )
    parser.add_argument(
        "--precision",
        action="append",
        default=[],
        choices=list(get_args(Precision)),
        help="precision to prove; may be repeated (default: all)",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="images in a folder for each class: int8 is calibrated on some of them, and the accuracy of somebody "
        "else's model measured on others",
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help=f"to measure on, at most (default: {MAX_IMAGES}, or one of each class)"
    )
    parser.add_argument(
        "--opset-23",
        action="store_true",
        dest="has_later_opset",
        help="try the graph in opset 23 too, and keep it for engines that run it at least 5 %% faster",
    )
    parser.add_argument(
        "--max-logit-diff", type=float, default=limits.fp32_max_abs_diff, help="fp32 (default: %(default)g)"
    )
    parser.add_argument(
        "--min-agreement",
        type=float,
        default=limits.top1_agreement,
        help="share of equal labels (default: %(default)g)",
    )
    parser.add_argument(
        "--plan-builder",
        choices=get_args(PlanBuilder),
        default="onnx",
        help="what compiles plans for TensorRT: its own ONNX parser, or torch-tensorrt (default: %(default)s)",
    )
    for precision, points in (("half", limits.half_accuracy_points), ("int8", limits.int8_accuracy_points)):
        parser.add_argument(
            f"--max-{precision}-points",
            type=float,
            default=points,
            help=f"accuracy that {'bf16 and fp16' if precision == 'half' else precision} may differ from fp32, in "
            "points, clean and attacked, at every β (default: %(default)g)",
        )
    _add_foreign(parser)
    parser.add_argument("--force", action="store_true", help="overwrite BUNDLE where it exists")
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
        parser.error("--max-logit-diff is above 0, --min-agreement from 0 to 1, the points from 0 to 100")
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
            held_out = drawn_evenly(checkpoint.held_out, options.images)
            checkpoint = dataclasses.replace(checkpoint, held_out=held_out)
    else:
        said = {field: getattr(options, field) for field in FOREIGN if getattr(options, field) is not None}
        checkpoint = load_foreign(options.checkpoint, ForeignOptions(**said), report)
        precisions = precisions or ([] if options.data else ["fp32"])
    manifest = export_bundle(
        checkpoint,
        options.out,
        name=options.name,
        default_beta=default_beta,
        asked=EngineRequest(
            engines=options.engine,
            precisions=precisions,
            calibration=calibration(checkpoint, options.data),
            has_later_opset=options.has_later_opset,
            builder=options.plan_builder,
        ),
        limits=limits,
        modes=modes,
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
    """What happens, on the terminal; standard output is for the result."""
    print(line, file=sys.stderr)


def _add_foreign(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a model of somebody else, which has one token until it is co-trained")
    group.add_argument(
        "--tokens",
        choices=["one", "equal"],
        help="one: no request may choose β; equal: any β is accepted and changes nothing (default: one)",
    )
    group.add_argument("--labels", type=Path, metavar="FILE", help="what the outputs are called, one a line")
    group.add_argument(
        "--epsilon-255",
        type=float,
        help=f"radius of the attack (PGD-{FINETUNE.evaluation_steps}) in 1/255; 0: none (default: "
        f"{FINETUNE.epsilon_255:g})",
    )
    group.add_argument(
        "--crop-fraction", type=float, help="of an image's shorter side to keep (default: what the model's files say)"
    )


def _modes(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Modes:
    """What β chooses between: of somebody else's model what --tokens says. Exits with 2 where options do not fit."""
    if options.images is not None and options.images < 1:
        parser.error("argument --images: 1 or more")
    if not is_foreign(options.checkpoint):
        if given := [name for name in ("tokens", *UNTOLD) if getattr(options, name) is not None]:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            parser.error(f"{flags}: for a model of somebody else alone; a checkpoint knows its own")
        return "two"
    if options.epsilon_255 is not None and not 0 <= options.epsilon_255 <= 255:
        parser.error(f"argument --epsilon-255: {options.epsilon_255} is not between 0 and 255")
    if options.crop_fraction is not None and not 0 < options.crop_fraction <= 1:
        parser.error(f"argument --crop-fraction: {options.crop_fraction} is not above 0 and up to 1")
    if options.data is None and set(options.precision) - {"fp32"}:
        parser.error("argument --precision: below fp32 it is proven on real images alone: add --data")
    modes: Modes = options.tokens or "one"
    return modes
