"""Makes the shards of a job on the workers of a Ray cluster. Each worker has its own engine.

The calling process sends a task for each shard to the workers. A worker writes a shard as a job on one machine does.
When a worker dies, another worker makes its unfinished shards. Rows, fingerprint and `--resume` are the same as without
a cluster. Every machine of the cluster needs bundle, input and output under the same paths.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tureen
from serve.errors import JobError
from serve.inference.decode_process import DecodeOptions
from serve.jobs.decoding import decode_in_threads
from serve.jobs.input_sources import ALL_FILES, open_source
from serve.jobs.job_output import Job, ShardResult, ShardTask
from serve.jobs.job_spec import JobSpec
from serve.jobs.pipeline import OnImages, Pipeline, at_mix
from tureen.bundle.token_file import Token
from tureen.engines.base import EngineOptions
from tureen.vendor_telemetry import disable_vendor_telemetry

if TYPE_CHECKING:
    from ray.exceptions import RayError


LOCAL_CLUSTER = "local"  # the address of a Ray cluster on this machine alone
CONNECT_S = 5.0
_RAISED = re.compile(r"[\w.]+(Error|Exception): ")


@dataclass(frozen=True)
class RayWorkerConfig:
    """The arguments that every worker of the cluster receives."""

    bundle: Path  # directory of the bundle, on every machine
    input_path: str  # INPUT
    output: Path  # directory of the output, on every machine
    spec: JobSpec
    engine: EngineOptions  # of each worker
    decode_threads: int  # of each worker
    tokens: tuple[Token, ...] = ()  # to add to those of the bundle


@contextlib.contextmanager
def connect(address: str) -> Iterator[None]:
    """Connects to the Ray cluster at `address`, or starts one on this machine if the address is LOCAL_CLUSTER.

    Disconnects at the end of the `with` block. Raises JobError if no cluster responds.
    """
    import ray

    try:
        ray.init(
            address=None if address == LOCAL_CLUSTER else address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise JobError(f"no Ray cluster responds at {address}: {str(error).splitlines()[0]}") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False  # the progress bar of `tureen batch` shows more
    try:
        yield
    finally:
        ray.shutdown()


def max_workers(cpus: int) -> int:
    """Returns how many workers with `cpus` CPUs each fit in the connected cluster.

    Raises JobError if none fits, because Ray would wait forever.
    """
    import ray

    workers = sum(int(node["Resources"].get("CPU", 0)) // cpus for node in ray.nodes() if node["Alive"])
    if workers == 0:
        raise JobError(f"no machine of the cluster has {cpus} CPUs: give fewer --threads")
    return workers


def make_shards(
    job: Job, config: RayWorkerConfig, tasks: Iterable[ShardTask], on_images: OnImages, *, workers: int
) -> Iterator[ShardResult]:
    """Makes the shards of the tasks on `workers` workers, and yields the result of each. Ray replaces dead workers.

    config: the arguments of each worker. on_images: receives the numbers of finished and failed images after each
    shard. Raises JobError if a worker raises an error, or if the cluster fails.
    """
    import ray
    from ray.exceptions import RayError

    rows = [asdict(task) for task in tasks]
    if not rows:
        return
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _ShardWorker,
        fn_constructor_args=[config],
        batch_size=1,
        concurrency=min(workers, len(rows)),
        num_cpus=config.engine.threads,
    )
    try:
        for row in results.iter_rows():
            codes = dict(zip(row["codes"], row["counts"], strict=True))
            on_images(job.images_in(row["number"]), row["failed_images"])
            yield ShardResult(int(row["number"]), {code: int(count) for code, count in codes.items()})
    except RayError as error:
        raise JobError(f"the cluster could not make a shard: {_first_cause(error)}") from error


def _first_cause(error: RayError) -> str:
    """Returns the line of Ray's message that has the exception of the worker, or else the last line."""
    lines = str(error).splitlines()
    raised = [line for line in lines if _RAISED.match(line) and not line.startswith(("ray.", "UserCodeException"))]
    return (raised or lines or ["Ray gives no reason"])[-1]


class _ShardWorker:
    """One worker: loads the model once, then makes one shard per call."""

    def __init__(self, config: RayWorkerConfig) -> None:
        spec = config.spec
        stack = ExitStack()
        source = stack.enter_context(contextlib.closing(open_source(config.input_path)))
        output = stack.enter_context(ALL_FILES.open_output(config.output))
        soup = stack.enter_context(
            tureen.load(
                config.bundle,
                engine=spec.engine,
                precision=spec.precision,
                options=config.engine,
                tokens=config.tokens,
            )
        )
        if (soup.bundle.manifest.version, soup.engine.version) != (spec.version, spec.engine_version):
            raise JobError("a worker of the cluster has a different bundle or engine than the job")
        soup.limits = spec.limits
        decode_options = DecodeOptions(soup.bundle.manifest.preprocess, spec.limits)
        pool = stack.enter_context(decode_in_threads(source, decode_options, config.decode_threads))
        self._job = Job(output, spec, soup.bundle.manifest.labels)
        self._pipeline = Pipeline(
            at_mix(soup.logits, spec.token_mix, soup.tokens),
            pool,
            spec.betas,
            temperatures=spec.temperatures,
            batch_rows=spec.batch_rows,
            streams=config.engine.streams,
        )
        self._stack = stack  # stays open as long as the worker lives

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Makes and writes one shard. batch: the fields of a ShardTask, each in a list of one element.

        Returns the number of the shard, the number of rows with each error code, and the number of failed images, in
        the same form.
        """
        task = ShardTask(int(batch["number"][0]), int(batch["offset"][0]), is_retry=bool(batch["is_retry"][0]))
        failed = 0

        def on_images(done: int, failed_now: int) -> None:
            nonlocal failed
            failed += failed_now

        (result,) = self._job.make_shards(self._pipeline, [task], on_images)
        return {
            "number": [result.number],
            "codes": [list(result.error_codes)],
            "counts": [list(result.error_codes.values())],
            "failed_images": [failed],
        }


def check_ray(address: str) -> None:
    """Raises JobError if Ray is not installed, or if no server accepts a connection at `address`.

    Checks the connection only if the address has the form HOST:PORT or ray://HOST:PORT. Must be called before the job
    starts, because Ray itself would wait for minutes.
    """
    disable_vendor_telemetry()
    try:
        import ray.data  # noqa: F401
    except ModuleNotFoundError as error:
        raise JobError(f"--ray needs {error.name}: install Tureen with its extra [ray]") from None
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        except OSError as error:
            raise JobError(f"no Ray cluster responds at {address}: {error.strerror or error}") from None
