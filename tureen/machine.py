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
from typing import Literal

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
NO_MEMORY_LIMIT = 2**60  # control groups of version 1 express "no limit" as a larger number
GPU_QUERY_S = 10  # nvidia-smi may wait for a driver that hangs


def available_cpus(proc: Path = Path("/proc/self")) -> int:
    """Returns the number of CPUs that this process may use: the smaller of its CPU affinity and its lowest quota.

    A quota is the CPU limit of a control group, rounded up. proc: the directory in which Linux lists the control groups
    and mounts of this process.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *map(math.ceil, _cpu_quotas(proc))]))


def cpu_quota(proc: Path = Path("/proc/self")) -> float | None:
    """Returns the lowest CPU limit of the control groups of this process, in CPUs; None without a limit.

    proc: as in `available_cpus`.
    """
    return min(_cpu_quotas(proc), default=None)


def total_memory(file: Path = MEMINFO) -> int | None:
    """Returns the bytes of memory of this machine; None if the system does not say. file: in the format of meminfo."""
    kibibytes = _value_of_line("MemTotal", file).removesuffix("kB").strip()
    return int(kibibytes) * 1024 if kibibytes.isdecimal() else None


def process_memory(field: Literal["VmRSS", "VmHWM"], proc: Path = Path("/proc/self")) -> int | None:
    """Returns the memory of this process in bytes; None if the system has no /proc.

    field: "VmRSS" for the current value, "VmHWM" for the peak. Does not use ru_maxrss of getrusage, because a process
    inherits the value of its parent. proc: as in `available_cpus`.
    """
    try:
        lines = (proc / "status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def memory_limit(proc: Path = Path("/proc/self")) -> int | None:
    """Returns the lowest memory limit of the control groups of this process, in bytes; None without a limit.

    proc: as in `available_cpus`.
    """
    limits = []
    for group in _control_groups(proc, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                limits.append(int((group / name).read_text()))
            except (OSError, ValueError):  # "max" means no limit
                continue
    return min((limit for limit in limits if limit < NO_MEMORY_LIMIT), default=None)


def processor() -> str:
    """Returns the model name of the processor from /proc/cpuinfo; without one, the name from the `platform` module."""
    return _value_of_line("model name", CPUINFO) or platform.processor() or platform.machine()


def cpu_flags(file: Path = CPUINFO) -> frozenset[str]:
    """Returns the features of an x86 processor as Linux names them, such as "avx512_bf16"; empty if unknown.

    file: in the format of /proc/cpuinfo.
    """
    return frozenset(_value_of_line("flags", file).split())


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


def _value_of_line(key: str, file: Path) -> str:
    """Returns the value of the first line of `file` that begins with `key`.

    Returns an empty text if there is no such line, or if the file cannot be read. file: has lines "key: value".
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
    """Returns the CPU limits, in CPUs, of the control groups of this process and of all parents of these groups."""
    return [quota for group in _control_groups(proc, "cpu") for quota in _cpu_quota(group)]


def _control_groups(proc: Path, controller: str) -> list[Path]:
    """Returns the directories of the control groups of this process and of all parents of these groups.

    Finds control groups of version 2, and those of version 1 with the controller. proc: as in `available_cpus`.
    controller: such as "cpu". Returns an empty list if the system has no control groups.
    """
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:
        return []
    own = {name: path for _, names, path in groups for name in names.split(",")}
    found = []
    for fields in mounts:  # proc_pid_mountinfo(5): … root mount-point options … - type source super-options
        root, mount_point = fields[3], Path(fields[4])
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        name = {"cgroup2": "", "cgroup": controller}.get(kind)
        if name not in own or (kind == "cgroup" and controller not in options.split(",")):
            continue
        # In a container the root of the mount may be the container's group, with the name that it has on the host.
        below = os.path.relpath(own[name], root) if own[name].startswith(root) else "."
        group = Path(os.path.normpath(mount_point / below))
        for directory in (group, *group.parents):
            found.append(directory)
            if directory == mount_point:
                break
    return found


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
