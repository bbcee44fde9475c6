"""Caches the ranking of a bundle's engines by speed, so that "auto" does not time the engines at every start.

The directory `EngineOptions.cache` has one JSON file for each set of conditions: bundle, machine, versions of the
runtimes and engine options. A file that cannot be read is ignored. If a file cannot be written, the next process times
the engines again. A ranking only decides which engine is tried first. Every engine must still reproduce the golden
rows. Knows no runtime, and measures nothing.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tureen.atomic_file import write_atomically
from tureen.bundle.bundle import Bundle
from tureen.bundle.manifest import Precision
from tureen.engines.base import EngineOptions
from tureen.machine import available_cpus, nvidia_gpus, processor
from tureen.version import __version__

LOW_PRECISION_HANDICAP = 1.1  # a lower precision must be this many times as fast to be chosen, because of its error
DIRECTORY = "rankings"
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13")

logger = logging.getLogger("tureen.engines")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Conditions(_Record):
    """The conditions of a ranking: bundle, machine, versions of the runtimes and of Tureen, and engine options.

    A cached ranking is valid only if all current values equal the cached ones.
    """

    bundle: str = Field(description="the model's name and version")
    bundle_sha256: str = Field(description="SHA-256 of the parity rows and the engine files in the manifest")
    processor: str
    cpus: int
    threads: int
    streams: int
    gpus: list[str]
    runtimes: dict[str, str] = Field(description="version of each installed package of a runtime")
    tureen: str


class Timing(_Record):
    """The measured speed of one engine in one precision."""

    engine: str
    precision: Precision
    images_per_second: float = Field(gt=0, allow_inf_nan=False)

    @property
    def merit(self) -> float:
        """The key of the ranking: images per second, divided by LOW_PRECISION_HANDICAP for a precision below fp32."""
        return self.images_per_second / (1 if self.precision == "fp32" else LOW_PRECISION_HANDICAP)


class Ranking(_Record):
    """The engines in the order in which "auto" tries them, and the conditions under which they were timed."""

    conditions: Conditions
    measured_on: datetime.date
    by: Literal["bench", "race"]
    batch: int = Field(gt=0, description="images in each timed run")
    timings: list[Timing] = Field(min_length=1, description="of the engines, in the order in which auto tries them")


def make_ranking(
    bundle: Bundle, options: EngineOptions, timings: Iterable[Timing], *, batch: int, by: Literal["bench", "race"]
) -> Ranking:
    """Returns a ranking with today's date (UTC) and the `current_conditions`. The timings are sorted by `Timing.merit`.

    batch: the batch size of the timings. by: "bench" if `tureen bench` measured, "race" if the engine "auto" did.
    """
    return Ranking(
        conditions=current_conditions(bundle, options),
        measured_on=datetime.datetime.now(datetime.UTC).date(),
        by=by,
        batch=batch,
        timings=sorted(timings, key=lambda timing: -timing.merit),
    )


def current_conditions(bundle: Bundle, options: EngineOptions) -> Conditions:
    """Returns the present `Conditions`: this bundle, this machine, the installed runtimes and these engine options.

    A cached ranking is used only if its conditions equal these.
    """
    manifest = bundle.manifest
    artefacts = {row.artefact for row in manifest.parity}
    engines = {
        "parity": [row.model_dump(mode="json") for row in manifest.parity],
        "files": {name: record.sha256 for name, record in manifest.files.items() if name in artefacts},
    }
    return Conditions(
        bundle=f"{manifest.name} {manifest.version}",
        bundle_sha256=hashlib.sha256(json.dumps(engines, sort_keys=True).encode()).hexdigest(),
        processor=processor(),
        cpus=available_cpus(),
        threads=options.threads,
        streams=options.streams,
        gpus=[gpu.name for gpu in nvidia_gpus()],
        runtimes=_runtime_versions(),
        tureen=__version__,
    )


def read_ranking(bundle: Bundle, options: EngineOptions) -> Ranking | None:
    """Returns the cached ranking of the bundle's engines; None if there is none for the `current_conditions`.

    Logs a warning if the cached file cannot be read.
    """
    if options.cache is None:
        return None
    current = current_conditions(bundle, options)
    file = _ranking_file(options.cache, current)
    try:
        ranking = Ranking.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError) as error:
        logger.warning("the measured speed of the engines is ignored: %s cannot be read (%s)", file, _reason(error))
        return None
    if ranking.conditions != current:
        logger.warning("the measured speed of the engines is ignored: %s has other conditions", file)
        return None
    return ranking


def write_ranking(ranking: Ranking, cache: Path | None) -> bool:
    """Writes the ranking to the cache, for `read_ranking`. Returns whether the ranking was written.

    cache: the directory; None: no cache, so nothing is written. Logs a warning if writing fails.
    """
    if cache is None:
        return False
    file = _ranking_file(cache, ranking.conditions)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        json_lines = (ranking.model_dump_json(indent=2) + "\n").encode()
        write_atomically(file, json_lines, mode=0o600, has_other_writers=True)
    except OSError as error:
        logger.warning("the measured speed of the engines could not be saved: %s (%s)", file.parent, _reason(error))
        return False
    return True


def explain_choice(bundle: Bundle, options: EngineOptions) -> str | None:
    """Returns the ranking by which "auto" chooses an engine, as a line of text.

    Returns None if the cache has no ranking. In this case "auto" times the engines.
    """
    ranking = read_ranking(bundle, options)
    if ranking is None:
        return None
    first, *others = (
        f"{t.engine} {t.precision} {t.images_per_second:.{0 if t.images_per_second >= 99.5 else 1}f}"
        for t in ranking.timings
    )
    by = "bench" if ranking.by == "bench" else "a race"
    speeds = ", ".join([f"{first} images/s", *others])
    fastest = max(ranking.timings, key=lambda timing: timing.images_per_second)
    handicap = f"; a lower precision has to be {LOW_PRECISION_HANDICAP} × as fast"
    return f"measured {ranking.measured_on} by {by} at batch {ranking.batch}: {speeds}" + (
        handicap if fastest != ranking.timings[0] else ""
    )


def _ranking_file(cache: Path, conditions: Conditions) -> Path:
    return cache / DIRECTORY / f"{hashlib.sha256(conditions.model_dump_json().encode()).hexdigest()[:24]}.json"


def _runtime_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _reason(error: OSError | ValidationError) -> str:
    return (error.strerror or "unknown") if isinstance(error, OSError) else error.errors()[0]["msg"]
