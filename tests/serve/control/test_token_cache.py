"""The token files of a server: written once, read by their SHA-256, and never believed without it."""

import hashlib
import os

import pytest

import tureen
from serve.control.token_cache import TokenCache
from serve.errors import ControlStoreError
from tests.learned_tokens import make_token
from tureen.errors import TokenFileError


@pytest.fixture(scope="module")
def content():
    with tureen.load("signs", engine="onnxruntime", precision="fp32") as soup:
        return make_token(soup, "fog", 1).to_bytes()


def test_a_file_is_read_by_its_sha256(tmp_path, content):
    cache = TokenCache(tmp_path / "tokens")
    sha256 = cache.write(content)
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert cache.has(sha256)
    assert cache.read(sha256).record.name == "fog"
    assert cache.write(content) == sha256
    (file,) = (tmp_path / "tokens").iterdir()
    assert file.stat().st_mode & 0o077 == 0


def test_a_missing_or_changed_file_is_refused(tmp_path, content):
    cache = TokenCache(tmp_path)
    with pytest.raises(TokenFileError, match="cannot be read"):
        cache.read("0" * 64)
    sha256 = cache.write(content)
    (file,) = tmp_path.iterdir()
    os.chmod(file, 0o600)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(TokenFileError, match="was changed"):
        cache.read(sha256)


def test_a_directory_that_cannot_be_written_is_an_error_of_the_store(tmp_path, content):
    (tmp_path / "tokens").write_text("a file")
    with pytest.raises(ControlStoreError, match="cannot be written"):
        TokenCache(tmp_path / "tokens").write(content)
