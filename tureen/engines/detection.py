"""Detects which requirement of an engine is missing on this machine, without loading a runtime or a graph.

An engine may fail to open even if no requirement is missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tureen.bundle.manifest import PlanRecord
from tureen.engines import RUNTIMES
from tureen.machine import Gpu

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


@dataclass(frozen=True)
class Requirements:
    """The requirements of an engine: a Python module, and an NVIDIA GPU unless needs_gpu is False.

    distributions: the packages that can install the module. extra: the optional dependencies of Tureen that have one of
    these packages, such as "gpu" in `tureen[gpu]`.
    """

    module: str
    distributions: tuple[str, ...]
    extra: str
    needs_gpu: bool = True


REQUIREMENTS = {
    "onnxruntime": Requirements("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "cpu", needs_gpu=False),
    "onnxruntime-cuda": Requirements("onnxruntime", ("onnxruntime-gpu",), "gpu"),
    "onnxruntime-tensorrt": Requirements("onnxruntime", ("onnxruntime-gpu",), "gpu"),
    "openvino": Requirements("openvino", ("openvino",), "openvino", needs_gpu=False),
    "tensorrt": Requirements("tensorrt", ("tensorrt", "tensorrt-cu13"), "tensorrt"),
    "tensorrt-rtx": Requirements("tensorrt_rtx", ("tensorrt-rtx-cu13", "tensorrt-rtx"), "tensorrt-rtx"),
}


def missing_requirement(
    engine: str, precision: str, plan: PlanRecord | None = None, *, gpus: Sequence[Gpu], flags: Collection[str]
) -> str | None:
    """Returns the reason why this machine cannot run an engine in a precision; None if no requirement is missing.

    plan: the record of the compiled plan that the engine runs; None if it runs a graph. gpus: of this machine, as
    `nvidia_gpus` returns them. flags: the CPU features, as `cpu_flags` returns them; empty: unknown.
    """
    need = REQUIREMENTS.get(engine)
    if need is None or engine not in RUNTIMES:
        return "this Tureen has no such engine: upgrade Tureen"
    version = _installed_version(need)
    if version is None:
        return f"{need.distributions[0]} is not installed: install Tureen with its extra [{need.extra}]"
    if need.needs_gpu and not gpus:
        return "no NVIDIA GPU was found"
    if engine == "openvino" and precision == "bf16" and flags and not BF16_FLAGS & set(flags):
        return "this CPU has no bfloat16 arithmetic"
    if plan is None:
        return None
    if not {gpu.compute_capability for gpu in gpus} & set(plan.compute_capabilities):
        found = ", ".join(f"{gpu.name} has {gpu.compute_capability}" for gpu in gpus)
        return f"the plan is for compute capability {', '.join(plan.compute_capabilities)}; {found}"
    if plan.runtime_version != version:
        return f"the plan is for {engine} {plan.runtime_version}, installed is {version}"
    return None


def installed_version(engine: str) -> str | None:
    """Returns the version of the runtime of an engine in REQUIREMENTS; None if the runtime is not installed."""
    return _installed_version(REQUIREMENTS[engine])


def _installed_version(need: Requirements) -> str | None:
    """Returns the version of the first of `need.distributions` that is installed.

    Returns None if none of them is installed, or if the module is missing.
    """
    if importlib.util.find_spec(need.module) is None:
        return None
    for distribution in need.distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
