"""`tureen export`: arguments in, exit status out."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from export.parity import ParityLimits
from export.pipeline import export_bundle
from export.proving import Asked
from export.quantization import calibration
from training.checkpoint import load_checkpoint
from tureen.bundle import NAME_PATTERN, Precision
from tureen.engines import RUNTIMES
from tureen.errors import BundleError
from tureen.report import accuracy_table, parity_table
from tureen.tokens import parse_beta


def export(arguments: list[str]) -> int:
    """Compile a checkpoint into a bundle."""
    limits = ParityLimits()
    parser = argparse.ArgumentParser(
        prog="tureen export",
        description="Compile a checkpoint's backbone, prove every engine against PyTorch, and write a bundle.",
        epilog="example: tureen export runs/digits --out digits-bundle --engine openvino --precision bf16",
    )
    parser.add_argument("checkpoint", type=Path, help="directory that `tureen train` left")
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="directory to write")
    parser.add_argument("--name", help="the model's name (default: the recipe's)")
    parser.add_argument(
        "--default-beta", default="0", metavar="BETA", help="β of a request that names none (default: 0)"
    )
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
    parser.add_argument("--data", metavar="DIR", help="images to calibrate int8 on (default: the digits' own)")
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
    for precision, points in (("half", limits.half_accuracy_points), ("int8", limits.int8_accuracy_points)):
        parser.add_argument(
            f"--max-{precision}-points",
            type=float,
            default=points,
            help=f"accuracy that {'bf16 and fp16' if precision == 'half' else precision} may differ from fp32, in "
            "points, clean and attacked, at every β (default: %(default)g)",
        )
    parser.add_argument("--force", action="store_true", help="overwrite BUNDLE where it exists")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    options = parser.parse_args(arguments)
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
    default_beta = parse_beta(options.default_beta)
    checkpoint = load_checkpoint(options.checkpoint)
    manifest = export_bundle(
        checkpoint,
        options.out,
        name=options.name,
        default_beta=default_beta,
        asked=Asked(
            engines=options.engine,
            precisions=options.precision,
            calibration=calibration(checkpoint, options.data),
            has_later_opset=options.has_later_opset,
        ),
        limits=limits,
        overwrite=options.force,
        report=lambda line: print(line, file=sys.stderr),
    )
    if options.json:
        print(manifest.model_dump_json(indent=2))
    else:
        print(f"{options.out}: {manifest.name} {manifest.version}\n")
        print(parity_table(manifest.parity))
        print()
        print(accuracy_table(manifest.accuracy))
    return 0
