"""Reads recipe and options from the saved state of an unfinished run, and decides when to save the state.

Reads only the header of the state's file. `training.cotrain` reads and writes the tensors in the file.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from training.data.sources import HUGGING_FACE
from training.errors import CheckpointError
from training.recipes import FIELDS_WITHOUT_EFFECT_ON_WEIGHTS, RECIPES, Recipe
from training.weights.weight_sources import is_remote

START_AGAIN = "delete it, or choose another --out, to start again"
SAVING_SHARE = 0.02


@dataclass(frozen=True)
class SavedRun:
    """An unfinished run: its recipe, and the options of its first start.

    path: file of the saved state. recipe: has the number of classes of the images. labels: names of the classes. step:
    finished steps. steps: steps of the whole run. data: the argument of `tureen train --data`, as an absolute path if
    it is a directory. group_by: the argument of --group-by, or None. init: the argument of --init, or None. origin: the
    entries of the provenance about these weights. is_strict, is_compiled: the options --strict and --compile.
    logged_runs: the ids of the run by the name of the logger.
    """

    path: Path
    recipe: Recipe
    labels: list[str]
    step: int
    steps: int
    data: str | None
    group_by: str | None
    init: str | None
    is_strict: bool
    is_compiled: bool
    origin: dict[str, str] = field(default_factory=dict)
    logged_runs: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.path}, step {self.step} of {self.steps} ({100 * self.step / self.steps:.0f} %)"


def read_saved_run(path: Path) -> SavedRun:
    """Returns the run whose state is in the file `path`.

    Raises CheckpointError if the file is damaged, or if another version of Tureen wrote it.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        options = json.loads(metadata["options"])
        return SavedRun(
            path=path,
            recipe=Recipe.model_validate_json(metadata["recipe"]),
            labels=json.loads(metadata["labels"]),
            step=int(metadata["step"]),
            steps=int(metadata["steps"]),
            data=options.get("data"),
            group_by=options.get("group_by"),
            init=options.get("init"),
            is_strict=options.get("is_strict", False),
            is_compiled=options.get("is_compiled", False),
            origin=options.get("origin", {}),
            logged_runs=options.get("logged_runs", {}),
        )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {START_AGAIN}") from error
    except (KeyError, ValueError, ValidationError) as error:
        raise CheckpointError(f"{path} was saved by another version of Tureen: {START_AGAIN}") from error


def require_same_recipe(saved: SavedRun, recipe: Recipe) -> None:
    """Raises CheckpointError if `recipe` is not the recipe of the saved run. The error names the first difference.

    Values that do not change the trained weights may differ, and so may values that the images or --init determine.
    """
    before, given = (one.settings(without=FIELDS_WITHOUT_EFFECT_ON_WEIGHTS) for one in (saved.recipe, recipe))
    follows_images = {"model.classes"} if saved.recipe.dataset == "folder" else set()
    follows_init = saved.recipe.start == "pretrained" and recipe.model == RECIPES[recipe.name].model
    for key in sorted(before.keys() | given.keys(), key=lambda key: (key != "name", key)):
        if key in follows_images or (follows_init and key.startswith("model.")):
            continue
        if before.get(key) != given.get(key):
            name = "the recipe" if key == "name" else key
            raise CheckpointError(
                f"{saved.path} is of a run with {name} = {before.get(key)}, not {given.get(key)}: omit that option to "
                "continue the run, or choose another --out"
            )


def absolute_location(location: str | None) -> str | None:
    """Returns the location of images or weights with an absolute path, so that any working directory can use it.

    Returns `location` unchanged if it is None, or if it names a data set or weights on the Hugging Face hub.
    """
    if location is None or is_remote(location):
        return location
    prefix = HUGGING_FACE if location.startswith(HUGGING_FACE) else ""
    path = location.removeprefix(prefix)
    return location if prefix and not os.path.isdir(path) else prefix + os.path.abspath(path)


class SaveTimer:
    """Decides when to save the state of a run: every `interval_s` seconds, or less often.

    The interval is longer if saving would otherwise take over 2 % of the time of the run.
    """

    def __init__(self, interval_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._min_interval_s = self._interval_s = interval_s
        self._now = now
        self._saved_at = now()

    @property
    def is_due(self) -> bool:
        return self._now() - self._saved_at >= self._interval_s

    def save(self, save: Callable[[], None]) -> None:
        """Calls the function `save`. Sets the next interval so that saving takes at most about 2 % of the time."""
        started = self._now()
        save()
        self._saved_at = self._now()
        self._interval_s = max(self._min_interval_s, (self._saved_at - started) / SAVING_SHARE)
