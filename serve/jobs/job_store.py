"""Stores the batch jobs of a service in the database of the operator's settings: request, progress, state and lease.

    queued ─→ running ─→ succeeded | partially_succeeded | failed | cancelled
      └─ paused ─┘   resume queues a paused, failed or partially succeeded job again

The process that runs a job holds a lease on it and renews the lease. When the process dies, the lease expires, and
another process continues the job. If two processes ran one job, they would write equal rows into the same files.

The database is SQLite, or PostgreSQL if --store gives its URL. Methods block, so async code calls them on threads. They
raise ControlStoreError if the database cannot be reached or fails.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, get_args

import sqlalchemy as sa
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    TypeAdapter,
    model_serializer,
    model_validator,
)

from serve.control.revision_store import RevisionStore
from serve.control.settings_state import Beta, FrozenModel, format_time
from serve.errors import JobStateError, TooManyJobsError, UnknownJobError
from serve.jobs.shard_file import Format
from tureen.bundle.manifest import Manifest
from tureen.bundle.token_file import TokenName
from tureen.tokens import CLEAN_BETA, Mix, Strength, parse_mix, token_mix

State = Literal["queued", "running", "paused", "succeeded", "partially_succeeded", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
WAITING: tuple[State, ...] = ("queued", "running", "paused")
ENDED: tuple[State, ...] = ("succeeded", "partially_succeeded", "failed", "cancelled")
RESUMABLE: tuple[State, ...] = ("paused", "failed", "partially_succeeded")
LEASE_S = 15.0
MAX_BETAS = 101

FilePath = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^/[^\x00]*$")]
Whole = Annotated[int, Field(strict=True, ge=1)]


class JobRequest(FrozenModel):
    """The request for a job in the form that the store keeps."""

    input: FilePath = Field(description="a folder, a .tar or .zip, or a manifest, below a root directory for inputs")
    output: FilePath = Field(description="a new directory below a root directory for outputs")
    beta: Beta | None = Field(
        default=None, description="a number from 0 to 1; default: the default β of the server at submission"
    )
    betas: Annotated[tuple[Beta, ...], Field(min_length=1, max_length=MAX_BETAS)] | None = Field(
        default=None, description=f"1 to {MAX_BETAS} β; each image has a row for each"
    )
    top_k: Annotated[Whole, Field(le=1000)] | None = Field(default=None, description="classes per row, 1 to 1000")
    format: Format | None = Field(default=None, description="parquet, jsonl or csv")
    shard_rows: Annotated[Whole, Field(le=1_000_000)] | None = Field(
        default=None, description="approximate rows per shard"
    )
    max_error_rate: float = Field(
        default=1.0, strict=True, ge=0, le=1, description="the job stops above this share of rows with an error"
    )
    mix: str | None = Field(default=None, description="instead of beta: weights of tokens, as fog:0.7,robust:0.3")

    @model_serializer(mode="wrap")
    def _without_absent_mix(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves an absent mix out, so that servers of earlier versions can read the request."""
        return {name: value for name, value in handler(self).items() if name != "mix" or value is not None}

    @model_validator(mode="after")
    def _has_one_beta(self) -> JobRequest:
        if self.beta is not None and self.betas is not None:
            raise ValueError("give beta or betas")
        if self.mix is not None:
            if self.beta is not None or self.betas is not None:
                raise ValueError("give one of beta, betas and mix")
            parse_mix(self.mix)
        if self.betas is not None and len(set(self.betas)) < len(self.betas):
            raise ValueError("betas has a number twice: its rows would be the same")
        return self


