"""Collects what `tureen doctor` shows of this machine: system, CPUs, memory, engines, packages, directories, ports.

Each check is best effort. A fact that a check cannot find out is None, or a text that says so. Nothing here contains a
path, a host name or a user name. Imports nothing of the server, so that it works without the extra `serve`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shutil
import socket
import time
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from tureen.commands.inspection import inspect_bundle
from tureen.commands.package_versions import PackageReport, package_report
from tureen.engines.detection import REQUIREMENTS, installed_version, missing_requirement
from tureen.errors import BundleError, printable
from tureen.machine import (
    Gpu,
    available_cpus,
    cpu_flags,
    cpu_quota,
    default_cache_directory,
    default_state_directory,
    is_temporary,
    memory_limit,
    nvidia_gpus,
    processor,
    total_memory,
)
from tureen.remote.locate import locate_bundle
from tureen.version import __version__

HOST: Final = "127.0.0.1"
PORT: Final = 8000  # the defaults of `tureen serve`
PORT_VARIABLE: Final = "TUREEN_PORT"
ADMIN_PORT_VARIABLE: Final = "TUREEN_ADMIN_PORT"
EARLIEST_YEAR: Final = 2025  # an earlier time means that the clock was never set
FEATURES: Final[dict[str, frozenset[str]]] = {
    "AVX2": frozenset({"avx2"}),
    "AVX-512": frozenset({"avx512f"}),
    "VNNI": frozenset({"avx512_vnni", "avx_vnni"}),
    "AMX": frozenset({"amx_tile"}),
    "bf16": frozenset({"avx512_bf16", "amx_bf16"}),
}
"""The CPU features on which the speed of the engines depends, and the names that Linux has for each."""


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True)


class SystemFacts(_Facts):
    tureen: str
    python: str
    system: str


class CpuFacts(_Facts):
    model: str
    features: dict[str, bool] = Field(description="empty: the system does not list them")
    present: int | None
    available: int = Field(description="by affinity and quota")
    quota: float | None = Field(description="limit of the control groups, in CPUs")


class MemoryFacts(_Facts):
    total_bytes: int | None
    limit_bytes: int | None = Field(description="limit of the control groups")


class GpuFacts(_Facts):
    gpus: list[str] = Field(description="name and compute capability of each NVIDIA GPU")
    detail: str


class EngineFacts(_Facts):
    engine: str
    version: str | None
    why_not: str | None = Field(description="none: no requirement is missing")


class DirectoryFacts(_Facts):
    use: str
    source: str = Field(description="the variable or the default that gives the directory")
    is_writable: bool
    free_bytes: int | None


class PortFacts(_Facts):
    port: int
    use: str
    problem: str | None = Field(description="none: the port is free")


class ClockFacts(_Facts):
    timezone: str
    utc_offset_minutes: int
    is_monotonic: bool
    is_plausible: bool = Field(description="whether the date is not before the first release of Tureen")


class BundleFacts(_Facts):
    model: str | None = Field(description="name and version; none: the manifest cannot be read")
    problem: str | None = Field(description="why the bundle cannot be used")
    engines: dict[str, str | None] = Field(description="why each engine of the bundle cannot run; none: it can")


class Diagnosis(_Facts):
    """All facts. store: one line; `tureen.commands.doctor` adds it, because it needs the server.

    reasons: what would stop `tureen serve` on this machine. notes: what would not stop it, but needs attention.
    """

    reasons: list[str]
    notes: list[str]
    system: SystemFacts
    cpu: CpuFacts
    memory: MemoryFacts
    gpu: GpuFacts
    engines: list[EngineFacts]
    packages: PackageReport
    directories: list[DirectoryFacts]
    store: str
    ports: list[PortFacts]
    clock: ClockFacts
    bundle: BundleFacts | None


def system_facts() -> SystemFacts:
    """Returns the versions of Tureen, Python and the operating system."""
    name = platform.system()
    with contextlib.suppress(OSError):
        name = platform.freedesktop_os_release().get("PRETTY_NAME", name)
    libc = " ".join(part for part in platform.libc_ver() if part)
    kernel = platform.release().split("-")[0]  # what follows may be the name of a build host
    parts = [name, f"kernel {kernel}" if kernel else "", libc, platform.machine()]
    return SystemFacts(
        tureen=__version__,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=", ".join(part for part in parts if part),
    )


def cpu_facts(flags: Collection[str]) -> CpuFacts:
    """Returns the CPUs of this machine. flags: its features, as `cpu_flags` returns them."""
    features = {name: not names.isdisjoint(flags) for name, names in FEATURES.items()} if flags else {}
    return CpuFacts(
        model=processor() or "unknown",
        features=features,
        present=os.cpu_count(),
        available=available_cpus(),
        quota=cpu_quota(),
    )


def gpu_facts(gpus: Collection[Gpu], program: str = "nvidia-smi") -> GpuFacts:
    names = [f"{gpu.name} (compute capability {gpu.compute_capability})" for gpu in gpus]
    if names:
        return GpuFacts(gpus=names, detail=", ".join(names))
    found = shutil.which(program) is not None
    return GpuFacts(gpus=[], detail=f"none: {program} {'lists none, or failed' if found else 'is not installed'}")


def engine_facts(gpus: list[Gpu], flags: Collection[str]) -> list[EngineFacts]:
    """Returns each engine with its version, or with the reason why it cannot run."""
    return [
        EngineFacts(
            engine=engine,
            version=installed_version(engine),
            why_not=missing_requirement(engine, "fp32", gpus=gpus, flags=flags),
        )
        for engine in REQUIREMENTS
    ]


def directory_facts(environment: Mapping[str, str]) -> list[DirectoryFacts]:
    """Returns the state directory and the cache directory. Creates neither."""
    return [
        _directory("state", ("TUREEN_STATE_DIR", "XDG_STATE_HOME"), default_state_directory, environment),
        _directory("cache", ("TUREEN_CACHE_DIR", "XDG_CACHE_HOME"), default_cache_directory, environment),
    ]


def _directory(
    use: str,
    variables: tuple[str, ...],
    find: Callable[[Mapping[str, str]], Path],
    environment: Mapping[str, str],
) -> DirectoryFacts:
    try:
        directory = find(environment)
        source = next((name for name in variables if environment.get(name)), None)
        if source is None:
            source = "temporary, removed at the end" if is_temporary(directory) else "in the home directory"
        existing = next(path for path in (directory, *directory.absolute().parents) if os.path.exists(path))
        is_writable = os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)
        free = shutil.disk_usage(existing).free
    except OSError:  # no temporary directory is writable either
        return DirectoryFacts(use=use, source="none can be created", is_writable=False, free_bytes=None)
    return DirectoryFacts(use=use, source=source, is_writable=is_writable, free_bytes=free)


def port_facts(environment: Mapping[str, str]) -> list[PortFacts]:
    """Returns whether the ports of the two listeners are free on loopback."""
    port = _port_number(environment.get(PORT_VARIABLE), PORT)
    admin_port = _port_number(environment.get(ADMIN_PORT_VARIABLE), (port + 1) % 65536 if port else 0)
    return [
        PortFacts(port=number, use=use, problem=port_problem(number))
        for number, use in ((port, "clients"), (admin_port, "operators"))
    ]


def _port_number(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) <= 5 else default


def port_problem(port: int, host: str = HOST) -> str | None:
    """Returns why no server can listen on the port; None if the port is free. Port 0 is any free port."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind((host, port))
            probe.listen(1)
    except OverflowError:
        return "not a port"
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return "taken"
        return error.strerror or "cannot be used"
    return None


