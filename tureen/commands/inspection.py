"""Inspects a bundle, even a damaged one: its files, its graphs, and the engines that this machine can run.

Raises an error only if the directory has no readable manifest. `tureen.commands.inspect` formats the result.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tureen.bundle.bundle import (
    MANIFEST,
    MAX_FILES,
    Bundle,
    load_bundle,
    read_listed_file,
    read_manifest,
    read_manifest_text,
)
from tureen.bundle.files import VERIFIED, file_size
from tureen.bundle.graph import GraphFile, read_graph_file
from tureen.bundle.manifest import FileName, FileRecord, Manifest
from tureen.bundle.token_file import TokenRecord
from tureen.engines import open_engine, open_verified_engine
from tureen.engines.base import EngineOptions, check_golden_rows
from tureen.engines.detection import missing_requirement
from tureen.engines.timings_cache import explain_choice, read_ranking
from tureen.errors import BundleError, BundleFileError, EngineError, GraphFileError, printable
from tureen.machine import available_cpus, cpu_flags, default_cache_directory, nvidia_gpus

NOT_A_GRAPH = "not an ONNX graph"
UNLISTED = "not in the manifest"
MAX_NAME_CHARACTERS: Final = 100  # of name and version in a manifest that this version of Tureen cannot read


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True)


class FileState(_Facts):
    name: str
    size: int | None = Field(description="bytes on disk; none: no regular file")
    sha256: str = Field(description="as listed in the manifest; empty: the file is not listed")
    state: str = Field(description='"verified", or what is wrong with the file')


class EngineAvailability(_Facts):
    """Whether this machine can run one of the engines that the bundle lists, and why not."""

    engine: str
    precision: str
    artefact: str
    can_run: bool = Field(description="after a trial: whether it ran; else whether nothing seems to be missing")
    why_not: str = ""
    largest_difference: float | None = Field(default=None, description="from the golden logits, after a trial")


class AutoChoice(_Facts):
    """The engine that "auto" chooses for the bundle on this machine, and the reason."""

    engine: str | None = Field(description="engine and precision; none: there is none, or only a race decides")
    why: str


class Inspection(_Facts):
    path: str
    name: str
    version: str
    schema_version: int
    error: str | None = Field(description="why the bundle cannot be used; none: it is sound")
    manifest: Manifest | None = Field(description="none if this version of Tureen cannot read it")
    files: list[FileState]
    graphs: dict[str, GraphFile] = Field(description="the description of each verified ONNX graph, by file")
    engines: list[EngineAvailability] = Field(description="in the order of the manifest's parity")
    auto: AutoChoice | None = Field(description="none if the bundle cannot be used")
    learned_tokens: list[TokenRecord] = Field(default=[], description="of its files NAME.token")


class _ManifestOutline(BaseModel):
    """The fields that manifests of all schema versions have."""

    schema_version: int
    name: str = ""
    version: str = ""
    files: dict[str, Any] = {}


def inspect_bundle(path: Path, *, is_trial: bool = False) -> Inspection:
    """Inspects the bundle at `path`. Returns the result, even for a damaged bundle.

    is_trial: if True, opens each engine, checks that it reproduces the golden rows, and opens the engine "auto". If
    False, opens no engine. Instead predicts which engines can run, from the installed packages, the CPU and the GPUs.
    Then predicts which engine "auto" chooses, from these engines and a cached ranking.

    Raises BundleError if the manifest is missing, unreadable, or lacks the fields that all schema versions have.
    """
    outline = _read_outline(path)
    manifest: Manifest | None = None
    bundle: Bundle | None = None
    error = None
    try:
        manifest = read_manifest(path)
        bundle = load_bundle(path)
    except BundleError as refused:
        error = str(refused)
    files, graphs = _file_states(path, outline)
    engines: list[EngineAvailability] = []
    auto = None
    if bundle is not None:
        damaged = _damaged_artefacts(bundle)
        error = next(iter(damaged.values()), None)
        engines = _try_engines(bundle) if is_trial else _detect_engines(bundle, damaged)
        auto = _try_auto(bundle) if is_trial else _predict_auto(bundle, engines)
    return Inspection(
        path=str(path),
        name=printable(outline.name)[:MAX_NAME_CHARACTERS],
        version=printable(outline.version)[:MAX_NAME_CHARACTERS],
        schema_version=outline.schema_version,
        error=error,
        manifest=manifest,
        files=files,
        graphs=graphs,
        engines=engines,
        auto=auto,
        learned_tokens=[] if bundle is None else [token.record for token in bundle.learned_tokens],
    )


def _read_outline(path: Path) -> _ManifestOutline:
    try:
        return _ManifestOutline.model_validate(json.loads(read_manifest_text(path)))
    except (ValidationError, ValueError, RecursionError) as error:
        raise BundleError(f"{path / MANIFEST} is not a Tureen manifest: export the model again") from error


def _file_states(path: Path, outline: _ManifestOutline) -> tuple[list[FileState], dict[str, GraphFile]]:
    """Returns the state of each file of the bundle, and the descriptions of the ONNX graphs by file name.

    Includes at most MAX_FILES files that the manifest lists, and at most MAX_FILES others.
    """
    names, record_of = TypeAdapter(FileName), TypeAdapter(FileRecord)
    files: list[FileState] = []
    graphs: dict[str, GraphFile] = {}
    for name, listed in islice(outline.files.items(), MAX_FILES):
        try:
            names.validate_python(name)
            record = record_of.validate_python(listed)
        except ValidationError:
            continue  # `read_manifest` reports it
        state = VERIFIED
        try:
            data = read_listed_file(path, name, record)
            if name.endswith(".onnx"):
                graphs[name] = read_graph_file(data)
        except BundleFileError as error:
            state = error.state
        except GraphFileError:
            state = NOT_A_GRAPH
        files.append(FileState(name=name, size=_size_on_disk(path, name), sha256=record.sha256, state=state))
    return [*files, *_unlisted_files(path, outline)], graphs


def _unlisted_files(path: Path, outline: _ManifestOutline) -> list[FileState]:
    found = (entry.name for entry in path.iterdir() if entry.name not in (MANIFEST, *outline.files))
    directories = {name.partition("/")[0] for name in outline.files if "/" in name}
    names = sorted(islice((name for name in found if name not in directories), MAX_FILES))
    return [
        FileState(name=printable(name), size=_size_on_disk(path, name), sha256="", state=UNLISTED) for name in names
    ]


def _size_on_disk(path: Path, name: str) -> int | None:
    try:
        return file_size(path, name)
    except BundleError:
        return None


def _damaged_artefacts(bundle: Bundle) -> dict[str, str]:
    """Returns an error message for each engine file that cannot be used, by file name."""
    damaged = {}
    engine_files = [name for name in bundle.manifest.files if "/" in name]
    for name in dict.fromkeys([*(row.artefact for row in bundle.manifest.parity), *engine_files]):
        try:
            bundle.artefact(name)
        except BundleError as error:
            damaged[name] = str(error)
    return damaged


def _detect_engines(bundle: Bundle, damaged: dict[str, str]) -> list[EngineAvailability]:
    gpus, flags = nvidia_gpus(), cpu_flags()
    engines = []
    for row in bundle.manifest.parity:
        plan = bundle.manifest.plans.get(row.artefact)
        missing = damaged.get(row.artefact) or missing_requirement(
            row.engine, row.precision, plan, gpus=gpus, flags=flags
        )
        engines.append(
            EngineAvailability(
                engine=row.engine,
                precision=row.precision,
                artefact=row.artefact,
                can_run=missing is None,
                why_not=missing or "",
            )
        )
    return engines


def _try_engines(bundle: Bundle) -> list[EngineAvailability]:
    engines = []
    for row in bundle.manifest.parity:
        difference, why_not = None, ""
        try:
            engine = open_verified_engine(bundle, row, _options())
            difference = check_golden_rows(engine, bundle)
            engine.close()
        except (EngineError, BundleError) as error:
            why_not = str(error)
        engines.append(
            EngineAvailability(
                engine=row.engine,
                precision=row.precision,
                artefact=row.artefact,
                can_run=difference is not None,
                why_not=why_not,
                largest_difference=difference,
            )
        )
    return engines


def _try_auto(bundle: Bundle) -> AutoChoice:
    try:
        engine = open_engine(bundle, options=_options())
    except EngineError as error:
        return AutoChoice(engine=None, why=str(error))
    chosen = f"{engine.name} {engine.precision}"
    engine.close()
    return AutoChoice(engine=chosen, why=explain_choice(bundle, _options()) or "the only one that opened")


def _predict_auto(bundle: Bundle, engines: Sequence[EngineAvailability]) -> AutoChoice:
    """Predicts which engine "auto" chooses, without opening one.

    engines: whether this machine can run each engine. The engine of the result is None if this machine can run no
    engine. It is also None if several can run and no ranking names the fastest.
    """
    runnable = {(engine.engine, engine.precision) for engine in engines if engine.can_run}
    ranking = read_ranking(bundle, _options())
    first = ranking.timings[0] if ranking else None
    if first and (first.engine, first.precision) in runnable:
        return AutoChoice(engine=f"{first.engine} {first.precision}", why=explain_choice(bundle, _options()) or "")
    names = [f"{engine.engine} {engine.precision}" for engine in engines if engine.can_run]
    if not names:
        return AutoChoice(engine=None, why="this machine can run no engine that the bundle lists")
    if len(names) == 1:
        return AutoChoice(engine=names[0], why="the only one that this machine seems to run")
    return AutoChoice(
        engine=None, why=f"the fastest of {', '.join(names)}, by a race at the first start; --try shows it"
    )


def _options() -> EngineOptions:
    """Returns the engine options that `tureen.load` uses by default: all CPUs, and the user's cache directory."""
    return EngineOptions(threads=available_cpus(), cache=default_cache_directory())
