"""Runs one job of a server to its end: in this process, or in a separate process with its own engine.

`python -P -m serve.jobs.job_run` starts such a process. From the first request on, Linux runs it with the policy
SCHED_IDLE: only while a processor has nothing else to do. A request interrupts it within microseconds, in the middle of
an engine run. So a job takes all the time that requests leave, and no request waits for it. Messages are lines of JSON,
never pickled objects. So a hostile image that takes over a decoder cannot run code in the server.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from serve.errors import InputError, JobError, JobInterruptedError, OutputError, OutputTakenError
from serve.inference.decode_process import DecodeOptions, end_process, prefer_for_oom_kill
from serve.inference.memory import return_large_blocks
from serve.jobs.decoding import DecodePool, decode_in_threads, end_with_parent, lower_priority
from serve.jobs.image_source import ImageSource
from serve.jobs.input_sources import open_source
from serve.jobs.job_output import (
    JOB_ID_FILE,
    Job,
    JobSummary,
    check_not_inside,
    lock_output,
    read_job_id,
    read_job_spec,
    start_or_resume,
)
from serve.jobs.job_spec import JobOptions, JobSpec, parse_stored_mix
from serve.jobs.job_store import JobRecord
from serve.jobs.pipeline import Classify, Pipeline, at_mix
from serve.jobs.rooted_files import OutputDirectory, RootedFiles
from serve.telemetry.logs import configure_logs
from tureen.atomic_file import write_atomically
from tureen.bundle.bundle import load_bundle
from tureen.bundle.manifest import Precision
from tureen.engines import open_engine
from tureen.engines.base import EngineOptions
from tureen.engines.paired import CPU_ENGINES
from tureen.errors import TureenError
from tureen.preprocess import ImageLimits
from tureen.soup import Soup

POLL_S = 1.0  # between two checks whether the job must stop
REPORT_S = 0.2  # between two messages of the process
MAX_MESSAGE = 1 << 20  # bytes of one message; the longest ones have a traceback

OpenPool = Callable[[ImageSource, DecodeOptions], AbstractContextManager[DecodePool]]
"""Returns a context manager of the pool that decodes the images of a job."""


class JobProgress:
    """The progress of a running job, and a flag that stops the job.

    The thread of the job writes the progress, and the event loop reads it. The event loop calls `stop`.
    """

    def __init__(self, max_images: int) -> None:
        self.images: int | None = None
        self.done = self.failed = 0
        self.fingerprint: str | None = None
        self._max_images = max_images
        self._stop = threading.Event()

    def stop(self) -> None:
        """Makes the next call of `check`, `on_listed` or `on_images` raise JobInterruptedError."""
        self._stop.set()

    def on_listed(self, images: int) -> None:
        """Checks the number of images that the listing of the input has so far.

        Raises InputError if `images` exceeds the limit, and JobInterruptedError after `stop`.
        """
        if images > self._max_images:
            raise InputError(f"the input has more than {self._max_images:,} images, the limit: --max-job-images")
        self.check()

    def on_images(self, done: int, failed: int) -> None:
        """Adds to the numbers of finished and failed images. Raises JobInterruptedError after `stop`."""
        self.done += done
        self.failed += failed
        self.check()

    def check(self) -> None:
        """Raises JobInterruptedError after `stop`."""
        if self._stop.is_set():
            raise JobInterruptedError

    def apply_to(self, record: JobRecord) -> JobRecord:
        """Returns the record with this progress."""
        return replace(record, images=self.images, done=self.done, failed=self.failed, fingerprint=self.fingerprint)


def run_job(
    record: JobRecord,
    files: RootedFiles,
    soup: Soup,
    classify: Classify,
    progress: JobProgress,
    *,
    batch_rows: int,
    streams: int,
    open_pool: OpenPool,
) -> JobSummary:
    """Runs a job to its end on the calling thread, and returns the summary. classify: runs the engine of `soup`.

    batch_rows: rows of one run of the engine. streams: simultaneous runs.
    Raises JobInterruptedError after `progress.stop()`, another TureenError if the job cannot continue, or OSError if
    the disk fails. The finished shards are kept in every case.
    """
    request, manifest = record.request, soup.bundle.manifest
    betas = request.betas if request.beta is None else (request.beta,)
    files.check_output(request.output)
    check_not_inside(Path(request.output), request.input)
    with (
        closing(open_source(request.input, files)) as source,
        files.open_output(Path(request.output)) as output,
        lock_output(output),
    ):
        earlier = _claim_output(output, record)
        options = JobOptions(
            betas,
            record.default_beta,
            request.top_k,
            request.format,
            request.shard_rows,
            batch_rows,
            calibrated=soup.temperatures.is_calibrated if earlier is None else None,
            mix=None if request.mix is None else parse_stored_mix(request.mix),
            tokens=soup.tokens,
        )
        spec = start_or_resume(output, source, manifest, soup.engine, soup.limits, options, earlier, progress.on_listed)
        progress.images, progress.fingerprint = spec.images, spec.fingerprint
        decode_options = DecodeOptions(manifest.preprocess, soup.limits)
        with open_pool(source, decode_options) as pool:
            pipeline = Pipeline(
                at_mix(classify, spec.token_mix, options.tokens),
                pool,
                spec.betas,
                temperatures=spec.temperatures,
                batch_rows=spec.batch_rows,
                streams=streams,
            )
            job = Job(output, spec, manifest.labels)
            return job.run(
                lambda tasks: job.make_shards(pipeline, tasks, progress.on_images),
                retry_failed=record.retries_failed,
                max_error_rate=request.max_error_rate,
                on_images=progress.on_images,
            )


def _claim_output(output: OutputDirectory, record: JobRecord) -> JobSpec | None:
    """Returns the specification of an earlier run of this job; None if the output directory is new.

    Writes the id of the job into a new directory. Raises OutputError if the directory has another job or other files.
    """
    job_id = read_job_id(output)
    earlier = read_job_spec(output)
    if job_id == record.id:
        return earlier
    if job_id is not None or earlier is not None:
        raise OutputError(f"{output.name} holds another job: give another directory")
    write_atomically(output.job_folder / JOB_ID_FILE, record.id.encode())
    return None


class JobProcessConfig(BaseModel):
    """The message to the process of a job: everything that it needs."""

    model_config = ConfigDict(frozen=True)

    record: JobRecord
    input_roots: tuple[Path, ...]
    output_roots: tuple[Path, ...]
    max_images: int
    bundle: Path  # directory
    version: str  # of the model
    engine: str
    precision: Precision
    options: EngineOptions
    limits: ImageLimits
    is_calibrated: bool
    tokens: dict[str, list[float]]  # vectors by name, of the mix of the job
    batch_rows: int
    decode_threads: int
    log_level: str
    parent: int  # id of the server's process


class JobFailure(BaseModel):
    """The error that ended a job in its process. code: of errno, for the kind "disk"."""

    kind: Literal["job", "output taken", "disk", "unexpected"]
    message: str
    code: int = 0

    def to_error(self) -> Exception:
        """Returns an exception of the class that the process had."""
        match self.kind:
            case "output taken":
                return OutputTakenError(self.message)
            case "disk":
                return OSError(self.code, self.message)
            case "unexpected":
                return RuntimeError(self.message)
        return JobError(self.message)


class JobMessage(BaseModel):
    """A message from the process of a job: its progress so far, and at the end the summary or the error."""

    images: int | None
    done: int
    failed: int
    fingerprint: str | None
    rows: int  # that the engine has run
    summary: JobSummary | None = None
    failure: JobFailure | None = None


class JobProcessEndedError(Exception):
    """The process of a job ended before it sent a summary or an error."""


def can_use_idle_time(engine: str, quota: float | None, cpus: int) -> bool:
    """Returns whether a process of the lowest priority with this engine delays no request.

    This holds on Linux for an engine on the CPU, if no quota limits the CPU time of the server. Within a quota, a job
    on otherwise idle processors would use up the time of requests. quota: the result of `cpu_quota`. cpus: processors
    on which the server may run.
    """
    return sys.platform.startswith("linux") and engine in CPU_ENGINES and (quota is None or quota >= cpus)


def run_in_process(
    config: JobProcessConfig,
    progress: JobProgress,
    *,
    has_requests: Callable[[], bool],
    on_rows: Callable[[int], None],
) -> JobSummary:
    """Runs a job in a separate process, and returns the summary. Blocks: a thread calls it.

    has_requests: returns whether requests arrive. When it returns True, the process gets the lowest priority until its
    end, because only a privileged user may raise a priority again. on_rows: receives the number of rows that the engine
    has run since the last call. Raises JobInterruptedError after `progress.stop()`, JobProcessEndedError if the process
    ends early, and errors as `run_job`. The finished shards are kept in every case.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "serve.jobs.job_run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    rows, is_beside_requests = 0, False

    def check() -> None:
        nonlocal is_beside_requests
        progress.check()
        is_beside_requests = is_beside_requests or has_requests()
        if is_beside_requests:  # each time, because the process starts threads
            _lower_all_threads(process.pid)

    try:
        check()
        with suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(config.model_dump_json().encode())
        for line in read_lines(process.stdout, check):
            message = JobMessage.model_validate_json(line)
            progress.images, progress.fingerprint = message.images, message.fingerprint
            progress.done, progress.failed = message.done, message.failed
            on_rows(message.rows - rows)
            rows = message.rows
            if message.failure is not None:
                raise message.failure.to_error()
            if message.summary is not None:
                return message.summary
        raise JobProcessEndedError
    finally:
        end_process(process)
        process.stdout.close()


