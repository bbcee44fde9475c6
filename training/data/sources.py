"""Opens sources of labelled, encoded images: one folder for each class, a CSV file, or a Hugging Face dataset.

Does not decode images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from training.data.tables import TABLE_SUFFIX, read_table
from training.errors import DataError

SplitKind = Literal["train", "val", "test"]
SPLITS: Mapping[str, SplitKind] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "development": "val",
    "eval": "val",
    "evaluation": "val",
    "heldout": "val",
    "holdout": "val",
    "test": "test",
    "testing": "test",
}
PARTS_BESIDE_TRAIN = ("val", "validation", "test")  # named in messages
HIDDEN = (".", "__MACOSX")  # first characters of names to skip; macOS adds a folder __MACOSX to its archives
NAMES_SHOWN = 5
NAMELESS = ("model", "pytorch_model")  # names of weights on Hugging Face, the same for all models
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
HUGGING_FACE = "hf:"


class EncodedImages(Protocol):
    """The interface of n encoded images with labels: the files of a folder, or a split of a Hugging Face dataset."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels of the images, int64 (n,)."""

    def read(self, index: int) -> bytes:
        """Returns the bytes of the encoded image at `index`. Raises OSError if the file cannot be read."""

    def name(self, index: int) -> str:
        """Returns the name of the image at `index`, for messages."""


@dataclass(frozen=True)
class ImageFolder:
    """The n image files below the folder `root`, and their labels. paths: relative to `root`. labels: int64 (n,)."""

    root: Path
    paths: list[str]
    labels: NDArray[np.int64]

    def read(self, index: int) -> bytes:
        return (self.root / self.paths[index]).read_bytes()

    def name(self, index: int) -> str:
        return self.paths[index]

    def file_names(self) -> list[str]:
        """Returns the path of each image relative to `root`, with "/" between folders."""
        return [Path(path).as_posix() for path in self.paths]


@dataclass(frozen=True)
class HuggingFaceSplit:
    """One split of a Hugging Face dataset, with n encoded images.

    split: a `datasets.Dataset`. column: name of the column with the images. labels: int64 (n,).
    """

    split: object
    column: str
    labels: NDArray[np.int64]

    def read(self, index: int) -> bytes:
        record = self.split[index][self.column]  # type: ignore[index]
        data: bytes = record["bytes"] if record["bytes"] is not None else Path(record["path"]).read_bytes()
        return data

    def name(self, index: int) -> str:
        return f"image {index}"

    def file_names(self) -> list[str]:
        """Returns the file name of each image. Raises DataError if the dataset has no file name for an image."""
        import pyarrow.compute

        table = self.split.with_format("arrow")[:]  # type: ignore[attr-defined]
        names: list[str | None] = pyarrow.compute.struct_field(table.column(self.column), "path").to_pylist()
        found = [name for name in names if name]
        if len(found) < len(names):
            raise DataError("this Hugging Face dataset does not have the file names of its images: omit --group-by")
        return found


Split = ImageFolder | HuggingFaceSplit


@dataclass(frozen=True)
class LabelledSource:
    """The splits of the images at a location, and the names of the classes.

    train: all images if the location has no splits. test: None if `train` is the only split. validation: None unless
    there are two splits besides `train`. If there is only one split besides `train`, this split is `test` even if its
    name is val. So every source with a second split has images for the published accuracy.
    """

    train: Split
    validation: Split | None
    test: Split | None
    names: list[str]
    ignored: tuple[str, ...] = ()  # folders beside the splits, which are not read


def open_source(location: str) -> LabelledSource:
    """Returns the labelled images at `location`. location: as for `training.data.datasets.load_dataset`.

    Raises DataError if there are no labelled images, or if it is unclear whether the folders are splits or classes.
    """
    if location.startswith(HUGGING_FACE):
        return _open_hugging_face(location)
    path = Path(location)
    return _open_table(path) if path.suffix.lower() == TABLE_SUFFIX and not path.is_dir() else _open_folder(path)


def model_name(path: Path) -> str:
    """Returns a model name that is valid in a manifest, derived from the name of the file or directory `path`."""
    path = path.resolve()
    stem = path.name if path.is_dir() else path.parent.name if path.stem in NAMELESS else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-")[:64] or "model"


def model_name_from_images(location: str) -> str:
    """Returns a model name derived from the name of the folder or dataset at `location`.

    If the folder has the name of a split, such as train, uses the name of its parent folder.
    """
    path = Path(location.removeprefix(HUGGING_FACE))
    if location.startswith(HUGGING_FACE) and not path.is_dir():
        return model_name(path)
    path = path.resolve()
    return model_name(path.parent if split_kind(path.name) else path)


def split_kind(name: str) -> SplitKind | None:
    """Returns the split that the folder name `name` means, or None. Accepts spellings such as "Training_set"."""
    word = re.sub(r"[\W_]+", "", name).casefold()
    return SPLITS.get(word) or SPLITS.get(re.sub(r"(set|dataset|data|split|images)$", "", word))


