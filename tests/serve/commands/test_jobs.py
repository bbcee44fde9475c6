"""`tureen jobs` prints a job as one line in a list, and in full alone."""

import pytest

from serve.commands.jobs import format_job, format_job_line

JOB = {
    "id": "0123456789abcdef",
    "state": "running",
    "wanted": None,
    "who": "ada",
    "request": {"input": "/in/photos", "output": "/out/monday", "beta": None, "betas": None},
    "default_beta": 0.5,
    "times": {"running": "2026-01-02T03:05:00.123456Z", "queued": "2026-01-02T03:04:00.123456Z"},
    "images": 12_345,
    "done": 1_000,
    "failed": 2,
    "error": None,
}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "0123456789abcdef  running              1,000/12,345, 2 failed  /out/monday"),
        ({"images": None, "done": 0, "failed": 0}, "0123456789abcdef  running              0/?, 0 failed  /out/monday"),
        ({"wanted": "paused"}, "0123456789abcdef  running, to be paused  1,000/12,345, 2 failed  /out/monday"),
    ],
)
def test_a_line_has_state_progress_and_output(changes, line):
    assert format_job_line({**JOB, **changes}) == line


def test_a_job_in_full_has_its_states_in_the_order_of_their_times_and_its_error():
    lines = format_job({**JOB, "state": "failed", "error": "the disk is full"}).splitlines()
    assert lines[1:] == [
        "  input   /in/photos",
        "  β       0.5",
        "  who     ada",
        "  queued since 2026-01-02T03:04:00Z",
        "  running since 2026-01-02T03:05:00Z",
        "  error   the disk is full",
    ]


@pytest.mark.parametrize(
    ("request_betas", "default", "shown"),
    [
        ({"beta": 0.25}, 0.5, "0.25"),
        ({"betas": [0.0, 0.5, 1.0]}, 0.5, "0, 0.5, 1"),
        ({"beta": 0.0}, 0.5, "0"),
        ({}, None, "none"),
    ],
)
def test_the_betas_are_those_of_the_request_or_the_default_at_submission(request_betas, default, shown):
    job = {**JOB, "request": {**JOB["request"], **request_betas}, "default_beta": default}
    assert f"  β       {shown}" in format_job(job).splitlines()
