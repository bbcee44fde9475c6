import json
import shutil

import numpy as np
import pytest
from PIL import Image

import tureen
from tureen.bundle.bundle import MANIFEST, MODEL_CARD, load_bundle
from tureen.cli import main


@pytest.fixture(scope="module")
def digits(held_out, tmp_path_factory):
    """A folder with 12 images of each held-out digit."""
    root = tmp_path_factory.mktemp("digits")
    for digit in range(10):
        (root / str(digit)).mkdir()
        for index in np.flatnonzero(held_out.labels == digit)[:12]:
            Image.fromarray(held_out.pixels[index]).save(root / str(digit) / f"{index}.png")
    return root


def content(bundle):
    """The bytes of each file of a bundle, by its name."""
    return {str(file.relative_to(bundle)): file.read_bytes() for file in bundle.rglob("*") if file.is_file()}


def calibrate(capsys, *arguments):
    """Status, output and error of `tureen calibrate`."""
    status = main(["calibrate", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_a_bundle_of_an_earlier_version_gets_its_curve_and_its_temperatures(own_bundle, digits, capsys):
    manifest = json.loads((own_bundle / MANIFEST).read_text())
    del manifest["strength"], manifest["calibration"]
    (own_bundle / MANIFEST).write_text(json.dumps({**manifest, "schema_version": 2}))
    before = content(own_bundle)
    status, out, _ = calibrate(capsys, own_bundle, "--data", digits)
    assert status == 0
    assert "measured on 120 images" in out
    assert "calibration error, worst β:" in out
    measured = load_bundle(own_bundle).manifest
    assert (measured.schema_version, measured.strength.n, measured.calibration[0].n) == (3, 120, 60)
    after = content(own_bundle)
    assert {name for name in before | after if before.get(name) != after.get(name)} == {MANIFEST, MODEL_CARD}
    assert f"| 0.5 | {measured.strength.beta_at(0.5):.2f} |" in after[MODEL_CARD].decode()
    others = {"schema_version", "strength", "calibration", "files"}
    assert measured.model_dump(mode="json", exclude=others).items() <= manifest.items()


def test_a_loaded_model_is_not_affected(own_bundle, digits, held_out, capsys):
    with tureen.load(own_bundle, engine="onnxruntime") as soup:
        before = soup.logits(held_out.pixels[:2], [0.0, 1.0])
        assert calibrate(capsys, own_bundle, "--data", digits, "--images", 50)[0] == 0
        np.testing.assert_array_equal(soup.logits(held_out.pixels[:2], [0.0, 1.0]), before)
    assert load_bundle(own_bundle).manifest.strength.n == 50


def test_a_link_to_a_bundle_stays_a_link(own_bundle, digits, tmp_path, capsys):
    (tmp_path / "link").symlink_to(own_bundle)
    assert calibrate(capsys, tmp_path / "link", "--data", digits, "--images", 40)[0] == 0
    assert (tmp_path / "link").is_symlink()
    assert load_bundle(own_bundle).manifest.strength.n == 40


def test_few_images_give_a_curve_and_no_temperatures(own_bundle, digits, capsys):
    status, out, err = calibrate(capsys, own_bundle, "--data", digits, "--images", 30)
    assert status == 0
    assert "30 images are too few to fit temperatures: give 40 or more" in err
    assert "calibration error: not measured" in out
    assert load_bundle(own_bundle).manifest.calibration == []


def test_the_folder_val_fits_and_the_folder_test_measures(own_bundle, digits, tmp_path, capsys):
    for name, parity in (("val", 0), ("test", 1)):
        for file in sorted(digits.rglob("*.png"))[parity::2]:
            target = tmp_path / "parts" / name / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    status, out, _ = calibrate(capsys, own_bundle, "--data", tmp_path / "parts", "--images", 50)
    assert status == 0
    assert "on 50 test images, fitted on 50 validation images" in out
    manifest = load_bundle(own_bundle).manifest
    assert manifest.strength.n == 50
    assert {row.images for row in manifest.calibration} == {"validation and test"}
    _, _, err = calibrate(capsys, own_bundle, "--data", tmp_path / "parts", "--images", 19)
    assert "38 images are too few to fit temperatures: give 20 or more in each folder" in err


def test_what_cannot_be_measured_is_refused_and_nothing_changes(
    own_bundle, single_token_bundle, digits, photos, tmp_path, capsys
):
    before = content(own_bundle)
    for bundle, data, message in (
        (single_token_bundle, photos, "has one token, so it has no strength"),
        (own_bundle, photos, "has classes that the model lacks: cat, cow"),
        (own_bundle, tmp_path / "nowhere", "is not a folder"),
        (tmp_path / "nowhere", digits, "is not a bundle"),
    ):
        status, _, err = calibrate(capsys, bundle, "--data", data)
        assert status != 0
        assert message in err
    (own_bundle / "notes.txt").write_text("mine")
    assert "files that are not in its manifest, such as notes.txt" in calibrate(capsys, own_bundle, "--data", digits)[2]
    assert content(own_bundle) == {**before, "notes.txt": b"mine"}