def _open_folder(root: Path) -> LabelledSource:
    """Returns the labelled images in a folder, with its splits if it has any.

    A subfolder with the name of a split is a split only if it contains folders. Raises DataError as `open_source` does.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    contents = {name: _contents(root / name) for name in _folder_names(root)}
    kinds = {name: kind for name in contents if (kind := split_kind(name)) is not None}
    splits = {name: kind for name, kind in kinds.items() if contents[name].folders}
    train = _single_split(root, [name for name, kind in splits.items() if kind == "train"])
    validation, test = (
        _single_split(root, [name for name, found in splits.items() if found == kind]) for kind in ("val", "test")
    )
    if train is not None and (validation or test):
        names = _class_names(root / train)
        others = [name for name in (validation, test) if name is not None]
        for name in others:
            if differing := sorted(set(names) ^ set(_class_names(root / name))):
                raise DataError(
                    f"{root}: {train} and {name} do not have the same classes: {', '.join(differing[:NAMES_SHOWN])}"
                )
        return LabelledSource(
            train=_image_folder(root / train, names),
            validation=_image_folder(root / others[0], names) if len(others) > 1 else None,
            test=_image_folder(root / others[-1], names),
            names=names,
            ignored=tuple(name for name in contents if name not in (train, *others)),
        )
    if train is not None:
        raise DataError(
            f"{root} has a folder {train} of classes, but no folder of images to test on "
            f"({', '.join(PARTS_BESIDE_TRAIN)}) beside it: add one, or give {root / train}, which Tureen divides itself"
        )
    if kinds and len(kinds) == len(contents):
        raise DataError(
            f"{root} holds {', '.join(contents)}, which are names of splits: Tureen expects a folder train and a "
            "folder test, each with one folder of images for each class"
        )
    _refuse_unknown_splits(root, contents)
    names = _class_names(root)
    return LabelledSource(_image_folder(root, names), None, None, names)


def _refuse_unknown_splits(root: Path, contents: Mapping[str, _Contents]) -> None:
    """Raises DataError if the folders below `root` look like splits, not like classes.

    The folders look like splits if two or more names of subfolders occur in every one of them, and if at least one of
    the folders contains no images directly.
    """
    common = set.intersection(*(set(content.folders) for content in contents.values())) if len(contents) > 1 else set()
    if len(common) > 1 and not all(content.has_images for content in contents.values()):
        raise DataError(
            f"{root} holds {_joined_names(list(contents))}, and each of them holds {_joined_names(sorted(common))}: "
            "these look like splits, not classes. Name the splits train, val and test, or give the folder of one of "
            "them; if they are classes, put their images directly into them"
        )


def _open_table(file: Path) -> LabelledSource:
    rows = read_table(file)
    names = sorted({row.label for row in rows})
    index_of = {name: index for index, name in enumerate(names)}
    labels = np.array([index_of[row.label] for row in rows], dtype=np.int64)
    return LabelledSource(ImageFolder(file.parent, [row.path for row in rows], labels), None, None, names)


@dataclass(frozen=True)
class _Contents:
    """The content of a folder: the names of its subfolders, and whether it contains image files directly."""

    folders: list[str]
    has_images: bool


def _contents(folder: Path) -> _Contents:
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(HIDDEN)]
    return _Contents(
        folders=sorted(name for name, is_folder in found if is_folder),
        has_images=any(_is_image(Path(name)) for name, is_folder in found if not is_folder),
    )


def _single_split(root: Path, names: Sequence[str]) -> str | None:
    if len(names) > 1:
        raise DataError(f"{root} holds {' and '.join(names)}, which are the same split: keep only one of them")
    return names[0] if names else None


def _joined_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _folder_names(root: Path) -> list[str]:
    return _contents(root).folders


def _class_names(root: Path) -> list[str]:
    names = _folder_names(root)
    if not names:
        raise DataError(f"{root} has no folders: Tureen expects one folder of images for each class")
    return names


def _image_folder(root: Path, names: Sequence[str]) -> ImageFolder:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = sorted(
            str(file.relative_to(root)) for file in (root / name).rglob("*") if _is_image(file.relative_to(root))
        )
        if not found:
            raise DataError(f"{root / name} has no images ({', '.join(SUFFIXES)})")
        paths += found
        labels += [label] * len(found)
    return ImageFolder(root, paths, np.array(labels, dtype=np.int64))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _open_hugging_face(location: str) -> LabelledSource:
    import datasets

    name = location.removeprefix(HUGGING_FACE)
    try:
        found = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{name} cannot be loaded as a Hugging Face dataset") from error
    splits = found if isinstance(found, dict) else {"train": found}
    named = {kind: key for key in reversed(splits) if (kind := split_kind(str(key))) is not None}
    if "train" not in named:
        raise DataError(f"{name} has no split train, only {', '.join(map(str, splits))}")
    train = splits[named["train"]]
    features = train.features
    image = next((key for key, feature in features.items() if isinstance(feature, datasets.Image)), None)
    label = next((key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)), None)
    if image is None or label is None:
        raise DataError(f"{name} needs a column of images and one of class labels, but has {', '.join(features)}")

    def encoded(split: datasets.Dataset) -> HuggingFaceSplit:
        labels = np.array(split[label], dtype=np.int64)
        if labels.min(initial=0) < 0:
            raise DataError(f"{name} has images without a label")
        return HuggingFaceSplit(split.cast_column(image, datasets.Image(decode=False)), image, labels)

    others = [encoded(splits[named[kind]]) for kind in ("val", "test") if kind in named]
    return LabelledSource(
        train=encoded(train),
        validation=others[0] if len(others) > 1 else None,
        test=others[-1] if others else None,
        names=list(features[label].names),
    )
