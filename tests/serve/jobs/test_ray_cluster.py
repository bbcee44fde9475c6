"""`tureen batch --ray` on a cluster of this machine: the rows of a job without it, also where a worker is killed."""

import shutil
import subprocess
import sys
import time

import psutil
import pytest

from serve.jobs.job_output import SPEC_FILE, SUCCESS_FILE
from tests.serve.jobs.conftest import BUNDLE
from tests.serve.jobs.tables import rows_of

pytestmark = pytest.mark.end_to_end
pytest.importorskip("ray", reason="Ray is not installed: pip install 'tureen[ray]'")
SOON_S = 120


@pytest.fixture
def many(photos, tmp_path):
    """2,300 images, and one that is none."""
    folder = tmp_path / "many"
    folder.mkdir()
    for n, file in enumerate(sorted(photos.rglob("*.*")) * 100):
        shutil.copy(file, folder / f"{n:05}{file.suffix}")
    (folder / "none.png").write_bytes(b"no image")
    return folder


def on_cluster(given, output, *flags):
    command = [sys.executable, "-m", "tureen.cli", "batch", str(BUNDLE), str(given), str(output)]
    ours = ("--engine", "onnxruntime", "--threads", "1", "--ray", "--ray-workers", "2", *map(str, flags))
    return subprocess.Popen([*command, *ours], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def workers_of(process):
    """The processes that make shards."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline() and child.cmdline()[0].startswith("ray::MapWorker"):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.timeout(300)
def test_two_workers_of_which_one_is_killed_give_the_rows_of_one_machine(run_batch, many, tmp_path):
    flags = ("--beta", 0.7, "--shard-rows", 100)
    process = on_cluster(many, tmp_path / "cluster", *flags)
    seen, killed, end = set(), None, time.monotonic() + SOON_S
    while process.poll() is None and time.monotonic() < end:
        workers = workers_of(process)
        seen |= {worker.pid for worker in workers}
        if killed is None and len(workers) == 2 and len(list((tmp_path / "cluster").glob("part-*"))) >= 2:
            killed = workers[0].pid
            workers[0].kill()
        time.sleep(0.05)
    output, _ = process.communicate(timeout=SOON_S)
    assert process.returncode == 0, output
    assert killed is not None
    assert len(seen) >= 3  # another took its place
    assert run_batch(many, tmp_path / "here", *flags) == 0
    assert rows_of(tmp_path / "cluster") == rows_of(tmp_path / "here")
    for name in (SUCCESS_FILE, f"_job/{SPEC_FILE}"):
        assert (tmp_path / "cluster" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


@pytest.mark.timeout(300)
def test_a_cluster_resumes_the_job_of_a_machine_and_retries_failures(run_batch, photos, tmp_path):
    whole = sorted(photos.rglob("*.png"))[0]
    content = whole.read_bytes()
    whole.write_bytes(content[:90])
    assert run_batch(photos, tmp_path / "out", "--shard-rows", 5) == 0
    assert run_batch(photos, tmp_path / "whole", "--shard-rows", 5) == 0
    whole.write_bytes(content)
    (tmp_path / "out" / "part-00002.parquet").unlink()
    kept = (tmp_path / "out" / "part-00001.parquet").stat().st_ino
    process = on_cluster(photos, tmp_path / "out", "--retry-failed")
    output, _ = process.communicate(timeout=SOON_S)
    assert process.returncode == 0, output
    assert (tmp_path / "out" / "part-00001.parquet").stat().st_ino == kept
    rows = rows_of(tmp_path / "out")
    assert [row["status"] for row in rows] == ["ok"] * 23
    others = [(n, row) for n, row in enumerate(rows_of(tmp_path / "whole")) if row["status"] == "ok"]
    assert len(others) == 22
    assert all(rows[n] == row for n, row in others)


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_failures_of_a_worker_and_missing_resources_are_reported(photos, tmp_path, run_batch):
    assert run_batch(photos, tmp_path / "out") == 0
    for file in (tmp_path / "out").glob("part-*"):
        file.unlink()
    inputs = tmp_path / "out" / "_job" / "inputs.jsonl"
    before = inputs.read_bytes()
    waiting = on_cluster(photos, tmp_path / "out", "--resume", "--threads", "64")
    output, _ = waiting.communicate(timeout=SOON_S)
    assert (waiting.returncode, "no machine of the cluster has 64 CPUs" in output) == (1, True), output
    inputs.write_bytes(b"no listing" + before)  # so that a worker fails, and no file
    failing = on_cluster(photos, tmp_path / "out", "--resume")
    output, _ = failing.communicate(timeout=SOON_S)
    assert (failing.returncode, "JSONDecodeError" in output) == (1, True), output


@pytest.mark.timeout(300)
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "auto"])
def test_a_missing_cluster_is_reported(photos, tmp_path, address):
    output, _ = (process := on_cluster(photos, tmp_path / "out", "--ray", address)).communicate(timeout=SOON_S)
    assert (process.returncode, "Traceback" in output) == (1, False), output
    assert f"no Ray cluster responds at {address}" in output
