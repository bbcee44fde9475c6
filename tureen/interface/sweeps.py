"""The labels of one image at many β, as data, as a plot and as HTML. Knows no model, no image and no NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict

from tureen.interface.html_table import bar_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ROWS: Final = 21  # of the HTML
STYLES: Final = ("-", "--", ":", "-.")


class Curve(BaseModel):
    """The probability of one label at each β of a sweep, in [0, 1]. index: of the label among the labels."""

    model_config = ConfigDict(frozen=True)

    label: str
    index: int
    probabilities: list[float]


class SweepChange(BaseModel):
    """A change of the most probable label: from_label at after_beta, and to_label at before_beta, the next β."""

    model_config = ConfigDict(frozen=True)

    after_beta: float
    before_beta: float
    from_label: str
    to_label: str


class Sweep(BaseModel):
    """The labels of one image at many β.

    betas: ascending. strengths, answers: the strength and the most probable label of each β. curves: of the labels with
    the highest probabilities at any β, the highest first. changes: where the most probable label changes. calibrated:
    whether the logits were divided by fitted temperatures before the softmax.
    """

    model_config = ConfigDict(frozen=True)

    calibrated: bool
    betas: list[float]
    strengths: list[float]
    answers: list[str]
    curves: list[Curve]
    changes: list[SweepChange]

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draws the probability of each label of `curves` by strength, and returns the axes.

        axes: of matplotlib; None: those of a new figure of pyplot. A grey vertical line is where the most probable
        label changes. Raises ModuleNotFoundError if matplotlib is not installed.
        """
        if axes is None:
            try:
                from matplotlib import pyplot
            except ModuleNotFoundError:
                raise ModuleNotFoundError(
                    "matplotlib is not installed: install Tureen with its extra [plot]", name="matplotlib"
                ) from None
            axes = pyplot.subplots(layout="constrained")[1]
        for number, curve in enumerate(self.curves):
            # $ would begin mathematical text, and the legend leaves out a label that begins with an underscore.
            label = ("\u200b" * curve.label.startswith("_") + curve.label).replace("$", r"\$")
            style = STYLES[number // 10 % len(STYLES)]  # matplotlib has ten colours
            axes.plot(self.strengths, curve.probabilities, style, marker=".", label=label)
        for change in self.changes:
            sides = [self.strengths[self.betas.index(beta)] for beta in (change.after_beta, change.before_beta)]
            axes.axvline(sum(sides) / 2, color="0.6", linewidth=1, zorder=0)
        axes.set(xlabel="strength (0: clean mode, 1: robust mode)", ylabel="probability", ylim=(0, 1))
        axes.legend()
        return axes

    def _repr_html_(self) -> str:
        """Returns a table for notebooks: the most probable label at each β, or at MAX_ROWS of them."""
        last = len(self.betas) - 1
        shown = range(last + 1) if last < MAX_ROWS else [round(i * last / (MAX_ROWS - 1)) for i in range(MAX_ROWS)]
        probabilities = {curve.label: curve.probabilities for curve in self.curves}
        rows = []
        for i in shown:
            label = self.answers[i]
            share = probabilities[label][i] if label in probabilities else None
            rows.append(((f"{self.strengths[i]:g}", f"{self.betas[i]:g}", label), share))
        count = f"{len(shown)} of {last + 1} β" if len(shown) <= last else f"{last + 1} β"
        times = "once" if len(self.changes) == 1 else f"{len(self.changes)} times"
        caption = f"{count}; the label {f'changes {times}' if self.changes else 'does not change'}"
        return bar_table(caption, ("strength", "β", "label", "probability"), rows)


def changes_between(betas: Sequence[float], answers: Sequence[str]) -> list[SweepChange]:
    """Returns the changes of the most probable label between neighbouring β. answers: the label at each β."""
    return [
        SweepChange(after_beta=lower, before_beta=upper, from_label=label, to_label=next_label)
        for (lower, upper), (label, next_label) in zip(pairwise(betas), pairwise(answers), strict=True)
        if label != next_label
    ]
