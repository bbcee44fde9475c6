"""`tureen doctor`: shows what an issue needs to know about this machine, and what would stop `tureen serve` on it."""

from __future__ import annotations

import argparse
import importlib
import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tureen.bundle.examples import BUNDLE_HELP
from tureen.commands.diagnosis import Diagnosis, DirectoryFacts, diagnose
from tureen.commands.package_versions import PackageReport
from tureen.errors import TureenError
from tureen.machine import default_state_directory

WIDTH: Final = 100
GIB: Final = 2**30


@dataclass
class ServerCheck:
    """What only the packages of the server can find out.

    store: one line about the store of the settings. reasons: what would stop the server. notes: what would not.
    """

    store: str = "not checked: the server cannot be imported"
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def doctor(arguments: list[str]) -> int:
    """Prints the diagnosis. Returns exit status 0, or 1 if something would stop `tureen serve` on this machine.

    arguments: those after `tureen doctor`.
    """
    parser = argparse.ArgumentParser(
        prog="tureen doctor",
        description="Show versions, CPUs, memory, engines, directories, the store and the ports, to paste into an "
        "issue. The output has no path, host name, user name or token.",
        epilog="example: tureen doctor --bundle cifar10",
    )
    parser.add_argument("--bundle", type=Path, help=f"check this bundle too: {BUNDLE_HELP}")
    parser.add_argument("--json", action="store_true", help="print the same as a JSON object")
    options = parser.parse_args(arguments)
    server = check_server(os.environ)
    diagnosis = diagnose(
        options.bundle,
        environment=os.environ,
        server_reasons=server.reasons,
        server_notes=server.notes,
        store=server.store,
    )
    if options.json:
        print(diagnosis.model_dump_json(indent=2))
    else:
        print("\n".join(_lines(diagnosis)))
    return 1 if diagnosis.reasons else 0


def check_server(environment: Mapping[str, str]) -> ServerCheck:
    """Imports the server and checks the store of the settings. Starts nothing, and changes nothing."""
    check = ServerCheck()
    try:
        importlib.import_module("serve.server").check_uvicorn()
    except ModuleNotFoundError as error:
        check.reasons.append(f"{error.name} is not installed: install Tureen with its extra [serve]")
        return check
    except TureenError as error:
        check.reasons.append(str(error))
    except Exception as error:  # noqa: BLE001 - a damaged package may raise any exception when it is imported
        check.reasons.append(f"the server cannot be imported: {type(error).__name__}")
        return check
    from serve.control.store_reachability import KNOWN_VERSION, check_store

    try:
        found = check_store(environment.get("TUREEN_STORE"), default_state_directory(environment))
    except TureenError as error:
        check.store = "its URL is not valid"
        check.reasons.append(str(error))
        return check
    except OSError:
        check.store = "no state directory can be created"
        return check
    check.store = f"{found.kind}, {found.detail}"
    if found.is_reachable is False or (found.schema_version or 0) > KNOWN_VERSION:
        check.notes.append(f"the store of the settings: {check.store}")
    return check


def _lines(diagnosis: Diagnosis) -> Iterator[str]:
    """Yields the text, with the reasons first."""
    for reason in diagnosis.reasons:
        yield f"STOPS tureen serve: {reason}"
    for note in diagnosis.notes:
        yield f"note: {note}"
    if not diagnosis.reasons:
        yield "nothing found that would stop tureen serve"
    yield ""
    system, cpu, memory = diagnosis.system, diagnosis.cpu, diagnosis.memory
    yield from _row("tureen", f"{system.tureen}, {system.python}")
    yield from _row("system", system.system)
    yield from _row("cpu", cpu.model)
    yield from _row("features", ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in cpu.features.items()))
    quota = "no quota" if cpu.quota is None else f"a quota of {cpu.quota:g}"
    yield from _row("cpus", f"{cpu.available} available of {cpu.present or 'an unknown number of'} present, {quota}")
    limit = "no limit" if memory.limit_bytes is None else f"limit {_gib(memory.limit_bytes)}"
    yield from _row("memory", f"{_gib(memory.total_bytes)}, {limit}")
    yield from _row("gpu", diagnosis.gpu.detail)
    for engine in diagnosis.engines:
        yield from _row("engine", f"{engine.engine}: {engine.why_not or f'usable, {engine.version}'}")
    yield from _package_lines(diagnosis.packages)
    for directory in diagnosis.directories:
        yield from _row(directory.use, _directory(directory))
    yield from _row("store", diagnosis.store)
    yield from _row("ports", ", ".join(f"{one.port} ({one.use}) {one.problem or 'free'}" for one in diagnosis.ports))
    clock = diagnosis.clock
    state = "plausible" if clock.is_plausible else "wrong date"
    steady = "monotonic" if clock.is_monotonic else "not monotonic"
    yield from _row("clock", f"{clock.timezone}, UTC {clock.utc_offset_minutes:+d} min, {state}, {steady}")
    if (bundle := diagnosis.bundle) is not None:
        yield from _row("bundle", f"{bundle.model or 'unreadable'}: {bundle.problem or 'verified'}")
        for name, why_not in bundle.engines.items():
            yield from _row("", f"{name}: {why_not or 'seems to run'}")


def _package_lines(report: PackageReport) -> Iterator[str]:
    if report.problem:
        yield from _row("packages", report.problem)
        return
    marks = {"below": " (BELOW {})", "above": " (ABOVE {})", "missing": " MISSING"}
    names = [
        f"{one.name} {one.version or ''}".strip() + marks.get(one.state, "").format(one.needs)
        for one in report.packages
    ]
    yield from _row("packages", ", ".join(names))
    complete = [extra for extra, lacking in report.extras.items() if not lacking]
    yield from _row("extras", f"complete: {', '.join(complete) or 'none'}")


def _directory(directory: DirectoryFacts) -> str:
    free = "" if directory.free_bytes is None else f", {_gib(directory.free_bytes)} free"
    return f"{directory.source}, {'writable' if directory.is_writable else 'NOT writable'}{free}"


def _row(name: str, text: str) -> list[str]:
    """Returns the lines of one fact, at most WIDTH wide."""
    return textwrap.wrap(
        text or "unknown",
        WIDTH,
        initial_indent=f"{name:<10}",
        subsequent_indent=" " * 10,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.1f} GiB"
