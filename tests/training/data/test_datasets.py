"""Loading a folder of images: the dataset, or the error for a wrong folder."""

import shutil

import numpy as np
import pytest
from PIL import Image

from training.data.datasets import (
    Images,
    StreamedImages,
    balanced_sample,
    load_dataset,
    load_digits,
    load_evaluation_images,
)
from training.data.duplicates import Duplicates
from training.errors import DataError
from training.preparation import class_counts
from tureen.preprocess import PreprocessSpec, pixels_from_bytes

SPEC = PreprocessSpec(image_size=8)


def stray(folder):
    """Write an image beside the folders of classes."""
    Image.new("RGB", (8, 8)).save(folder / "stray.png")


def fill(folder, classes=("cat", "dog"), each=10, size=(12, 10)):
    """Write PNG files of random pixels, one folder for each class."""
    rng = np.random.default_rng(len(str(folder)))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name / f"{i:03}.png")
    return folder


def test_the_digits_are_split_once_and_stratified():
    data, again = load_digits(), load_digits()
    assert (len(data.train), len(data.validation), len(data.test)) == (1212, 135, 450)
    assert data.train.pixels.dtype == np.uint8
    assert data.train.pixels.shape[1:] == (8, 8, 3)
    assert data.train.pixels.max() == 255
    np.testing.assert_array_equal(data.test.labels, again.test.labels)
    assert min(np.bincount(data.test.labels)) >= 43
    assert min(np.bincount(data.validation.labels)) >= 13
    everything = np.concatenate([part.pixels for part in (data.train, data.validation, data.test)])
    assert len(everything) == 1797
    assert len(np.unique(everything, axis=0)) == 1797


def test_a_folder_of_classes_is_split_evenly_and_always_alike(tmp_path):
    fill(tmp_path, ("dog", "cat", "a bird"), each=20)
    data, again = (load_dataset(str(tmp_path), SPEC, test_images=100) for _ in range(2))
    assert data.labels == ["a bird", "cat", "dog"]
    assert np.bincount(data.train.labels).tolist() == [16, 16, 16]
    assert np.bincount(data.validation.labels).tolist() == [2, 2, 2]
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]
    np.testing.assert_array_equal(data.test.pixels, again.test.pixels)
    assert data.fingerprint() == again.fingerprint()


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "val"),
        ("train", "validation"),
        ("train", "test"),
        ("Train", "Val"),
        ("TRAIN", "TEST"),
        ("training", "valid"),
        ("training_set", "test_set"),
        ("trainset", "validation-set"),
        ("Training Data", "dev"),
        ("train_images", "eval"),
    ],
)
def test_the_split_beside_the_training_images_is_the_test_part_and_validation_is_drawn(tmp_path, train, test):
    fill(tmp_path / train, each=20)
    fill(tmp_path / test, each=3)
    data = load_dataset(str(tmp_path), SPEC, test_images=100)
    assert data.labels == ["cat", "dog"]
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 6)
    assert np.bincount(data.validation.labels).tolist() == [2, 2]


def test_three_splits_are_used_unchanged_and_other_folders_named(tmp_path):
    fill(tmp_path / "train", each=6)
    fill(tmp_path / "valid", each=3)
    fill(tmp_path / "test", each=2)
    fill(tmp_path / "extra", each=2)
    data = load_dataset(str(tmp_path), SPEC, test_images=100)
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 6, 4)
    assert data.ignored == ("extra",)
    assert "none of the splits: extra" in class_counts(data)


@pytest.mark.parametrize("classes", [("cat", "dog", "test"), ("bus", "plane", "train"), ("Train", "tram", "val")])
def test_a_class_may_be_called_as_a_split_beside_others(tmp_path, classes):
    fill(tmp_path, classes, each=3)
    assert load_dataset(str(tmp_path), SPEC, test_images=100).labels == list(classes)


