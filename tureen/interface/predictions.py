"""The labels that a model gives to an image, and the β at which it gave them. Knows no model, no image and no NumPy."""

from __future__ import annotations

from pydantic import BaseModel

from tureen.interface.html_table import bar_table


class Prediction(BaseModel):
    """One label, its index among the labels, and its probability in [0, 1]."""

    label: str
    index: int
    probability: float


class Classification(BaseModel):
    """The most probable labels of one image at one β, or at one mix of named tokens.

    predictions: the most probable label first. beta: of a mix, the share of the robust token; None if the model has one
    token. strength: None for a mix, or if the model has one token. mix: the weight of each token; None for a β.
    calibrated: whether the logits were divided by a fitted temperature before the softmax; False for a mix, because a
    temperature is fitted for β only.
    """

    beta: float | None
    strength: float | None
    mix: dict[str, float] | None = None
    calibrated: bool
    predictions: list[Prediction]

    def _repr_html_(self) -> str:
        """Returns a table for notebooks: the labels with their probabilities."""
        if self.mix is not None:
            choice = "mix " + ", ".join(f"{name} {weight:g}" for name, weight in self.mix.items())
        elif self.beta is None:
            choice = "one token, no β"
        else:
            choice = f"β {self.beta:g}" if self.strength is None else f"strength {self.strength:g}, β {self.beta:g}"
        rows = [((one.label,), one.probability) for one in self.predictions]
        return bar_table(choice, ("label", "probability"), rows)
