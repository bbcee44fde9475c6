"""The command `tureen export`: converts a checkpoint or a third-party model to a bundle that the server loads."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from pathlib import Path

from pydantic import ValidationError

from export.commands.parsers import export_parser
from export.errors import ExportError
from export.gallery import read_gallery
from export.parity import ParityLimits
from export.pipeline import Modes, export_bundle
from export.proving import EngineRequest
from export.quantization import calibration_source
from export.third_party import ThirdPartyOptions, is_third_party, load_third_party
from training.checkpoint import load_checkpoint
from training.data.datasets import balanced_sample
from training.distributed import limit_threads
from training.weights.weight_sources import HUB, TIMM, is_remote
from tureen.bundle.manifest import LICENSE, NAME_PATTERN
from tureen.commands.report import accuracy_summary, parity_table
from tureen.errors import BundleError, SingleTokenError
from tureen.machine import default_cache_directory
from tureen.tokens import CLEAN_BETA, parse_beta

THIRD_PARTY_ONLY = ("labels", "epsilon_255", "crop_fraction")  # a checkpoint of Tureen has these values
THIRD_PARTY = ("data", "images", *THIRD_PARTY_ONLY)  # fields of ThirdPartyOptions that have a flag


def export(arguments: list[str]) -> int:
    """Runs `tureen export`: writes the bundle of a checkpoint or of a third-party model. Returns the exit status.

    arguments: those after `tureen export`.
    """
    parser = export_parser()
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
    if not options.checkpoint.exists() and not is_remote(options.checkpoint):
        raise ExportError(
            f"{options.checkpoint} does not exist: give the directory of a finished run, a file of weights, "
            f"{HUB}OWNER/NAME or {TIMM}NAME"
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
    if options.license is not None:
        provenance = {**checkpoint.provenance, LICENSE: options.license}
        checkpoint = dataclasses.replace(checkpoint, provenance=provenance)
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
        note=None if options.note is None else _read_note(options.note),
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
        else:
            print(f"\nnext: tureen serve {options.out}")
    return 0


def _read_note(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ExportError(f"{file} cannot be read: --note takes a text file in UTF-8") from None


def report(line: str) -> None:
    """Prints a message on standard error, because standard output is for the result."""
    print(line, file=sys.stderr)


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
