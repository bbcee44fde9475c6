"""Where labelled, encoded images come from: a folder with a folder for each class, or a Hugging Face dataset.

Knows nothing about pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError

HELD_OUT_FOLDERS = ("val", "validation", "test")
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
HUGGING_FACE = "hf:"


class Encoded(Protocol):
    """Where encoded images come from: a folder, or a Hugging Face dataset."""

    @property
    def labels(self) -> NDArray[np.int64]: ...

    def read(self, index: int) -> bytes: ...

    def name(self, index: int) -> str: ...


@dataclass(frozen=True)
class Files:
    """Image files under one folder and their labels."""

    root: Path
    paths: list[str]
    labels: NDArray[np.int64]

    def read(self, index: int) -> bytes:
        return (self.root / self.paths[index]).read_bytes()

    def name(self, index: int) -> str:
        return self.paths[index]


@dataclass(frozen=True)
class HuggingFaceSplit:
    """One split of a Hugging Face dataset, its images left encoded."""

    split: object
    column: str
    labels: NDArray[np.int64]

    def read(self, index: int) -> bytes:
        record = self.split[index][self.column]  # type: ignore[index]
        data: bytes = record["bytes"] if record["bytes"] is not None else Path(record["path"]).read_bytes()
        return data

    def name(self, index: int) -> str:
        return f"image {index}"


Split = Files | HuggingFaceSplit


def open_source(location: str) -> tuple[Split, Split | None, list[str]]:
    """The images to train on, those held out where `location` says which, and the names of the classes.

    location: as for `training.data.load_images`. Raises DataError where it holds no labelled images.
    """
    return _hugging_face(location) if location.startswith(HUGGING_FACE) else _folder(Path(location))


def _folder(root: Path) -> tuple[Files, Files | None, list[str]]:
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    if not (root / "train").is_dir():
        names = _class_names(root)
        return _files(root, names), None, names
    for name in HELD_OUT_FOLDERS:
        if (root / name).is_dir():
            names = _class_names(root / "train")
            if (others := _class_names(root / name)) != names:
                differing = sorted(set(names) ^ set(others))
                raise DataError(f"{root}: train and {name} do not have the same classes: {', '.join(differing[:5])}")
            return _files(root / "train", names), _files(root / name, names), names
    raise DataError(f"{root} has a folder train, but none of {', '.join(HELD_OUT_FOLDERS)} beside it")


def _class_names(root: Path) -> list[str]:
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{root} has no folders: Tureen expects one for each class, with that class's images in it")
    return names


def _files(root: Path, names: Sequence[str]) -> Files:
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
    return Files(root, paths, np.array(labels, dtype=np.int64))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _hugging_face(location: str) -> tuple[HuggingFaceSplit, HuggingFaceSplit | None, list[str]]:
    import datasets

    name = location.removeprefix(HUGGING_FACE)
    try:
        found = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{name} cannot be loaded as a Hugging Face dataset") from error
    splits = found if isinstance(found, dict) else {"train": found}
    if "train" not in splits:
        raise DataError(f"{name} has no split train, only {', '.join(splits)}")
    features = splits["train"].features
    image = next((key for key, feature in features.items() if isinstance(feature, datasets.Image)), None)
    label = next((key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)), None)
    if image is None or label is None:
        raise DataError(f"{name} needs a column of images and one of class labels, but has {', '.join(features)}")

    def encoded(split: datasets.Dataset) -> HuggingFaceSplit:
        labels = np.array(split[label], dtype=np.int64)
        if labels.min(initial=0) < 0:
            raise DataError(f"{name} has images without a label")
        return HuggingFaceSplit(split.cast_column(image, datasets.Image(decode=False)), image, labels)

    test = next((splits[key] for key in HELD_OUT_FOLDERS if key in splits), None)
    return encoded(splits["train"]), None if test is None else encoded(test), list(features[label].names)
