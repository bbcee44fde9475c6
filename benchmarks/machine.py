"""Describes the machine and the software of a measurement: processor, cores, versions, commit."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

from tureen.machine import available_cpus, processor

PACKAGES = ("torch", "onnxruntime", "openvino")


def describe_machine() -> str:
    """Returns the line that every benchmark prints first: processor, cores, versions and commit."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return (
        f"{processor()}, {available_cpus()} cores; Python {platform.python_version()}, {versions}; commit {_commit()}"
    )


def _commit() -> str:
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return result.stdout.strip() or "unknown"
