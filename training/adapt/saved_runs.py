"""Keeps the finished runs of a cross-validation in a file, so that an interrupted command can continue."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from training.adapt.cross_validation import FinishedRuns
from training.errors import DataError
from tureen.atomic_file import write_atomically


class SavedAdaptation(BaseModel):
    """The content of the file: the inputs of the cross-validation by name, and its finished runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: dict[str, str]
    runs: FinishedRuns


def read_runs(path: Path, inputs: dict[str, str]) -> FinishedRuns:
    """Returns the finished runs in the file `path`; without a file, none.

    inputs: all that determines the runs. Raises DataError if the file is damaged, or has runs of other inputs.
    """
    try:
        saved = SavedAdaptation.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return FinishedRuns()
    except ValidationError as error:
        raise DataError(f"{path} is damaged: delete it, or omit --resume") from error
    different = [name for name in inputs | saved.inputs if inputs.get(name) != saved.inputs.get(name)]
    if different:
        raise DataError(
            f"{path} was saved with other values of: {', '.join(different)}; give the same values, or omit --resume"
        )
    return saved.runs


def save_runs(path: Path, inputs: dict[str, str], runs: FinishedRuns) -> None:
    """Writes the finished runs to the file `path`, atomically. Raises OSError if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, SavedAdaptation(inputs=inputs, runs=runs).model_dump_json().encode())
