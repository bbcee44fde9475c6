"""Maps a strength to a β and back, with the curve that was measured for a model."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator


class StrengthCurve(BaseModel):
    """The strength at several β. Between them the strength is interpolated linearly.

    Strength is a second scale for β. The strength of a β is the position of the logits on the line from the logits of
    the clean mode (0) to those of the robust mode (1). So equal steps of strength move the logits equally far. Equal
    steps of β do not: over half of its range the logits may hardly move. Measuring needs no labels and no attack.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    betas: list[float] = Field(min_length=2, description="ascending from 0 to 1")
    strengths: list[float] = Field(min_length=2, description="of each of `betas`, ascending from 0 to 1")
    n: int = Field(ge=0, description="number of images; 0: not measured, strength equals β")

    @model_validator(mode="after")
    def _check_curve(self) -> StrengthCurve:
        if len(self.betas) != len(self.strengths):
            raise ValueError(f"{len(self.betas)} betas and {len(self.strengths)} strengths")
        for name, values in (("betas", self.betas), ("strengths", self.strengths)):
            if (values[0], values[-1]) != (0, 1) or not all(a < b for a, b in pairwise(values)):
                raise ValueError(f"{name} do not ascend from 0 to 1")
        return self

    def beta_at(self, strength: float, least: float = 0.0, most: float = 1.0) -> float:
        """Returns the β of a strength in [0, 1], rounded to 6 decimals.

        least, most: bounds of β. A strength that `strength_at` gives for a bound, to 4 decimals, has the β of that
        bound. So `beta_at(strength_at(beta), least, most)` is within the bounds if `beta` is. Returns the β of any
        other strength as it is, within the bounds or not.
        """
        beta = round(float(np.interp(strength, self.strengths, self.betas)), 6) + 0.0
        bounded = min(max(beta, least), most)
        return bounded if self.strength_at(bounded) == round(strength, 4) else beta

    def strength_at(self, beta: float) -> float:
        """Returns the strength of a β in [0, 1], rounded to 4 decimals.

        The rounding removes the rounding error of `beta_at`, so `strength_at(beta_at(0.3))` is 0.3.
        """
        return round(float(np.interp(beta, self.betas, self.strengths)), 4) + 0.0


UNMEASURED_STRENGTH: Final = StrengthCurve(betas=[0, 1], strengths=[0, 1], n=0)
