"""Addresses of bundles: their forms, and what is none."""

from pathlib import Path

import pytest

from tureen.errors import BundleAddressError
from tureen.remote.address import BundleAddress, parse_address

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://ada/digits", BundleAddress("hf", "ada/digits")),
        ("hf://ada/digits@v1.0", BundleAddress("hf", "ada/digits", revision="v1.0")),
        ("hf://ada/digits@refs%2Fpr%2F1/sub/dir", BundleAddress("hf", "ada/digits", "sub/dir", "refs/pr/1")),
        ("s3://bucket", BundleAddress("s3", "bucket")),
        ("s3://bucket/a/b", BundleAddress("s3", "bucket", "a/b")),
        ("file:///srv/my%20bundle", BundleAddress("file", "", "/srv/my bundle")),
    ],
)
def test_an_address_is_parsed_also_after_pathlib_has_shortened_it(text, address):
    assert parse_address(text) == address
    assert parse_address(Path(text)) == address
    assert parse_address(f"{text}/") == address


@pytest.mark.parametrize("text", ["hf://ada/digits", f"hf://ada/digits@{COMMIT}/sub", "s3://bucket/a", "file:///srv/a"])
def test_the_text_of_an_address_is_the_address(text):
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text", ["cifar10", "runs/digits", "/srv/bundle", "./a:b", "C:/bundles", "", "hf:ada", "a" * 5000]
)
def test_a_path_or_name_is_no_address(text):
    assert parse_address(text) is None


def test_a_path_that_exists_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gs:/digits").mkdir(parents=True)
    assert parse_address("gs://digits") is None


@pytest.mark.parametrize(
    "text",
    [
        "hf://digits", "hf://ada/digits@", "hf://ada/../digits", "hf://-ada/digits", "hf://ada/digits@a b",
        "s3://", "s3:///", "s3://bucket/../other", "file://host/srv", "hf://ada/dig\nits",
    ],
)  # fmt: skip
def test_a_wrong_address_is_refused_with_its_form(text):
    with pytest.raises(BundleAddressError, match="is not an address of a bundle: give "):
        parse_address(text)


def test_an_unknown_scheme_is_refused_with_the_known_ones():
    with pytest.raises(BundleAddressError, match=r"scheme 'file1'.* did you mean 'file'.*hf://OWNER/NAME"):
        parse_address("file1:///srv")


def test_only_a_whole_commit_pins_an_address():
    assert parse_address(f"hf://ada/digits@{COMMIT}").is_pinned
    assert not parse_address(f"hf://ada/digits@{COMMIT[:7]}").is_pinned
    assert not parse_address("hf://ada/digits").is_pinned


def test_the_revisions_of_a_source_share_a_cache_directory_and_two_sources_do_not():
    names = {parse_address(f"hf://ada/digits{end}").cache_name for end in ("", "@v1", f"@{COMMIT}")}
    assert len(names) == 1
    others = {parse_address(text).cache_name for text in ("s3://ada/digits", "hf://ada/digits/sub", "hf://ada/Digits")}
    assert len(others | names) == 4
