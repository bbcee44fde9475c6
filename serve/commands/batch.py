"""`tureen batch`: many images from files, a row for each and each β, into shards that any analysis reads."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

import tureen
from serve.commands.options import beta_argument, betas_argument
from serve.errors import OutputError
from serve.jobs.decoding import Decoding, on_threads
from serve.jobs.image_source import Source
from serve.jobs.input_sources import ANY, open_source
from serve.jobs.job_output import Job, Made, Part, Spec, Summary, begun, locked, refuse_inside
from serve.jobs.job_spec import BATCH_ROWS, CPU_BATCH_ROWS, SHARD_ROWS, Wanted, pin
from serve.jobs.pipeline import OnImages, Pipeline
from serve.jobs.ray_cluster import LOCAL, _check_ray
from serve.jobs.rooted_files import Place
from tureen.engines import AUTO
from tureen.engines.base import EngineOptions
from tureen.machine import available_cpus, default_cache_directory
from tureen.preprocess import ImageLimits
from tureen.soup import DEFAULT_TOP_K, Soup


def batch(arguments: list[str]) -> int:
    """`tureen batch`: 0 once every image has its rows; raises JobError, BundleError or EngineError."""
    options = _parser().parse_args(arguments)
    if options.ray is not None:
        _check_ray(options.ray)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is done is kept
    try:
        summary = _batch(options)
    finally:
        signal.signal(signal.SIGTERM, before)
    _tell(summary, options)
    return 0


def _batch(options: argparse.Namespace) -> Summary:
    refuse_inside(options.output, options.input)
    with closing(open_source(options.input)) as source, ANY.place(options.output) as place, locked(place):
        earlier = begun(place)
        if earlier is not None and not (options.resume or options.retry_failed):
            raise OutputError(f"{options.output} holds a job already: give --resume, or another directory")
        if (options.format or (earlier.format if earlier else "parquet")) == "parquet":
            import pyarrow  # noqa: F401 - where it is missing, tureen.cli names the extra before anything is begun
        engine = _engine_options(options, earlier)
        with _soup(options, earlier, engine) as soup:
            spec = _pinned(options, place, source, soup, earlier)
            job = Job(place, spec, soup.bundle.manifest.labels)
            if options.ray is None:
                return _here(job, source, soup, engine, options)
        # With the engine of this process closed, so that a worker may have its place.
        return _on_cluster(job, engine, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tureen batch",
        description="Classify many images: a row for each, in shards that are there whole or not at all.",
        epilog="example: tureen batch digits-bundle photos results --beta 0.7",
    )
    parser.add_argument("bundle", type=_directory, metavar="BUNDLE", help="directory that `tureen export` wrote")
    parser.add_argument(
        "input",
        metavar="INPUT",
        help="a folder, a glob in quotes, a tar or zip, a manifest (.csv, .jsonl or .parquet with a column path and "
        "perhaps id and beta), or any of these at an fsspec URL such as s3://bucket/photos",
    )
    parser.add_argument(
        "output", type=_directory, metavar="OUTPUT", help="directory for the shards; new, or of this job"
    )
    beta = parser.add_mutually_exclusive_group()
    beta.add_argument("--beta", type=beta_argument, help="0 to 1, clean or robust; default: the bundle's")
    beta.add_argument(
        "--betas", type=betas_argument, metavar="0:1:0.25", help="a row at each of these, from one decoding"
    )
    parser.add_argument("--top-k", type=_positive, help=f"classes in a row (default: {DEFAULT_TOP_K})")
    parser.add_argument("--format", choices=("parquet", "jsonl", "csv"), help="of the shards (default: parquet)")
    parser.add_argument("--resume", action="store_true", help="go on with the job that OUTPUT holds")
    parser.add_argument("--retry-failed", action="store_true", help="the same, and try those again that failed")
    parser.add_argument(
        "--max-error-rate", type=_share, default=1.0, help="stop beyond this share of errors (default: never)"
    )
    parser.add_argument("--engine", default=AUTO, help="default: the fastest that this machine has")
    parser.add_argument("--precision", help="default: whichever is fastest")
    parser.add_argument("--shard-rows", type=_positive, help=f"rows in a shard, about (default: {SHARD_ROWS})")
    parser.add_argument(
        "--max-batch",
        type=_positive,
        help=f"rows in a run of the engine (default: {BATCH_ROWS}, on a CPU {CPU_BATCH_ROWS})",
    )
    cpus = available_cpus()
    parser.add_argument("--threads", type=_positive, default=cpus, help="CPU threads of the engine (default: all)")
    parser.add_argument("--streams", type=_positive, help="runs at a time, sharing the threads (default: 2)")
    parser.add_argument("--decode-threads", type=_positive, default=min(8, cpus), help="(default: CPUs, at most 8)")
    parser.add_argument("--jpeg-scaling", action="store_true", help="decode large JPEGs smaller: other pixels, faster")
    for name, field in ImageLimits.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=_positive, help=f"{field.description} (default: {field.default})")
    parser.add_argument(
        "--ray",
        nargs="?",
        const=LOCAL,
        metavar="ADDRESS",
        help="have the shards made by a Ray cluster, such as auto; without an address by one of this machine; every "
        "machine has bundle, input and output under the same absolute paths",
    )
    parser.add_argument(
        "--ray-workers", type=_positive, help="of --threads CPUs each (default: as many as the cluster has room for)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


def _engine_options(options: argparse.Namespace, earlier: Spec | None) -> EngineOptions:
    return EngineOptions(
        threads=options.threads,
        streams=options.streams or min(2, options.threads),
        max_batch=options.max_batch or (earlier.batch_rows if earlier else BATCH_ROWS),
        cache=default_cache_directory(),
    )


def _soup(options: argparse.Namespace, earlier: Spec | None, engine: EngineOptions) -> Soup:
    """The model on its engine: a job that goes on has the one that it began with."""
    name, precision = options.engine, options.precision
    if earlier is not None and name == AUTO:
        name, precision = earlier.engine, precision or earlier.precision
    soup = tureen.load(options.bundle, engine=name, precision=precision, options=engine)
    given = {name: getattr(options, name) for name in ImageLimits.model_fields if getattr(options, name) is not None}
    soup.limits = ImageLimits(**{**(earlier.limits.model_dump() if earlier else {}), **given})
    return soup


def _pinned(options: argparse.Namespace, place: Place, source: Source, soup: Soup, earlier: Spec | None) -> Spec:
    wanted = Wanted(
        betas=tuple(options.betas) if options.betas is not None else None if options.beta is None else (options.beta,),
        top_k=options.top_k,
        format=options.format,
        shard_rows=options.shard_rows,
        batch_rows=options.max_batch,
        jpeg_scaling=options.jpeg_scaling,
    )
    with tqdm(desc="list", unit="image", disable=None) as bar:
        on_listed = lambda count: bar.update(count - bar.n) and None  # noqa: E731
        return pin(place, source, soup.bundle.manifest, soup.engine, soup.limits, wanted, earlier, on_listed)


def _here(job: Job, source: Source, soup: Soup, engine: EngineOptions, options: argparse.Namespace) -> Summary:
    decoding = Decoding(soup.bundle.manifest.preprocess, soup.limits, job.spec.jpeg_scaling)
    with on_threads(source, decoding, options.decode_threads) as readers:
        pipeline = Pipeline(
            soup.logits, readers, job.spec.betas, batch_rows=job.spec.batch_rows, streams=engine.streams
        )
        return _run(job, lambda parts, on_images: job.make(pipeline, parts, on_images), options)


def _on_cluster(job: Job, engine: EngineOptions, options: argparse.Namespace) -> Summary:
    from serve.jobs.ray_cluster import Makers, connected, make_on_cluster, workers_that_fit

    given = options.input if "://" in options.input else os.path.abspath(options.input)
    makers = Makers(
        options.bundle.absolute(), given, options.output.absolute(), job.spec, engine, options.decode_threads
    )
    with connected(options.ray):
        workers = min(options.ray_workers or sys.maxsize, workers_that_fit(engine.threads))
        return _run(
            job, lambda parts, on_images: make_on_cluster(job, makers, parts, on_images, workers=workers), options
        )


def _run(job: Job, make: Callable[[Iterator[Part], OnImages], Iterator[Made]], options: argparse.Namespace) -> Summary:
    """The job to its end, with progress."""
    spec, failures = job.spec, 0
    told = f"{spec.model} {spec.version[:12]} on {spec.engine} {spec.precision}, β {_betas(spec)}"
    print(f"{spec.images:,} images in {spec.shards:,} shards, {told}", file=sys.stderr)
    with tqdm(total=spec.images, desc="classify", unit="image", disable=None, smoothing=0.05) as bar:

        def on_images(done: int, failed: int) -> None:
            nonlocal failures
            failures += failed
            bar.update(done)
            if failed:
                bar.set_postfix(failed=failures, refresh=False)

        try:
            return job.run(
                lambda parts: make(parts, on_images),
                retry_failed=options.retry_failed,
                max_error_rate=options.max_error_rate,
                on_images=on_images,
            )
        except (KeyboardInterrupt, OSError):
            print(f"tureen batch: what is done is kept in {job.place.name}: go on with --resume", file=sys.stderr)
            raise


def _tell(summary: Summary, options: argparse.Namespace) -> None:
    if options.json:
        print(summary.model_dump_json())
        return
    print(f"{summary.rows:,} rows of {summary.images:,} images in {options.output}, β {_betas(summary)}")
    if summary.failed_rows:
        codes = ", ".join(f"{count:,} {code}" for code, count in summary.error_codes.items())
        print(f"{summary.failed_rows:,} of them are errors: {codes}; --retry-failed tries these again")


def _betas(job: Spec | Summary) -> str:
    return ", ".join("none" if beta is None else f"{beta:g}" for beta in job.betas)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")


def _directory(text: str) -> Path:
    if not text.strip():  # which would be the current one
        raise argparse.ArgumentTypeError("it is empty: give a directory")
    if "://" in text:
        raise argparse.ArgumentTypeError("it is a directory of this machine: copy the shards from there")
    return Path(text)
