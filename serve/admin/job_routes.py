"""The routes under /jobs: submit, list, show and control batch jobs, and read their results and errors."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError

from serve.admin.auth import Operator, read_json_body
from serve.admin.operations import AdminOperations
from serve.control.change import describe_first_error
from serve.errors import InputError, JobsUnavailableError, NoResultError
from serve.jobs.job_output import SUCCESS_FILE, read_job_id
from serve.jobs.job_spec import parse_stored_mix
from serve.jobs.job_store import JobRecord, JobRecords, JobSubmission, State
from serve.jobs.rooted_files import OutputDirectory, RootedFiles, open_regular_file
from serve.jobs.runner import check_paths
from serve.jobs.shard_file import Format, read_rows
from tureen.errors import SingleTokenError

MAX_LISTED = 1000
TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,15}Z$"
CHUNK_BYTES = 1 << 20
MEDIA_TYPES = {"parquet": "application/vnd.apache.parquet", "jsonl": "application/jsonl", "csv": "text/csv"}
_SHARD = re.compile(r"part-([0-9]{5,9})\.(parquet|jsonl|csv)")


def add_job_routes(router: APIRouter, operations: AdminOperations) -> None:
    """Adds the routes under /jobs to the router.

    Each route raises JobsUnavailableError if the server was started without root directories for jobs.
    """

    @router.post("/jobs", status_code=202)
    async def submit(request: Request, operator: Operator) -> Response:
        records, files = _jobs_of(operations)
        job_request = _parse(await read_json_body(request)).request(operations.manifest)
        default = operations.default_beta(operations.replica.state)
        if default is None and (job_request.beta is not None or job_request.betas is not None):
            raise SingleTokenError
        if job_request.mix is not None:
            operations.check_mix(parse_stored_mix(job_request.mix))
        await asyncio.to_thread(check_paths, files, job_request)
        record = await asyncio.to_thread(
            lambda: records.submit(job_request, who=operator.name, default_beta=default, max_jobs=operations.max_jobs)
        )
        return JSONResponse(_job_json(record), 202, {"Location": f"/jobs/{record.id}"})

    @router.get("/jobs")
    async def jobs(
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 50,
        before: Annotated[str | None, Query(pattern=TIME)] = None,
        state: State | None = None,
    ) -> JSONResponse:
        records, _ = _jobs_of(operations)
        found = await asyncio.to_thread(records.list, limit, before, state)
        next_before = found[-1].created_at if len(found) == limit else None
        return JSONResponse({"jobs": [_job_json(record) for record in found], "next_before": next_before})

    @router.get("/jobs/{job_id}")
    async def job(job_id: str) -> JSONResponse:
        records, _ = _jobs_of(operations)
        return JSONResponse(_job_json(await asyncio.to_thread(records.get, job_id)))

    @router.post("/jobs/{job_id}/cancel")
    async def cancel(job_id: str, operator: Operator) -> JSONResponse:
        return await _act(_jobs_of(operations)[0].cancel, job_id)

    @router.post("/jobs/{job_id}/pause")
    async def pause(job_id: str, operator: Operator) -> JSONResponse:
        return await _act(_jobs_of(operations)[0].pause, job_id)

    @router.post("/jobs/{job_id}/resume")
    async def resume(job_id: str, operator: Operator) -> JSONResponse:
        return await _act(_jobs_of(operations)[0].resume, job_id)

    @router.get("/jobs/{job_id}/results")
    async def results(job_id: str) -> JSONResponse:
        records, files = _jobs_of(operations)
        record = await asyncio.to_thread(records.get, job_id)
        return JSONResponse({"files": await asyncio.to_thread(_list_results, files, record)})

    @router.get("/jobs/{job_id}/results/{name}")
    async def result(job_id: str, name: str) -> Response:
        records, files = _jobs_of(operations)
        record = await asyncio.to_thread(records.get, job_id)
        size, chunks = await asyncio.to_thread(_open_result, files, record, name)
        media_type = MEDIA_TYPES.get(name.rpartition(".")[2], "application/json")
        headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{name}"'}
        return StreamingResponse(chunks, media_type=media_type, headers=headers)

    @router.get("/jobs/{job_id}/errors")
    async def errors(job_id: str, limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 100) -> JSONResponse:
        records, files = _jobs_of(operations)
        record = await asyncio.to_thread(records.get, job_id)
        return JSONResponse({"errors": await asyncio.to_thread(_read_errors, files, record, limit)})


def _jobs_of(operations: AdminOperations) -> tuple[JobRecords, RootedFiles]:
    if operations.jobs is None:
        raise JobsUnavailableError
    return operations.jobs


def _parse(document: Any) -> JobSubmission:
    try:
        return JobSubmission.model_validate(document)
    except ValidationError as error:
        raise InputError(describe_first_error(error, JobSubmission)) from None


async def _act(action: Callable[[str], JobRecord], job_id: str) -> JSONResponse:
    return JSONResponse(_job_json(await asyncio.to_thread(action, job_id)), 202)


def _job_json(record: JobRecord) -> dict[str, Any]:
    """Returns the JSON object of a job, which is the body of a response."""
    return {
        "id": record.id,
        "state": record.state,
        "wanted": record.requested_state,
        "who": record.who,
        "request": record.request.model_dump(mode="json"),
        "default_beta": record.default_beta,
        "times": record.times,
        "images": record.images,
        "done": record.done,
        "failed": record.failed,
        "error": record.error,
        "fingerprint": record.fingerprint,
    }


@contextmanager
def _open_output(files: RootedFiles, record: JobRecord) -> Iterator[OutputDirectory]:
    try:
        with files.open_output(Path(record.request.output), create=False) as place:
            if read_job_id(place) != record.id:
                raise NoResultError
            yield place
    except FileNotFoundError:
        raise NoResultError from None


def _list_results(files: RootedFiles, record: JobRecord) -> list[dict[str, Any]]:
    with _open_output(files, record) as place:
        names = sorted(name for name in os.listdir(place.path) if name == SUCCESS_FILE or _SHARD.fullmatch(name))
        return [{"name": name, "bytes": os.lstat(place.path / name).st_size} for name in names]


def _open_result(files: RootedFiles, record: JobRecord, name: str) -> tuple[int, Iterator[bytes]]:
    """Returns the size in bytes and the chunks of a result file of a job. name: of the file.

    Raises NoResultError if the job has no result of this name, or if the output directory of the job is gone or belongs
    to another job.
    """
    if name != SUCCESS_FILE and not _SHARD.fullmatch(name):
        raise NoResultError
    with _open_output(files, record) as place:
        try:
            file = open_regular_file(place.path / name)
        except OSError:
            raise NoResultError from None
    status = os.fstat(file.fileno())
    if status.st_nlink != 1:  # a hard link to another file
        file.close()
        raise NoResultError

    def chunks() -> Iterator[bytes]:
        with file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    return status.st_size, chunks()


def _read_errors(files: RootedFiles, record: JobRecord, limit: int) -> list[dict[str, Any]]:
    """Returns at most `limit` rows with an error, in the order of the shards. Reads only the shards that exist so far.

    Raises NoResultError if the output directory of the job is gone or belongs to another job.
    """
    found: list[dict[str, Any]] = []
    if record.failed == 0:
        return found
    with _open_output(files, record) as place:
        for name in sorted(os.listdir(place.path)):
            shard = _SHARD.fullmatch(name)
            if shard is None:
                continue
            shard_format: Format = shard[2]  # type: ignore[assignment] # by the pattern
            for row in read_rows(place.path / name, shard_format):
                if row["error_code"] is not None:
                    found.append({key: row[key] for key in ("id", "path", "sha256", "beta", "error_code", "error")})
                    if len(found) == limit:
                        return found
    return found
