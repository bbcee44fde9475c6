"""`tureen inspect`: what a bundle holds, verified."""

from __future__ import annotations

import argparse
from pathlib import Path

from tureen.bundle import load_bundle
from tureen.report import accuracy_summary, check_list, parity_table


def inspect(arguments: list[str]) -> int:
    """Verify a bundle and show its manifest."""
    parser = argparse.ArgumentParser(
        prog="tureen inspect",
        description="Verify a bundle and show what it holds.",
        epilog="example: tureen inspect tureen-demo/bundle",
    )
    parser.add_argument("bundle", type=Path, help="directory that `tureen export` wrote")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    options = parser.parse_args(arguments)
    manifest = load_bundle(options.bundle).manifest
    if options.json:
        print(manifest.model_dump_json(indent=2))
        return 0
    size = manifest.preprocess.image_size
    print(f"{manifest.name} {manifest.version}: {len(manifest.labels)} labels, RGB {size} × {size}")
    default = f"default β {manifest.default_beta:g}" if manifest.has_two_tokens else "no β"
    print(f"tokens of width {manifest.width}, {default}, ONNX opset {manifest.opset}\n")
    for name, record in manifest.files.items():
        print(f"  {name:<20} {record.size:>12,} bytes  sha256 {record.sha256[:16]}…  verified")
    print(f"\n{parity_table(manifest.parity)}\n\n{accuracy_summary(manifest)}\n")
    if manifest.evaluation.checks:
        print(f"{check_list(manifest.evaluation.checks)}\n")
    for key, value in manifest.provenance.items():
        print(f"  {key}: {value}")
    return 0
