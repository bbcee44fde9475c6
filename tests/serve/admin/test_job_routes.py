"""The routes under /jobs on a real store and real directories, without a server and without a runner of jobs."""

import asyncio
import contextlib
import os
from dataclasses import replace

import httpx2
import numpy as np
import pytest

from serve.admin.listener import create_admin_app
from serve.control.credential_store import Credentials
from serve.control.state_directory import TOKEN_FILE
from serve.jobs.job_output import JOB_ID_FILE, SUCCESS_FILE
from serve.jobs.rooted_files import JOB_FOLDER
from serve.jobs.shard_file import ModelInfo, Shard, write_shard
from tests.serve.admin.opened import Workers, opened

INFO = ModelInfo(("cat", "dog"), "pets", "1", "onnxruntime", "fp32")


@pytest.fixture
def roots(tmp_path):
    """Settings of a server whose jobs read below `in` and write below `out`."""
    for name in ("in/photos", "out"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "in/photos/a.png").write_bytes(b"an image")
    return {"job_input_roots": [tmp_path / "in"], "job_output_roots": [tmp_path / "out"]}


@pytest.fixture
def job_request(tmp_path):
    return {"input": f"{tmp_path}/in/photos", "output": f"{tmp_path}/out/new", "format": "csv"}


@contextlib.asynccontextmanager
async def admin_client(tmp_path, **settings):
    """A client with the token of the server, and the operations of that server."""
    async with opened(tmp_path, Workers(), **settings) as operations:
        token = (tmp_path / "state" / TOKEN_FILE).read_text().strip()
        transport = httpx2.ASGITransport(create_admin_app(operations))
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://admin", headers=headers) as client:
            yield client, operations


@contextlib.asynccontextmanager
async def submitted_job(tmp_path, roots, job_request):
    """The client and the operations of `admin_client`, and the id of a job that the client has submitted."""
    async with admin_client(tmp_path, **roots) as (client, operations):
        yield client, operations, (await client.post("/jobs", json=job_request)).json()["id"]


def refused(response):
    return response.status_code, response.json()["code"]


def finish(operations, job_id, tmp_path, *, failed=0):
    """Ends the job as its runner would, with a shard of two rows; the second has an error if `failed` is 1."""
    records, _ = operations.jobs
    record = records.claim("a runner")
    shard = Shard(2, 1)
    shard.ids, shard.paths, shard.sha256, shard.betas = ["a", "b"], ["a.png", "b.png"], ["1" * 64, None], [0.5, 0.5]
    shard.fill([0, 1], np.array([[1, 0], [0, 1]], np.float32), np.ones(2))
    if failed:
        shard.error_codes[1], shard.errors[1] = "unreadable", "it cannot be read"
    folder = tmp_path / "out/new"
    (folder / JOB_FOLDER).mkdir(parents=True)
    (folder / JOB_FOLDER / JOB_ID_FILE).write_text(job_id)
    write_shard(folder / "part-00000.csv", shard, INFO, "csv", {})
    (folder / SUCCESS_FILE).write_text("{}")
    records.release(replace(record, failed=failed), "succeeded")
    return folder


def test_a_submitted_job_has_the_default_beta_of_its_submission_and_the_name_of_its_operator(
    tmp_path, roots, job_request
):
    async def run():
        async with admin_client(tmp_path, default_beta=0.7, **roots) as (client, operations):
            records, _ = operations.jobs
            response = await client.post("/jobs", json=job_request)
            job = response.json()
            assert (response.status_code, response.headers["location"]) == (202, f"/jobs/{job['id']}")
            assert (job["state"], job["who"], job["default_beta"]) == ("queued", "local", 0.7)
            assert job["request"]["format"] == "csv"
            assert records.get(job["id"]).default_beta == 0.7
            assert (await client.get(f"/jobs/{job['id']}")).json() == job

    asyncio.run(run())


def test_the_strength_of_a_job_becomes_the_beta_of_the_served_model(tmp_path, roots, job_request):
    async def run():
        async with admin_client(tmp_path, **roots) as (client, operations):
            response = await client.post("/jobs", json={**job_request, "strength": 0.5})
            assert response.status_code == 202
            request = response.json()["request"]
            assert request["beta"] == operations.manifest.strength.beta_at(0.5)
            assert "strength" not in request
            for other in ({"beta": 0.5}, {"betas": [0.5]}):
                both = await client.post("/jobs", json={**job_request, "strength": 0.5, **other})
                assert refused(both) == (422, "invalid_job")

    asyncio.run(run())


