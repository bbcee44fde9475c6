"""Downloads: verified, cached, continued, done once by two processes, and from the cache without a network."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session

from tests.patience import DEADLINE_S
from tests.remote_hosts import REPOSITORY, files_of, with_manifest
from tureen.bundle.bundle import MANIFEST, load_bundle
from tureen.errors import BundleError, BundleTransferError, UnreachableHostError
from tureen.remote.address import parse_address
from tureen.remote.download import download_bundle
from tureen.remote.store import CHUNK_BYTES

ADDRESS = parse_address(f"hf://{REPOSITORY}")
GRAPH = "backbone.onnx"


def test_a_bundle_of_the_hub_is_downloaded_once_and_is_the_bundle(hub, bundle, cache):
    hub.commit(REPOSITORY, files_of(bundle))
    copy = download_bundle(ADDRESS, cache)
    assert files_of(copy) == files_of(bundle)
    load_bundle(copy)
    before = len(hub.transferred(GRAPH))
    assert download_bundle(ADDRESS, cache) == copy
    assert len(hub.transferred(GRAPH)) == before == 2  # two chunks


def test_a_branch_that_moves_leaves_the_earlier_copy_and_a_commit_stays(hub, bundle, cache):
    first = hub.commit(REPOSITORY, files_of(bundle))
    pinned = parse_address(f"hf://{REPOSITORY}@{first}")
    copy = download_bundle(pinned, cache)
    hub.commit(REPOSITORY, with_manifest(files_of(bundle), version="second"))
    moved = download_bundle(ADDRESS, cache)
    assert moved.parent == copy.parent
    assert load_bundle(moved).manifest.version == "second"
    requests = len(hub.requests)
    assert download_bundle(pinned, cache) == copy
    assert load_bundle(copy).manifest.version != "second"
    assert len(hub.requests) == requests  # a commit in the cache needs no request


def test_a_folder_and_a_revision_of_a_private_repository(hub, bundle, cache, monkeypatch):
    hub.commit(REPOSITORY, {}, "main")
    hub.commit(REPOSITORY, {f"a/b/{name}": data for name, data in files_of(bundle).items()}, "v1")
    hub.private.add(REPOSITORY)
    address = parse_address(f"hf://{REPOSITORY}@v1/a/b")
    assert files_of(download_bundle(address, cache)) == files_of(bundle)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(BundleTransferError, match=r"needs credentials \(401\), or does not exist: log in"):
        download_bundle(address, cache)


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, BundleTransferError, "needs credentials"),
        (403, BundleTransferError, "refuses these credentials"),
        (404, BundleTransferError, r"there is no bundle at hf://ada/digits \(404\): check"),
        (400, BundleTransferError, "responds with status 400"),
        (503, UnreachableHostError, "status 503.*has no copy"),
    ],
)
def test_a_refusal_of_the_hub_has_its_status_and_the_next_step(hub, cache, status, error, message):
    hub.status = status
    with pytest.raises(error, match=message):
        download_bundle(ADDRESS, cache)


@pytest.mark.parametrize("end", ["", "@v2"])
def test_a_repository_or_revision_that_does_not_exist_is_named(hub, bundle, cache, end):
    if end:
        hub.commit(REPOSITORY, files_of(bundle))
    with pytest.raises(BundleTransferError, match=rf"no bundle at hf://{REPOSITORY}{end} \(404\)"):
        download_bundle(parse_address(f"hf://{REPOSITORY}{end}"), cache)


def test_without_a_network_the_last_copy_is_used_with_its_age(hub, bundle, cache, caplog):
    hub.commit(REPOSITORY, files_of(bundle))
    copy = download_bundle(ADDRESS, cache)
    (record,) = copy.parent.glob("*.json")
    resolved = json.loads(record.read_text())
    record.write_text(json.dumps({**resolved, "resolved_s": time.time() - 3 * 3600 - 60}))
    hub.shutdown()
    hub.server_close()
    close_session()  # its connections to the server are still open
    assert download_bundle(ADDRESS, cache) == copy
    (warning,) = [one.message for one in caplog.records if one.name == "tureen.remote" and one.levelname == "WARNING"]
    assert (
        warning == f"the host of {ADDRESS} cannot be reached: check the network; using the cached copy of 3 hours ago"
    )
    with pytest.raises(UnreachableHostError, match=r"cannot be reached.*the cache .* has no copy"):
        download_bundle(parse_address("hf://ada/other"), cache)


@pytest.mark.parametrize("place", ["in the manifest's file", "longer", "shorter"])
def test_a_file_that_differs_from_the_manifest_is_refused_and_removed(hub, bundle, cache, place):
    files = files_of(bundle)
    data = files[GRAPH]
    files[GRAPH] = {
        "in the manifest's file": data[:-1] + bytes([data[-1] ^ 1]), "longer": b"x" + data, "shorter": data[:-5]
    }[place]  # fmt: skip
    hub.commit(REPOSITORY, files)
    with pytest.raises(BundleTransferError, match=rf"{GRAPH} is not what its manifest describes"):
        download_bundle(ADDRESS, cache)
    assert [path for path in cache.rglob("*") if GRAPH in path.name] == []
    hub.commit(REPOSITORY, files_of(bundle))  # the same manifest: the other files are kept
    assert files_of(download_bundle(ADDRESS, cache)) == files_of(bundle)


def listed(name, **record):
    return {name: {"sha256": "0" * 64, "size": 1, **record}}


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (listed("../escaped"), "files"),
        (listed("/etc/escaped"), "files"),
        (listed("engines/../../escaped"), "files"),
        (listed("a\n"), "files"),
        (listed("a.onnx", size=2**40), "the limit is"),
        (listed(MANIFEST), "lists itself"),
        ({f"file{number}": {"sha256": "0" * 64, "size": 1} for number in range(101)}, "the limit is 100"),
    ],
)
def test_a_hostile_manifest_is_refused_before_any_file_is_read(hub, bundle, cache, added, message):
    files = files_of(bundle)
    listing = {**json.loads(files[MANIFEST])["files"], **added}
    manifest = json.dumps({**json.loads(files[MANIFEST]), "files": listing}).encode()
    hub.commit(REPOSITORY, {**files, MANIFEST: manifest, "../escaped": b"x", "escaped": b"x"})
    with pytest.raises(BundleError, match=message):
        download_bundle(ADDRESS, cache)
    assert {path for _, path, _ in hub.requests if "/resolve/" in path and not path.endswith(MANIFEST)} == set()
    assert list(cache.parent.rglob("escaped")) == []


@pytest.mark.parametrize(
    ("manifest", "message"),
    [(b"{}", "not a Tureen manifest"), (b"\xff", "not a Tureen manifest"), (b" " * (16 * 2**20 + 1), "the limit is")],
)
def test_a_wrong_or_endless_manifest_is_refused(hub, bundle, cache, manifest, message):
    hub.commit(REPOSITORY, {**files_of(bundle), MANIFEST: manifest})
    with pytest.raises(BundleError, match=message):
        download_bundle(ADDRESS, cache)


def test_a_bundle_that_does_not_fit_on_the_disk_is_refused(hub, bundle, cache):
    files = files_of(bundle)
    plans = {f"engines/{number}.plan": {"sha256": "0" * 64, "size": 2**32} for number in range(90)}
    record = json.loads(files[MANIFEST])["files"]
    hub.commit(REPOSITORY, with_manifest(files, files={**record, **plans}))
    with pytest.raises(BundleTransferError, match=r"needs 386,\d+,\d+,\d+ bytes, and .* free: delete files, or set"):
        download_bundle(ADDRESS, cache)


def test_a_disk_that_becomes_full_is_named_and_the_next_download_continues(hub, bundle, cache, start_tureen):
    hub.commit(REPOSITORY, files_of(bundle))
    limited = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({CHUNK_BYTES}, {CHUNK_BYTES}))"
    program = f"{limited}; from tureen.cli import main; sys.exit(main(['pull', '{ADDRESS}']))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S)
    assert ran.returncode == 1
    assert f"the disk of {cache} is full: {ADDRESS} is not complete" in ran.stderr
    assert files_of(download_bundle(ADDRESS, cache)) == files_of(bundle)


def test_a_killed_download_continues_at_the_byte_where_it_stopped(hub, bundle, cache, start_tureen):
    hub.commit(REPOSITORY, files_of(bundle))
    order = list(json.loads((bundle / MANIFEST).read_text())["files"])
    assert order[0] == GRAPH
    hub.pause_after = 2  # the manifest and the first chunk
    process = start_tureen("pull", ADDRESS)
    assert hub.paused.wait(DEADLINE_S)
    process.kill()
    process.wait(DEADLINE_S)
    hub.pause_after = None
    hub.resumed.set()
    (unfinished,) = cache.rglob(f".{GRAPH}.part")
    stopped_at = unfinished.stat().st_size
    assert stopped_at > 0
    before = len(hub.transferred(GRAPH))
    assert files_of(download_bundle(ADDRESS, cache)) == files_of(bundle)
    size = (bundle / GRAPH).stat().st_size
    assert hub.transferred(GRAPH)[before:] == [f"bytes={stopped_at}-{size - 1}"]


def test_two_processes_download_each_file_once(hub, bundle, cache, start_tureen):
    hub.commit(REPOSITORY, files_of(bundle))
    processes = [start_tureen("pull", ADDRESS) for _ in range(2)]
    ended = [process.communicate(timeout=DEADLINE_S) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    assert ended[0][0] == ended[1][0]
    assert files_of(Path(ended[0][0].strip())) == files_of(bundle)
    assert len(hub.transferred(GRAPH)) == 2


def test_a_copy_that_lacks_a_file_is_completed(hub, bundle, cache):
    hub.commit(REPOSITORY, files_of(bundle))
    copy = download_bundle(ADDRESS, cache)
    (copy / "golden.npz").unlink()
    before = len(hub.transferred(GRAPH))
    assert download_bundle(ADDRESS, cache) == copy
    assert files_of(copy) == files_of(bundle)
    assert len(hub.transferred(GRAPH)) == before


def test_a_first_part_of_another_upload_is_replaced(hub, bundle, cache):
    files = files_of(bundle)
    hub.commit(REPOSITORY, files)
    digest = hashlib.sha256(files[MANIFEST]).hexdigest()
    partial = cache / "bundles" / ADDRESS.cache_name / f"{digest}.part"
    partial.mkdir(parents=True)
    (partial / f".{GRAPH}.part").write_bytes(b"of another upload")
    assert files_of(download_bundle(ADDRESS, cache)) == files


def test_a_bundle_of_s3_is_downloaded_and_a_bucket_that_does_not_exist_is_named(bucket, bundle, cache):
    import boto3

    client = boto3.client("s3")
    for name, data in files_of(bundle).items():
        client.put_object(Bucket=bucket, Key=f"models/digits/{name}", Body=data)
    client.close()
    address = parse_address(f"s3://{bucket}/models/digits")
    assert files_of(download_bundle(address, cache)) == files_of(bundle)
    for absent in (f"s3://{bucket}/other", "s3://no-such-bucket/digits"):
        with pytest.raises(BundleTransferError, match=rf"there is no bundle at {absent}"):
            download_bundle(parse_address(absent), cache)


def test_s3_without_credentials_names_the_variables(bucket, cache, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BundleTransferError, match=r"needs credentials.*AWS_ACCESS_KEY_ID"):
        download_bundle(parse_address(f"s3://{bucket}/digits"), cache)


def test_a_bundle_of_a_mounted_directory_is_copied_to_the_cache(bundle, cache):
    copy = download_bundle(parse_address(f"file://{bundle}"), cache)
    assert copy.is_relative_to(cache)
    assert files_of(copy) == files_of(bundle)
    with pytest.raises(BundleTransferError, match="there is no bundle at file:///no/such"):
        download_bundle(parse_address("file:///no/such"), cache)