class JobSubmission(JobRequest):
    """The body of POST /jobs: a JobRequest that may have `strength` in place of `beta`, and a token.

    The store keeps a JobRequest without strength, so that servers of earlier versions can read it.
    """

    strength: Annotated[float, Field(strict=True, ge=0, le=1)] | None = Field(
        default=None, description="instead of beta: a number from 0 to 1, whose β in the served model is stored"
    )

    token: TokenName | None = Field(
        default=None, description="the name of a token, alone or mixed with the robust token by beta or strength"
    )

    @model_validator(mode="after")
    def _has_no_beta_beside_the_strength(self) -> JobSubmission:
        if self.strength is not None and (self.beta is not None or self.betas is not None or self.mix is not None):
            raise ValueError("give one of beta, betas, strength and mix")
        if self.token is not None and (self.betas is not None or self.mix is not None):
            raise ValueError("give token with beta, with strength or alone")
        return self

    def request(self, manifest: Manifest) -> JobRequest:
        """Returns the request to store. Replaces a strength by the β that it has in the served model.

        Replaces a token by a mix, and a mix of clean and robust alone by its β. manifest: of the served model. Raises
        SingleTokenError if there is a strength and the model has one token.
        """
        fields = self.model_dump(exclude={"strength", "token", "mix"})
        if self.strength is not None:
            fields["beta"] = manifest.beta_of(Strength(self.strength))
        chosen: float | Mix | None = None
        if self.token is not None:
            chosen = token_mix(self.token, CLEAN_BETA if fields["beta"] is None else fields["beta"])
        elif self.mix is not None:
            chosen = parse_mix(self.mix)
        if chosen is not None:
            fields |= {"mix": str(chosen), "beta": None} if isinstance(chosen, Mix) else {"beta": chosen}
        return JobRequest.model_validate(fields)


@dataclass(frozen=True)
class JobRecord:
    """A job in the store.

    who: name of the operator's credential that submitted it. times: when the job last entered each state, UTC, ISO
    8601. images, done, failed: numbers of all, finished and failed images. owner: the process with the lease.
    """

    id: str
    state: State
    who: str
    request: JobRequest  # as submitted, but with β in place of a strength
    default_beta: float | None  # in force at submission; None: the model has one token
    created_at: str
    times: dict[str, str]
    images: int | None = None  # None until the input is listed
    done: int = 0
    failed: int = 0
    retries_failed: bool = False  # whether the next run classifies failed images again
    error: str | None = None  # message of the error that ended the job
    fingerprint: str | None = None  # of the JobSpec; None until the input is listed
    owner: str | None = None
    lease_until: float = 0.0  # seconds since 1970
    requested_state: State | None = None  # paused or cancelled: the running process has to enter it


