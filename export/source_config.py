"""Reads the labels and the preprocessing of a third-party model from the files beside its weights.

Reads the JSON files of timm and transformers, and text files of labels. Knows nothing about weights or bundles.
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
from training.weights.library_settings import CONFIG, PREPROCESSOR
from tureen.preprocess import PreprocessSpec

BICUBIC = 3  # `resample` in a file of transformers is the number of a filter in Pillow
# Share of the shorter side that each library keeps by default. Sources: vision_transformer._cfg of timm, the ViT
# weights of torchvision (224 of 256 pixels), and ViTImageProcessor of transformers, which does not crop.
DEFAULT_CROP = {"timm": 0.9, "torchvision": 224 / 256, "transformers": 1.0}


@dataclass(frozen=True)
class EvaluationView:
    """The preprocessing of a third-party model, and notes for the user.

    notes: sentences about assumptions, and about differences between Tureen and the model's library.
    """

    preprocess: PreprocessSpec
    notes: tuple[str, ...]


def labels_from_config(folder: Path) -> list[str] | None:
    """Returns the labels of the outputs, in order, from config.json in `folder`; None if the file has none.

    Raises ExportError if the file does not number its labels 0, 1, 2, …
    """
    config = _json(folder / CONFIG)
    by_index = config.get("id2label")
    if isinstance(by_index, dict) and by_index:
        try:
            labels = [str(by_index[str(index)]) for index in range(len(by_index))]
        except KeyError as error:
            raise ExportError(
                f"{folder / CONFIG}: id2label has no label of output {error.args[0]}: name all outputs with --labels"
            ) from None
        # transformers writes LABEL_0, LABEL_1, … for outputs without names.
        return None if all(re.fullmatch(r"LABEL_\d+", label) for label in labels) else labels
    names = config.get("label_names")
    return [str(name) for name in names] if isinstance(names, list) and names else None


def read_labels(file: Path) -> list[str]:
    """Returns the labels in a text file, one per line, in the order of the outputs.

    Raises ExportError if the file cannot be read, or has an empty line or a repeated label.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except FileNotFoundError:
        raise ExportError(f"{file} does not exist: --labels is a text file with one label a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{file} cannot be read: --labels is a text file in UTF-8, with one label a line") from error
    labels = [line.strip() for line in lines]
    if "" in labels:
        raise ExportError(f"{file} has an empty line, number {labels.index('') + 1}: write one label a line")
    if repeated := next((label for label, count in Counter(labels).items() if count > 1), None):
        numbers = " and ".join(str(index + 1) for index, label in enumerate(labels) if label == repeated)
        raise ExportError(f"{file} has the label {repeated!r} in lines {numbers}: name each output differently")
    return labels


def unique_labels(labels: Sequence[str]) -> tuple[list[str], str | None]:
    """Makes all labels different. Returns the labels, and a note for the user; the note is None if no label changed.

    Appends the number of the output to each repeated label. For example, the short names of ImageNet have "crane"
    twice, a bird and a machine.
    """
    counts = Counter(labels)
    named = [f"{label} ({index})" if counts[label] > 1 else label for index, label in enumerate(labels)]
    repeated = sorted(label for label, count in counts.items() if count > 1)
    if not repeated:
        return named, None
    return named, f"outputs with the same label have their number added: {', '.join(repeated)}"


def evaluation_view(library: str, folder: Path, *, image_size: int, crop_fraction: float | None) -> EvaluationView:
    """Returns the preprocessing that `library` uses for the model in `folder`, and notes on what Tureen does instead.

    library: "timm", "torchvision" or "transformers". image_size: in pixels. crop_fraction: share of the shorter side to
    keep; None: the value in the files of the model, or else the default of the library. Raises ExportError if a file in
    `folder` is not in the format of the library, or has a value out of range.
    """
    try:
        if library == "transformers":
            crop, notes = _transformers_crop(_json(folder / PREPROCESSOR))
        else:
            crop, notes = _timm_crop(_json(folder / CONFIG)) if library == "timm" else (None, [])
    except (TypeError, AttributeError, KeyError, ZeroDivisionError) as error:
        raise ExportError(f"{CONFIG} or {PREPROCESSOR} in {folder} does not have the format of {library}") from error
    fraction = DEFAULT_CROP[library] if crop is None else crop
    if crop_fraction is not None:
        fraction = crop_fraction
    elif crop is None:
        notes.append(f"the middle {100 * fraction:g} % of an image, as {library} by default (assumed: no file sets it)")
    try:
        return EvaluationView(PreprocessSpec(image_size=image_size, crop_fraction=fraction), tuple(notes))
    except ValidationError as error:
        first = error.errors()[0]
        raise ExportError(f"the images of {folder} cannot be prepared: {first['loc'][0]}: {first['msg']}") from error


def _timm_crop(config: Mapping[str, Any]) -> tuple[float | None, list[str]]:
    """Returns the share of the shorter side that timm keeps, and notes. The share is None if `config` has none."""
    statistics = config.get("pretrained_cfg") or config  # older files on the hub have no such section
    notes = []
    if (mode := statistics.get("crop_mode") or "center") != "center":
        notes.append(f"timm crops with crop_mode {mode!r}: Tureen takes the middle square instead")
    if (interpolation := statistics.get("interpolation") or "bicubic") != "bicubic":
        notes.append(f"timm resizes with filter {interpolation!r}: Tureen uses bicubic instead")
    return statistics.get("crop_pct"), notes


def _transformers_crop(preprocessor: Mapping[str, Any]) -> tuple[float | None, list[str]]:
    """Returns the share of the shorter side that transformers keeps, and notes.

    The share is None if `preprocessor` is empty.
    """
    if not preprocessor:
        return None, []
    notes = []
    if preprocessor.get("do_resize", True) and preprocessor.get("resample", BICUBIC) != BICUBIC:
        notes.append("transformers resizes with another filter than bicubic: Tureen uses bicubic instead")
    if preprocessor.get("do_center_crop"):
        return _side(preprocessor["crop_size"]) / _side(preprocessor["size"]), notes
    notes.append("transformers stretches an image to a square: Tureen takes the middle square instead")
    return 1.0, notes


def _side(size: int | Mapping[str, int]) -> int:
    """Returns the length of the shorter side in `size`, in pixels, or else the height. size: as in transformers."""
    if isinstance(size, int):
        return size
    return size["shortest_edge"] if "shortest_edge" in size else size["height"]


def _json(file: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; empty if there is no file. `load_pretrained` has already checked the file."""
    loaded: dict[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
    return loaded
