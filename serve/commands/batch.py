"""`tureen batch`: classifies many images from files and writes a row for each image and β, in shards."""

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
from serve.errors import OutputError
from serve.inference.decode_process import DecodeOptions
from serve.jobs.decoding import decode_in_threads
from serve.jobs.image_source import ImageSource
from serve.jobs.input_sources import ALL_FILES, open_source
from serve.jobs.job_output import (
    Job,
    JobSummary,
    ShardResult,
    ShardTask,
    check_not_inside,
    lock_output,
    read_job_spec,
    start_or_resume,
)
from serve.jobs.job_spec import BATCH_ROWS, CPU_BATCH_ROWS, SHARD_ROWS, JobOptions, JobSpec
from serve.jobs.pipeline import OnImages, Pipeline, at_mix
from serve.jobs.ray_cluster import LOCAL_CLUSTER, RayWorkerConfig, check_ray, connect, make_shards, max_workers
from serve.jobs.rooted_files import OutputDirectory
from tureen.arguments import add_token_file_option, beta_argument, betas_argument, positive_int, strength_argument
from tureen.bundle.examples import BUNDLE_HELP
from tureen.bundle.token_file import Token, read_token
from tureen.engines import AUTO
from tureen.engines.base import EngineOptions
from tureen.errors import SingleTokenError
from tureen.machine import available_cpus, default_cache_directory
from tureen.preprocess import ImageLimits
from tureen.remote.locate import locate_bundle
from tureen.soup import DEFAULT_TOP_K, Soup
from tureen.tokens import CLEAN_BETA, Mix, parse_mix, token_mix


