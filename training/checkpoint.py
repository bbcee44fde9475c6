"""Writes and reads the checkpoint of a trained model, a directory of a few files without pickle.

checkpoint.json      recipe, labels, preprocessing, accuracy at each β, provenance; written last
model.safetensors    the weights, float32, with both tokens
test.npz             pixels uint8 (n, H, W, 3) and labels int64 (n,) of the images on which the accuracy was measured
validation.npz       pixels and labels of the images on which temperatures are fitted after training; may be absent

A checkpoint of an earlier version has held_out.npz in place of both .npz files. Its images are read as the test images.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from training.data.datasets import Images
from training.errors import CheckpointError
from training.models.registry import Model, build_model
from training.recipes import Recipe
from tureen.atomic_file import write_atomically
from tureen.bundle.manifest import AccuracyRow, Evaluation
from tureen.preprocess import PreprocessSpec

CHECKPOINT = "checkpoint.json"
MODEL = "model.safetensors"
TEST = "test.npz"
VALIDATION = "validation.npz"
OLD_TEST = "held_out.npz"


class CheckpointRecord(BaseModel):
    """The content of checkpoint.json. The fields have the same meaning as those of `Checkpoint`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str | None = Field(
        default=None, description="name of the model, from its images; None: the name of the recipe"
    )
    recipe: Recipe
    labels: list[str]
    preprocess: PreprocessSpec
    accuracy: list[AccuracyRow]
    evaluation: Evaluation = Evaluation()
    provenance: dict[str, Any]
    sha256: dict[str, str] = Field(description="digests of the other files")


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with its recipe, its images and its measured accuracy.

    test: the images on which the accuracy was measured. validation: the images on which values such as temperatures are
    fitted after training; None for a third-party model, and in a checkpoint of an earlier version.
    """

    model: Model
    test: Images
    recipe: Recipe
    labels: list[str]  # names, in the order of the label indices
    preprocess: PreprocessSpec  # of evaluation
    accuracy: list[AccuracyRow]  # on `test`; one row for each β
    provenance: dict[str, Any]  # origin of the weights, such as versions, training time and data
    validation: Images | None = None
    evaluation: Evaluation = field(default_factory=Evaluation)  # measurements besides `accuracy`
    name: str | None = None  # name of the model, from its images; None: the name of the recipe


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint into the directory `path`, and creates the directory if it is missing.

    Writes checkpoint.json last: a directory with this file is a finished run.
    """
    path.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.cpu().contiguous() for name, tensor in checkpoint.model.state_dict().items()}
    files = {MODEL: safetensors.torch.save(weights), TEST: _images_to_bytes(checkpoint.test)}
    if checkpoint.validation is not None:
        files[VALIDATION] = _images_to_bytes(checkpoint.validation)
    record = CheckpointRecord(
        name=checkpoint.name,
        recipe=checkpoint.recipe,
        labels=checkpoint.labels,
        preprocess=checkpoint.preprocess,
        accuracy=checkpoint.accuracy,
        evaluation=checkpoint.evaluation,
        provenance=checkpoint.provenance,
        sha256={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )
    for name, data in files.items():
        write_atomically(path / name, data)
    write_atomically(path / CHECKPOINT, (record.model_dump_json(indent=2) + "\n").encode())


def weights_sha256(path: Path) -> str:
    """Returns the SHA-256 of the weights of the checkpoint in the directory `path`. Raises OSError without weights."""
    return hashlib.sha256((path / MODEL).read_bytes()).hexdigest()


def load_checkpoint(path: Path) -> Checkpoint:
    """Returns the checkpoint in the directory `path`. The model is in eval mode on the CPU.

    Raises CheckpointError if a file is missing, cannot be read or does not match its digest in checkpoint.json, or if
    the weights do not fit the recipe.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file: give the directory of a run that `tureen train` finished")
    try:
        record = CheckpointRecord.model_validate_json((path / CHECKPOINT).read_text(encoding="utf-8-sig"))
        test = OLD_TEST if OLD_TEST in record.sha256 else TEST
        required = {MODEL, test, *record.sha256.keys() & {VALIDATION}}
        files = {name: (path / name).read_bytes() for name in sorted(required)}
    except (FileNotFoundError, NotADirectoryError) as error:
        missing = Path(error.filename).name
        raise CheckpointError(f"{path} is not a finished checkpoint: it has no {missing}; run `tureen train`") from None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise CheckpointError(
            f"{path / CHECKPOINT} cannot be read, or was written by another version of Tureen"
        ) from error
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != record.sha256.get(name):
            raise CheckpointError(f"{path / name} does not match its digest in {CHECKPOINT}: train or copy it again")
    model = build_model(record.recipe.model)
    try:
        model.load_state_dict(safetensors.torch.load(files[MODEL]))
        parts = {name: _images_from_bytes(data) for name, data in files.items() if name != MODEL}
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} holds a model whose shape is not that of its recipe") from error
    return Checkpoint(
        model=model.eval().requires_grad_(False),
        test=parts[test],
        validation=parts.get(VALIDATION),
        recipe=record.recipe,
        labels=record.labels,
        preprocess=record.preprocess,
        accuracy=record.accuracy,
        evaluation=record.evaluation,
        provenance=record.provenance,
        name=record.name,
    )


def _images_to_bytes(images: Images) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, pixels=images.pixels, labels=images.labels)
    return buffer.getvalue()


def _images_from_bytes(data: bytes) -> Images:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return Images(arrays["pixels"], arrays["labels"])
