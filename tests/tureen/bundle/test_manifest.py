import json

import pytest

from tureen.bundle.bundle import MANIFEST, load_bundle, read_manifest
from tureen.errors import BundleError


def edit_manifest(path, **changes):
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def test_a_newer_schema_requires_an_upgrade(own_bundle):
    edit_manifest(own_bundle, schema_version=3, something_new=True)
    with pytest.raises(BundleError, match=r"schema version 3.*upgrade Tureen"):
        read_manifest(own_bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": "x"}', "\x00"])
def test_an_invalid_manifest_is_refused(own_bundle, text):
    (own_bundle / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="not a Tureen manifest"):
        load_bundle(own_bundle)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", ".hidden", ""])
def test_a_file_outside_the_bundle_cannot_be_named(own_bundle, name):
    edit_manifest(own_bundle, files={name: {"sha256": "0" * 64, "size": 0}})
    with pytest.raises(BundleError, match="files"):
        load_bundle(own_bundle)


@pytest.mark.parametrize(
    "change", [{"accuracy": []}, {"default_beta": 1.5}, {"labels": ["one"]}, {"width": 0}, {"surprise": 1}]
)
def test_a_wrong_value_is_named(own_bundle, change):
    edit_manifest(own_bundle, **change)
    with pytest.raises(BundleError, match=next(iter(change))):
        load_bundle(own_bundle)


def test_a_label_that_two_outputs_share_is_named(own_bundle):
    edit_manifest(own_bundle, labels=["one", "two", "two", *map(str, range(7))])
    with pytest.raises(BundleError, match="labels has 'two' twice; give each output a label that no other has"):
        read_manifest(own_bundle)


def test_only_a_single_token_model_may_lack_accuracy_or_a_second_token(own_bundle):
    rows = json.loads((own_bundle / MANIFEST).read_text())["accuracy"]
    edit_manifest(own_bundle, is_cotrained=False, has_two_tokens=False, accuracy=[])
    assert read_manifest(own_bundle).accuracy == []
    edit_manifest(own_bundle, is_cotrained=True)
    with pytest.raises(BundleError, match="accuracy has no row"):
        read_manifest(own_bundle)
    edit_manifest(own_bundle, accuracy=rows)
    with pytest.raises(BundleError, match="has_two_tokens is false"):
        read_manifest(own_bundle)
