"""What this machine is: its processors, and where what was learnt about it is kept between processes."""

from __future__ import annotations

import math
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


def available_cpus() -> int:
    """How many CPUs this process may keep busy: those it may run on, or its container's quota where that is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _quota(CPU_QUOTA) or allowed))


def processor() -> str:
    """The processor's name, as its maker or the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpus(directory: Path = NVIDIA_GPUS) -> list[str]:
    """The names of the NVIDIA GPUs that the system's driver lists; no runtime is loaded to find out."""
    lines = (line for file in sorted(directory.glob("*/information")) for line in file.read_text().splitlines())
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]


def default_cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where compiled models and measurements of this machine are kept: TUREEN_CACHE_DIR, else the user's cache."""
    if given := environment.get("TUREEN_CACHE_DIR"):
        return Path(given)
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tureen"


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
