"""Runs the jobs of a store, one at a time, on the engine that serves, behind every request. Knows no HTTP.

Reading and decoding are done by processes of the lowest priority, so that they take neither the interpreter nor a
processor from whoever answers requests; the engine's runs wait until no request does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve.control.revision_store import RevisionStore
from serve.errors import (
    ControlStoreError,
    InputError,
    JobInterruptedError,
    JobStateError,
    OutputError,
    OutputTakenError,
)
from serve.inference.loaded_model import LoadedModel
from serve.inference.service import Service
from serve.jobs.atomic_files import reopen, write_whole
from serve.jobs.decoding import Decoding, in_processes
from serve.jobs.input_sources import open_source
from serve.jobs.job_output import ID, Job, Spec, Summary, begun, locked, refuse_inside
from serve.jobs.job_spec import BATCH_ROWS, Wanted, pin
from serve.jobs.job_store import JobRecord, JobRecords, JobRequest, State
from serve.jobs.pipeline import Classify, Pipeline
from serve.jobs.rooted_files import Place, Rooted
from serve.telemetry.logs import FIELDS
from tureen.errors import TureenError
from tureen.soup import Soup

LOOK_S = 1.0  # between two looks for a job, and between two at what is wanted of the one that runs
AGAIN_S = 5.0  # before a job is tried again whose output another process holds
FORGET_EVERY_S = 3600.0

logger = logging.getLogger("tureen.jobs")


class Progress:
    """How far a job is, and whether it is to stop: told by its thread, asked by the loop."""

    def __init__(self, most_images: int) -> None:
        self.images: int | None = None
        self.done = self.failed = 0
        self.fingerprint: str | None = None
        self._most_images = most_images
        self._stop = threading.Event()

    def stop(self) -> None:
        self._stop.set()

    def on_listed(self, images: int) -> None:
        if images > self._most_images:
            raise InputError(f"the input has more than {self._most_images:,} images, the limit: --max-job-images")
        self.check()

    def on_images(self, done: int, failed: int) -> None:
        self.done += done
        self.failed += failed
        self.check()

    def check(self) -> None:
        """Raises JobInterruptedError where it is to stop."""
        if self._stop.is_set():
            raise JobInterruptedError

    def shown_in(self, record: JobRecord) -> JobRecord:
        return replace(record, images=self.images, done=self.done, failed=self.failed, fingerprint=self.fingerprint)


class JobRunner:
    """Opened in a running loop once the service is ready, closed before the service is."""

    def __init__(self, service: Service, store: RevisionStore) -> None:
        """store: of the jobs, which the runner closes."""
        self._service, self._settings, self._store = service, service.settings, store
        self._records = JobRecords(store)
        self._files = Rooted(self._settings.job_input_roots, self._settings.job_output_roots)
        self._owner = f"{socket.gethostname()} {os.getpid()} {time.time_ns()}"
        self._is_closing = asyncio.Event()
        self._forgot_s = -FORGET_EVERY_S

    async def open(self) -> None:
        """Look for jobs from now on, also while the store cannot be reached."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Leave the job that runs, whole shards of it done, to whoever goes on with it."""
        self._is_closing.set()
        await self._task
        await asyncio.to_thread(self._store.close)

    async def _run(self) -> None:
        is_reachable = True
        while not self._is_closing.is_set():
            record = None
            try:
                await self._forget_now_and_then()
                record = await asyncio.to_thread(self._records.claim, self._owner)
                is_reachable = True
            except ControlStoreError as error:
                if is_reachable:
                    logger.error("%s; no job is begun meanwhile", error)
                is_reachable = False
            if record is None:
                await self._pause(LOOK_S)
            else:
                await self._go_on_with(record)

    async def _go_on_with(self, record: JobRecord) -> None:
        """Run the job to its end or to where it is to stop, and have the store say so."""
        _log("job begins", record)
        progress = Progress(self._settings.max_job_images)
        state: State | None = None
        with self._service.background() as model:
            work = asyncio.create_task(asyncio.to_thread(self._work, record, model, progress))
            while not work.done():
                if self._is_closing.is_set() or self._service.model is not model:
                    state = "running"  # for whoever goes on with it
                    progress.stop()
                await asyncio.wait({work}, timeout=LOOK_S)
                with contextlib.suppress(ControlStoreError):  # the lease may run out meanwhile, and nothing is lost
                    try:
                        now = await asyncio.to_thread(self._records.renew, progress.shown_in(record))
                    except JobStateError:
                        progress.stop()
                    else:
                        if now.wanted is not None:
                            state = now.wanted
                            progress.stop()
        ended, error = self._outcome(record, work, state)
        record = progress.shown_in(record)
        self._service.metrics.jobs.labels(ended).inc()
        _log("job stops", record, state=ended, **({} if error is None else {"error": error}))
        while True:
            try:
                later_s = AGAIN_S if ended == "queued" else 0.0
                await asyncio.to_thread(self._records.release, record, ended, error, later_s)
                break
            except ControlStoreError as fault:
                logger.error("%s; the job's end is not told yet", fault)
                if self._is_closing.is_set():
                    break  # its lease runs out
                await self._pause(LOOK_S)

    @staticmethod
    def _outcome(record: JobRecord, work: asyncio.Task[Summary], state: State | None) -> tuple[State, str | None]:
        """What became of the job, and why where it failed."""
        try:
            summary = work.result()
        except JobInterruptedError:
            return state or "queued", None
        except OutputTakenError as error:  # perhaps by whoever held the job before, and has not ended yet
            return "queued", f"{error}: it is tried again"
        except TureenError as error:
            return "failed", str(error)
        except OSError as error:
            return "failed", f"{error.strerror or error}: resume the job once that is mended"
        except (BrokenExecutor, MemoryError):
            return "failed", "a process that decodes its images died, for want of memory perhaps: resume the job"
        except Exception:
            logger.exception("a job failed", extra={FIELDS: {"job": record.id}})
            return "failed", "something went wrong here; the server's log has it"
        return ("partially_succeeded" if summary.failed_rows else "succeeded"), None

    def _work(self, record: JobRecord, model: LoadedModel, progress: Progress) -> Summary:
        """The whole job, on a thread."""
        return run_job(
            record,
            self._files,
            model.soup,
            lambda pixels, betas: self._classify(model, pixels, betas, progress),
            progress,
            batch_rows=min(self._settings.max_batch, BATCH_ROWS),
            streams=self._settings.engine_options.streams,
            decode_processes=self._settings.job_decode_processes,
        )

    def _classify(
        self, model: LoadedModel, pixels: NDArray[np.uint8], betas: Sequence[float], progress: Progress
    ) -> NDArray[np.float32]:
        """On a thread: the rows wait for the engine behind every request, however long, unless the job is to stop."""
        running = asyncio.run_coroutine_threadsafe(model.logits(pixels, betas), self._loop)
        while True:
            try:
                logits = running.result(timeout=LOOK_S)
            except TimeoutError:
                try:
                    progress.check()
                except JobInterruptedError:
                    running.cancel()
                    raise
            else:
                self._service.metrics.job_rows.inc(len(betas))
                return logits

    async def _forget_now_and_then(self) -> None:
        if time.monotonic() - self._forgot_s >= FORGET_EVERY_S:
            await asyncio.to_thread(self._records.forget, self._settings.job_retention_days)
            self._forgot_s = time.monotonic()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_closing.wait()


