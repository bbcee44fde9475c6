"""The files of one address, by the real client of its host."""

import pytest

from tests.remote_hosts import REPOSITORY
from tureen.errors import BundleTransferError
from tureen.remote.address import parse_address
from tureen.remote.store import CHUNK_BYTES, open_store

DATA = bytes(range(256)) * (CHUNK_BYTES // 256) + b"the end"


@pytest.fixture(params=["hub", "s3", "file"])
def store(request, tmp_path):
    """A store with the file `a` of more than one chunk."""
    if request.param == "hub":
        hub = request.getfixturevalue("hub")
        hub.commit(REPOSITORY, {"sub/a": DATA})
        opened = open_store(parse_address(f"hf://{REPOSITORY}@main/sub"))
    else:
        place = request.getfixturevalue("bucket") if request.param == "s3" else f"/{tmp_path}"
        opened = open_store(parse_address(f"{request.param}://{place}/sub"))
        opened.upload({"a": DATA}, message="", is_private=False)
    opened.resolve()
    return opened


def test_a_file_is_read_in_chunks_from_any_byte_on(store):
    assert [len(chunk) for chunk in store.chunks("a", 0, len(DATA))] == [CHUNK_BYTES, len(b"the end")]
    assert b"".join(store.chunks("a", CHUNK_BYTES + 4, len(DATA))) == b"end"
    assert b"".join(store.chunks("a", len(DATA), len(DATA))) == b""


def test_reading_ends_at_the_given_size_and_at_the_end_of_the_file(store):
    assert b"".join(store.chunks("a", 0, 10)) == DATA[:10]
    assert b"".join(store.chunks("a", 2 * CHUNK_BYTES, 3 * CHUNK_BYTES)) == b""


def test_a_whole_file_is_read_within_a_limit(store):
    assert store.size("a") == len(DATA)
    assert store.size("b") is None
    assert store.read("a", len(DATA)) == DATA
    with pytest.raises(BundleTransferError, match=r"a has 8,388,615 bytes, the limit is 8,388,614"):
        store.read("a", len(DATA) - 1)
    with pytest.raises(BundleTransferError, match=r"it has no b \(404\)"):
        store.read("b", 10)


def test_a_store_without_commits_resolves_to_none_and_the_hub_to_a_commit(store):
    commit = store.resolve()
    assert commit is None if store.address.scheme != "hf" else len(commit) == 40
