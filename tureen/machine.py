"""Describes this machine: its CPUs and GPUs, and the directories for cache and state."""

from __future__ import annotations

import atexit
import functools
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
GPU_QUERY_S = 10  # nvidia-smi may wait for a driver that hangs


def available_cpus(proc: Path = Path("/proc/self")) -> int:
    """Returns the number of CPUs that this process may use: the smaller of its CPU affinity and its lowest quota.

    A quota is the CPU limit of a control group, rounded up. proc: the directory in which Linux lists the control groups
    and mounts of this process.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *map(math.ceil, _cpu_quotas(proc))]))


def processor() -> str:
    """Returns the model name of the processor from /proc/cpuinfo; without one, the name from the `platform` module."""
    return _cpuinfo_value("model name", CPUINFO) or platform.processor() or platform.machine()


def cpu_flags(file: Path = CPUINFO) -> frozenset[str]:
    """Returns the features of an x86 processor as Linux names them, such as "avx512_bf16"; empty if unknown.

    file: in the format of /proc/cpuinfo.
    """
    return frozenset(_cpuinfo_value("flags", file).split())


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU, as its driver describes it."""

    name: str
    compute_capability: str  # such as "9.0"


def nvidia_gpus(program: str = "nvidia-smi") -> list[Gpu]:
    """Returns the NVIDIA GPUs that nvidia-smi lists.

    Returns an empty list if nvidia-smi is missing, fails, or takes more than GPU_QUERY_S seconds.
    """
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
    """Returns the directory for compiled models and measurements, from the variables in `environment`.

    The directory is TUREEN_CACHE_DIR. If that is not set, it is tureen/ in XDG_CACHE_HOME, or in ~/.cache if both are
    not set. A user without a writable home gets a temporary directory instead of ~/.cache.
    """
    if given := environment.get("TUREEN_CACHE_DIR"):
        return Path(given)
    return Path(environment.get("XDG_CACHE_HOME") or _home_directory(".cache")) / "tureen"


def default_state_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Returns the directory for the data that must survive a restart, from the variables in `environment`.

    The directory is TUREEN_STATE_DIR. If that is not set, it is tureen/ in XDG_STATE_HOME, or in ~/.local/state if both
    are not set. A user without a writable home gets a temporary directory instead of ~/.local/state.
    """
    if given := environment.get("TUREEN_STATE_DIR"):
        return Path(given)
    return Path(environment.get("XDG_STATE_HOME") or _home_directory(".local/state")) / "tureen"


def is_temporary(directory: Path) -> bool:
    """Returns whether the directory is in the temporary home that this process created and removes at its exit."""
    return _temporary_home.cache_info().currsize > 0 and directory.is_relative_to(_temporary_home())


def _home_directory(name: str) -> Path:
    """Returns the directory `name` in the user's home, or in a temporary home if the user has no writable home."""
    try:
        directory = Path.home() / name
    except RuntimeError:  # a user without a passwd entry, as in containers
        return _temporary_home() / name
    existing = next(path for path in (directory, *directory.parents) if os.path.exists(path))  # not if forbidden
    return directory if os.access(existing, os.W_OK | os.X_OK) else _temporary_home() / name


@functools.cache
def _temporary_home() -> Path:
    """Returns the temporary home of this process: a directory that only this user can access.

    The first call creates the directory. This process removes it at its exit.
    """
    home = tempfile.mkdtemp(prefix="tureen-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return Path(home)


def _cpuinfo_value(key: str, file: Path) -> str:
    """Returns the value of the first line of `file` that begins with `key`.

    Returns an empty text if there is no such line, or if the file cannot be read. file: in the format of /proc/cpuinfo.
    """
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def ensure_writable(directory: Path) -> None:
    """Creates the directory if it is missing, with access for its owner only.

    Raises OSError if the directory cannot be created or is not writable.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=directory).close()


def _cpu_quotas(proc: Path) -> list[float]:
    """Returns the CPU limits, in CPUs, of the control groups of this process and of all parents of these groups.

    Reads control groups of version 1 and 2. proc: as in `available_cpus`. Returns an empty list without any limit.
    """
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:
        return []
    own = {controller: path for _, controllers, path in groups for controller in controllers.split(",")}
    quotas = []
    for fields in mounts:  # proc_pid_mountinfo(5): … root mount-point options … - type source super-options
        root, mount_point = fields[3], Path(fields[4])
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        controller = {"cgroup2": "", "cgroup": "cpu"}.get(kind)
        if controller not in own or (kind == "cgroup" and "cpu" not in options.split(",")):
            continue
        # In a container the root of the mount may be the container's group, with the name that it has on the host.
        below = os.path.relpath(own[controller], root) if own[controller].startswith(root) else "."
        group = Path(os.path.normpath(mount_point / below))
        for directory in (group, *group.parents):
            quotas += _cpu_quota(directory)
            if directory == mount_point:
                break
    return quotas


def _cpu_quota(group: Path) -> list[float]:
    """Returns a list with the CPU limit of a control group, in CPUs. The list is empty if the group has no limit.

    group: the directory of the control group.
    """
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
            if int(quota) > 0:
                return [int(quota) / int(period)]
        except (OSError, ValueError, ZeroDivisionError):  # "max" means no limit
            continue
    return []
