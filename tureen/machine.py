"""What this machine is: its processors, and where what was learnt about it is kept between processes."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


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


def default_cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where compiled models and measurements of this machine are kept: TUREEN_CACHE_DIR, else the user's cache."""
    if given := environment.get("TUREEN_CACHE_DIR"):
        return Path(given)
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tureen"


def _quota(file: Path) -> int | None:
    """CPUs that a cgroup (version 2) lets its processes use, rounded up; None where it sets no limit."""
    try:
        quota, period = file.read_text().split()
        return None if quota == "max" else math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None