@pytest.mark.parametrize("subfolders", [("images",), ("2021", "2022")])
def test_classes_may_have_subfolders(tmp_path, subfolders):
    """Tiny ImageNet has one common subfolder in each class; two are allowed if there are images beside them."""
    for name in ("cat", "dog"):
        fill(tmp_path / name, subfolders, each=3)
        if len(subfolders) > 1:
            Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / name / "own.png")
    assert load_dataset(str(tmp_path), SPEC, test_images=100).labels == ["cat", "dog"]


def test_files_that_macos_adds_to_an_archive_are_no_class(tmp_path):
    fill(tmp_path, ("cat", "dog", "__MACOSX"), each=3)
    assert load_dataset(str(tmp_path), SPEC, test_images=100).labels == ["cat", "dog"]


def test_of_many_classes_the_first_are_counted_one_by_one(tmp_path):
    fill(tmp_path, [f"{index:02}" for index in range(24)], each=3)
    lines = class_counts(load_dataset(str(tmp_path), SPEC, test_images=100)).splitlines()
    assert lines[0] == "24 classes: 24 images to train on, 24 for validation, 24 to test on"
    assert lines[1].split() == ["00", "1", "1", "1"]
    assert len(lines) == 22
    assert lines[-1] == "  and 4 classes more, of 1 to 1 images to train on"


def test_the_pixels_equal_those_of_the_server(tmp_path):
    for name in ("train", "val", "test"):
        fill(tmp_path / name, each=2)
    data = load_dataset(str(tmp_path), SPEC, test_images=100)
    expected = pixels_from_bytes((tmp_path / "train" / "cat" / "001.png").read_bytes(), SPEC)
    np.testing.assert_array_equal(data.train.pixels[1], expected)


def test_test_images_are_drawn_evenly_if_there_are_more_and_do_not_change_the_training(tmp_path):
    fill(tmp_path / "train", each=5)
    fill(tmp_path / "val", each=10)
    data = load_dataset(str(tmp_path), SPEC, test_images=6)
    assert np.bincount(data.test.labels).tolist() == [3, 3]
    assert data.fingerprint() == load_dataset(str(tmp_path), SPEC, test_images=100).fingerprint()
    with pytest.raises(DataError, match="less than one for each of the 2 classes"):
        load_dataset(str(tmp_path), SPEC, test_images=1)


@pytest.mark.parametrize("count", range(2, 12))
def test_any_number_of_images_can_be_drawn_and_classes_share_it(count):
    """The single image of a class is always drawn, for any number of images."""
    images = Images(np.zeros((12, 8, 8, 3), dtype=np.uint8), np.array([0] * 11 + [1]))
    drawn = balanced_sample(images, count)
    assert len(drawn) == count
    assert (drawn.labels == 1).sum() == 1


def test_hidden_folders_are_not_images(tmp_path):
    fill(tmp_path / "train", each=4)
    fill(tmp_path / "val", each=2)
    fill(tmp_path / "train" / "cat" / ".ipynb_checkpoints", ("copy",), each=2)
    assert len(load_dataset(str(tmp_path), SPEC, test_images=100).train) == 6


def test_a_stream_decodes_the_same_images_later(tmp_path):
    fill(tmp_path / "train", each=4)
    fill(tmp_path / "val", each=2)
    stream = load_dataset(str(tmp_path), SPEC, test_images=100, stream=True).train
    memory = load_dataset(str(tmp_path), SPEC, test_images=100).train
    assert isinstance(stream, StreamedImages)
    assert isinstance(memory, Images)
    np.testing.assert_array_equal(stream.labels, memory.labels)
    assert stream.image(4).size == (10, 12)


@pytest.mark.parametrize("stream", [True, False])
def test_the_fingerprint_covers_the_pixels_of_training_images_only(tmp_path, stream):
    for name in ("train", "val", "test"):
        fill(tmp_path / name, each=2)

    def fingerprint():
        return load_dataset(str(tmp_path), SPEC, test_images=100, stream=stream).fingerprint()

    before = fingerprint()
    Image.new("RGB", (10, 12)).save(tmp_path / "test" / "cat" / "000.png")
    assert fingerprint() == before
    Image.new("RGB", (10, 12)).save(tmp_path / "train" / "cat" / "000.png")
    assert fingerprint() != before


