"""Recipes: everything that decides a training run, as data. Nothing here runs anything."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.errors import RecipeError
from training.model import ViTConfig


class Recipe(BaseModel):
    """One training run: what is trained, on what, how, and what to expect of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str = Field(description="where the method and the values come from")
    expected: str = Field(description="cost and result, where measured")
    command: str

    dataset: Literal["digits"]
    model: ViTConfig
    seed: int = Field(default=0, ge=0)

    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0, description="clean images a step; as many adversarial ones join them")
    learning_rate: float = Field(gt=0, description="peak, reached after warm-up, then cosine to zero (AdamW)")
    warmup: float = Field(ge=0, le=1, description="share of all steps over which the learning rate rises")
    weight_decay: float = Field(ge=0)
    clip_norm: float = Field(gt=0, description="largest norm of the gradient of all weights together")
    ema_decay: float = Field(ge=0, lt=1, description="of the weights that are kept; follows faster at the start")
    shift_pixels: int = Field(ge=0, description="random translation of each training image, pixels")
    precision: Literal["fp32", "bf16", "auto"] = Field(description="auto: bf16 where the CPU or GPU has it")

    alpha: float = Field(
        ge=0, le=1, description="weight of the clean loss in Eq. 1: 1 is nominal training, 0 adversarial training"
    )
    epsilon_255: float = Field(ge=0, le=255, description="radius under l∞, in 1/255 of the pixel range")
    epsilon_ramp: float = Field(ge=0, le=1, description="share of all steps over which the radius grows from 0")
    attack_steps: int = Field(gt=0, description="PGD steps in training")
    attack_step: float = Field(gt=0, description="size of a PGD step in training, as a share of the radius")

    evaluation_steps: int = Field(default=40, gt=0, description="PGD steps in evaluation")
    evaluation_betas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)

    @model_validator(mode="after")
    def _measures_both_modes(self) -> Recipe:
        if not {0.0, 1.0} <= set(self.evaluation_betas):
            raise ValueError("evaluation_betas must hold 0 and 1, the two modes")
        if not all(0 <= beta <= 1 for beta in self.evaluation_betas):
            raise ValueError("evaluation_betas must lie in [0, 1]")
        return self

    def fingerprint(self) -> str:
        """SHA-256 of all that decides the run, its descriptions left out: equal fingerprints, equal runs."""
        values = self.model_dump_json(exclude={"source", "expected", "command"})
        return hashlib.sha256(values.encode()).hexdigest()


DIGITS = Recipe(
    name="digits",
    source=(
        "Rebuffi, Croce & Gowal, Revisiting adapters with adversarial training, ICLR 2023: two class tokens, Eq. 1. "
        "Model, schedule and attack are ours, chosen for two CPU cores."
    ),
    expected=(
        "66 to 92 s of training on two virtual cores of a Xeon; 99.5 % clean at β = 0, 67 % under PGD-40 at β = 1, "
        "means of three seeds (python -m benchmarks.digits)"
    ),
    command="tureen train digits --out runs/digits",
    dataset="digits",
    model=ViTConfig(image_size=8, patch_size=4, width=128, depth=4, heads=2, mlp_ratio=2, classes=10),
    epochs=80,
    batch_size=64,
    learning_rate=3e-3,
    warmup=0.2,
    weight_decay=0.05,
    clip_norm=1.0,
    ema_decay=0.99,
    shift_pixels=1,
    precision="fp32",
    alpha=0.5,
    epsilon_255=38,
    epsilon_ramp=0.5,
    attack_steps=2,
    attack_step=0.75,
)

RECIPES = {recipe.name: recipe for recipe in (DIGITS,)}


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """The recipe of that name with "key=value" settings applied, such as "epochs=10" or "model.depth=2".

    Raises RecipeError for an unknown recipe or key, or a value that does not fit.
    """
    if name not in RECIPES:
        raise RecipeError(f"there is no recipe {name!r}: choose {', '.join(RECIPES)}")
    values: dict[str, Any] = RECIPES[name].model_dump()
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise RecipeError(f"{setting!r} is not KEY=VALUE")
        *parents, last = key.split(".")
        target: Any = values
        for part in parents:
            target = target.get(part) if isinstance(target, dict) else None
        if not isinstance(target, dict) or last not in target or isinstance(target[last], dict):
            raise RecipeError(f"recipe {name} has no {key!r}")
        target[last] = value.split(",") if isinstance(target[last], tuple) else value
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{'.'.join(map(str, first['loc'])) or name}: {first['msg']}") from error