def _lower_all_threads(process: int) -> None:
    """Gives every thread of a process the lowest priority."""
    with suppress(OSError):  # the process has ended
        for thread in os.listdir(f"/proc/{process}/task"):
            lower_priority(int(thread))


def read_lines(pipe: IO[bytes], check: Callable[[], None]) -> Iterator[bytes]:
    """Yields the lines from a pipe until its end. Calls `check` at least once in POLL_S seconds.

    Raises ValueError for a line of more than MAX_MESSAGE bytes, because a hostile image may control the process.
    """
    readable, rest = select.poll(), b""
    readable.register(pipe)
    while True:
        check()
        if not readable.poll(1000 * POLL_S):
            continue
        data = os.read(pipe.fileno(), 1 << 16)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        if len(rest) > MAX_MESSAGE:
            raise ValueError(f"the process of a job sent a line of more than {MAX_MESSAGE:,} bytes")


class _ReportedProgress(JobProgress):
    """The progress of a job in its process. Sends it to the server at most once in REPORT_S seconds."""

    def __init__(self, max_images: int, pipe: IO[bytes]) -> None:
        super().__init__(max_images)
        self._pipe, self._reported_s, self._rows, self._lock = pipe, 0.0, 0, threading.Lock()

    def add_rows(self, rows: int) -> None:
        """Adds to the number of rows that the engine has run. Any thread may call it."""
        with self._lock:
            self._rows += rows

    def check(self) -> None:
        if time.monotonic() - self._reported_s >= REPORT_S:
            self.send()

    def send(self, summary: JobSummary | None = None, failure: JobFailure | None = None) -> None:
        """Sends a message to the server."""
        self._reported_s = time.monotonic()
        message = JobMessage(
            images=self.images,
            done=self.done,
            failed=self.failed,
            fingerprint=self.fingerprint,
            rows=self._rows,
            summary=summary,
            failure=failure,
        )
        self._pipe.write(message.model_dump_json().encode() + b"\n")
        self._pipe.flush()