_METADATA = sa.MetaData()
_JOBS = sa.Table(
    "tureen_jobs",
    _METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("state", sa.String(32), nullable=False, index=True),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("default_beta", sa.Float),
    sa.Column("created_at", sa.String(32), nullable=False, index=True),
    sa.Column("times", sa.Text, nullable=False),
    sa.Column("images", sa.BigInteger),
    sa.Column("done", sa.BigInteger, nullable=False),
    sa.Column("failed", sa.BigInteger, nullable=False),
    sa.Column("retries_failed", sa.Boolean, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("fingerprint", sa.String(64)),
    sa.Column("owner", sa.Text),
    sa.Column("lease_until", sa.Float, nullable=False),
    sa.Column("wanted", sa.String(32), key="requested_state"),
)
_TIMES: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


class JobRecords:
    """The jobs in a store. Methods block, and raise ControlStoreError if the database fails."""

    def __init__(self, store: RevisionStore) -> None:
        self._store = store

    def submit(self, request: JobRequest, *, who: str, default_beta: float | None, max_jobs: int) -> JobRecord:
        """Queues a new job and returns it. Raises TooManyJobsError if `max_jobs` jobs have not ended."""
        now = format_time(datetime.now(UTC))
        record = JobRecord(secrets.token_hex(8), "queued", who, request, default_beta, now, {"queued": now})
        with self._store.writing() as connection:
            waiting = connection.execute(
                sa.select(sa.func.count()).select_from(_JOBS).where(_JOBS.c.state.in_(WAITING))
            ).scalar_one()
            if waiting >= max_jobs:
                raise TooManyJobsError(max_jobs)
            connection.execute(_JOBS.insert().values(**_row(record)))
        return record

    def get(self, job_id: str) -> JobRecord:
        """Returns the job of this id. Raises UnknownJobError if it does not exist."""
        with self._store.reading() as connection:
            return _get(connection, job_id)

    def list(self, limit: int, before: str | None = None, state: State | None = None) -> Sequence[JobRecord]:
        """Returns at most `limit` jobs, newest first.

        before: returns only jobs submitted earlier than this time, UTC, ISO 8601. state: returns only jobs in this
        state.
        """
        query = _JOBS.select().order_by(_JOBS.c.created_at.desc(), _JOBS.c.id).limit(limit)
        if before is not None:
            query = query.where(_JOBS.c.created_at < before)
        if state is not None:
            query = query.where(_JOBS.c.state == state)
        with self._store.reading() as connection:
            return [_record(row) for row in connection.execute(query)]

    def counts(self) -> dict[str, int]:
        """Returns the number of jobs in each state."""
        with self._store.reading() as connection:
            found = connection.execute(sa.select(_JOBS.c.state, sa.func.count()).group_by(_JOBS.c.state)).all()
        counted: dict[str, int] = {state: count for state, count in found}  # noqa: C416 - a Row is no tuple to mypy
        return {state: counted.get(state, 0) for state in STATES}

    def cancel(self, job_id: str) -> JobRecord:
        """Cancels a job, and returns its record. A running job stops within seconds. The finished shards are kept.

        Raises UnknownJobError if the job does not exist, and JobStateError if it has ended.
        """
        return self._stop(job_id, "cancelled", WAITING)

    def pause(self, job_id: str) -> JobRecord:
        """Pauses a queued or running job until it is resumed, and returns its record.

        Raises UnknownJobError if the job does not exist. Raises JobStateError if the job is neither queued nor running,
        or if its cancellation was requested.
        """
        return self._stop(job_id, "paused", ("queued", "running"))

    def resume(self, job_id: str) -> JobRecord:
        """Queues a paused, failed or partially succeeded job again, and returns its record.

        Only the failed images of a partially succeeded job run again. For a running job whose pause was requested,
        revokes the pause. Raises UnknownJobError if the job does not exist, and JobStateError if it is in any other
        state.
        """
        with self._store.writing() as connection:
            before = _get(connection, job_id)
            if before.state == "running" and before.requested_state == "paused":
                # Revokes the pause before it takes effect.
                unchanged = sa.and_(
                    _JOBS.c.id == job_id, _JOBS.c.state == "running", _JOBS.c.requested_state == "paused"
                )
                connection.execute(_JOBS.update().where(unchanged).values(requested_state=None))
                return _get(connection, job_id)
            if before.state not in RESUMABLE:
                raise JobStateError(before.state, "resumed")
            retries = before.retries_failed or before.state == "partially_succeeded"
            return self._change_state(connection, before, "queued", retries_failed=retries, error=None)

    def claim(self, owner: str) -> JobRecord | None:
        """Leases the oldest free job to `owner`, and returns the record of the job; None if no job is free.

        A job is free if it is queued, or if it is running and its lease has expired. If the oldest free job was
        to be paused or cancelled, stores that state and returns None.
        """
        with self._store.writing() as connection:
            orphaned = sa.and_(_JOBS.c.state == "running", _JOBS.c.lease_until < time.time())
            queued = sa.and_(_JOBS.c.state == "queued", _JOBS.c.lease_until < time.time())
            free = _JOBS.select().where(sa.or_(queued, orphaned))
            found = connection.execute(free.order_by(_JOBS.c.created_at, _JOBS.c.id).limit(1)).one_or_none()
            if found is None:
                return None
            before = _record(found)
            state: State = before.requested_state or "running"  # its process died before it paused or cancelled the job
            lease = {"owner": owner, "lease_until": time.time() + LEASE_S} if state == "running" else {}
            after = self._change_state(connection, before, state, **lease)
            return after if state == "running" and after.owner == owner else None

    def renew(self, record: JobRecord) -> JobRecord:
        """Stores the progress in `record`, extends the lease of the job, and returns the stored record.

        If an operator has paused or cancelled the job, `requested_state` of the returned record says so. Raises
        JobStateError if another process holds the lease.
        """
        values = {name: getattr(record, name) for name in ("images", "done", "failed", "fingerprint")}
        with self._store.writing() as connection:
            changed = connection.execute(
                _JOBS.update().where(self._holds_lease(record)).values(**values, lease_until=time.time() + LEASE_S)
            )
            if changed.rowcount == 0:
                raise JobStateError("held by another process", "renewed")
            return _get(connection, record.id)

    def release(self, record: JobRecord, state: State, error: str | None = None, delay_s: float = 0.0) -> None:
        """Ends the lease of a job, and stores its progress and state. Does nothing if another process holds the lease.

        state: the new state; "running" if another process must continue the job. error: message for the operator, or
        None. delay_s: seconds before a process may claim a queued job again.
        """
        with self._store.writing() as connection:
            now = _get(connection, record.id)
            if now.owner == record.owner and now.state == "running":
                values = {name: getattr(record, name) for name in ("images", "done", "failed", "fingerprint")}
                retries = record.retries_failed and state not in ("succeeded", "partially_succeeded")
                lease = {"lease_until": time.time() + delay_s if delay_s else 0.0}
                self._change_state(connection, now, state, **values, **lease, error=error, retries_failed=retries)

    def delete_old(self, days: float) -> int:
        """Deletes the records of the jobs that ended more than `days` days ago. Returns how many it deleted."""
        before = format_time(datetime.now(UTC) - timedelta(days=days))
        with self._store.writing() as connection:
            ended = connection.execute(_JOBS.select().where(_JOBS.c.state.in_(ENDED), _JOBS.c.created_at < before))
            old = [record.id for record in map(_record, ended) if record.times[record.state] < before]
            if old:
                connection.execute(_JOBS.delete().where(_JOBS.c.id.in_(old)))
            return len(old)

    def _stop(self, job_id: str, state: State, allowed: Sequence[State]) -> JobRecord:
        with self._store.writing() as connection:
            before = _get(connection, job_id)
            if before.state not in allowed:
                raise JobStateError(before.state, state)
            if before.requested_state == "cancelled" != state:
                raise JobStateError("about to be cancelled", state)
            if before.state != "running":
                return self._change_state(connection, before, state)
            unchanged = sa.and_(_JOBS.c.id == job_id, _JOBS.c.state == "running")
            connection.execute(_JOBS.update().where(unchanged).values(requested_state=state))
            return replace(before, requested_state=state)

    def _change_state(self, connection: sa.Connection, before: JobRecord, state: State, **more: Any) -> JobRecord:
        """Changes the state in the stored record `before`, and returns the new record. more: other fields to change.

        Clears owner, lease and requested state unless `more` has them. If another process has changed the record
        meanwhile, changes nothing, and returns the record that the other process stored.
        """
        times = before.times if state == before.state else {**before.times, state: format_time(datetime.now(UTC))}
        after = replace(
            before, **{"owner": None, "lease_until": 0.0, "requested_state": None, **more}, state=state, times=times
        )
        unchanged = sa.and_(
            _JOBS.c.id == before.id, _JOBS.c.state == before.state, _JOBS.c.lease_until == before.lease_until
        )
        changed = connection.execute(_JOBS.update().where(unchanged).values(**_row(after)))
        return after if changed.rowcount else _get(connection, before.id)

    @staticmethod
    def _holds_lease(record: JobRecord) -> sa.ColumnElement[bool]:
        return sa.and_(_JOBS.c.id == record.id, _JOBS.c.owner == record.owner, _JOBS.c.state == "running")


def _get(connection: sa.Connection, job_id: str) -> JobRecord:
    found = connection.execute(_JOBS.select().where(_JOBS.c.id == job_id)).one_or_none()
    if found is None:
        raise UnknownJobError(job_id)
    return _record(found)


def _record(row: sa.Row[Any]) -> JobRecord:
    values = dict(row._mapping)
    values["request"] = JobRequest.model_validate_json(values["request"])
    values["times"] = _TIMES.validate_json(values["times"])
    values["requested_state"] = values.pop("wanted")
    return JobRecord(**values)


def _row(record: JobRecord) -> dict[str, Any]:
    times = _TIMES.dump_json(record.times).decode()
    return {**vars(record), "request": record.request.model_dump_json(), "times": times}