def test_a_server_without_directories_for_jobs_has_none_of_the_routes(tmp_path, job_request):
    async def run():
        async with admin_client(tmp_path) as (client, _):
            for method, path in (
                ("POST", "/jobs"),
                ("GET", "/jobs"),
                ("GET", "/jobs/x"),
                ("POST", "/jobs/x/cancel"),
                ("POST", "/jobs/x/pause"),
                ("POST", "/jobs/x/resume"),
                ("GET", "/jobs/x/results"),
                ("GET", "/jobs/x/results/_SUCCESS"),
                ("GET", "/jobs/x/errors"),
            ):
                assert refused(await client.request(method, path)) == (404, "no_jobs"), path

    asyncio.run(run())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"beta": 1.5}, "invalid_job"),
        ({"strength": 1.5}, "invalid_job"),
        ({"strength": "0.5"}, "invalid_job"),
        ({"who": "root"}, "invalid_job"),
        ({"input": "/etc"}, "outside_roots"),
        ({"output": "/etc/new"}, "outside_roots"),
    ],
)
def test_an_invalid_request_leaves_no_job(tmp_path, roots, job_request, change, code):
    async def run():
        async with admin_client(tmp_path, **roots) as (client, operations):
            records, _ = operations.jobs
            response = await client.post("/jobs", json={**job_request, **change})
            assert refused(response) == (422, code)
            assert "pydantic" not in response.text
            assert records.list(1) == []

    asyncio.run(run())


def test_the_limit_of_jobs_that_have_not_ended_is_that_of_the_server(tmp_path, roots, job_request):
    async def run():
        async with admin_client(tmp_path, max_jobs=1, **roots) as (client, _):
            first = (await client.post("/jobs", json=job_request)).json()
            response = await client.post("/jobs", json={**job_request, "output": f"{tmp_path}/out/other"})
            assert refused(response) == (429, "too_many_jobs")
            assert (await client.post(f"/jobs/{first['id']}/cancel")).json()["state"] == "cancelled"
            assert (await client.post("/jobs", json=job_request)).status_code == 202

    asyncio.run(run())


def test_jobs_are_listed_newest_first_in_pages_and_by_state(tmp_path, roots, job_request):
    async def run():
        async with admin_client(tmp_path, **roots) as (client, _):
            ids = [(await client.post("/jobs", json=job_request)).json()["id"] for _ in range(3)]
            await client.post(f"/jobs/{ids[1]}/pause")

            async def listed(query):
                page = (await client.get(f"/jobs?{query}")).json()
                return [job["id"] for job in page["jobs"]], page["next_before"]

            newest, before = await listed("limit=2")
            assert newest == [ids[2], ids[1]]
            assert await listed(f"limit=2&before={before}") == ([ids[0]], None)
            assert await listed("state=paused") == ([ids[1]], None)
            for wrong in ("limit=0", "limit=1001", "before=yesterday", "state=late", "sort=id"):
                assert refused(await client.get(f"/jobs?{wrong}")) == (422, "invalid_parameter"), wrong

    asyncio.run(run())


def test_a_job_is_paused_resumed_and_cancelled_and_then_ended(tmp_path, roots, job_request):
    async def run():
        async with admin_client(tmp_path, **roots) as (client, _):
            job_id = (await client.post("/jobs", json=job_request)).json()["id"]
            for action, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
                response = await client.post(f"/jobs/{job_id}/{action}")
                assert (response.status_code, response.json()["state"]) == (202, state)
            assert refused(await client.post(f"/jobs/{job_id}/resume")) == (409, "job_state")
            assert refused(await client.post("/jobs/none/cancel")) == (404, "unknown_job")

    asyncio.run(run())


def test_results_are_listed_with_their_sizes_and_sent_as_they_are(tmp_path, roots, job_request):
    async def run():
        async with submitted_job(tmp_path, roots, job_request) as (client, operations, job_id):
            folder = finish(operations, job_id, tmp_path)
            (folder / "part-00001.csv.tmp").touch()
            (folder / "notes.txt").touch()
            content = {name: (folder / name).read_bytes() for name in (SUCCESS_FILE, "part-00000.csv")}
            files = (await client.get(f"/jobs/{job_id}/results")).json()["files"]
            assert files == [{"name": name, "bytes": len(data)} for name, data in content.items()]
            for name, media_type in ((SUCCESS_FILE, "application/json"), ("part-00000.csv", "text/csv; charset=utf-8")):
                response = await client.get(f"/jobs/{job_id}/results/{name}")
                assert (response.content, response.headers["content-type"]) == (content[name], media_type)
                assert response.headers["content-length"] == str(len(content[name]))
                assert response.headers["content-disposition"] == f'attachment; filename="{name}"'

    asyncio.run(run())


