"""What this machine is: its processors, and where what was learnt about it is kept between processes."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
GPU_QUERY_S = 10  # nvidia-smi waits for a driver that hangs
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cpus() -> int:
    """How many CPUs this process may keep busy: those it may run on, or its container's quota where that is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _quota(CPU_QUOTA) or allowed))


def processor() -> str:
    """The processor's name, as its maker or the system gives it."""
    return _cpuinfo("model name", CPUINFO) or platform.processor() or platform.machine()


def cpu_flags(file: Path = CPUINFO) -> frozenset[str]:
    """What an x86 processor can do, in Linux's words, such as "avx512_bf16"; empty where the system does not say."""
    return frozenset(_cpuinfo("flags", file).split())


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU, as its driver describes it."""

    name: str
    compute_capability: str  # such as "9.0"


def nvidia_gpus(program: str = "nvidia-smi") -> list[Gpu]:
    """The NVIDIA GPUs that the driver's own program lists; none where there is no driver, or it does not answer."""
    path = shutil.which(program)
    if path is None:
        return []
    command = [path, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=GPU_QUERY_S, check=True)  # noqa: S603 - ours
    except (OSError, subprocess.SubprocessError):
        return []
    parts = [line.rpartition(", ") for line in listed.stdout.splitlines()]
    return [Gpu(name, capability) for name, comma, capability in parts if comma]


def default_cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where compiled models and measurements of this machine are kept: TUREEN_CACHE_DIR, else the user's cache."""
    if given := environment.get("TUREEN_CACHE_DIR"):
        return Path(given)
    return Path(environment.get("XDG_CACHE_HOME") or _home() / ".cache") / "tureen"


def default_state_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where what must survive a restart is kept: TUREEN_STATE_DIR, else the user's state."""
    if given := environment.get("TUREEN_STATE_DIR"):
        return Path(given)
    return Path(environment.get("XDG_STATE_HOME") or _home() / ".local" / "state") / "tureen"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a user without an entry, as containers have them
        return Path(tempfile.mkdtemp(prefix="tureen-"))  # for this process alone: nobody else can have prepared it


def _cpuinfo(key: str, file: Path) -> str:
    """What Linux says under that key of the first processor; empty where it does not."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def make_writable(directory: Path) -> None:
    """Make the directory where it is missing, for this user alone; raises OSError where no file can be made in it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=directory).close()


def _quota(file: Path) -> int | None:
    """CPUs that a cgroup (version 2) lets its processes use, rounded up; None where it sets no limit."""
    try:
        quota, period = file.read_text().split()
        return None if quota == "max" else math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None
