"""The records of jobs: who has one, what becomes of it, and that of two who want it one gets it."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa

from serve.control.revision_store import RevisionStore
from serve.errors import JobStateError, TooManyJobsError, UnknownJobError
from serve.jobs.job_store import ENDED, RESUMABLE, STATES, WAITING, JobRecords, JobRequest

REQUEST = JobRequest(input="/in", output="/out")


@pytest.fixture
def records(store):
    return JobRecords(store)


def submit(records, most=100):
    return records.submit(REQUEST, who="ada", default_beta=0.5, max_jobs=most)


def test_a_job_has_a_time_for_each_state_from_the_queue_to_its_end(records):
    job = submit(records)
    assert records.get(job.id) == job
    running = records.claim("one")
    assert (running.id, running.state, running.owner) == (job.id, "running", "one")
    assert records.claim("other") is None
    renewed = records.renew(replace(running, images=10, done=4, failed=1))
    assert (renewed.images, renewed.done, renewed.failed, renewed.requested_state) == (10, 4, 1, None)
    records.release(replace(running, images=10, done=10, failed=1), "partially_succeeded")
    ended = records.get(job.id)
    assert (ended.state, ended.done, ended.owner) == ("partially_succeeded", 10, None)
    assert list(ended.times) == ["queued", "running", "partially_succeeded"]
    assert records.counts() == {**dict.fromkeys(STATES, 0), "partially_succeeded": 1}
    again = records.resume(job.id)
    assert (again.state, again.retries_failed) == ("queued", True)
    assert records.claim("one").retries_failed


def test_the_oldest_job_runs_first_and_the_newest_is_listed_first(records):
    jobs = [submit(records) for _ in range(3)]
    assert [job.id for job in records.list(2)] == [jobs[2].id, jobs[1].id]
    assert [job.id for job in records.list(5, before=jobs[2].created_at)] == [jobs[1].id, jobs[0].id]
    assert records.claim("one").id == jobs[0].id
    assert [job.id for job in records.list(5, state="running")] == [jobs[0].id]


def test_a_job_with_an_expired_lease_is_claimed_again(records, monkeypatch):
    job = submit(records)
    first = records.claim("one")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    second = records.claim("other")
    assert (second.id, second.owner) == (job.id, "other")
    with pytest.raises(JobStateError):
        records.renew(first)
    records.release(first, "failed", "late")
    assert records.get(job.id).state == "running"


@pytest.mark.parametrize("action", ["cancel", "pause"])
def test_a_request_to_a_dead_runner_is_completed_by_the_next(records, monkeypatch, action):
    job = submit(records)
    records.claim("one")
    assert getattr(records, action)(job.id).state == "running"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    assert records.claim("other") is None
    assert records.get(job.id).state == {"cancel": "cancelled", "pause": "paused"}[action]


def test_a_request_for_a_running_job_reaches_its_runner(records):
    job = submit(records)
    running = records.claim("one")
    records.pause(job.id)
    assert records.renew(running).requested_state == "paused"
    records.release(running, "paused")
    assert (records.get(job.id).state, records.get(job.id).requested_state) == ("paused", None)
    assert records.resume(job.id).state == "queued"
    assert records.cancel(job.id).state == "cancelled"


def test_a_cancellation_is_final_and_a_pause_can_be_withdrawn(records):
    job = submit(records)
    running = records.claim("one")
    records.pause(job.id)
    assert records.resume(job.id).requested_state is None
    assert records.renew(running).requested_state is None
    records.pause(job.id)
    records.cancel(job.id)
    with pytest.raises(JobStateError, match="about to be cancelled"):
        records.pause(job.id)
    assert records.renew(running).requested_state == "cancelled"


def test_a_job_that_cannot_begin_yet_holds_no_other_up(records, monkeypatch):
    first, second = submit(records), submit(records)
    records.release(records.claim("one"), "queued", "its output is taken", delay_s=5)
    assert records.get(first.id).error == "its output is taken"
    assert records.claim("one").id == second.id
    assert records.claim("one") is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 6)
    assert records.claim("other").id == first.id


@pytest.mark.parametrize("state", STATES)
def test_each_state_has_its_ways_out_and_no_others(records, state):
    job = submit(records)
    if state != "queued":
        running = records.claim("one")
        if state != "running":
            records.release(running, state)
    for action, of in (("cancel", WAITING), ("pause", ("queued", "running")), ("resume", RESUMABLE)):
        if state not in of:
            with pytest.raises(JobStateError):
                getattr(records, action)(job.id)
    assert records.get(job.id).state == state
    with pytest.raises(UnknownJobError):
        records.cancel("none")


def test_at_most_the_allowed_number_of_jobs_waits(records):
    jobs = [submit(records, most=2) for _ in range(2)]
    with pytest.raises(TooManyJobsError):
        submit(records, most=2)
    records.cancel(jobs[0].id)
    submit(records, most=2)


def test_only_jobs_that_ended_long_ago_are_deleted(records, store):
    jobs = [submit(records) for _ in range(3)]
    records.cancel(jobs[0].id)
    records.cancel(jobs[1].id)
    with store.writing() as connection:
        old = '{"queued": "2020-01-01T00:00:00.000000Z", "cancelled": "2020-01-01T00:00:00.000000Z"}'
        which = {"id": jobs[0].id, "old": old}
        connection.execute(
            sa.text("UPDATE tureen_jobs SET times = :old, created_at = '2020-01-01T00:00:00.000000Z' WHERE id = :id"),
            which,
        )
        connection.execute(
            sa.text("UPDATE tureen_jobs SET created_at = '2020-01-01T00:00:00.000000Z' WHERE id = :id"),
            {"id": jobs[2].id},
        )
    assert records.delete_old(30) == 1
    assert {job.id for job in records.list(5)} == {jobs[1].id, jobs[2].id}
    assert set(ENDED) >= {"cancelled"}


def test_of_many_parallel_claims_of_a_job_one_succeeds(records, store_url):
    jobs = [submit(records) for _ in range(5)]

    def claim(name):
        with contextlib.closing(RevisionStore(store_url)) as store:
            return JobRecords(store).claim(str(name))

    with ThreadPoolExecutor(8) as threads:
        claimed = [job.id for job in threads.map(claim, range(20)) if job is not None]
    while (job := records.claim("last")) is not None:  # of two who meet, one may go away with nothing
        claimed.append(job.id)
    assert sorted(claimed) == sorted(job.id for job in jobs)