def clock_facts(now_s: float | None = None) -> ClockFacts:
    """Returns the timezone, and whether the clocks are plausible. now_s: seconds since 1970; None: now."""
    now = datetime.fromtimestamp(time.time() if now_s is None else now_s).astimezone()
    offset = now.utcoffset()
    return ClockFacts(
        timezone=now.tzname() or "unknown",
        utc_offset_minutes=0 if offset is None else round(offset.total_seconds() / 60),
        is_monotonic=time.get_clock_info("monotonic").monotonic and time.monotonic() <= time.monotonic(),
        is_plausible=now.year >= EARLIEST_YEAR,
    )


def bundle_facts(bundle: Path) -> BundleFacts:
    """Returns whether the bundle can be used, and which of its engines this machine can run. Opens no engine."""
    try:
        path = locate_bundle(bundle)
        inspection = inspect_bundle(path)
    except (BundleError, OSError) as error:
        return BundleFacts(model=None, problem=_without_path(error, bundle), engines={})
    return BundleFacts(
        model=f"{inspection.name} {inspection.version}",
        problem=None if inspection.error is None else printable(inspection.error.replace(str(path), "the bundle")),
        engines={
            printable(f"{one.engine} {one.precision}"): None if one.can_run else printable(one.why_not)
            for one in inspection.engines
        },
    )