def test_a_file_that_is_no_result_is_not_sent(tmp_path, roots, job_request):
    async def run():
        async with submitted_job(tmp_path, roots, job_request) as (client, operations, job_id):
            folder = finish(operations, job_id, tmp_path)
            secret = tmp_path / "state" / TOKEN_FILE
            (folder / "part-00007.csv").symlink_to(secret)
            os.link(secret, folder / "part-00008.csv")
            (folder / "notes.txt").touch()
            names = (
                "part-00007.csv",
                "part-00008.csv",
                "part-00009.csv",
                "notes.txt",
                "_job%2fid",
                "..%2fnew%2f_SUCCESS",
            )
            for name in names:
                response = await client.get(f"/jobs/{job_id}/results/{name}")
                assert response.status_code == 404, name
                assert secret.read_text() not in response.text

    asyncio.run(run())


def test_the_output_of_another_job_or_of_none_gives_no_result(tmp_path, roots, job_request):
    async def run():
        async with submitted_job(tmp_path, roots, job_request) as (client, operations, job_id):
            assert refused(await client.get(f"/jobs/{job_id}/results")) == (404, "no_result")
            folder = finish(operations, job_id, tmp_path)
            (folder / JOB_FOLDER / JOB_ID_FILE).write_text("another job")
            for path in ("results", "results/_SUCCESS"):
                assert refused(await client.get(f"/jobs/{job_id}/{path}")) == (404, "no_result")

    asyncio.run(run())


def test_the_rows_with_an_error_are_read_from_the_shards(tmp_path, roots, job_request):
    async def run():
        async with submitted_job(tmp_path, roots, job_request) as (client, operations, job_id):
            assert (await client.get(f"/jobs/{job_id}/errors")).json() == {"errors": []}
            folder = finish(operations, job_id, tmp_path, failed=1)
            (row,) = (await client.get(f"/jobs/{job_id}/errors")).json()["errors"]
            assert row == {
                "id": "b",
                "path": "b.png",
                "sha256": None,
                "beta": 0.5,
                "error_code": "unreadable",
                "error": "it cannot be read",
            }
            (folder / "part-00001.csv").write_bytes((folder / "part-00000.csv").read_bytes())
            for limit, count in ((1, 1), (2, 2), (3, 2)):
                rows = (await client.get(f"/jobs/{job_id}/errors?limit={limit}")).json()["errors"]
                assert len(rows) == count
            assert refused(await client.get(f"/jobs/{job_id}/errors?limit=1001")) == (422, "invalid_parameter")

    asyncio.run(run())


def test_a_credential_that_may_only_read_sees_jobs_and_changes_none(tmp_path, roots, job_request):
    async def run():
        async with submitted_job(tmp_path, roots, job_request) as (client, operations, job_id):
            client.headers["Authorization"] = f"Bearer {Credentials(operations.store).make('dashboard', 'read')}"
            assert (await client.get("/jobs")).status_code == 200
            assert (await client.get(f"/jobs/{job_id}")).status_code == 200
            for path in ("/jobs", *(f"/jobs/{job_id}/{action}" for action in ("cancel", "pause", "resume"))):
                assert refused(await client.post(path, json=job_request)) == (403, "forbidden")
            assert operations.jobs[0].get(job_id).state == "queued"

    asyncio.run(run())


def test_a_job_of_a_model_with_one_token_has_no_beta(tmp_path, roots, job_request):
    async def run():
        async with admin_client(tmp_path, **roots) as (client, operations):
            operations.show_model(operations.manifest.model_copy(update={"has_two_tokens": False}))
            for betas in ({"beta": 0.5}, {"betas": [0.5]}):
                assert refused(await client.post("/jobs", json={**job_request, **betas})) == (422, "single_token")
            assert (await client.post("/jobs", json=job_request)).json()["default_beta"] is None

    asyncio.run(run())