@pytest.mark.parametrize("stream", [True, False])
def test_near_duplicates_of_training_images_are_counted_with_their_names(tmp_path, stream):
    for name in ("train", "val", "test"):
        fill(tmp_path / name, each=4)
    shutil.copy(tmp_path / "train" / "cat" / "002.png", tmp_path / "test" / "dog" / "003.png")
    with Image.open(tmp_path / "train" / "dog" / "001.png") as image:
        image.save(tmp_path / "val" / "cat" / "000.png")
        image.point(lambda level: 0.9 * level).save(tmp_path / "test" / "cat" / "000.png")
    (tmp_path / "train" / "cat" / "000.png").write_bytes(b"damaged")
    data = load_dataset(str(tmp_path), SPEC, test_images=100, stream=stream)
    assert data.duplicates == {
        "test": Duplicates(8, 2, 1, (("dog/003.png", "cat/002.png"), ("cat/000.png", "dog/001.png"))),
        "validation": Duplicates(8, 1, 1, (("cat/000.png", "dog/001.png"),)),
    }
    assert load_dataset(str(tmp_path), SPEC, test_images=100, has_duplicates_counted=False).duplicates == {}


@pytest.mark.parametrize("stream", [True, False])
def test_an_image_that_cannot_be_decoded_is_left_out_and_named(tmp_path, stream):
    for name, each in (("train", 5), ("val", 2), ("test", 2)):
        fill(tmp_path / name, each=each)
    (tmp_path / "train" / "cat" / "002.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (tmp_path / "test" / "dog" / "001.png").write_bytes(b"")
    counted, totals = [], []
    options = {"stream": stream, "on_start": totals.append, "on_images": counted.append}
    data = load_dataset(str(tmp_path), SPEC, test_images=100, **options)
    assert (sum(counted), totals) == (18, [18])
    assert (len(data.train), len(data.validation), len(data.test)) == (9, 4, 3)
    assert data.train.labels.tolist() == [0] * 4 + [1] * 5
    assert [line.split(":")[0] for line in data.skipped] == ["dog/001.png", "cat/002.png"]
    with pytest.raises(DataError, match=r"2 images cannot be decoded, the first is dog/001\.png"):
        load_dataset(str(tmp_path), SPEC, test_images=100, stream=stream, strict=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "is not a folder"),
        (lambda root: root.mkdir(), "has no folders"),
        (lambda root: fill(root, ("cat",)), "has one class, 'cat'"),
        (lambda root: (root / "cat").mkdir(parents=True), "has no images"),
        (lambda root: fill(root, each=2), "too few images of 'cat', 2: training, validation and test need one each"),
        (
            lambda root: (fill(root / "train", each=1), fill(root / "test")),
            "too few images of 'cat', 1: training and validation need one each",
        ),
        (
            lambda root: fill(root / "train"),
            r"folder train of classes, but no folder of images to test on \(val, validation, test\)",
        ),
        (lambda root: fill(root, ("train", "val")), "holds train, val, which are names of splits"),
        (lambda root: (fill(root / "val"), fill(root / "Test")), "holds Test, val, which are names of splits"),
        (
            lambda root: (fill(root / "Train"), fill(root / "training_set"), fill(root / "val")),
            "Train and training_set, which are the same split",
        ),
        (
            lambda root: (fill(root / "learn"), fill(root / "check", ("cat", "dog", "owl"))),
            "holds check, learn, and each of them holds cat, dog: these look like splits",
        ),
        (lambda root: (fill(root / "learn"), fill(root / "val")), "these look like splits"),
        (lambda root: (fill(root / "learn"), fill(root / "check"), stray(root / "check")), "these look like splits"),
        (lambda root: (fill(root / "train"), fill(root / "val", ("cat", "cow"))), "same classes: cow, dog"),
    ],
)
def test_unusable_training_data_is_reported(tmp_path, make, message):
    root = tmp_path / "images"
    make(root)
    with pytest.raises(DataError, match=message):
        load_dataset(str(root), SPEC, test_images=100)


