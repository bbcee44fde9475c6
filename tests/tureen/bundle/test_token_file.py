"""Token files: written, read again, and refused when damaged or for another backbone."""

import dataclasses
import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from tests.learned_tokens import make_record
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import find_bundle
from tureen.bundle.token_file import (
    MAX_TOKEN_BYTES,
    Token,
    parse_token,
    read_token,
    read_tokens,
    write_token,
)
from tureen.errors import TokenFileError


@pytest.fixture(scope="module")
def bundle():
    return load_bundle(find_bundle("signs"))


@pytest.fixture
def token(bundle):
    golden = np.zeros((len(bundle.golden.pixels), len(bundle.manifest.labels)), np.float32)
    return Token(make_record(bundle, "fog"), np.arange(bundle.manifest.width, dtype=np.float32), golden)


def test_a_token_is_read_as_it_was_written(token, bundle, tmp_path):
    write_token(tmp_path / "fog.token", token)
    found = read_token(tmp_path / "fog.token")
    assert found.record == token.record
    np.testing.assert_array_equal(found.vector, token.vector)
    np.testing.assert_array_equal(found.golden_logits, token.golden_logits)
    assert found.sha256 == token.sha256
    found.check_bundle(bundle)


def test_a_token_of_another_backbone_is_refused(token, bundle):
    other = dataclasses.replace(token, record=token.record.model_copy(update={"backbone_sha256": "1" * 64}))
    with pytest.raises(TokenFileError, match="learned for another backbone, of the model signs"):
        other.check_bundle(bundle)


@pytest.mark.parametrize("name", ["vector", "golden_logits"])
def test_a_token_of_another_shape_is_refused(name, token, bundle):
    with pytest.raises(TokenFileError, match="another shape"):
        dataclasses.replace(token, **{name: getattr(token, name)[:-1]}).check_bundle(bundle)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1, np.nan], np.float32), "finite"),
        (np.array([1, np.inf], np.float32), "finite"),
        (np.ones(2, np.float64), "float32"),
        (np.ones((2, 2), np.float32), "1 dimensions"),
        (np.ones(0, np.float32), "1 dimensions"),
    ],
)
def test_other_numbers_are_refused(array, message, token):
    with pytest.raises(TokenFileError, match=message):
        parse_token(dataclasses.replace(token, vector=array).to_bytes(), "fog.token")


@pytest.mark.parametrize("name", ["clean", "robust"])
def test_the_names_of_the_modes_are_refused(name, token):
    renamed = dataclasses.replace(token, record=token.record.model_copy(update={"name": name}))
    with pytest.raises(TokenFileError, match=f"the name {name} belongs to a token of every bundle"):
        parse_token(renamed.to_bytes(), "x.token")


def test_a_wrong_record_names_its_field(token):
    renamed = dataclasses.replace(token, record=token.record.model_copy(update={"name": "No Name"}))
    with pytest.raises(TokenFileError, match=r"x\.token: name: "):
        parse_token(renamed.to_bytes(), "x.token")


def test_other_files_are_refused(token, tmp_path):
    data = token.to_bytes()
    without = safetensors.numpy.save({"token": token.vector, "golden": token.golden_logits})
    lacking = safetensors.numpy.save({"token": token.vector}, metadata={"tureen": token.record.model_dump_json()})
    odd = safetensors.numpy.save({"token": token.vector, "golden": token.golden_logits}, metadata={"tureen": "{"})
    for damaged in (b"", b"\0" * 7, data[:100], data[:-1], without, lacking, odd, struct.pack("<Q", 2**40) + b"{}"):
        with pytest.raises(TokenFileError, match=r"x\.token"):
            parse_token(damaged, "x.token")
    with pytest.raises(TokenFileError, match="the limit is 16,777,216"):
        parse_token(bytes(MAX_TOKEN_BYTES + 1), "x.token")
    with pytest.raises(TokenFileError, match="cannot be read: No such file"):
        read_token(tmp_path / "absent.token")
    with pytest.raises(TokenFileError, match="cannot be read: Is a directory"):
        read_token(tmp_path)


def test_every_cut_and_every_changed_byte_of_the_header_is_refused_or_read(token):
    data = token.to_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    assert json.loads(data[8:header])
    rng = np.random.default_rng(0)
    for position in rng.choice(header, 200, replace=False):
        changed = bytearray(data)
        changed[position] ^= int(rng.integers(1, 256))
        try:
            parse_token(bytes(changed), "x.token")
        except TokenFileError:
            continue


def renamed(token, name):
    return dataclasses.replace(token, record=token.record.model_copy(update={"name": name}))


def test_a_directory_gives_its_tokens_in_the_order_of_the_files(token, tmp_path):
    assert list(read_tokens(tmp_path, 2)) == []
    for name in ("night", "fog"):
        write_token(tmp_path / f"{name}.token", renamed(token, name))
    (tmp_path / "README.md").write_text("not a token")
    assert [one.record.name for one in read_tokens(tmp_path, 2)] == ["fog", "night"]


def test_a_directory_with_a_wrong_file_is_refused_by_its_name(token, tmp_path):
    with pytest.raises(TokenFileError, match=r"absent cannot be read: No such file"):
        list(read_tokens(tmp_path / "absent", 2))
    write_token(tmp_path / "a.token", token)
    write_token(tmp_path / "b.token", token)
    with pytest.raises(TokenFileError, match=r"b\.token: another file of the directory has a token 'fog' too"):
        list(read_tokens(tmp_path, 2))
    with pytest.raises(TokenFileError, match="2 token files, the limit is 1"):
        list(read_tokens(tmp_path, 1))
    (tmp_path / "b.token").write_bytes(b"")
    with pytest.raises(TokenFileError, match=r"b\.token is not a token file"):
        list(read_tokens(tmp_path, 2))
