"""Compares the installed packages with the versions that the metadata of the distribution `tureen` requires."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

DISTRIBUTION: Final = "tureen"
LEFT_OUT: Final = frozenset({"dev"})  # the extra of those who change the code
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)\s*(?:\[(?P<extras>[^]]*)\])?\s*\(?(?P<versions>[^;)]*)\)?\s*(?:;(?P<marker>.*))?"
)
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_VERSION = re.compile(r"v?(?:\d+!)?(\d+(?:\.\d+)*)(.*)")
_BOUND = re.compile(r"(>=|<)\s*([^\s,]+)")

State = Literal["ok", "below", "above", "missing"]


@dataclass(frozen=True)
class Needed:
    """One line of the metadata: a package with its bounds, and the extra that needs it; None: Tureen itself.

    through: the extras of Tureen that the line includes, if the package is Tureen.
    """

    name: str
    versions: str
    extra: str | None
    through: tuple[str, ...] = ()


class PackageVersion(BaseModel):
    """An installed or missing package. needs: its bounds, such as ">=2.1". state: how its version relates to them."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str | None
    needs: str
    state: State


class PackageReport(BaseModel):
    """The packages that Tureen needs.

    packages: those that are installed, and those that Tureen needs without any extra. extras: of each extra, the
    packages that it lacks. Both are empty if the metadata of Tureen cannot be found; then `problem` says so.
    """

    model_config = ConfigDict(frozen=True)

    packages: list[PackageVersion] = []
    extras: dict[str, list[str]] = {}
    problem: str | None = None


def package_report(distribution: str = DISTRIBUTION) -> PackageReport:
    """Returns the installed packages against the metadata of the distribution."""
    try:
        lines = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return PackageReport(problem="Tureen is not installed as a package, so the required versions are unknown")
    needed = [one for one in map(parse_requirement, lines) if one is not None and one.extra not in LEFT_OUT]
    versions = {one.name: _installed(one.name) for one in needed}
    packages = {
        one.name: PackageVersion(
            name=one.name,
            version=versions[one.name],
            needs=one.versions,
            state=version_state(versions[one.name], one.versions),
        )
        for one in needed
        if one.name != distribution and (versions[one.name] or one.extra is None)
    }
    names = sorted({one.extra for one in needed if one.extra is not None})
    extras = {
        extra: sorted({one.name for one in _with_included(extra, needed) if versions[one.name] is None})
        for extra in names
    }
    return PackageReport(packages=sorted(packages.values(), key=lambda one: one.name.lower()), extras=extras)


def parse_requirement(line: str) -> Needed | None:
    """Returns the package of a line such as `fastapi>=0.134; extra == "serve"`; None for a line of another form.

    Ignores the conditions on the system.
    """
    match = _REQUIREMENT.fullmatch(line.strip())
    if match is None:
        return None
    extra = _EXTRA.search(match["marker"] or "")
    through = (
        tuple(name.strip() for name in (match["extras"] or "").split(",")) if match["name"] == DISTRIBUTION else ()
    )
    return Needed(match["name"], match["versions"].strip(), extra[1] if extra else None, through)


def version_state(version: str | None, needs: str) -> State:
    """Returns how a version relates to bounds such as ">=0.53,<0.55". Bounds of another kind are ignored."""
    if version is None:
        return "missing"
    for operator, bound in _BOUND.findall(needs):
        if operator == ">=" and _is_less(version, bound):
            return "below"
        if operator == "<" and not _is_less(version, bound):
            return "above"
    return "ok"


def _is_less(version: str, bound: str) -> bool:
    """Returns whether a version precedes another one by PEP 440, as far as releases and pre-releases."""
    ours, theirs = _VERSION.match(version), _VERSION.match(bound)
    if ours is None or theirs is None:
        return False
    numbers = ([int(part) for part in match[1].split(".")] for match in (ours, theirs))
    for one, other in zip_longest(*numbers, fillvalue=0):
        if one != other:
            return one < other
    return re.match(r"[._-]?(a|b|c|rc|alpha|beta|pre|preview|dev)", ours[2]) is not None and not theirs[2]


def _with_included(extra: str, needed: Iterable[Needed], seen: frozenset[str] = frozenset()) -> Iterator[Needed]:
    """Yields the packages of an extra, also those of the extras that it includes."""
    for one in needed:
        if one.extra != extra:
            continue
        if one.name != DISTRIBUTION:
            yield one
        for included in set(one.through) - seen - {extra}:
            yield from _with_included(included, needed, seen | {extra})


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
