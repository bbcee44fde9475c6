"""A job in a separate process: the rows of a job in this process, its priority, and its end."""

import os
import shutil
import signal
import subprocess
import threading
from contextlib import suppress

import psutil
import pytest

from serve.errors import JobError, JobInterruptedError, OutputTakenError
from serve.jobs.job_run import (
    MAX_MESSAGE,
    JobFailure,
    JobProcessConfig,
    JobProcessEndedError,
    JobProgress,
    can_use_idle_time,
    read_lines,
)
from serve.jobs.job_run import run_in_process as run_process
from serve.jobs.job_store import JobRecord, JobRequest
from tests.patience import DEADLINE_S
from tests.serve.jobs.conftest import BUNDLE
from tests.serve.jobs.tables import rows_of
from tureen.bundle.bundle import load_bundle
from tureen.engines.base import EngineOptions
from tureen.preprocess import ImageLimits

COPIES = 40
IMAGES = 23 * COPIES


@pytest.fixture
def many(photos, tmp_path):
    """So many images that a job takes some seconds."""
    for copy in range(COPIES):
        shutil.copytree(photos, tmp_path / "many" / str(copy))
    return tmp_path / "many"


@pytest.fixture
def config(many, tmp_path):
    """A function that returns the message to a process. Its job reads the images, and writes small shards."""
    (tmp_path / "out").mkdir()

    def make(output, **changes):
        request = JobRequest(input=str(many), output=str(tmp_path / "out" / output), shard_rows=64)
        fields = {
            "record": JobRecord("1" * 16, "running", "ada", request, 0.5, "", {}),
            "input_roots": (many,),
            "output_roots": (tmp_path / "out",),
            "max_images": 10_000,
            "bundle": BUNDLE,
            "version": load_bundle(BUNDLE).manifest.version,
            "engine": "onnxruntime",
            "precision": "fp32",
            "options": EngineOptions(threads=1),
            "limits": ImageLimits(),
            "is_calibrated": True,
            "tokens": {},
            "batch_rows": 8,
            "decode_threads": 1,
            "log_level": "info",
            "parent": os.getpid(),
        }
        return JobProcessConfig(**fields | changes)

    return make


def run(config, progress=None, has_requests=lambda: False, on_rows=lambda rows: None):
    return run_process(config, progress or JobProgress(10_000), has_requests=has_requests, on_rows=on_rows)


def processes():
    return [one for one in psutil.Process().children() if "serve.jobs.job_run" in one.cmdline()]


class StoppingProgress(JobProgress):
    """Calls `act` with the process of the job when the first images are done."""

    def __init__(self, act):
        self.act = act
        super().__init__(10_000)

    @property
    def done(self):
        return self._done

    @done.setter
    def done(self, value):
        self._done = value
        if value and self.act:
            act, self.act = self.act, None
            act(processes()[0])


def test_a_job_in_a_process_gives_the_rows_of_tureen_batch_and_reports_them(config, run_batch, many, tmp_path):
    progress, rows = JobProgress(10_000), []
    summary = run(config("one"), progress, on_rows=rows.append)
    assert (summary.images, summary.failed_rows, sum(rows)) == (IMAGES, 0, IMAGES)
    assert (progress.images, progress.done, progress.failed) == (IMAGES, IMAGES, 0)
    assert progress.fingerprint == summary.fingerprint
    assert run_batch(many, tmp_path / "two", "--beta", 0.5, "--shard-rows", 64, "--max-batch", 8) == 0
    for name in sorted(path.name for path in (tmp_path / "two").glob("part-*")):
        assert (tmp_path / "out/one" / name).exists()
    assert rows_of(tmp_path / "out/one") == rows_of(tmp_path / "two")
    assert processes() == []


def test_a_process_that_ends_late_does_not_fail_its_job(config, monkeypatch):
    late = []

    def wait(process, timeout):
        late.append(process)
        raise subprocess.TimeoutExpired(process.args, timeout)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "wait", wait)
        assert run(config("late")).images == IMAGES
    (process,) = late
    assert process.wait(DEADLINE_S) is not None


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_job_that_is_stopped_or_killed_resumes_to_the_same_rows(config, tmp_path, how):
    run(config("whole"))
    if how == "stop":
        progress = StoppingProgress(lambda process: progress.stop())
        expected = JobInterruptedError
    else:
        progress = StoppingProgress(lambda process: os.kill(process.pid, signal.SIGKILL))
        expected = JobProcessEndedError
    stopped = config("stopped")
    with pytest.raises(expected):
        run(stopped, progress)
    assert processes() == []
    assert run(stopped).images == IMAGES
    assert rows_of(tmp_path / "out/stopped") == rows_of(tmp_path / "out/whole")


def test_every_thread_has_the_lowest_priority_as_soon_as_requests_arrive(config):
    policies = []

    def look(process):
        policies.extend(os.sched_getscheduler(thread.id) for thread in process.threads())

    run(config("beside"), StoppingProgress(look), has_requests=lambda: True)
    assert set(policies) == {os.SCHED_IDLE}
    policies.clear()
    run(config("alone"), StoppingProgress(look))
    assert set(policies) == {os.SCHED_OTHER}


def test_an_error_of_the_job_is_the_error_of_the_call(config, tmp_path):
    with pytest.raises(JobError, match="the bundle was replaced"):
        run(config("x", version="other"))
    (tmp_path / "out/mine").mkdir()
    (tmp_path / "out/mine/thesis.txt").touch()
    with pytest.raises(JobError, match="is not empty"):
        run(config("mine"))
    with pytest.raises(JobError, match="more than 3 images"):
        run(config("y", max_images=3))


def test_a_line_is_read_up_to_a_limit():
    """The server reads lines from a process that a hostile image may control."""
    reading, writing = os.pipe()
    endless = threading.Thread(target=write_until_closed, args=(writing, b"first\nsecond\n" + b"x" * (2 * MAX_MESSAGE)))
    with open(reading, "rb") as pipe:
        endless.start()
        lines = read_lines(pipe, lambda: None)
        assert [next(lines), next(lines)] == [b"first", b"second"]
        with pytest.raises(ValueError, match="a line of more than 1,048,576 bytes"):
            next(lines)
    endless.join()


def write_until_closed(descriptor, data):
    with suppress(BrokenPipeError), open(descriptor, "wb", buffering=0) as pipe:
        pipe.write(data)


def test_a_failure_keeps_its_class():
    assert isinstance(JobFailure(kind="output taken", message="x").to_error(), OutputTakenError)
    error = JobFailure(kind="disk", message="No space left on device", code=28).to_error()
    assert (type(error), error.errno, error.strerror) == (OSError, 28, "No space left on device")
    assert isinstance(JobFailure(kind="unexpected", message="x").to_error(), RuntimeError)


@pytest.mark.parametrize(
    ("engine", "quota", "expected"),
    [
        ("onnxruntime", None, True),
        ("openvino", 2.0, True),
        ("openvino", 1.5, False),
        ("onnxruntime-cuda", None, False),
    ],
)
def test_only_an_engine_on_the_cpu_without_a_quota_leaves_a_job_the_idle_time(engine, quota, expected):
    assert can_use_idle_time(engine, quota, cpus=2) is expected
