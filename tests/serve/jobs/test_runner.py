"""Jobs in the server: which requests become jobs, and what a job leaves in its output."""

import os

import pytest

from serve.errors import JobError, OutputError
from serve.jobs.job_store import JobRequest
from serve.jobs.rooted_files import MAX_DEPTH, RootedFiles
from serve.jobs.runner import check_paths


def test_a_started_job_resumes_and_another_is_refused_in_its_output(world, run_on_server):
    assert run_on_server(f"{world}/out/new").images == 1
    assert run_on_server(f"{world}/out/new").images == 1
    (world / "out/new/_job/id").write_text("2" * 16)
    with pytest.raises(OutputError, match="another job"):
        run_on_server(f"{world}/out/new")


def ask(world, output, given="photos"):
    return JobRequest(input=f"{world}/in/{given}", output=f"{world}/{output}")


@pytest.mark.parametrize("output", ["out/link", "out/link/new", "out/file", "out/file/new", "out/" + "x" * 300])
def test_an_output_below_a_link_or_a_file_is_refused_when_it_is_submitted(world, files, output):
    (world / "out/file").touch()
    (world / "out/link").symlink_to(world / "secret")
    check_paths(files, ask(world, "out/new/deep"))
    with pytest.raises(OutputError):
        check_paths(files, ask(world, output))
    assert sorted(os.listdir(world / "out")) == ["file", "link"]
    assert os.listdir(world / "secret") == ["s.png"]


def test_an_output_in_the_input_or_too_deep_is_refused_when_it_is_submitted(world):
    files = RootedFiles([world / "in"], [world / "in"])
    with pytest.raises(OutputError, match="inside the input"):
        check_paths(files, ask(world, "in/photos/new"))
    check_paths(files, ask(world, "in/" + "d/" * MAX_DEPTH))
    with pytest.raises(OutputError, match="more than 64 folders deep"):
        check_paths(files, ask(world, "in/" + "d/" * (MAX_DEPTH + 1)))


def test_a_job_that_cannot_start_leaves_no_file(world, run_on_server):
    (world / "in/empty").mkdir()
    (world / "out/mine").mkdir()
    (world / "out/mine/thesis.txt").touch()
    for output, given in (("new", "in/empty"), ("deep/new", "in/empty"), ("mine", "in/photos")):
        with pytest.raises(JobError):
            run_on_server(f"{world}/out/{output}", f"{world}/{given}")
        assert [path.name for path in (world / "out").rglob("*")] == ["mine", "thesis.txt"]
