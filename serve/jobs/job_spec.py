"""Defines the specification of a job: all values that determine the content of its rows. Reads and writes no file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from serve.errors import InputError, OutputError
from serve.jobs.shard_file import Format
from tureen.bundle.manifest import UNCALIBRATED, Manifest, Precision, Temperatures
from tureen.bundle.strength_curve import StrengthCurve
from tureen.engines.base import Engine
from tureen.engines.paired import CPU_ENGINES
from tureen.errors import SingleTokenError
from tureen.preprocess import ImageLimits
from tureen.soup import DEFAULT_TOP_K
from tureen.tokens import Mix, Strength, parse_mix

SHARD_ROWS = 4096
BATCH_ROWS = 32
CPU_BATCH_ROWS = 16  # its activations stay in the cache: `python -m benchmarks.batch`


LATER_FIELDS = ("temperatures", "strength", "mix", "mix_sha256")  # that earlier versions did not have


class JobSpec(BaseModel):
    """The specification of a job: all values that determine the content of its rows. It is the content of job.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    inputs: str  # SHA-256 of the listing
    images: int  # number of images in the listing
    has_own_betas: bool  # the listing has a β for some images
    model: str
    version: str  # of the model
    engine: str
    precision: Precision
    engine_version: str
    betas: tuple[float | None, ...]  # one row of each image for each; (None,) if the model has one token
    top_k: int  # number of labels in a row
    format: Format  # of the shards
    shard_images: int  # images in a shard; the last shard may have fewer
    batch_rows: int  # rows in one run of the engine
    limits: ImageLimits  # of each image
    jpeg_scaling: Literal[False] = False  # an option of earlier versions; part of the fingerprint
    temperatures: Temperatures = UNCALIBRATED  # of the probabilities
    strength: StrengthCurve | None = None  # of the column strength; None: a mix, or a job of an earlier version
    mix: str | None = None  # the text of the mix of tokens that classifies every image; None: the soups at `betas`
    mix_sha256: str | None = None  # of the vector of the mix

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the specification, hexadecimal."""
        # A resumed job of an earlier version, which had none of these fields, keeps its fingerprint.
        later = {name for name in LATER_FIELDS if getattr(self, name) == type(self).model_fields[name].default}
        fields = self.model_dump(exclude=later)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    @property
    def token_mix(self) -> Mix | None:
        """The mix of tokens that classifies every image; None: the soups at `betas`."""
        return None if self.mix is None else parse_stored_mix(self.mix)

    @property
    def shards(self) -> int:
        return -(-self.images // self.shard_images)


@dataclass(frozen=True)
class JobOptions:
    """The options of a run of a job. None means the value of the job's first run; in the first run, the default."""

    betas: tuple[float | Strength, ...] | None = None
    default_beta: float | None = None  # used where betas is None and the model has two tokens; None: the bundle's
    top_k: int | None = None  # number of labels in a row
    format: Format | None = None  # of the shards
    shard_rows: int | None = None  # maximum of rows in a shard; a shard has one whole image at least
    batch_rows: int | None = None  # rows in one run of the engine
    calibrated: bool | None = None  # whether the probabilities use the temperatures of the bundle; default: true
    mix: Mix | None = None  # in place of `betas`
    tokens: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # of the model by name, for the mix


@dataclass(frozen=True)
class InputSummary:
    """A summary of the listing, the file with a line for each image of a job.

    sha256: of the listing, hexadecimal. images: number of images. has_own_betas: whether the input gives a β for some
    image.
    """

    sha256: str
    images: int
    has_own_betas: bool


def check_betas(options: JobOptions) -> None:
    """Raises InputError if the options give a β twice."""
    if options.betas is not None and len(set(options.betas)) < len(options.betas):
        raise InputError("a β is given twice: its rows would be the same")


def build_spec(
    options: JobOptions,
    inputs: InputSummary,
    manifest: Manifest,
    engine: Engine,
    limits: ImageLimits,
    earlier: JobSpec | None,
) -> JobSpec:
    """Returns the specification of a job. earlier: the specification of the job's first run; None in the first run.

    Converts a strength in the options to the β that it has in the model. A job keeps the temperatures and the strength
    curve of its first run, even if those of the bundle have changed since.
    Raises SingleTokenError if the options or the input give a β and the model has one token. Raises InputError if the
    options give more than one β, or a mix, although the input gives β. Raises UnknownTokenError if a token of the mix
    does not exist.
    """
    mix = options.mix
    if mix is None and options.betas is None and earlier is not None:
        mix = earlier.token_mix
    if mix is not None:
        mix.check_names(options.tokens)
        if inputs.has_own_betas:
            raise InputError("the manifest has its own β: leave --mix out, or the column beta or strength")
    given: tuple[float | None, ...] | None = None
    if options.betas is not None:
        given = tuple(manifest.beta_of(beta) for beta in options.betas)
    if not manifest.has_two_tokens and (options.betas is not None or inputs.has_own_betas):
        raise SingleTokenError
    if inputs.has_own_betas and options.betas is not None and len(options.betas) > 1:
        raise InputError("the manifest has its own β: leave --betas out, or the column beta or strength")

    def first_of(option: Any, name: str, default: Any) -> Any:
        return option if option is not None else getattr(earlier, name) if earlier is not None else default

    default_beta = manifest.default_beta if options.default_beta is None else options.default_beta
    if mix is not None:
        given = (mix.beta if manifest.has_two_tokens else None,)
    betas = tuple(first_of(given, "betas", (default_beta if manifest.has_two_tokens else None,)))
    shard_images = options.shard_rows and max(1, options.shard_rows // len(betas))
    if options.calibrated is False or mix is not None:  # a temperature is fitted for β only
        temperatures = UNCALIBRATED
    else:
        temperatures = manifest.temperatures if earlier is None else earlier.temperatures
    default_batch_rows = CPU_BATCH_ROWS if engine.name in CPU_ENGINES else BATCH_ROWS
    return JobSpec(
        inputs=inputs.sha256,
        images=inputs.images,
        has_own_betas=inputs.has_own_betas,
        model=manifest.name,
        version=manifest.version,
        engine=engine.name,
        precision=engine.precision,
        engine_version=engine.version,
        betas=betas,
        top_k=min(first_of(options.top_k, "top_k", DEFAULT_TOP_K), len(manifest.labels)),
        format=first_of(options.format, "format", "parquet"),
        shard_images=first_of(shard_images, "shard_images", max(1, SHARD_ROWS // len(betas))),
        batch_rows=first_of(options.batch_rows, "batch_rows", default_batch_rows),
        limits=limits,
        temperatures=temperatures,
        strength=None if mix is not None else manifest.strength if earlier is None else earlier.strength,
        mix=None if mix is None else str(mix),
        mix_sha256=None if mix is None else hashlib.sha256(mix.vector(options.tokens).tobytes()).hexdigest(),
    )


def parse_stored_mix(text: str) -> Mix:
    """Returns the mix in the specification of a job. Raises InputError if the specification was changed by hand."""
    mix = parse_mix(text, normalize=False)
    if not isinstance(mix, Mix):
        raise InputError(f"the job has the mix {text[:40]!r}, which is a β: give another directory")
    return mix


def check_unchanged(earlier: JobSpec, current: JobSpec) -> None:
    """Raises OutputError if the specifications of two runs of a job differ. The error names the fields that differ."""
    before, after = earlier.model_dump(), current.model_dump()
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        differences = "; ".join(f"{name} was {_short(before[name])}, is {_short(after[name])}" for name in changed)
        raise OutputError(f"the output holds another job: {differences}. Give another directory")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
