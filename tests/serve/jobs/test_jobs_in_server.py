"""Batch jobs of a real server: submitted, watched, paused, cancelled, carried on, and read back."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

import tureen
from tests.learned_tokens import make_token
from tests.serve.admin.conftest import run_tureen, start_operated  # noqa: F401 - fixtures
from tests.serve.jobs.tables import rows_of

SOON_S = 60


@pytest.fixture
def roots(photos, tmp_path):
    """Flags for a server whose jobs may read the photos and write below out."""
    (tmp_path / "out").mkdir()
    return "--job-input-roots", photos, "--job-output-roots", tmp_path / "out"


@pytest.fixture
def many(photos):
    """Images for a job of many shards, see `submit_long`."""
    (photos / "many").mkdir()
    for n, file in enumerate(sorted(photos.rglob("*.*")) * 6):
        shutil.copy(file, photos / "many" / f"{n:05}{file.suffix}")
    return photos / "many"


def submit(operator, **request):
    request = {key: str(value) if key in ("input", "output") else value for key, value in request.items()}
    status, head, job = operator.ask("POST", "/jobs", request)
    assert status == 202, job
    assert head["location"] == f"/jobs/{job['id']}"
    return job["id"]


LONG_BETAS = [n / 10 for n in range(10)]


def submit_long(operator, many, output):
    """Submit a job whose first shard is written after a twentieth of its work or less, so that it does not end before
    a test on a busy machine interrupts it."""
    job_id = submit(operator, input=many, output=output, shard_rows=64, betas=LONG_BETAS)
    until(operator, job_id, lambda job: job["done"] > 0 and any(output.glob("part-*")))
    return job_id


def until(operator, job_id, is_so):
    """The job once it is so; fails where nothing becomes of it for a while."""
    before, end = None, time.monotonic() + SOON_S
    while time.monotonic() < end:
        job = operator.ask("GET", f"/jobs/{job_id}")[2]
        if is_so(job):
            return job
        if job != before:
            before, end = job, time.monotonic() + SOON_S
        time.sleep(0.1)
    raise AssertionError(job)


def has_ended(job):
    return job["state"] in ("succeeded", "partially_succeeded", "failed", "cancelled")


def test_a_job_gives_the_rows_of_tureen_batch(start_operated, run_batch, photos, roots, tmp_path):  # noqa: F811
    whole = sorted(photos.rglob("*.png"))[0]
    (photos / "broken.png").write_bytes(whole.read_bytes()[:90])
    server, operator = start_operated(*roots)
    operator.change(default_beta=0.7)
    job_id = submit(operator, input=photos, output=tmp_path / "out/one", shard_rows=10)
    operator.change(default_beta=0.2)  # what was in force when it was submitted holds
    job = until(operator, job_id, has_ended)
    assert (job["state"], job["images"], job["done"], job["failed"]) == ("partially_succeeded", 24, 24, 1)
    assert list(job["times"]) == ["queued", "running", "partially_succeeded"]
    assert run_batch(photos, tmp_path / "two", "--beta", 0.7, "--shard-rows", 10) == 0
    for ours, theirs in zip(rows_of(tmp_path / "out/one"), rows_of(tmp_path / "two"), strict=True):
        for row in (ours, theirs):
            row["probability"] = row["probability"] and round(row["probability"], 4)
            row["top_k"] = row["top_k"] and [(one["label"], round(one["probability"], 4)) for one in row["top_k"]]
        assert ours == theirs
    files = operator.ask("GET", f"/jobs/{job_id}/results")[2]["files"]
    assert [file["name"] for file in files] == [
        "_SUCCESS",
        "part-00000.parquet",
        "part-00001.parquet",
        "part-00002.parquet",
    ]
    (error,) = operator.ask("GET", f"/jobs/{job_id}/errors")[2]["errors"]
    assert (error["path"], error["error_code"]) == ("broken.png", "undecodable_image")
    shutil.copy(whole, photos / "broken.png")
    assert operator.ask("POST", f"/jobs/{job_id}/resume")[0] == 202
    job = until(operator, job_id, has_ended)
    assert (job["state"], job["failed"]) == ("succeeded", 0)
    assert operator.ask("POST", f"/jobs/{job_id}/cancel")[2]["code"] == "job_state"
    assert server.metric('tureen_jobs_total{state="succeeded"}') == 1
    assert server.metric("tureen_job_rows_total") == 24


def test_a_job_at_a_mix_has_the_rows_of_its_tokens(start_operated, photos, roots, tmp_path):  # noqa: F811
    _, operator = start_operated(*roots)
    with tureen.load("cifar10", engine="onnxruntime") as soup:
        token = make_token(soup, "fog", 0)
        soup.add_tokens([token])
        assert operator.ask("PUT", "/admin/tokens/fog?reason=test", token.to_bytes(), revision=0)[0] == 200
        for name, choice in (("token", {"token": "fog", "beta": 0.25}), ("mix", {"mix": "fog:3,robust:1"})):
            job = until(operator, submit(operator, input=photos, output=tmp_path / "out" / name, **choice), has_ended)
            assert (job["state"], job["request"]["mix"]) == ("succeeded", "fog:0.75,robust:0.25")
            rows = rows_of(tmp_path / "out" / name)
            results = soup.classify([photos / row["path"] for row in rows], mix="fog:3,robust:1")
            assert [row["label"] for row in rows] == [result.predictions[0].label for result in results]
    for choice in ({"mix": "fog"}, {"mix": "fog:1", "beta": 0.5}, {"token": "fog", "betas": [0, 1]}, {"token": "F"}):
        request = {"input": str(photos), "output": str(tmp_path / "out" / "wrong"), **choice}
        status, _, problem = operator.ask("POST", "/jobs", request)
        assert (status, problem["code"]) == (422, "invalid_job"), problem
    for choice in ({"token": "haze"}, {"mix": "fog:1,haze:1"}):
        request = {"input": str(photos), "output": str(tmp_path / "out" / "haze"), **choice}
        status, _, problem = operator.ask("POST", "/jobs", request)
        assert (status, problem["code"]) == (422, "unknown_token"), problem
        assert "there is no token 'haze'; the tokens are clean, fog, robust" in problem["detail"]


def test_a_job_is_paused_resumed_and_cancelled(start_operated, many, roots, tmp_path):  # noqa: F811
    server, operator = start_operated(*roots)
    job_id = submit_long(operator, many, tmp_path / "out/one")
    waiting = submit(operator, input=many, output=tmp_path / "out/two", betas=LONG_BETAS)
    assert operator.ask("POST", f"/jobs/{job_id}/pause")[2]["wanted"] == "paused"
    paused = until(operator, job_id, lambda job: job["state"] == "paused")
    assert 0 < paused["done"] < paused["images"]
    until(operator, waiting, lambda job: job["state"] == "running")
    operator.ask("POST", f"/jobs/{waiting}/cancel")
    until(operator, waiting, lambda job: job["state"] == "cancelled")
    assert not (tmp_path / "out/two/_SUCCESS").exists()
    operator.ask("POST", f"/jobs/{job_id}/resume")
    assert until(operator, job_id, has_ended)["state"] == "succeeded"
    assert len(rows_of(tmp_path / "out/one")) == len(LONG_BETAS) * len(list(many.iterdir()))
    listed = operator.ask("GET", "/jobs?limit=1")[2]
    assert [job["id"] for job in listed["jobs"]] == [waiting]
    assert [job["id"] for job in operator.ask("GET", "/jobs?state=succeeded")[2]["jobs"]] == [job_id]
    assert server.ask("GET", "/jobs")[0] == 404  # on the public listener


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_survives_its_server(start_operated, many, roots, tmp_path, signal_number):  # noqa: F811
    server, operator = start_operated(*roots)
    job_id = submit_long(operator, many, tmp_path / "out/one")
    watch = [
        sys.executable,
        "-m",
        "tureen.cli",
        "jobs",
        "watch",
        job_id,
        "--token",
        operator.token,
        "--url",
        operator.url,
    ]
    with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True) as watching:
        try:
            server.process.send_signal(signal_number)
            server.process.wait(SOON_S)
            done = {path: path.stat().st_ino for path in (tmp_path / "out/one").glob("part-*")}
            assert done
            assert not (tmp_path / "out/one/_SUCCESS").exists()
            _, operator = start_operated("--admin-port", operator.port, *roots)
            assert until(operator, job_id, has_ended)["state"] == "succeeded"
            assert "succeeded" in watching.communicate(timeout=SOON_S)[0]
            assert watching.returncode == 0
        finally:
            watching.kill()
    rows = rows_of(tmp_path / "out/one")
    assert len({(row["path"], row["beta"]) for row in rows}) == len(rows) == len(LONG_BETAS) * len(list(many.iterdir()))
    assert {path: path.stat().st_ino for path in done} == done  # and nothing is done twice


def test_a_job_continues_over_a_reload(start_operated, many, roots, tmp_path):  # noqa: F811
    server, operator = start_operated(*roots)
    job_id = submit_long(operator, many, tmp_path / "out/one")
    server.process.send_signal(signal.SIGHUP)  # the same bundle, loaded anew
    server.wait_for(lambda: any(line["message"].startswith("closed: ") for line in server.log()), "the reload")
    assert until(operator, job_id, has_ended)["state"] == "succeeded"
    assert len(rows_of(tmp_path / "out/one")) == len(LONG_BETAS) * len(list(many.iterdir()))


@pytest.mark.parametrize(
    ("flags", "process", "nice"),
    [((), "serve.jobs.job_run", 0), (("--job-shares-engine", "true"), "multiprocessing.spawn", 19)],
)
def test_a_job_whose_process_dies_fails_and_can_be_resumed(
    start_operated,  # noqa: F811
    many,
    roots,
    tmp_path,
    flags,
    process,
    nice,
):
    server, operator = start_operated(*roots, *flags)
    job_id = submit_long(operator, many, tmp_path / "out/one")
    children = psutil.Process(server.process.pid).children()
    found = [child for child in children if process in " ".join(child.cmdline())]
    assert found
    assert all(child.nice() == nice for child in found)
    for child in found:
        child.kill()
    failed = until(operator, job_id, has_ended)
    assert (failed["state"], "a process of the job died" in failed["error"]) == ("failed", True)
    assert "Traceback" not in server.log_file.read_text()
    (line,) = [line for line in server.log() if line["level"] in ("warning", "error", "critical")]
    assert (line["message"], line["job"], line["state"]) == ("job stops", job_id, "failed")
    operator.ask("POST", f"/jobs/{job_id}/resume")
    assert until(operator, job_id, has_ended)["state"] == "succeeded"
    assert len(rows_of(tmp_path / "out/one")) == len(LONG_BETAS) * len(list(many.iterdir()))


def test_an_invalid_job_is_refused(start_operated, photos, roots, tmp_path):  # noqa: F811
    _, operator = start_operated("--max-jobs", "1", *roots)
    good = {"input": str(photos), "output": str(tmp_path / "out/one")}
    (tmp_path / "out/link").symlink_to(tmp_path)
    (tmp_path / "out/file").touch()
    for wrong, code in (
        ({}, "invalid_job"),
        ({"input": good["input"]}, "invalid_job"),
        ({**good, "beta": 1.5}, "invalid_job"),
        ({**good, "beta": "0.5"}, "invalid_job"),
        ({**good, "beta": True}, "invalid_job"),
        ({**good, "beta": 0.5, "betas": [0.5]}, "invalid_job"),
        ({**good, "betas": []}, "invalid_job"),
        ({**good, "betas": [n / 200 for n in range(102)]}, "invalid_job"),
        ({**good, "betas": [0.5, 0.5]}, "invalid_job"),
        ({**good, "input": str(sorted(photos.rglob("*.png"))[0])}, "invalid_job"),
        ({**good, "top_k": 0}, "invalid_job"),
        ({**good, "format": "xlsx"}, "invalid_job"),
        ({**good, "shard_rows": 10_000_000}, "invalid_job"),
        ({**good, "max_error_rate": 2}, "invalid_job"),
        ({**good, "who": "root"}, "invalid_job"),
        ({**good, "input": "photos"}, "invalid_job"),
        ({**good, "input": str(photos / "none")}, "invalid_job"),
        ({**good, "input": "/etc"}, "outside_roots"),
        ({**good, "output": str(photos / "new")}, "outside_roots"),
        ({**good, "output": str(tmp_path / "out")}, "outside_roots"),
        ({**good, "output": str(tmp_path / "out/link/new")}, "invalid_output"),
        ({**good, "output": str(tmp_path / "out/file/new")}, "invalid_output"),
    ):
        status, _, problem = operator.ask("POST", "/jobs", wrong)
        assert (status, problem["code"]) == (422, code), wrong
        assert "pydantic" not in json.dumps(problem)
    assert operator.ask("GET", "/jobs")[2]["jobs"] == []
    for path in ("/jobs/none", "/jobs/none/results", "/jobs/none/errors", "/jobs/none/results/_SUCCESS"):
        assert operator.ask("GET", path)[2]["code"] == "unknown_job"
    job_id = submit(operator, **good)
    until(operator, job_id, has_ended)
    for name in ("_job%2fjob.json", "..%2fone%2f_SUCCESS", "part-00009.parquet", "lock", ".part-00000.parquet.part"):
        assert operator.ask("GET", f"/jobs/{job_id}/results/{name}")[0] == 404
    os.link(tmp_path / "state/admin-token", tmp_path / "out/one/part-00007.csv")
    assert operator.ask("GET", f"/jobs/{job_id}/results/part-00007.csv")[0] == 404
    (tmp_path / "out/one/part-00008.csv").symlink_to(tmp_path / "state/admin-token")
    assert operator.ask("GET", f"/jobs/{job_id}/results/part-00008.csv")[0] == 404
    taken = until(operator, submit(operator, **good), has_ended)
    assert (taken["state"], "another job" in taken["error"]) == ("failed", True)
    assert operator.ask("GET", f"/jobs/{taken['id']}/results")[2]["code"] == "no_result"  # which are the other's


def test_a_server_without_roots_accepts_no_jobs(start_operated, photos):  # noqa: F811
    _, operator = start_operated()
    status, _, problem = operator.ask("POST", "/jobs", {"input": str(photos), "output": "/new"})
    assert (status, problem["code"]) == (404, "no_jobs")


def test_tureen_jobs_covers_the_life_of_a_job(start_operated, run_tureen, photos, roots, tmp_path):  # noqa: F811
    _, operator = start_operated(*roots)
    where = ("--url", operator.url, "--state-dir", tmp_path / "state")

    def jobs(command, *arguments):
        return run_tureen("jobs", command, *arguments, *where)

    done = jobs("submit", photos, tmp_path / "out/one", "--betas", "0:1:0.5", "--format", "csv", "--watch")
    assert done.returncode == 0, done.stderr
    assert "β       0, 0.5, 1" in done.stdout
    (job,) = json.loads(jobs("list", "--json").stdout)["jobs"]
    assert (job["state"], job["images"], job["who"]) == ("succeeded", 23, "local")
    assert jobs("results", job["id"], "--to", tmp_path / "here").returncode == 0
    for name in ("_SUCCESS", "part-00000.csv"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "out/one" / name).read_bytes()
    assert jobs("errors", job["id"]).stdout == ""
    failed = jobs("submit", photos, tmp_path / "out/one", "--watch")
    assert (failed.returncode, "holds another job" in failed.stdout) == (1, True)
    for wrong in (("show", "none"), ("pause", job["id"]), ("submit", "/etc", tmp_path / "out/two")):
        result = jobs(*wrong)
        assert (result.returncode, "Traceback" in result.stderr) == (1, False)
    assert jobs("submit", photos, tmp_path / "out/two", "--beta", "2").returncode == 2


def test_jobs_of_several_workers_run_side_by_side(start_operated, many, roots, tmp_path):  # noqa: F811
    _, operator = start_operated("--workers", "2", *roots, processes=2)
    ids = [submit(operator, input=many, output=tmp_path / f"out/{n}", betas=LONG_BETAS) for n in range(2)]
    until(operator, ids[0], lambda job: job["state"] == "running")
    until(operator, ids[1], lambda job: job["state"] == "running")
    for job_id in ids:
        assert until(operator, job_id, has_ended)["state"] == "succeeded"
    for n in range(2):
        assert len(rows_of(tmp_path / f"out/{n}")) == len(LONG_BETAS) * len(list(many.iterdir()))
