"""Uploads: verified, only what differs, the manifest last, and on the hub with its metadata."""

import re
from contextlib import closing

import pytest
from huggingface_hub import ModelCard

from tests.remote_hosts import REPOSITORY, files_of
from tureen.bundle.bundle import MANIFEST, MODEL_CARD, load_bundle
from tureen.errors import BundleAddressError, BundleError, BundleTransferError
from tureen.remote.address import parse_address
from tureen.remote.download import download_bundle
from tureen.remote.upload import push_bundle

# The client of the hub sends a body by a deprecated argument of httpx.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
ADDRESS = parse_address(f"hf://{REPOSITORY}")


def test_a_pushed_bundle_is_pulled_with_its_card_and_pushing_it_again_sends_nothing(hub, bundle, cache):
    first = push_bundle(bundle, ADDRESS, message="The first")
    assert set(first.uploaded) == set(files_of(bundle))
    assert first.commit == hub.branches[REPOSITORY, "main"]
    assert hub.messages == ["The first"]
    copy = download_bundle(ADDRESS, cache)
    pulled = load_bundle(copy)
    assert pulled.manifest.model_copy(update={"files": {}}) == load_bundle(bundle).manifest.model_copy(
        update={"files": {}}
    )
    card = ModelCard((copy / MODEL_CARD).read_text())
    assert card.data.library_name == "tureen"
    assert len(card.data.eval_results) == 2 * len(pulled.manifest.accuracy)
    commits = len(hub.commits)
    for path in (bundle, copy):
        again = push_bundle(path, ADDRESS)
        assert (again.uploaded, again.commit) == ((), None)
    assert len(hub.commits) == commits


def test_only_the_files_that_differ_are_uploaded_and_the_commit_names_the_model(hub, bundle, tmp_path):
    push_bundle(bundle, ADDRESS)
    sent = len(hub.objects)
    changed = load_bundle(bundle)
    manifest = changed.manifest.model_copy(update={"version": "second", "default_beta": 0.5})
    (bundle / MANIFEST).write_text(manifest.model_dump_json())
    result = push_bundle(bundle, ADDRESS)
    assert result.uploaded == (MANIFEST,)
    assert len(hub.objects) == sent
    assert hub.messages[-1] == f"Push {manifest.name} second"


def test_a_branch_is_created_and_a_private_repository_is_private(hub, bundle):
    push_bundle(bundle, parse_address(f"hf://{REPOSITORY}@candidate/sub"), is_private=True)
    assert REPOSITORY in hub.private
    assert f"sub/{MANIFEST}" in hub.files(REPOSITORY, "candidate")
    assert f"sub/{MANIFEST}" not in hub.files(REPOSITORY)


def test_a_damaged_bundle_is_not_uploaded(hub, bundle):
    (bundle / "golden.npz").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"golden.npz is not what the manifest describes"):
        push_bundle(bundle, ADDRESS)
    assert hub.requests == []


def test_an_upload_without_permission_says_how_to_log_in(hub, bundle, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(BundleTransferError, match=r"needs credentials \(401\).*HF_TOKEN"):
        push_bundle(bundle, ADDRESS)


def test_a_commit_and_a_private_bucket_are_refused(bundle):
    with pytest.raises(BundleAddressError, match="names a commit, which cannot change"):
        push_bundle(bundle, parse_address(f"hf://{REPOSITORY}@{'0' * 40}"))
    with pytest.raises(BundleAddressError, match="only a repository of the hub can be private"):
        push_bundle(bundle, parse_address("s3://bucket/a"), is_private=True)


def test_on_s3_the_manifest_is_written_last_and_equal_files_stay(bucket, s3_server, bundle, cache):
    import boto3

    address = parse_address(f"s3://{bucket}/digits")
    assert push_bundle(bundle, address).uploaded[-1] == MANIFEST
    assert files_of(download_bundle(address, cache)) == files_of(bundle)
    written = re.findall(rf"PUT /{bucket}/(\S+)", s3_server.log.read_text())
    assert written[-1] == f"digits/{MANIFEST}"
    assert sorted(written) == sorted(f"digits/{name}" for name in files_of(bundle))
    with closing(boto3.client("s3")) as client:
        client.delete_object(Bucket=bucket, Key="digits/golden.npz")
    assert push_bundle(bundle, address).uploaded == ("golden.npz", MANIFEST)
    assert push_bundle(bundle, address).uploaded == ()


def test_a_bucket_that_does_not_exist_is_named_and_not_created(bucket, bundle):
    import boto3

    with pytest.raises(BundleTransferError, match=r"s3://no-such-bucket/digits \(404\): check the name"):
        push_bundle(bundle, parse_address("s3://no-such-bucket/digits"))
    with closing(boto3.client("s3")) as client:
        assert "no-such-bucket" not in [one["Name"] for one in client.list_buckets()["Buckets"]]


def test_a_bundle_is_pushed_to_a_mounted_directory(bundle, tmp_path):
    result = push_bundle(bundle, parse_address(f"file://{tmp_path}/volume/digits"))
    assert result.uploaded[-1] == MANIFEST
    assert files_of(tmp_path / "volume" / "digits") == files_of(bundle)
