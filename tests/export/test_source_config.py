"""Labels and preprocessing from the files beside third-party weights."""

import json

import pytest

from export.errors import ExportError
from export.source_config import evaluation_view, labels_from_config, read_labels, unique_labels

ANIMALS = ["cat", "cow", "dog", "hen", "owl"]


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["Unix", "Windows"])
def test_a_byte_order_mark_is_no_part_of_the_first_label(tmp_path, end):
    (tmp_path / "labels.txt").write_bytes(f"\ufeffcat{end}döner{end}".encode())
    assert read_labels(tmp_path / "labels.txt") == ["cat", "döner"]


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({"id2label": {str(i): name for i, name in enumerate(ANIMALS)}}, ANIMALS),
        ({"id2label": {str(i): f"LABEL_{i}" for i in range(5)}}, None),
        ({"label_names": ANIMALS}, ANIMALS),
        ({}, None),
    ],
    ids=["transformers", "placeholders", "timm", "none"],
)
def test_labels_come_from_the_configuration(tmp_path, config, labels):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert labels_from_config(tmp_path) == labels


def test_a_configuration_that_skips_an_output_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "cat", "2": "dog"}}))
    with pytest.raises(ExportError, match="id2label has no label of output 1: name all outputs with --labels"):
        labels_from_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("cat\n\ndog\n", "has an empty line, number 2"), ("cat\ndog\ncat\n", "has the label 'cat' in lines 1 and 3")],
)
def test_a_list_of_labels_that_is_not_one_label_a_line_is_an_error(tmp_path, text, message):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(ExportError, match=message):
        read_labels(tmp_path / "labels.txt")
    with pytest.raises(ExportError, match="does not exist"):
        read_labels(tmp_path / "none.txt")


def test_repeated_labels_get_the_number_of_their_output():
    assert unique_labels(["cat", "dog"]) == (["cat", "dog"], None)
    labels, note = unique_labels(["crane", "cow", "crane"])
    assert labels == ["crane (0)", "cow", "crane (2)"]
    assert note == "outputs with the same label have their number added: crane"


@pytest.mark.parametrize(
    ("library", "file", "content", "fraction", "notes"),
    [
        ("timm", "config.json", {"pretrained_cfg": {"crop_pct": 0.8}}, 0.8, []),
        ("timm", "config.json", {"crop_pct": 0.8, "crop_mode": "squash"}, 0.8, ["crop_mode 'squash'"]),
        ("timm", "config.json", {}, 0.9, ["the middle 90 % of an image, as timm by default"]),
        ("torchvision", "config.json", {}, 224 / 256, ["the middle 87.5 % of an image, as torchvision by default"]),
        (
            "transformers",
            "preprocessor_config.json",
            {"do_center_crop": True, "crop_size": {"height": 24, "width": 24}, "size": {"shortest_edge": 30}},
            0.8,
            [],
        ),
        (
            "transformers",
            "preprocessor_config.json",
            {"resample": 2},
            1.0,
            ["another filter than bicubic", "stretches an image to a square"],
        ),
    ],
)
def test_preprocessing_is_that_of_the_files_or_of_the_library(tmp_path, library, file, content, fraction, notes):
    (tmp_path / file).write_text(json.dumps(content))
    view = evaluation_view(library, tmp_path, image_size=24, crop_fraction=None)
    assert (view.preprocess.image_size, view.preprocess.crop_fraction) == (24, fraction)
    assert len(view.notes) == len(notes)
    assert all(expected in note for note, expected in zip(view.notes, notes, strict=True))
    given = evaluation_view(library, tmp_path, image_size=24, crop_fraction=0.5)
    assert given.preprocess.crop_fraction == 0.5


def test_preprocessing_that_no_file_format_has_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"crop_pct": 7}}))
    with pytest.raises(ExportError, match="cannot be prepared: crop_fraction"):
        evaluation_view("timm", tmp_path, image_size=24, crop_fraction=None)