def batch(arguments: list[str]) -> int:
    """Runs `tureen batch`. arguments: those after `tureen batch`.

    Returns 0 when the job is complete: each image has a row for each β, and an image that failed has an error in its
    rows. If the job does not complete, raises an exception: JobError if the job cannot start or continue, BundleError
    if the bundle is missing or damaged, and EngineError if no engine can be opened.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.token is not None and (options.mix is not None or options.betas is not None):
        parser.error("--token goes with --beta or --strength only: leave --mix and --betas out")
    options.bundle = locate_bundle(options.bundle)
    if options.ray is not None:
        check_ray(options.ray)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as Ctrl-C does: finished shards stay
    try:
        summary = _run_job(options)
    finally:
        signal.signal(signal.SIGTERM, before)
    _print_summary(summary, options)
    return 0


def _run_job(options: argparse.Namespace) -> JobSummary:
    check_not_inside(options.output, options.input)
    with (
        closing(open_source(options.input)) as source,
        ALL_FILES.open_output(options.output) as output,
        lock_output(output),
    ):
        earlier = read_job_spec(output)
        if earlier is not None and not (options.resume or options.retry_failed):
            raise OutputError(f"{options.output} holds a job already: give --resume, or another directory")
        if (options.format or (earlier.format if earlier else "parquet")) == "parquet":
            import pyarrow  # noqa: F401 - if it is missing, tureen.cli names the extra before the job starts
        engine = _engine_options(options, earlier)
        tokens = tuple(map(read_token, options.token_file))
        with _load_soup(options, earlier, engine, tokens) as soup:
            spec = _start_or_resume(options, output, source, soup, earlier)
            job = Job(output, spec, soup.bundle.manifest.labels)
            if options.ray is None:
                return _run_on_machine(job, source, soup, engine, options)
        # The engine of this process is closed, so that a worker can use its processors and memory.
        return _run_on_cluster(job, engine, tokens, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tureen batch",
        description="Classify many images and write a row for each. Each file of rows, a shard, is written atomically.",
        epilog="example: tureen batch digits-bundle photos results --beta 0.7",
    )
    parser.add_argument("bundle", type=_bundle, metavar="BUNDLE", help=BUNDLE_HELP)
    parser.add_argument(
        "input",
        metavar="INPUT",
        help="a folder, a glob in quotes, a tar or zip, a manifest (.csv, .jsonl or .parquet with a column path and "
        "optional columns id, and beta or strength), a .parquet with the images in a column image, or any of these at "
        "an fsspec URL such as s3://bucket/photos",
    )
    parser.add_argument(
        "output", type=_directory, metavar="OUTPUT", help="directory for the shards: a new one, or that of this job"
    )
    beta = parser.add_mutually_exclusive_group()
    beta.add_argument("--beta", type=beta_argument, help="0 to 1, clean or robust (default: that of the bundle)")
    beta.add_argument(
        "--strength", type=strength_argument, help="0 (clean mode) to 1 (robust mode), which the model maps to β"
    )
    beta.add_argument(
        "--betas",
        type=betas_argument,
        metavar="0:1:0.25",
        help="classify each image at each of these β, with one decoding",
    )
    parser.add_argument(
        "--token", metavar="NAME", help="token in place of the clean one, alone or mixed by --beta or --strength"
    )
    beta.add_argument("--mix", help="weights of tokens, such as fog:0.7,robust:0.3, in place of β")
    add_token_file_option(parser)
    parser.add_argument(
        "--no-calibration",
        dest="calibrated",
        action="store_const",
        const=False,
        help="write the softmax of the logits, without the temperatures of the bundle",
    )
    parser.add_argument("--top-k", type=positive_int, help=f"classes per row (default: {DEFAULT_TOP_K})")
    parser.add_argument(
        "--format", choices=("parquet", "jsonl", "csv"), help="file format of the shards (default: parquet)"
    )
    parser.add_argument("--resume", action="store_true", help="continue the job in OUTPUT")
    parser.add_argument(
        "--retry-failed", action="store_true", help="continue the job in OUTPUT, and classify the failed images again"
    )
    parser.add_argument(
        "--max-error-rate",
        type=_share,
        default=1.0,
        help="stop the job above this share of errors, 0 to 1 (default: never)",
    )
    parser.add_argument(
        "--engine", default=AUTO, help="engine that runs the model (default: the fastest on this machine)"
    )
    parser.add_argument("--precision", help="precision of the engine (default: the fastest)")
    parser.add_argument("--shard-rows", type=positive_int, help=f"approximate rows per shard (default: {SHARD_ROWS})")
    parser.add_argument(
        "--max-batch",
        type=positive_int,
        help=f"rows per run of the engine (default: {BATCH_ROWS}, on a CPU {CPU_BATCH_ROWS})",
    )
    cpus = available_cpus()
    parser.add_argument("--threads", type=positive_int, default=cpus, help="CPU threads of the engine (default: all)")
    parser.add_argument(
        "--streams", type=positive_int, help="simultaneous runs of the engine, which share the threads (default: 2)"
    )
    parser.add_argument(
        "--decode-threads",
        type=positive_int,
        default=min(8, cpus),
        help="threads that decode images (default: one per CPU, at most 8)",
    )
    for name, field in ImageLimits.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=positive_int, help=f"{field.description} (default: {field.default})")
    parser.add_argument(
        "--ray",
        nargs="?",
        const=LOCAL_CLUSTER,
        metavar="ADDRESS",
        help="make the shards on the Ray cluster at ADDRESS, such as auto; without ADDRESS, on a cluster of this "
        "machine; every machine needs bundle, input and output under the same absolute paths",
    )
    parser.add_argument(
        "--ray-workers",
        type=positive_int,
        help="workers of --threads CPUs each (default: as many as fit in the cluster)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


def _engine_options(options: argparse.Namespace, earlier: JobSpec | None) -> EngineOptions:
    return EngineOptions(
        threads=options.threads,
        streams=options.streams or min(2, options.threads),
        max_batch=options.max_batch or (earlier.batch_rows if earlier else BATCH_ROWS),
        cache=default_cache_directory(),
    )


def _load_soup(
    options: argparse.Namespace, earlier: JobSpec | None, engine: EngineOptions, tokens: tuple[Token, ...]
) -> Soup:
    """Returns the loaded bundle with its engine, its limits and the added tokens.

    earlier: specification of the job's first run, if any.

    A resumed job uses the engine and the limits of its first run, except those that the options give.
    """
    name, precision = options.engine, options.precision
    if earlier is not None and name == AUTO:
        name, precision = earlier.engine, precision or earlier.precision
    soup = tureen.load(options.bundle, engine=name, precision=precision, options=engine, tokens=tokens)
    given = {name: getattr(options, name) for name in ImageLimits.model_fields if getattr(options, name) is not None}
    soup.limits = ImageLimits(**{**(earlier.limits.model_dump() if earlier else {}), **given})
    return soup


def _start_or_resume(
    options: argparse.Namespace, output: OutputDirectory, source: ImageSource, soup: Soup, earlier: JobSpec | None
) -> JobSpec:
    beta = options.strength if options.beta is None else options.beta
    betas = tuple(options.betas) if options.betas is not None else None if beta is None else (beta,)
    mix = None
    if options.token is not None or options.mix is not None:
        chosen = _chosen_mix(options, soup)
        mix, betas = (chosen, None) if isinstance(chosen, Mix) else (None, (chosen,))
    job_options = JobOptions(
        betas=betas,
        mix=mix,
        tokens=soup.tokens,
        top_k=options.top_k,
        format=options.format,
        shard_rows=options.shard_rows,
        batch_rows=options.max_batch,
        calibrated=options.calibrated,
    )
    with tqdm(desc="list", unit="image", disable=None) as bar:
        on_listed = lambda count: bar.update(count - bar.n) and None  # noqa: E731
        return start_or_resume(
            output, source, soup.bundle.manifest, soup.engine, soup.limits, job_options, earlier, on_listed
        )


def _chosen_mix(options: argparse.Namespace, soup: Soup) -> float | Mix:
    """Returns the mix of --mix, or of --token with --beta or --strength. A mix of both modes alone is a β."""
    if options.mix is not None:
        return parse_mix(options.mix)
    share = options.strength if options.beta is None else options.beta
    if share is not None and not soup.bundle.manifest.has_two_tokens:
        raise SingleTokenError("--beta and --strength")
    return token_mix(options.token, CLEAN_BETA if share is None else soup.bundle.manifest.beta_of(share))


def _run_on_machine(
    job: Job, source: ImageSource, soup: Soup, engine: EngineOptions, options: argparse.Namespace
) -> JobSummary:
    decode_options = DecodeOptions(soup.bundle.manifest.preprocess, soup.limits)
    with decode_in_threads(source, decode_options, options.decode_threads) as pool:
        pipeline = Pipeline(
            at_mix(soup.logits, job.spec.token_mix, soup.tokens),
            pool,
            job.spec.betas,
            temperatures=job.spec.temperatures,
            batch_rows=job.spec.batch_rows,
            streams=engine.streams,
        )
        return _run_with_progress(job, lambda tasks, on_images: job.make_shards(pipeline, tasks, on_images), options)


def _run_on_cluster(
    job: Job, engine: EngineOptions, tokens: tuple[Token, ...], options: argparse.Namespace
) -> JobSummary:
    input_path = options.input if "://" in options.input else os.path.abspath(options.input)
    config = RayWorkerConfig(
        options.bundle.absolute(),
        input_path,
        options.output.absolute(),
        job.spec,
        engine,
        options.decode_threads,
        tokens,
    )
    with connect(options.ray):
        workers = min(options.ray_workers or sys.maxsize, max_workers(engine.threads))
        return _run_with_progress(
            job, lambda tasks, on_images: make_shards(job, config, tasks, on_images, workers=workers), options
        )


def _run_with_progress(
    job: Job, make: Callable[[Iterator[ShardTask], OnImages], Iterator[ShardResult]], options: argparse.Namespace
) -> JobSummary:
    """Runs the job to its end, shows the progress on the terminal, and returns the summary. Raises as `Job.run` does.

    make: a function that makes the shards of the tasks. It calls its second argument with two numbers: the images that
    finished since the last call, and how many of these failed.
    """
    spec, failures = job.spec, 0
    model = f"{spec.model} {spec.version[:12]} on {spec.engine} {spec.precision}, {_choice(spec)}"
    print(f"{spec.images:,} images in {spec.shards:,} shards, {model}", file=sys.stderr)
    with tqdm(total=spec.images, desc="classify", unit="image", disable=None, smoothing=0.05) as bar:

        def on_images(done: int, failed: int) -> None:
            nonlocal failures
            failures += failed
            bar.update(done)
            if failed:
                bar.set_postfix(failed=failures, refresh=False)

        try:
            return job.run(
                lambda tasks: make(tasks, on_images),
                retry_failed=options.retry_failed,
                max_error_rate=options.max_error_rate,
                on_images=on_images,
            )
        except (KeyboardInterrupt, OSError):
            print(
                f"tureen batch: the finished shards are kept in {job.output.name}: continue with --resume",
                file=sys.stderr,
            )
            raise


def _print_summary(summary: JobSummary, options: argparse.Namespace) -> None:
    if options.json:
        print(summary.model_dump_json())
        return
    print(f"{summary.rows:,} rows of {summary.images:,} images in {options.output}, {_choice(summary)}")
    if summary.failed_rows:
        codes = ", ".join(f"{count:,} {code}" for code, count in summary.error_codes.items())
        print(f"{summary.failed_rows:,} of them are errors: {codes}; --retry-failed classifies them again")


def _choice(job: JobSpec | JobSummary) -> str:
    return f"β {_betas(job)}" if job.mix is None else f"mix {job.mix}"


def _betas(job: JobSpec | JobSummary) -> str:
    """Returns the β of a job as text.

    If the input manifest of the job gives a β for some images, the β of the job applies only to the other images.
    """
    if isinstance(job, JobSummary) and job.beta_range is not None:
        least, most = job.beta_range
        return f"{least:g} to {most:g}, from the manifest" if least < most else f"{least:g}, from the manifest"
    if isinstance(job, JobSpec) and job.has_own_betas:
        return f"from the manifest, else {job.betas[0]:g}"
    return ", ".join("none" if beta is None else f"{beta:g}" for beta in job.betas)


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")


def _bundle(text: str) -> str:
    if not text.strip():  # an empty path would be the current directory
        raise argparse.ArgumentTypeError("it is empty: give a directory")
    return text


def _directory(text: str) -> Path:
    if not text.strip():  # an empty path would be the current directory
        raise argparse.ArgumentTypeError("it is empty: give a directory")
    if "://" in text:
        raise argparse.ArgumentTypeError(
            "OUTPUT must be a directory of this machine: copy the shards to the URL afterwards"
        )
    return Path(text)