def run_job(
    record: JobRecord,
    files: Rooted,
    soup: Soup,
    classify: Classify,
    progress: Progress,
    *,
    batch_rows: int,
    streams: int,
    decode_processes: int,
) -> Summary:
    """Runs the job to its end, on the thread that calls; classify: on that soup's engine.

    Raises JobInterruptedError where progress says so, another TureenError where it cannot go on, OSError where the disk
    fails; what is done is kept in any case.
    """
    request, manifest = record.request, soup.bundle.manifest
    betas = request.betas if request.beta is None else (request.beta,)
    wanted = Wanted(betas, record.default_beta, request.top_k, request.format, request.shard_rows, batch_rows)
    files.check_output(request.output)
    refuse_inside(Path(request.output), request.input)
    with (
        closing(open_source(request.input, files)) as source,
        files.place(Path(request.output)) as place,
        locked(place),
    ):
        earlier = _begun_by(place, record)
        spec = pin(place, source, manifest, soup.engine, soup.limits, wanted, earlier, progress.on_listed)
        progress.images, progress.fingerprint = spec.images, spec.fingerprint
        decoding = Decoding(manifest.preprocess, soup.limits, spec.jpeg_scaling)
        with in_processes(request.input, files, source, decoding, decode_processes) as readers:
            pipeline = Pipeline(classify, readers, spec.betas, batch_rows=spec.batch_rows, streams=streams)
            job = Job(place, spec, manifest.labels)
            return job.run(
                lambda parts: job.make(pipeline, parts, progress.on_images),
                retry_failed=record.retries_failed,
                max_error_rate=request.max_error_rate,
                on_images=progress.on_images,
            )


def check_paths(files: Rooted, request: JobRequest) -> None:
    """Before a job is taken; raises OutsideRootsError, InputError or OutputError."""
    files.check_output(request.output)
    open_source(request.input, files).close()
    refuse_inside(Path(request.output), request.input)
    files.check_way(request.output)
    if request.format in (None, "parquet") or request.input.lower().endswith(".parquet"):
        try:
            import pyarrow  # noqa: F401 - the extra batch has it
        except ModuleNotFoundError:
            raise InputError("this server has no pyarrow for Parquet: ask for the format jsonl or csv") from None


def holder_of(place: Place) -> str | None:
    """The id of the server's job that an output is of; None where it is of none. Raises OutputError."""
    try:
        with reopen(place.own / ID) as file:
            return file.read(64).decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"{place.name} holds something else: give another directory") from error


def _begun_by(place: Place, record: JobRecord) -> Spec | None:
    """What the output holds of this very job; None where it is new. Raises OutputError where it holds anything else."""
    holder = holder_of(place)
    earlier = begun(place)
    if holder == record.id:
        return earlier
    if holder is not None or earlier is not None:
        raise OutputError(f"{place.name} holds another job: give another directory")
    write_whole(place.own / ID, lambda file: file.write(record.id.encode()))
    return None


def _log(event: str, record: JobRecord, **fields: object) -> None:
    told = {"job": record.id, "who": record.who, "done": record.done, "failed": record.failed, **fields}
    logger.log(logging.ERROR if fields.get("state") == "failed" else logging.INFO, event, extra={FIELDS: told})
