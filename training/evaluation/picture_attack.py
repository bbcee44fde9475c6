"""Attacks one image, and predicts its label at five strengths before and after the attack. This is a demonstration.

One image says nothing about the accuracy of a model. `training.evaluation.accuracy` measures accuracy.
"""

from __future__ import annotations

import difflib
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from tqdm import tqdm

from training.attacks.apgd import DLR_CLASSES, apgd_margin
from training.attacks.gradient import Forward
from training.attacks.names import attack_label
from training.checkpoint import Checkpoint
from training.data.datasets import balanced_sample
from training.errors import DataError, RecipeError
from training.evaluation.accuracy import Predict, forward_at_beta, make_predictor, model_device
from training.evaluation.strengths import BETAS, logits_by_beta, strength_curve
from training.evaluation.transfer import mean_forward
from training.models.vit import images_from_pixels, pixels_from_images
from tureen.bundle.strength_curve import StrengthCurve
from tureen.interface.probabilities import probabilities
from tureen.preprocess import Pixels, PreprocessSpec

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
CURVE_IMAGES = 1000  # as in `tureen export`, so that the strengths are those of the bundle
RESTARTS = 2
LABELS_SHOWN = 60
_NUMBER = re.compile(r"^\d+[-_ ]+")


class Reading(BaseModel):
    """The most likely label of an image at one strength, with its probability before calibration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strength: float
    beta: float
    label: str
    probability: float
    true_label_probability: float


@dataclass(frozen=True)
class PictureAttack:
    """Attacks one image at a time under l∞. The attacked image should mislead the model at all `betas`.

    epsilon_255: radius in 1/255, 1 or more. steps: number of steps of each run of Auto-PGD.

    The attack is `apgd_margin` from two random starts. For several β it attacks the mean of the log-probabilities at
    all β, and then the logits at the β with the smallest margin. The margin is the largest wrong logit minus the logit
    of the true class. The result is the attacked image, rounded to 8 bits, with the largest margin. With several β, the
    margin of an image is its smallest over all β.
    """

    model: nn.Module
    betas: Sequence[float]
    epsilon_255: float
    steps: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.epsilon_255 <= 255:
            raise RecipeError(
                f"the radius is {self.epsilon_255:g}/255: give 1 to 255, because an 8-bit image holds no smaller change"
            )

    def name(self, classes: int) -> str:
        """Returns the name of the attack for reports.

        For two classes, the name and the attack omit the DLR loss, because it needs three classes.
        """
        label = attack_label("apgd-margin", self.steps)
        return label if classes >= DLR_CLASSES else label.replace("CE, DLR", "CE")

    def total_passes(self, classes: int) -> int:
        """Returns the number of calls of `on_pass` in one call of `run`. classes: number of classes of the model."""
        losses = 2 if classes >= DLR_CLASSES else 1
        objectives = 1 if len(self.betas) == 1 else 2
        return RESTARTS * objectives * (losses * (self.steps + 1) + 1)

    def run(self, pixels: Pixels, label: int, on_pass: Callable[[], None] = lambda: None) -> Pixels:
        """Returns the attacked image, uint8 (H, W, 3). No value differs by more than `epsilon_255` from `pixels`.

        pixels: uint8 (H, W, 3). label: index of the true class. on_pass: called after each forward pass.
        Raises ZeroGradientError if no loss has a gradient.
        """
        device = model_device(self.model)
        soups = [forward_at_beta(self.model, beta) for beta in self.betas]
        objectives = soups if len(soups) == 1 else [mean_forward(soups), _least_misled(soups, label)]
        x = images_from_pixels(torch.from_numpy(pixels[None]).to(device))
        target = torch.tensor([label], device=device)
        generator = torch.Generator(device).manual_seed(self.seed)
        best, widest = pixels, -math.inf
        for objective in objectives * RESTARTS:
            adversarial = apgd_margin(
                _counted(objective, on_pass),
                x,
                target,
                epsilon=self.epsilon_255 / 255,
                steps=self.steps,
                generator=generator,
            )
            rounded = _within(pixels, pixels_from_images(adversarial)[0], math.floor(self.epsilon_255))
            margin = self._margin(rounded, label)
            if margin > widest:
                best, widest = rounded, margin
        return best

    @torch.no_grad()
    def _margin(self, pixels: Pixels, label: int) -> float:
        """Returns the smallest margin at any β. The margin is the largest wrong logit minus the logit of `label`."""
        x = images_from_pixels(torch.from_numpy(pixels[None]).to(model_device(self.model)))
        return min(float(_margins(forward_at_beta(self.model, beta)(x), label)) for beta in self.betas)


def _least_misled(soups: Sequence[Forward], label: int) -> Forward:
    """Returns a function from images to logits (B, K), for each image those of the soup with the smallest margin."""

    def forward(x: Tensor) -> Tensor:
        logits = torch.stack([soup(x).float() for soup in soups])  # (T, B, K)
        least = torch.stack([_margins(one.detach(), label) for one in logits]).argmin(0)
        return logits[least, torch.arange(len(x), device=x.device)]

    return forward


def _margins(logits: Tensor, label: int) -> Tensor:
    """Returns the largest wrong logit minus that of `label`, (B,)."""
    wrong = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    return wrong.amax(1) - logits[:, label]


def _counted(forward: Forward, on_pass: Callable[[], None]) -> Forward:
    def counted(x: Tensor) -> Tensor:
        logits = forward(x)
        on_pass()
        return logits

    return counted


def _within(before: Pixels, after: Pixels, radius: int) -> Pixels:
    """Returns `after` with each value limited to `before` ± `radius`. Rounding to 8 bits can exceed the radius."""
    lowest, highest = (before.astype(np.int16) + sign * radius for sign in (-1, 1))
    return np.clip(after, lowest, highest).astype(np.uint8)


def checkpoint_curve(checkpoint: Checkpoint) -> StrengthCurve:
    """Returns the map from strength to β, measured on the validation images, or on the test images if there are none.

    Shows a progress bar.
    """
    images = balanced_sample(checkpoint.validation or checkpoint.test, CURVE_IMAGES)
    predict = make_predictor(checkpoint.model)
    with tqdm(total=len(BETAS) * len(images), desc="measure strength", unit="image", disable=None) as bar:
        return strength_curve(
            logits_by_beta(predict, images, on_images=lambda count: bar.update(count) and None), BETAS
        )


def read_picture(
    predict: Predict, pixels: Pixels, label: int, *, labels: Sequence[str], curve: StrengthCurve
) -> list[Reading]:
    """Returns the readings of an image, uint8 (H, W, 3), at the five STRENGTHS. label: index of the true class."""
    betas = [curve.beta_at(strength) for strength in STRENGTHS]
    shares = probabilities(predict(np.stack([pixels] * len(betas)), betas))
    return [
        Reading(
            strength=strength,
            beta=beta,
            label=labels[int(row.argmax())],
            probability=round(float(row.max()), 4),
            true_label_probability=round(float(row[label]), 4),
        )
        for strength, beta, row in zip(STRENGTHS, betas, shares, strict=True)
    ]


def find_label(labels: Sequence[str], name: str) -> int:
    """Returns the index of the label `name`. A number at the start of the label may be omitted: "stop" finds "14-stop".

    Raises DataError if there is no such label, or if there are several.
    """
    found = [index for index, label in enumerate(labels) if label == name]
    found = found or [index for index, label in enumerate(labels) if _NUMBER.sub("", label) == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{name!r} is the name of {len(found)} labels: {', '.join(labels[index] for index in found)}")
    bare = {_NUMBER.sub("", label): label for label in labels}
    close = difflib.get_close_matches(name, [*bare, *labels], n=3)
    meant = list(dict.fromkeys(bare.get(one, one) for one in close))
    hint = f"did you mean {' or '.join(meant)}?" if meant else f"choose one of {_listed(labels)}"
    raise DataError(f"the model has no label {name!r}: {hint}")


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:LABELS_SHOWN])
    return shown if len(labels) <= LABELS_SHOWN else f"{shown} and {len(labels) - LABELS_SHOWN} more"


def picture_bytes(pixels: Pixels, spec: PreprocessSpec) -> bytes:
    """Returns the content of a PNG file that `spec`, the preprocessing, converts to `pixels`, uint8 (size, size, 3).

    If `spec` crops, the file has a border of repeated pixels, which the crop removes. The conversion is exact if the
    border is a whole number of pixels. Otherwise the image is resized slightly.
    """
    border = round(spec.image_size * (1 / spec.crop_fraction - 1) / 2)
    return png_bytes(Image.fromarray(np.pad(pixels, ((border, border), (border, border), (0, 0)), mode="edge")))


def png_bytes(image: Image.Image) -> bytes:
    """Returns the image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def difference_factor(epsilon_255: float) -> int:
    """Returns the factor for `difference_image`. It shows a change by the whole radius as nearly black or white."""
    return max(1, math.floor(127 / math.ceil(epsilon_255)))


def difference_image(before: Pixels, after: Pixels, factor: int) -> Image.Image:
    """Returns an RGB image of the change of each pixel, multiplied by `factor` and added to mid-grey."""
    change = after.astype(np.int32) - before.astype(np.int32)
    return Image.fromarray(np.clip(128 + factor * change, 0, 255).astype(np.uint8))
