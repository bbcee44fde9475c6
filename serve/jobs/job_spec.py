"""What pins a job: its specification, from what was asked for, what the input lists and what classifies it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serve.errors import InputError
from serve.jobs.image_source import Source
from serve.jobs.job_output import NEW_INPUTS, Spec, begin, check_same, list_inputs
from serve.jobs.rooted_files import Place
from serve.jobs.shard import Format
from tureen.bundle.manifest import Manifest
from tureen.engines.base import Engine
from tureen.engines.paired import CPU_ENGINES
from tureen.errors import SingleTokenError
from tureen.preprocess import ImageLimits
from tureen.soup import DEFAULT_TOP_K

SHARD_ROWS = 4096
BATCH_ROWS = 32
CPU_BATCH_ROWS = 16  # whose activations stay in the cache: `python -m benchmarks.batch`


@dataclass(frozen=True)
class Wanted:
    """What somebody asked for; None: as when the job began, or the default."""

    betas: tuple[float, ...] | None = None
    default_beta: float | None = None  # where betas are None, and the model has two tokens; None: the bundle's
    top_k: int | None = None
    format: Format | None = None
    shard_rows: int | None = None
    batch_rows: int | None = None
    jpeg_scaling: bool = False


def pin(
    place: Place,
    source: Source,
    manifest: Manifest,
    engine: Engine,
    limits: ImageLimits,
    wanted: Wanted,
    earlier: Spec | None,
    on_listed: Callable[[int], None] = lambda images: None,
) -> Spec:
    """Begins the job, or makes sure that `earlier`, which the output holds, is this one.

    on_listed: told how many images there are so far. Raises InputError, OutputError or SingleTokenError.
    """
    if wanted.betas is not None and len(set(wanted.betas)) < len(wanted.betas):
        raise InputError("a β is given twice: its rows would be the same")
    digest, images, has_own_betas = list_inputs(source, place, on_listed)

    def of(name: str, given: Any, default: Any) -> Any:
        return given if given is not None else getattr(earlier, name) if earlier is not None else default

    if not manifest.has_two_tokens and (wanted.betas is not None or has_own_betas):
        raise SingleTokenError
    if has_own_betas and wanted.betas is not None and len(wanted.betas) > 1:
        raise InputError("the manifest has its own β: leave --betas out, or the column beta")
    default = manifest.default_beta if wanted.default_beta is None else wanted.default_beta
    betas = tuple(of("betas", wanted.betas, (default if manifest.has_two_tokens else None,)))
    spec = Spec(
        inputs=digest,
        images=images,
        has_own_betas=has_own_betas,
        model=manifest.name,
        version=manifest.version,
        engine=engine.name,
        precision=engine.precision,
        engine_version=engine.version,
        betas=betas,
        top_k=min(of("top_k", wanted.top_k, DEFAULT_TOP_K), len(manifest.labels)),
        format=of("format", wanted.format, "parquet"),
        shard_images=of(
            "shard_images",
            wanted.shard_rows and max(1, wanted.shard_rows // len(betas)),
            max(1, SHARD_ROWS // len(betas)),
        ),
        batch_rows=of("batch_rows", wanted.batch_rows, CPU_BATCH_ROWS if engine.name in CPU_ENGINES else BATCH_ROWS),
        limits=limits,
        jpeg_scaling=wanted.jpeg_scaling or (earlier is not None and earlier.jpeg_scaling),
    )
    if earlier is None:
        begin(place, spec)
    else:
        check_same(earlier, spec)
        (place.own / NEW_INPUTS).unlink()
    return spec
