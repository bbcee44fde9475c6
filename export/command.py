"""`tureen export`: arguments in, exit status out."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from pydantic import ValidationError

from export.parity import ParityLimits
from export.pipeline import ENGINE_PRECISIONS, export_bundle
from training.checkpoint import load_checkpoint
from tureen.bundle import NAME_PATTERN
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
        choices=list(dict.fromkeys(engine for engine, _ in ENGINE_PRECISIONS)),
        help="engine that must pass; may be repeated (default: all that this machine has)",
    )
    parser.add_argument(
        "--precision",
        action="append",
        default=[],
        choices=list(dict.fromkeys(precision for _, precision in ENGINE_PRECISIONS)),
        help="precision to prove; may be repeated (default: all)",
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
    parser.add_argument("--force", action="store_true", help="overwrite BUNDLE where it exists")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    options = parser.parse_args(arguments)
    if options.out.exists() and not options.force:
        raise BundleError(f"{options.out} exists already: choose another --out, or add --force")
    if options.name is not None and not re.match(NAME_PATTERN, options.name):
        parser.error(f"argument --name: {options.name!r} is not 1 to 64 letters, digits, dots, dashes and underscores")
    try:
        limits = ParityLimits(fp32_max_abs_diff=options.max_logit_diff, top1_agreement=options.min_agreement)
    except ValidationError:
        parser.error("--max-logit-diff is above 0, --min-agreement from 0 to 1")
    default_beta = parse_beta(options.default_beta)
    manifest = export_bundle(
        load_checkpoint(options.checkpoint),
        options.out,
        name=options.name,
        default_beta=default_beta,
        engines=options.engine,
        precisions=options.precision,
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