def _without_path(error: Exception, path: Path) -> str:
    """Returns the message of an error without the paths of the bundle and the cache: they may have a user's name."""
    text = (error.strerror or "cannot be read") if isinstance(error, OSError) else str(error)
    for one in (str(path.absolute()), str(path)):
        text = text.replace(one, "the bundle")
    text = text.replace(str(path).replace(":/", "://", 1), "its address")  # pathlib has removed a slash of it
    text = text.replace(str(default_cache_directory()), "the cache")
    return printable(text)


def diagnose(
    bundle: Path | None,
    *,
    environment: Mapping[str, str],
    server_reasons: list[str],
    server_notes: list[str],
    store: str,
) -> Diagnosis:
    """Returns all facts, and the reasons that follow from them.

    server_reasons, server_notes, store: what `tureen.commands.doctor` has found out about the server.
    """
    gpus, flags = nvidia_gpus(), cpu_flags()
    engines = engine_facts(gpus, flags)
    packages = package_report()
    directories = directory_facts(environment)
    ports = port_facts(environment)
    clock = clock_facts()
    found = None if bundle is None else bundle_facts(bundle)
    reasons = [*server_reasons]
    reasons += [f"{one.name} is not installed" for one in packages.packages if one.state == "missing"]
    if all(one.why_not for one in engines):
        reasons.append("no engine can run: install Tureen with its extra [cpu] or [openvino]")
    if found is not None and found.problem is not None:
        reasons.append(f"the bundle cannot be used: {found.problem}")
    elif found is not None and all(found.engines.values()):
        reasons.append("no engine of the bundle can run on this machine")
    reasons += [f"port {one.port}, for {one.use}: {one.problem}" for one in ports if one.problem]
    reasons += [f"no {one.use} directory can be created" for one in directories if one.free_bytes is None]
    notes = [*server_notes]
    notes += [
        f"{one.name} {one.version} is {one.state} the versions that Tureen needs: {one.needs}"
        for one in packages.packages
        if one.state in ("below", "above")
    ]
    notes += [
        f"the {one.use} directory ({one.source}) is not writable"
        for one in directories
        if not one.is_writable and one.free_bytes is not None
    ]
    if packages.problem:
        notes.append(packages.problem)
    if not clock.is_plausible:
        notes.append(f"the clock shows a date before {EARLIEST_YEAR}: set it")
    if not clock.is_monotonic:
        notes.append("the monotonic clock runs backwards: deadlines are wrong")
    return Diagnosis(
        reasons=reasons,
        notes=notes,
        system=system_facts(),
        cpu=cpu_facts(flags),
        memory=MemoryFacts(total_bytes=total_memory(), limit_bytes=memory_limit()),
        gpu=gpu_facts(gpus),
        engines=engines,
        packages=packages,
        directories=directories,
        store=store,
        ports=ports,
        clock=clock,
        bundle=found,
    )
