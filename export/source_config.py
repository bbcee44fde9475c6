"""What the files beside others' weights say of labels and of how an image becomes pixels.

Reads JSON as timm and transformers write it, and lists of labels; knows nothing about weights or bundles.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from export.errors import ExportError
from training.pretrained import CONFIG, PREPROCESSOR
from tureen.preprocess import PreprocessSpec

BICUBIC = 3  # transformers' `resample` is Pillow's number of the filter
# What the library does to the images of a ViT where no file says: timm's vision_transformer._cfg, the defaults of
# torchvision's ViT weights (256 pixels, of which 224), and transformers' ViTImageProcessor, which cuts nothing off.
USUAL_CROP = {"timm": 0.9, "torchvision": 224 / 256, "transformers": 1.0}


@dataclass(frozen=True)
class View:
    """How an image becomes pixels, and sentences: what no file says, or what the model's library does otherwise."""

    preprocess: PreprocessSpec
    notes: tuple[str, ...]


def stated_labels(folder: Path) -> list[str] | None:
    """The names of a model's outputs, in their order, that config.json in the folder has; None where it has none.

    Raises ExportError where it numbers them otherwise than 0, 1, 2, …
    """
    config = _json(folder / CONFIG)
    by_index = config.get("id2label")
    if isinstance(by_index, dict) and by_index:
        try:
            labels = [str(by_index[str(index)]) for index in range(len(by_index))]
        except KeyError as error:
            raise ExportError(
                f"{folder / CONFIG}: id2label has no label of output {error.args[0]}: name all of them with --labels"
            ) from None
        # transformers' placeholders, which it writes where nobody named anything
        return None if all(re.fullmatch(r"LABEL_\d+", label) for label in labels) else labels
    names = config.get("label_names")
    return [str(name) for name in names] if isinstance(names, list) and names else None


def read_labels(file: Path) -> list[str]:
    """The labels in a text file, one a line, in the order of the model's outputs; raises ExportError."""
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except FileNotFoundError:
        raise ExportError(f"{file} does not exist: --labels is a text file with one label a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{file} cannot be read: --labels is a text file in UTF-8, with one label a line") from error
    labels = [line.strip() for line in lines]
    if "" in labels:
        raise ExportError(f"{file} has an empty line, number {labels.index('') + 1}: it is one label a line")
    if repeated := next((label for label, count in Counter(labels).items() if count > 1), None):
        numbers = " and ".join(str(index + 1) for index, label in enumerate(labels) if label == repeated)
        raise ExportError(f"{file} has the label {repeated!r} in lines {numbers}: name each output differently")
    return labels


def distinct(labels: Sequence[str]) -> tuple[list[str], str | None]:
    """The labels, each followed by its output's number where several are the same; and a sentence that says so.

    ImageNet's short names have "crane" twice, a bird and a machine.
    """
    counts = Counter(labels)
    named = [f"{label} ({index})" if counts[label] > 1 else label for index, label in enumerate(labels)]
    repeated = sorted(label for label, count in counts.items() if count > 1)
    if not repeated:
        return named, None
    return named, f"outputs called the same are told apart by their number: {', '.join(repeated)}"


def evaluation_view(library: str, folder: Path, *, image_size: int, crop_fraction: float | None) -> View:
    """How the library prepares an image for the model in the folder, as far as it can be done here.

    image_size, pixels: of the model. crop_fraction: instead of what the files say. Raises ExportError.
    """
    try:
        if library == "transformers":
            stated, notes = _of_transformers(_json(folder / PREPROCESSOR))
        else:
            stated, notes = _of_timm(_json(folder / CONFIG)) if library == "timm" else (None, [])
    except (TypeError, AttributeError, KeyError, ZeroDivisionError) as error:
        raise ExportError(f"{CONFIG} or {PREPROCESSOR} in {folder} is not as {library} writes it") from error
    fraction = USUAL_CROP[library] if stated is None else stated
    if crop_fraction is not None:
        fraction = crop_fraction
    elif stated is None:
        notes.append(f"the middle {100 * fraction:g} % of an image, as is usual with {library}: no file says")
    try:
        return View(PreprocessSpec(image_size=image_size, crop_fraction=fraction), tuple(notes))
    except ValidationError as error:
        first = error.errors()[0]
        raise ExportError(f"the images of {folder} cannot be prepared: {first['loc'][0]}: {first['msg']}") from error


def _of_timm(config: Mapping[str, Any]) -> tuple[float | None, list[str]]:
    statistics = config.get("pretrained_cfg") or config  # the hub's older files have no such section
    notes = []
    if (mode := statistics.get("crop_mode") or "center") != "center":
        notes.append(f"timm takes an image by crop_mode {mode!r}: here the middle square of it is taken")
    if (interpolation := statistics.get("interpolation") or "bicubic") != "bicubic":
        notes.append(f"timm resizes images {interpolation}: here bicubically")
    return statistics.get("crop_pct"), notes


def _of_transformers(preprocessor: Mapping[str, Any]) -> tuple[float | None, list[str]]:
    if not preprocessor:
        return None, []
    notes = []
    if preprocessor.get("do_resize", True) and preprocessor.get("resample", BICUBIC) != BICUBIC:
        notes.append("transformers resizes these images by another filter than bicubic, which is used here")
    if preprocessor.get("do_center_crop"):
        return _side(preprocessor["crop_size"]) / _side(preprocessor["size"]), notes
    notes.append("transformers squeezes an image that is no square into one: here the middle square of it is taken")
    return 1.0, notes


def _side(size: int | Mapping[str, int]) -> int:
    """The pixels of a size as transformers writes it: the shorter side, or the height of what is a square."""
    if isinstance(size, int):
        return size
    return size["shortest_edge"] if "shortest_edge" in size else size["height"]


def _json(file: Path) -> dict[str, Any]:
    """The object in a JSON file that `load_pretrained` has accepted, empty where there is no such file."""
    loaded: dict[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
    return loaded
