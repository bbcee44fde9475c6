"""A job that dies, or whose disk fails, anywhere: what is there is whole, and the end is that of one left alone."""

import json
import random

import pytest

from serve.jobs.job_output import SUCCESS_FILE
from tests.serve.jobs.tables import rows_of

ARGUMENTS = ("--shard-rows", 8, "--max-batch", 4, "--beta", 0.5)
KILLED = -9

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(params=["parquet", "csv"])
def arguments(request):
    return (*ARGUMENTS, "--format", request.param)


@pytest.fixture(params=[8, pytest.param(1, marks=pytest.mark.slow)], ids=lambda step: f"step {step}")
def step(request):
    """The distance between two of the calls that fail. The slow tests fail at every call."""
    return request.param


@pytest.fixture
def whole(interrupted, photos, tmp_path, arguments):
    """The rows of a run that nothing disturbs, and how many calls it takes."""
    status, calls = interrupted(0, "kill", photos, tmp_path / "whole", *arguments)
    assert status == 0
    rows = rows_of(tmp_path / "whole")
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert len(rows) == 23
    return rows, calls


def is_sound(output, rows):
    """No shard is half there, and the end is not announced before it has come."""
    there = rows_of(output)
    assert all(row in rows for row in there)
    if (output / SUCCESS_FILE).exists():
        assert there == rows


def test_a_job_killed_at_any_call_resumes_to_the_same_rows(interrupted, photos, tmp_path, whole, arguments, step):
    rows, calls = whole
    assert calls > 20
    for at in range(1 + calls % step, calls + 1, step):
        output = tmp_path / f"killed {at}"
        assert interrupted(at, "kill", photos, output, *arguments)[0] == KILLED
        is_sound(output, rows)
        interrupted(1 + at % 7, "kill", photos, output, *arguments, "--resume")  # and once more while it goes on
        is_sound(output, rows)
        assert interrupted(0, "kill", photos, output, *arguments, "--resume")[0] == 0
        assert rows_of(output) == rows


@pytest.mark.parametrize("how", ["full", "broken"])
def test_a_disk_that_fails_at_any_call_never_leaves_a_finished_job_with_a_row_missing(
    interrupted, photos, tmp_path, whole, arguments, how, step
):
    rows, calls = whole
    for at in range(1 + calls % step, calls + 1, step):
        output = tmp_path / f"failed {at}"
        status, _ = interrupted(at, how, photos, output, *arguments)
        is_sound(output, rows)
        if status != 0:
            assert not (output / SUCCESS_FILE).exists() or json.loads((output / SUCCESS_FILE).read_text())[
                "rows"
            ] == len(rows)
        assert interrupted(0, "kill", photos, output, *arguments, "--resume")[0] == 0
        assert rows_of(output) == rows


@pytest.mark.parametrize("times", [7, pytest.param(200, marks=pytest.mark.slow)])
def test_jobs_killed_at_random_times_lose_and_repeat_no_row(interrupted, photos, tmp_path, times):
    draw = random.Random(0)
    arguments = (*ARGUMENTS, "--format", "jsonl")
    assert interrupted(0, "kill", photos, tmp_path / "whole", *arguments)[0] == 0
    rows, kills, worst = rows_of(tmp_path / "whole"), 0, 0
    for n in range(times):
        output, deaths = tmp_path / f"run {n}", 0
        while interrupted(draw.uniform(0.005, 0.09), "slow", photos, output, *arguments, "--resume")[0] == KILLED:
            is_sound(output, rows)
            kills, deaths = kills + 1, deaths + 1
            if deaths == 6:
                assert interrupted(0, "kill", photos, output, *arguments, "--resume")[0] == 0
                break
        worst = max(worst, deaths)
        assert rows_of(output) == rows
    assert kills >= times
    bound = f"at 95 % below {3 / times:.2%} of jobs"
    print(f"{times} jobs, {kills} kills, up to {worst} in one: no row lost or twice; {bound}")