def main() -> None:
    """Runs the process of a job: reads its JobProcessConfig from standard input, and writes messages to the output."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # terminals and service managers send these to the whole process group
    prefer_for_oom_kill()
    return_large_blocks()
    config = JobProcessConfig.model_validate_json(sys.stdin.buffer.read())
    end_with_parent(config.parent)
    configure_logs(config.log_level, job=config.record.id)
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints
    progress = _ReportedProgress(config.max_images, pipe)
    try:
        progress.send(_run(config, progress))
    except OutputTakenError as error:
        progress.send(failure=JobFailure(kind="output taken", message=str(error)))
    except TureenError as error:
        progress.send(failure=JobFailure(kind="job", message=str(error)))
    except OSError as error:
        failure = JobFailure(kind="disk", message=error.strerror or str(error), code=error.errno or errno.EIO)
        progress.send(failure=failure)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - the server logs it
        progress.send(failure=JobFailure(kind="unexpected", message=traceback.format_exc()))


def _run(config: JobProcessConfig, progress: _ReportedProgress) -> JobSummary:
    bundle = load_bundle(config.bundle)
    if bundle.manifest.version != config.version:
        raise JobError("the bundle was replaced since the server loaded it: reload the server, then resume the job")
    engine = open_engine(bundle, config.engine, config.precision, config.options)
    with Soup(bundle, engine, config.limits, calibrated=config.is_calibrated) as soup:
        soup.tokens |= {name: np.array(vector, np.float32) for name, vector in config.tokens.items()}

        def classify(pixels: NDArray[np.uint8], betas: Sequence[float | NDArray[np.float32]]) -> NDArray[np.float32]:
            logits = soup.logits(pixels, betas)
            if not np.isfinite(logits).all():
                raise ArithmeticError("the engine returned logits that are not finite")  # the pipeline finds the row
            progress.add_rows(len(betas))
            return logits

        return run_job(
            config.record,
            RootedFiles(config.input_roots, config.output_roots),
            soup,
            classify,
            progress,
            batch_rows=config.batch_rows,
            streams=config.options.streams,
            open_pool=lambda source, options: decode_in_threads(source, options, config.decode_threads),
        )


if __name__ == "__main__":
    main()
