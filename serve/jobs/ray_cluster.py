"""A job's shards made by the workers of a Ray cluster, each with the model on an engine of its own.

A part is a shard's number and its place in the listing; whoever makes it writes it as a job on one machine does. So a
worker that dies costs the shards that it had begun, which another makes, and rows, fingerprint and `--resume` are those
of any job. Every machine of the cluster has bundle, input and output under the same paths.
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
from serve.jobs.decoding import Decoding, on_threads
from serve.jobs.input_sources import ANY, open_source
from serve.jobs.job_output import Job, Made, Part, Spec
from serve.jobs.pipeline import OnImages, Pipeline
from tureen.engines.base import EngineOptions
from tureen.vendor_telemetry import disable_vendor_telemetry

if TYPE_CHECKING:
    from ray.exceptions import RayError


_RAISED = re.compile(r"[\w.]+(Error|Exception): ")


@dataclass(frozen=True)
class Makers:
    """What each worker of the cluster makes shards with."""

    bundle: Path
    given: str  # INPUT
    output: Path
    spec: Spec
    engine: EngineOptions
    decode_threads: int


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to a cluster, or a cluster of this machine alone; raises JobError."""
    import ray

    try:
        ray.init(
            address=None if address == LOCAL else address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise JobError(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours tells more
    try:
        yield
    finally:
        ray.shutdown()


def workers_that_fit(cpus: int) -> int:
    """How many workers of so many CPUs the cluster has room for; raises JobError for none: Ray would wait for ever."""
    import ray

    room = sum(int(node["Resources"].get("CPU", 0)) // cpus for node in ray.nodes() if node["Alive"])
    if room == 0:
        raise JobError(f"no machine of the cluster has {cpus} CPUs: give fewer --threads")
    return room


def make_on_cluster(
    job: Job, makers: Makers, parts: Iterable[Part], on_images: OnImages, *, workers: int
) -> Iterator[Made]:
    """Has the parts made by that many workers, which Ray Data replaces where they die.

    on_images: told of each shard when it is there. Raises JobError.
    """
    import ray
    from ray.exceptions import RayError

    rows = [asdict(part) for part in parts]
    if not rows:
        return
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Maker,
        fn_constructor_args=[makers],
        batch_size=1,
        concurrency=min(workers, len(rows)),
        num_cpus=makers.engine.threads,
    )
    try:
        for row in made.iter_rows():
            codes = dict(zip(row["codes"], row["counts"], strict=True))
            on_images(job.images_in(row["number"]), row["failed_images"])
            yield Made(int(row["number"]), {code: int(count) for code, count in codes.items()})
    except RayError as error:
        raise JobError(f"the cluster could not make a shard: {_first_cause(error)}") from error


def _first_cause(error: RayError) -> str:
    """What a worker itself raised, in a line: Ray's text has it among the lines of its own."""
    lines = str(error).splitlines()
    raised = [line for line in lines if _RAISED.match(line) and not line.startswith(("ray.", "UserCodeException"))]
    return (raised or lines or ["nobody knows why"])[-1]


class _Maker:
    """One worker: opens the model once, then makes shard after shard."""

    def __init__(self, makers: Makers) -> None:
        spec = makers.spec
        stack = ExitStack()
        source = stack.enter_context(contextlib.closing(open_source(makers.given)))
        place = stack.enter_context(ANY.place(makers.output))
        soup = stack.enter_context(
            tureen.load(makers.bundle, engine=spec.engine, precision=spec.precision, options=makers.engine)
        )
        if (soup.bundle.manifest.version, soup.engine.version) != (spec.version, spec.engine_version):
            raise JobError("a worker of the cluster has another bundle or engine than the job began with")
        soup.limits = spec.limits
        decoding = Decoding(soup.bundle.manifest.preprocess, spec.limits, spec.jpeg_scaling)
        readers = stack.enter_context(on_threads(source, decoding, makers.decode_threads))
        self._job = Job(place, spec, soup.bundle.manifest.labels)
        self._pipeline = Pipeline(
            soup.logits, readers, spec.betas, batch_rows=spec.batch_rows, streams=makers.engine.streams
        )
        self._open = stack  # for as long as the worker lives

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The shard of the one part in the batch, written, and what it came to."""
        part = Part(int(batch["number"][0]), int(batch["offset"][0]), is_again=bool(batch["is_again"][0]))
        failed = 0

        def on_images(done: int, failed_now: int) -> None:
            nonlocal failed
            failed += failed_now

        (made,) = self._job.make(self._pipeline, [part], on_images)
        return {
            "number": [made.number],
            "codes": [list(made.codes)],
            "counts": [list(made.codes.values())],
            "failed_images": [failed],
        }


LOCAL = "local"  # a Ray cluster of this machine alone


CONNECT_S = 5.0


def _check_ray(address: str) -> None:
    """Before anything is begun: Ray itself waits for minutes."""
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
            raise JobError(f"no Ray cluster answers at {address}: {error.strerror or error}") from None