def test_a_folder_in_which_nothing_can_be_decoded_is_refused(tmp_path):
    fill(tmp_path / "train", each=1)
    fill(tmp_path / "val", each=1)
    fill(tmp_path / "test", each=1)
    for file in (tmp_path / "train").rglob("*.png"):
        file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="no image to train on that can be decoded"):
        load_dataset(str(tmp_path), SPEC, test_images=100)


def test_images_to_measure_on_get_the_labels_of_the_model(tmp_path):
    fill(tmp_path / "shifted", ("dog", "cat"), each=6)
    (tmp_path / "shifted" / "dog" / "000.png").write_bytes(b"nothing")
    model_labels = ["dog", "bird", "cat"]
    images, skipped = load_evaluation_images(str(tmp_path / "shifted"), SPEC, model_labels, at_most=100)
    assert images.labels.tolist() == [2] * 6 + [0] * 5
    assert len(skipped) == 1
    few, _ = load_evaluation_images(str(tmp_path / "shifted"), SPEC, model_labels, at_most=4)
    assert sorted(few.labels.tolist()) in ([0, 0, 2, 2], [0, 2, 2])  # one of them may be the damaged one
    with pytest.raises(DataError, match="classes that the model lacks: dog"):
        load_evaluation_images(str(tmp_path / "shifted"), SPEC, ["cat", "bird"], at_most=100)
    with pytest.raises(DataError, match="less than one for each of the 2 classes"):
        load_evaluation_images(str(tmp_path / "shifted"), SPEC, model_labels, at_most=1)
    with pytest.raises(DataError, match="1 images cannot be decoded"):
        load_evaluation_images(str(tmp_path / "shifted"), SPEC, model_labels, at_most=100, strict=True)


def test_the_test_part_of_an_existing_split_is_measured(tmp_path):
    fill(tmp_path / "train", each=5)
    fill(tmp_path / "val", each=3)
    fill(tmp_path / "test", each=2)
    images, _ = load_evaluation_images(str(tmp_path), SPEC, ["cat", "dog"], at_most=100)
    assert len(images) == 4


def test_a_hugging_face_dataset_is_read_from_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    fill(tmp_path / "images", each=6)
    files = sorted((tmp_path / "images").rglob("*.png"))
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {
        "picture": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "kind": [int(file.parent.name == "dog") for file in files],
    }
    split = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"Training": split, "dev": split, "test": split}).save_to_disk(str(tmp_path / "saved"))
    data = load_dataset(f"hf:{tmp_path / 'saved'}", SPEC, test_images=100)
    assert data.labels == ["cat", "dog"]
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 12, 12)
    np.testing.assert_array_equal(data.train.pixels[0], pixels_from_bytes(files[0].read_bytes(), SPEC))
    with pytest.raises(DataError, match="does not have the file names of its images: omit --group-by"):
        load_dataset(f"hf:{tmp_path / 'saved'}", SPEC, test_images=100, group_by=".")
    rows["picture"] = [{"bytes": file.read_bytes(), "path": f"{i // 2}-{i}.png"} for i, file in enumerate(files)]
    named = datasets.Dataset.from_dict(rows, features=features)
    named.save_to_disk(str(tmp_path / "named"))
    assert load_dataset(f"hf:{tmp_path / 'named'}", SPEC, test_images=100, group_by=r"^\d+").groups == 6
    split.remove_columns("kind").save_to_disk(str(tmp_path / "unlabelled"))
    with pytest.raises(DataError, match="one of class labels, but has picture"):
        load_dataset(f"hf:{tmp_path / 'unlabelled'}", SPEC, test_images=100)
