"""The gallery of a bundle: its limits, and how a bundle with one is loaded."""

import base64
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tureen.bundle.bundle import load_bundle, record_files, write_bundle
from tureen.bundle.examples import EXAMPLES
from tureen.bundle.gallery import GALLERY, MAX_PICTURES, MAX_PNG_CHARACTERS, BundleGallery, parse_gallery
from tureen.errors import BundleError

FILE = Path("somewhere") / GALLERY


def png(shade: int) -> str:
    written = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), shade, np.uint8)).save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


def content(**changes):
    picture = {"title": "a ship", "label": "ship", "drawn": png(1), "clean": png(2), "both": png(3)}
    return {
        "attack": "APGD",
        "epsilon_255": 4,
        "difference_factor": 31,
        "signs": 2,
        "drawings_tried": 3,
        "clean_attacks": 2,
        "clean_attacks_failed": 0,
        "both_attacks_failed": 1,
        "clean_wrong_robust_right": 1,
        "pictures": [{**picture, **changes.pop("picture", {})}],
        **changes,
    }


def parse(record):
    return parse_gallery(FILE, json.dumps(record).encode(), ["ship", "truck"])


def test_the_record_is_read_as_it_was_written():
    gallery = parse(content())
    assert (gallery.pictures[0].label, gallery.pictures[0].drawn) == ("ship", png(1))
    assert parse(json.loads(gallery.model_dump_json())) == gallery


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (content(picture={"label": "frog"}), "label 'frog', which the bundle does not have"),
        (content(picture={"clean": base64.b64encode(b"<svg onload=alert(1)>").decode()}), "pictures.0.clean"),
        (content(picture={"clean": png(1) + '"><script>'}), "pictures.0.clean"),
        (content(picture={"both": png(1)[:-4] + "A" * MAX_PNG_CHARACTERS}), "pictures.0.both"),
        (content(picture={"title": "../ship"}), "pictures.0.title"),
        (content(pictures=[]), "pictures"),
        (content(pictures=content()["pictures"] * (MAX_PICTURES + 1)), "pictures"),
        (content(epsilon_255=0), "epsilon_255"),
        (content(signs=0), "signs"),
        (content(signs="2"), "signs"),
        (content(signs=True), "signs"),
        (content(difference_factor=0), "difference_factor"),
        (content(more=1), "more"),
        (content(schema_version=2), "schema_version"),
    ],
)
def test_another_record_is_refused_with_the_file_and_the_field(record, words):
    with pytest.raises(BundleError) as caught:
        parse(record)
    assert str(FILE) in str(caught.value)
    assert words in str(caught.value)


def bundle_with(path, gallery):
    """Writes the example with a gallery."""
    example = load_bundle(EXAMPLES / "cifar10")
    files = {name: (example.path / name).read_bytes() for name in example.manifest.files}
    files[GALLERY] = gallery
    write_bundle(path, example.manifest.model_copy(update={"files": record_files(files)}), files)
    return path


def test_a_bundle_is_loaded_with_its_gallery(tmp_path):
    assert load_bundle(EXAMPLES / "cifar10").gallery is None
    path = bundle_with(tmp_path / "bundle", json.dumps(content()).encode())
    assert load_bundle(path).gallery == BundleGallery.model_validate(content())


def test_a_bundle_with_a_gallery_of_other_labels_is_refused(tmp_path):
    path = bundle_with(tmp_path / "bundle", json.dumps(content(picture={"label": "14-stop"})).encode())
    with pytest.raises(BundleError, match="14-stop"):
        load_bundle(path)


def test_a_changed_gallery_is_refused(tmp_path):
    path = bundle_with(tmp_path / "bundle", json.dumps(content()).encode())
    before = hashlib.sha256((path / GALLERY).read_bytes()).digest()
    (path / GALLERY).write_text(json.dumps(content(clean_attacks_failed=2)))
    assert hashlib.sha256((path / GALLERY).read_bytes()).digest() != before
    with pytest.raises(BundleError, match=GALLERY):
        load_bundle(path)
