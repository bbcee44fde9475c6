"""The images and classes of a folder, and the model names made from locations."""

import pytest

from training.data.sources import model_name, model_name_from_images, open_source, split_kind
from training.errors import DataError
from tureen.bundle.manifest import NAME_PATTERN


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("my photos", "my-photos"),
        ("photos/train", "photos"),
        ("photos/Train/", "photos"),
        ("hf:uoft-cs/cifar10", "cifar10"),
    ],
)
def test_a_model_is_called_as_its_images(tmp_path, monkeypatch, location, name):
    monkeypatch.chdir(tmp_path)
    assert model_name_from_images(location) == name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("vit.safetensors", "vit"),
        ("my ViT, süß.pth", "my-ViT-s"),
        ("google/vit/model.safetensors", "vit"),
        ("google/vit/pytorch_model.bin", "vit"),
        (f"{'x' * 80}.pt", "x" * 64),
        ("…/….pt", "model"),
    ],
)
def test_a_name_is_converted_to_a_valid_one(tmp_path, path, name):
    import re

    assert model_name(tmp_path / path) == name
    assert re.match(NAME_PATTERN, name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("train", "train"),
        ("Training Data", "train"),
        ("trainset", "train"),
        ("valid", "val"),
        ("validation-set", "val"),
        ("hold_out", "val"),
        ("test_images", "test"),
        ("tram", None),
        ("trains", None),
    ],
)
def test_a_folder_name_denotes_a_split_in_any_common_spelling(name, kind):
    assert split_kind(name) == kind


def make_images(root, *names):
    """Write files at these paths below the folder; the content of each is its path."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_the_files_of_a_class_are_found_in_order_and_others_are_not_read(tmp_path):
    make_images(tmp_path, "dog/b.PNG", "dog/a.jpg", "cat/x/1.webp", "cat/.hidden.png", "cat/notes.txt", ".git/a/1.png")
    source = open_source(str(tmp_path))
    assert source.names == ["cat", "dog"]
    assert [source.train.name(index) for index in range(3)] == ["cat/x/1.webp", "dog/a.jpg", "dog/b.PNG"]
    assert source.train.labels.tolist() == [0, 1, 1]
    assert source.train.read(1) == b"dog/a.jpg"
    assert source.validation is None
    assert source.test is None


def test_a_split_is_read_from_its_folders_and_other_folders_are_ignored(tmp_path):
    make_images(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "val/dog/2.png", "raw/x/3.png")
    source = open_source(str(tmp_path))
    assert [source.train.name(0), source.test.name(0)] == ["cat/1.png", "cat/2.png"]  # val alone is the test part
    assert source.validation is None
    assert source.ignored == ("raw",)
    make_images(tmp_path, "test/cat/4.png", "test/dog/4.png")
    source = open_source(str(tmp_path))
    assert [source.validation.name(0), source.test.name(0)] == ["cat/2.png", "cat/4.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/cat/1.png", "train/dog/1.png"], "but no folder of images to test on"),
        (["train/cat/1.png", "Train/cat/1.png", "val/cat/1.png"], "which are the same split: keep only one"),
        (["train/cat/1.png", "val/dog/1.png"], "do not have the same classes: cat, dog"),
        (["first/cat/1.png", "first/dog/1.png", "second/cat/1.png", "second/dog/1.png"], "look like splits"),
        (["cat/1.png", "dog/notes.txt"], "dog has no images"),
        (["1.png"], "has no folders: Tureen expects one folder of images for each class"),
    ],
)
def test_folders_that_are_neither_splits_nor_classes_are_an_error(tmp_path, files, message):
    make_images(tmp_path, *files)
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path))
