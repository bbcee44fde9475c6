import json

import numpy as np
import pytest

from tureen.bundle.bundle import GOLDEN, MANIFEST, TOKENS, load_bundle, read_manifest, record_files, write_bundle
from tureen.bundle.manifest import BACKBONE
from tureen.errors import BundleError


def edit_manifest(path, **changes):
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def files_of(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != MANIFEST}


def test_a_written_bundle_loads_verified(bundle_path, checkpoint):
    bundle = load_bundle(bundle_path)
    np.testing.assert_array_equal(bundle.clean_token, checkpoint.model.clean_token.numpy())
    np.testing.assert_array_equal(bundle.robust_token, checkpoint.model.robust_token.numpy())
    assert bundle.manifest.labels == [str(digit) for digit in range(10)]
    assert bundle.manifest.accuracy == checkpoint.accuracy
    assert [row.beta for row in bundle.manifest.accuracy] == [0, 0.25, 0.5, 0.75, 1]
    assert sorted(file.name for file in bundle_path.iterdir()) == sorted([*bundle.manifest.files, MANIFEST])


@pytest.mark.parametrize("name", [BACKBONE, TOKENS, GOLDEN, "README.md"])
def test_a_flipped_byte_is_refused(own_bundle, name):
    data = bytearray((own_bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (own_bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} is not what the manifest describes"):
        load_bundle(own_bundle)


@pytest.mark.parametrize("name", [BACKBONE, TOKENS, GOLDEN])
def test_a_missing_file_is_named(own_bundle, name):
    (own_bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(own_bundle)


def test_a_file_that_the_manifest_forgets_is_missed(own_bundle):
    manifest = json.loads((own_bundle / MANIFEST).read_text())
    del manifest["files"][GOLDEN]
    edit_manifest(own_bundle, files=manifest["files"])
    with pytest.raises(BundleError, match="does not list golden"):
        load_bundle(own_bundle)


def test_tokens_of_another_width_are_refused(own_bundle):
    edit_manifest(own_bundle, width=65)
    with pytest.raises(BundleError, match="token is not 65 finite float32"):
        load_bundle(own_bundle)


def test_a_directory_without_a_manifest_is_no_bundle(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match="is not a bundle"):
            load_bundle(path)


def test_a_run_is_no_bundle_and_the_error_has_the_command_that_exports_it(tmp_path):
    (tmp_path / "checkpoint.json").write_text("{}")
    with pytest.raises(BundleError, match=f"it is a run of `tureen train`; export it first: tureen export {tmp_path}"):
        load_bundle(tmp_path)


def test_writing_refuses_to_overwrite_without_the_flag(own_bundle):
    manifest = read_manifest(own_bundle)
    files = files_of(own_bundle)
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(own_bundle, manifest, files)
    write_bundle(own_bundle, manifest, files, overwrite=True)
    load_bundle(own_bundle)
    assert [file.name for file in own_bundle.parent.iterdir()] == [own_bundle.name]


def test_only_a_bundle_is_ever_overwritten(own_bundle, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="is not a bundle"):
        write_bundle(precious, read_manifest(own_bundle), files_of(own_bundle), overwrite=True)
    assert (precious / "thesis.tex").read_text() == "years of work"


def test_a_failed_write_leaves_no_file(own_bundle, tmp_path):
    files = files_of(own_bundle)
    files["no/such/directory"] = b""
    manifest = read_manifest(own_bundle).model_copy(update={"files": record_files(files)})
    with pytest.raises(FileNotFoundError):
        write_bundle(tmp_path / "new", manifest, files)
    assert [file.name for file in tmp_path.iterdir()] == [own_bundle.name]


def test_a_manifest_that_describes_other_files_is_not_written(own_bundle, tmp_path):
    with pytest.raises(BundleError, match="does not describe"):
        write_bundle(tmp_path / "new", read_manifest(own_bundle), {BACKBONE: b""})
