"""The gallery of a bundle, from what `tureen gallery` wrote."""

import base64
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from export.errors import ExportError
from export.gallery import read_gallery
from training.checkpoint import MODEL
from tureen.bundle.bundle import load_bundle
from tureen.cli import main


@pytest.fixture(scope="module")
def made(signs_run, tmp_path_factory):
    """The directory that `tureen gallery` wrote for the small model of the drawn signs."""
    out = tmp_path_factory.mktemp("made") / "gallery"
    assert main(["gallery", str(signs_run), "--out", str(out), "--steps", "3", "--drawings", "2"]) == 0
    return out


@pytest.fixture
def changed(made, tmp_path):
    return shutil.copytree(made, tmp_path / "gallery")


def test_the_record_has_the_counts_and_the_pictures_of_the_directory(made, signs_run):
    record, gallery = json.loads((made / "gallery.json").read_text()), read_gallery(made, signs_run)
    for count in (
        *("signs", "drawings_tried", "clean_attacks", "clean_attacks_failed"),
        *("both_attacks_failed", "clean_wrong_robust_right"),
    ):
        assert getattr(gallery, count) == record["counts"][count]
    for setting in ("attack", "epsilon_255", "difference_factor"):
        assert getattr(gallery, setting) == record[setting]
    pairs = {pair["sign"]: pair for pair in record["pairs"]}
    assert sorted(picture.title for picture in gallery.pictures) == sorted(pairs)
    for picture in gallery.pictures:
        pair = pairs[picture.title]
        assert picture.label == pair["label"]
        assert base64.b64decode(picture.drawn) == (made / pair["view"]).read_bytes()
        assert base64.b64decode(picture.clean) == (made / pair["clean"]["picture"]).read_bytes()
        assert base64.b64decode(picture.both) == (made / pair["both"]["picture"]).read_bytes()


def test_the_drawing_with_the_largest_contrast_is_the_first_picture(changed, signs_run):
    pairs = json.loads((changed / "gallery.json").read_text())["pairs"]
    for number, pair in enumerate(pairs):
        pixels = np.full((32, 32, 3), 100, np.uint8)
        pixels[:, :16] += 10 * (number % 5) + number
        Image.fromarray(pixels).save(changed / pair["view"])
    contrasts = {pair["sign"]: 10 * (number % 5) + number for number, pair in enumerate(pairs)}
    titles = [picture.title for picture in read_gallery(changed, signs_run).pictures]
    assert titles == sorted(contrasts, key=contrasts.__getitem__, reverse=True)


def test_the_exported_bundle_has_the_gallery(made, signs_run, tmp_path):
    out = tmp_path / "bundle"
    command = ["export", str(signs_run), "--out", str(out), "--gallery", str(made), "--images", "20"]
    assert main([*command, "--engine", "onnxruntime", "--precision", "fp32"]) == 0
    assert load_bundle(out).gallery == read_gallery(made, signs_run)


def test_a_gallery_of_another_model_is_refused(made, signs_run, tmp_path):
    (tmp_path / MODEL).write_bytes((signs_run / MODEL).read_bytes() + b" ")
    with pytest.raises(ExportError, match="another model"):
        read_gallery(made, tmp_path)


def test_a_directory_without_a_gallery_is_refused_with_the_command_that_makes_one(signs_run, tmp_path):
    with pytest.raises(ExportError, match=f"tureen gallery {signs_run} --out {tmp_path}"):
        read_gallery(tmp_path, signs_run)


@pytest.mark.parametrize("text", ["{}", "no JSON"])
def test_another_file_is_refused(changed, signs_run, text):
    (changed / "gallery.json").write_text(text)
    with pytest.raises(ExportError, match="not the record of a gallery"):
        read_gallery(changed, signs_run)


def test_a_missing_and_a_damaged_picture_are_refused(changed, signs_run):
    picture = changed / json.loads((changed / "gallery.json").read_text())["pairs"][0]["view"]
    picture.write_bytes(b"no PNG")
    with pytest.raises(ExportError, match="no PNG file"):
        read_gallery(changed, signs_run)
    picture.unlink()
    with pytest.raises(ExportError, match=picture.name):
        read_gallery(changed, signs_run)


def test_a_gallery_without_a_picture_is_refused(changed, signs_run):
    record = json.loads((changed / "gallery.json").read_text())
    (changed / "gallery.json").write_text(json.dumps({**record, "pairs": []}))
    with pytest.raises(ExportError, match="no picture"):
        read_gallery(changed, signs_run)
