"""Runs the batch jobs in the store, one at a time, on the engine of the server. Knows no HTTP.

Requests have priority. Where `can_use_idle_time` allows it, a job runs in a separate process of low priority. Elsewhere
it runs on the engine of the server, and a run of the engine for the job waits while a request waits. Then processes of
the lowest priority read and decode its images, so they take neither the interpreter lock nor a processor from requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve.control.revision_store import RevisionStore
from serve.errors import (
    ControlStoreError,
    InputError,
    JobInterruptedError,
    JobStateError,
    OutputTakenError,
)
from serve.inference.loaded_model import LoadedModel
from serve.inference.service import Service
from serve.jobs.decoding import decode_in_processes
from serve.jobs.input_sources import open_source
from serve.jobs.job_output import JobSummary, check_not_inside
from serve.jobs.job_run import (
    POLL_S,
    JobProcessConfig,
    JobProcessEndedError,
    JobProgress,
    can_use_idle_time,
    run_in_process,
    run_job,
)
from serve.jobs.job_spec import BATCH_ROWS, parse_stored_mix
from serve.jobs.job_store import JobRecord, JobRecords, JobRequest, State
from serve.jobs.rooted_files import RootedFiles
from serve.telemetry.logs import FIELDS
from tureen.errors import TureenError
from tureen.machine import cpu_quota

RETRY_S = 5.0  # before the next attempt at a job whose output another process has locked
FORGET_EVERY_S = 3600.0

logger = logging.getLogger("tureen.jobs")


class JobRunner:
    """Runs jobs in one server process. Call `open` when the service is ready, and `close` before the service closes."""

    def __init__(self, service: Service, store: RevisionStore) -> None:
        """store: the store of the jobs, which `close` closes."""
        self._service, self._settings, self._store = service, service.settings, store
        self._records = JobRecords(store)
        self._files = RootedFiles(self._settings.job_input_roots, self._settings.job_output_roots)
        self._owner = f"{socket.gethostname()} {os.getpid()} {time.time_ns()}"
        self._is_closing = asyncio.Event()
        self._last_forget_s = -FORGET_EVERY_S

    async def open(self) -> None:
        """Starts a task that claims and runs the jobs of the store. Requires a running event loop.

        The task continues while the store is unreachable.
        """
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Interrupts the running job and closes the store. Another process can continue the job later.

        The finished shards of the job are kept.
        """
        self._is_closing.set()
        await self._task
        await asyncio.to_thread(self._store.close)

    async def _run(self) -> None:
        is_reachable = True
        while not self._is_closing.is_set():
            record = None
            try:
                await self._forget_old_jobs()
                record = await asyncio.to_thread(self._records.claim, self._owner)
                is_reachable = True
            except ControlStoreError as error:
                if is_reachable:
                    logger.error("%s; no job starts until the store is reachable", error)
                is_reachable = False
            if record is None:
                await self._pause(POLL_S)
            else:
                await self._run_job(record)

    async def _run_job(self, record: JobRecord) -> None:
        """Runs a job until it ends or is interrupted. Renews the lease meanwhile, and stores the final state."""
        _log("job begins", record)
        progress = JobProgress(self._settings.max_job_images)
        state: State | None = None
        with self._service.hold_model() as model:
            work = asyncio.create_task(asyncio.to_thread(self._run_on_thread, record, model, progress))
            while not work.done():
                if self._is_closing.is_set() or self._service.model is not model:
                    state = "running"  # another process continues it
                    progress.stop()
                await asyncio.wait({work}, timeout=POLL_S)
                with contextlib.suppress(
                    ControlStoreError
                ):  # if the lease expires meanwhile, another process continues
                    try:
                        now = await asyncio.to_thread(self._records.renew, progress.apply_to(record))
                    except JobStateError:
                        progress.stop()
                    else:
                        if now.requested_state is not None:
                            state = now.requested_state
                            progress.stop()
        final_state, error = self._outcome(record, work, state)
        record = progress.apply_to(record)
        self._service.metrics.jobs.labels(final_state).inc()
        _log("job stops", record, state=final_state, **({} if error is None else {"error": error}))
        while True:
            try:
                delay_s = RETRY_S if final_state == "queued" else 0.0
                await asyncio.to_thread(self._records.release, record, final_state, error, delay_s)
                break
            except ControlStoreError as fault:
                logger.error("%s; the final state of the job is not stored yet", fault)
                if self._is_closing.is_set():
                    break  # the lease expires
                await self._pause(POLL_S)

    @staticmethod
    def _outcome(record: JobRecord, work: asyncio.Task[JobSummary], state: State | None) -> tuple[State, str | None]:
        """Returns the state of a job after a run, and an error message or None.

        work: the finished run. state: the state if the run was interrupted.
        """
        try:
            summary = work.result()
        except JobInterruptedError:
            return state or "queued", None
        except OutputTakenError as error:  # perhaps by the process that held the lease earlier
            return "queued", f"{error}: the server tries again"
        except TureenError as error:
            return "failed", str(error)
        except OSError as error:
            return "failed", f"{error.strerror or error}: correct this, then resume the job"
        except (BrokenExecutor, JobProcessEndedError, MemoryError):
            return "failed", "a process of the job died, perhaps of too little memory: resume the job"
        except Exception:
            logger.exception("a job failed", extra={FIELDS: {"job": record.id}})
            return "failed", "an unexpected error occurred; the log of the server has its traceback"
        return ("partially_succeeded" if summary.failed_rows else "succeeded"), None

    def _run_on_thread(self, record: JobRecord, model: LoadedModel, progress: JobProgress) -> JobSummary:
        """Runs a job to its end. Blocks, so a thread calls it."""
        settings, soup, files = self._settings, model.soup, self._files
        streams, batch_rows = settings.engine_options.streams, min(settings.max_batch, BATCH_ROWS)
        if not settings.job_shares_engine and can_use_idle_time(
            soup.engine.name, cpu_quota(), len(os.sched_getaffinity(0))
        ):
            mix = None if record.request.mix is None else parse_stored_mix(record.request.mix)
            if mix is not None:
                mix.check_names(soup.tokens)
            config = JobProcessConfig(
                record=record,
                input_roots=settings.job_input_roots,
                output_roots=settings.job_output_roots,
                max_images=settings.max_job_images,
                bundle=soup.bundle.path.absolute(),
                version=soup.bundle.manifest.version,
                engine=soup.engine.name,
                precision=soup.engine.precision,
                options=settings.engine_options,
                limits=settings.limits,
                is_calibrated=settings.calibration,
                tokens={name: soup.tokens[name].tolist() for name, _ in (mix.weights if mix else ())},
                batch_rows=batch_rows,
                decode_threads=settings.threads,
                log_level=settings.log_level,
                parent=os.getpid(),
            )
            return run_in_process(
                config,
                progress,
                has_requests=lambda: not model.is_quiet,
                on_rows=self._service.metrics.job_rows.inc,
            )
        return run_job(
            record,
            files,
            soup,
            lambda pixels, betas: self._classify(model, pixels, betas, progress),
            progress,
            batch_rows=batch_rows,
            streams=streams,
            open_pool=lambda source, options: decode_in_processes(
                record.request.input, files, source, options, settings.job_decode_processes
            ),
        )

    def _classify(
        self,
        model: LoadedModel,
        pixels: NDArray[np.uint8],
        betas: Sequence[float | NDArray[np.float32]],
        progress: JobProgress,
    ) -> NDArray[np.float32]:
        """Returns logits, float32 (B, K), for pixels uint8 (B, H, W, 3), and B β or tokens. Blocks: a thread calls it.

        Waits without a deadline, because the engine runs the rows of requests first. Raises JobInterruptedError if the
        job is stopped meanwhile.
        """
        running = asyncio.run_coroutine_threadsafe(model.logits(pixels, betas), self._loop)
        while True:
            try:
                logits = running.result(timeout=POLL_S)
            except TimeoutError:
                try:
                    progress.check()
                except JobInterruptedError:
                    running.cancel()
                    raise
            else:
                self._service.metrics.job_rows.inc(len(betas))
                return logits

    async def _forget_old_jobs(self) -> None:
        if time.monotonic() - self._last_forget_s >= FORGET_EVERY_S:
            await asyncio.to_thread(self._records.delete_old, self._settings.job_retention_days)
            self._last_forget_s = time.monotonic()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_closing.wait()


def check_paths(files: RootedFiles, request: JobRequest) -> None:
    """Checks the input and output paths of a request before the job is stored.

    Raises OutsideRootsError if a path is outside the root directories, or if the output is a root. Raises InputError if
    the input cannot be opened, or if the job needs Parquet and pyarrow is not installed. Raises OutputError if the
    output is inside the input, is more than MAX_DEPTH folders below its root, or leads through a link or a file.
    """
    files.check_output(request.output)
    if request.format in (None, "parquet") or request.input.lower().endswith(".parquet"):
        try:
            import pyarrow  # noqa: F401 - the extra [batch] installs it
        except ModuleNotFoundError:
            raise InputError("this server has no pyarrow for Parquet: ask for the format jsonl or csv") from None
    open_source(request.input, files).close()
    check_not_inside(Path(request.output), request.input)
    files.check_output_folders(request.output)


def _log(event: str, record: JobRecord, **fields: object) -> None:
    logged = {"job": record.id, "who": record.who, "done": record.done, "failed": record.failed, **fields}
    logger.log(logging.ERROR if fields.get("state") == "failed" else logging.INFO, event, extra={FIELDS: logged})
