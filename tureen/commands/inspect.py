"""`tureen inspect`: shows the content of a bundle, its defects, and which of its engines this machine can run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tureen.bundle.examples import BUNDLE_HELP
from tureen.bundle.graph import GraphFile
from tureen.bundle.manifest import NOTE, Manifest
from tureen.commands.inspection import Inspection, inspect_bundle
from tureen.commands.report import (
    accuracy_summary,
    calibration_summary,
    check_results,
    parity_table,
    plan_table,
    strength_summary,
)
from tureen.commands.terminal import terminal_columns, wrapped
from tureen.commands.token_report import token_summary
from tureen.errors import BundleError, printable
from tureen.remote.locate import locate_bundle

SHOWN_LABELS = 10
SHOWN_OPERATORS = 12


def inspect(arguments: list[str]) -> int:
    """Prints the content and the defects of a bundle. Returns exit status 0 if the bundle can be used.

    arguments: those after `tureen inspect`. Raises BundleError if the bundle has no readable manifest. If the bundle
    cannot be used for another reason, prints the content, and then raises BundleError.
    """
    parser = argparse.ArgumentParser(
        prog="tureen inspect",
        description="Verify a bundle; show its content, and which of its engines this machine can run.",
        epilog="example: tureen inspect cifar10 --try",
    )
    parser.add_argument("bundle", type=Path, help=BUNDLE_HELP)
    parser.add_argument(
        "--try",
        dest="is_trial",
        action="store_true",
        help="open each engine, check that it reproduces the golden rows, and show which one `auto` chooses",
    )
    parser.add_argument("--json", action="store_true", help="print the same as a JSON object")
    options = parser.parse_args(arguments)
    inspection = inspect_bundle(locate_bundle(options.bundle), is_trial=options.is_trial)
    if options.json:
        print(inspection.model_dump_json(indent=2))
    else:
        print(wrapped("\n\n".join(part for part in _parts(inspection) if part), terminal_columns()))
    if inspection.error is not None:
        raise BundleError(inspection.error)
    return 0


def _parts(inspection: Inspection) -> Iterator[str]:
    if inspection.manifest is None:
        yield f"{inspection.name} {inspection.version}, of schema version {inspection.schema_version}"
        yield _files(inspection)
        return
    manifest = _printable_manifest(inspection.manifest)
    yield _heading(manifest)
    for name, graph in inspection.graphs.items():
        yield _graph(name, graph)
    yield _files(inspection)
    yield parity_table(manifest.parity) if manifest.parity else "the bundle lists no engine"
    yield _engines(inspection)
    yield plan_table(manifest.plans) if manifest.plans else ""
    yield accuracy_summary(manifest)
    yield f"{strength_summary(manifest)}\n{calibration_summary(manifest)}" if manifest.is_cotrained else ""
    yield check_results(manifest.evaluation.checks) if manifest.evaluation.checks else ""
    yield from map(token_summary, inspection.learned_tokens)
    yield "\n".join(f"  {key}: {value}" for key, value in manifest.provenance.items() if key != NOTE)


def _heading(manifest: Manifest) -> str:
    size, labels = manifest.preprocess.image_size, manifest.labels
    more = f" and {len(labels) - SHOWN_LABELS:,} more" if len(labels) > SHOWN_LABELS else ""
    share = f"{100 * manifest.preprocess.crop_fraction:g} % of the shorter side"
    default = f"default β {manifest.default_beta:g}" if manifest.has_two_tokens else "no β"
    return "\n".join(
        [
            f"{manifest.name} {manifest.version}: {len(labels)} labels, RGB {size} × {size}",
            f"  labels      {', '.join(labels[:SHOWN_LABELS])}{more}",
            f"  preprocess  centred square of {share}, {manifest.preprocess.interpolation} to {size} × {size}",
            f"  tokens      of width {manifest.width}, {default}",
            f"  manifest    schema version {manifest.schema_version}",
        ]
    )


def _graph(name: str, graph: GraphFile) -> str:
    operators = [f"{count} {printable(operator)}" for operator, count in graph.nodes.items()]
    more = f" and {len(operators) - SHOWN_OPERATORS} other operators" if len(operators) > SHOWN_OPERATORS else ""
    opsets = ", ".join(f"{printable(domain) or 'ONNX'} {version}" for domain, version in graph.opsets.items())
    return "\n".join(
        [
            f"{name}: opset {opsets}, {sum(graph.nodes.values()):,} nodes, {graph.weights_bytes:,} bytes of weights",
            *(f"  in      {printable(str(tensor))}" for tensor in graph.inputs),
            *(f"  out     {printable(str(tensor))}" for tensor in graph.outputs),
            f"  nodes   {', '.join(operators[:SHOWN_OPERATORS])}{more}",
            *(f"  REFERS  to another file: {printable(other)}" for other in graph.external_files),
        ]
    )


def _files(inspection: Inspection) -> str:
    width = max((len(file.name) for file in inspection.files), default=0)
    lines = []
    for file in inspection.files:
        size = "" if file.size is None else f"{file.size:,} bytes"
        digest = f"sha256 {file.sha256[:16]}…" if file.sha256 else ""
        lines.append(f"  {file.name:<{width}}  {size:>20}  {digest:<24}  {file.state}")
    return "\n".join(lines)


def _engines(inspection: Inspection) -> str:
    """Returns a text with one line per engine: whether this machine can run the engine, or why not.

    The last line has the engine that "auto" chooses. The text is empty if the bundle cannot be used.
    """
    if inspection.auto is None:
        return ""
    lines = ["on this machine"]
    for engine in inspection.engines:
        verdict = "seems to run"
        if engine.largest_difference is not None:
            verdict = f"runs, largest difference from the golden logits {engine.largest_difference:.1e}"
        elif not engine.can_run:
            verdict = f"does not run: {engine.why_not}"
        lines.append(f"  {printable(f'{engine.engine} {engine.precision}'):<26}  {verdict}")
    auto = inspection.auto
    return "\n".join([*lines, f"  {'auto':<26}  {f'{auto.engine}, ' if auto.engine else ''}{auto.why}"])


def _printable_manifest(manifest: Manifest) -> Manifest:
    """Returns a copy of the manifest in which all texts are escaped for a terminal, because a bundle is not trusted."""

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return printable(value)
        if isinstance(value, dict):
            return {clean(key): clean(item) for key, item in value.items()}
        return [clean(item) for item in value] if isinstance(value, list | tuple) else value

    return Manifest.model_validate(clean(manifest.model_dump()))
