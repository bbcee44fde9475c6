"""Measures clean and robust accuracy of a dual-token model at each β, or of ensembles of its two modes.

For the robust accuracy at a β, the attack is on the model at this β. Robust accuracy is empirical, for one norm and one
radius: a better attack can only lower it. `training.evaluation.attack_checks` and `training.evaluation.transfer` check
that the attack is strong enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor, nn

from training.attacks.catalogue import find_attack
from training.attacks.gradient import Forward
from training.attacks.names import attack_label
from training.data.datasets import Images
from training.errors import DivergedError, RecipeError
from training.models.vit import images_from_pixels
from tureen.bundle.manifest import Accuracy, AccuracyRow, ClassCounts, Norm
from tureen.preprocess import Pixels
from tureen.tokens import CLEAN_BETA, ROBUST_BETA, mix

BATCH = 256
NOT_FINITE = "the logits of the model are not finite: it diverged in training, or its weights are damaged"
MID_GREY_RADIUS_255 = 127.5
"""With this radius every image can become mid-grey, so no classifier is robust."""

Predict = Callable[[Pixels, Sequence[float]], NDArray[np.float32]]
"""A function from pixels uint8 (B, H, W, 3) and B β, one for each image, to logits (B, K).
`tureen.Soup.logits` is such a function."""


def wilson_interval(correct: int, n: int) -> Accuracy:
    """Returns the accuracy `correct` / `n` with its 95 % Wilson score interval (JASA 1927), all in [0, 1]."""
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return Accuracy(value=correct / n, low=interval.low, high=interval.high)


def sign_test(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Returns the one-sided p-value of the exact sign test: small if `first` is True for more images than `second`.

    first, second: whether each of the same n images is classified correctly, in two settings, bool (n,). The test
    counts only the images on which `first` and `second` differ (McNemar, Psychometrika 1947; the p-value is exact, not
    approximated). Returns 1 if there is no such image.
    """
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    return float(binomtest(gained, gained + lost, alternative="greater").pvalue) if gained + lost else 1.0


def forward_at_beta(model: nn.Module, beta: float) -> Forward:
    """Returns the model at one β, as a function from images (B, 3, H, W) to logits (B, K)."""
    return lambda x: model(x, x.new_full((len(x),), beta))


def ensemble_forward(model: nn.Module, beta: float) -> Forward:
    """Returns the ensemble of both modes, a function from images to log((1 − β)·p_clean + β·p_robust), (B, K).

    p_clean and p_robust are the probabilities that the two modes predict. An attack uses the logarithms as logits, so
    its loss is the cross-entropy of the ensemble. Raises RecipeError for a β outside [0, 1], because the mix would not
    be a probability.
    """
    if not CLEAN_BETA <= beta <= ROBUST_BETA:
        raise RecipeError(f"an ensemble mixes probabilities, so its β must be in [0, 1], not {beta:g}")

    def forward(x: Tensor) -> Tensor:
        weights = mix(x.new_tensor([1.0, 0.0]), x.new_tensor([0.0, 1.0]), beta)
        modes = [F.log_softmax(forward_at_beta(model, mode)(x).float(), dim=1) for mode in (CLEAN_BETA, ROBUST_BETA)]
        return torch.logsumexp(torch.stack(modes) + weights.log()[:, None, None], dim=0)

    return forward


def evaluate_accuracy(
    model: nn.Module,
    images: Images,
    *,
    betas: Sequence[float],
    epsilon_255: float,
    steps: int,
    attack: str = "apgd",
    norm: Norm = "linf",
    seed: int = 0,
    forward_at: Callable[[nn.Module, float], Forward] = forward_at_beta,
    on_batch: Callable[[], None] = lambda: None,
) -> list[AccuracyRow]:
    """Returns a row for each β: the accuracy without an attack, and under a white-box attack on the model at this β.

    The arguments and the errors are those of `attack_each_beta`.
    """
    outcomes = attack_each_beta(
        model,
        images,
        betas=betas,
        epsilon_255=epsilon_255,
        steps=steps,
        attack=attack,
        norm=norm,
        seed=seed,
        forward_at=forward_at,
        on_batch=on_batch,
    )
    label = attack_label(attack, steps)
    return [outcome.row(beta, label, epsilon_255, norm) for beta, outcome in outcomes.items()]


def attack_each_beta(
    model: nn.Module,
    images: Images,
    *,
    betas: Sequence[float],
    epsilon_255: float,
    steps: int,
    attack: str,
    norm: Norm = "linf",
    seed: int = 0,
    forward_at: Callable[[nn.Module, float], Forward] = forward_at_beta,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[float, AttackOutcome]:
    """Returns for each β which images the model classifies correctly, without an attack and under an attack at this β.

    model: maps images and their β (B,) to logits (B, K); in eval mode. betas: any numbers; outside [0, 1] the tokens
    are extrapolated. attack: a name in training.attacks.catalogue. steps: number of steps of the attack. epsilon_255:
    radius in `norm`, in 1/255 of the pixel range. seed: that of the attack's random numbers. forward_at:
    `forward_at_beta` to attack the model at each β, `ensemble_forward` to attack the ensemble of both modes at each β.
    on_batch: called after each batch of images at each β.

    An image counts as robust only if it is also classified correctly without the attack. Raises RecipeError for an
    unknown attack, ZeroGradientError if a whole batch has no gradient, and DivergedError if logits are not finite.
    """
    return {
        beta: run_attack(
            forward_at(model, beta),
            images,
            device=model_device(model),
            attack=attack,
            epsilon_255=epsilon_255,
            steps=steps,
            norm=norm,
            seed=seed,
            on_batch=on_batch,
        )
        for beta in betas
    }


def evaluate_epsilon_curve(
    model: nn.Module,
    images: Images,
    *,
    betas: Sequence[float],
    radii_255: Sequence[float],
    steps: int,
    attack: str = "apgd",
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> list[AccuracyRow]:
    """Returns the rows of `evaluate_accuracy` for each radius, in the order of ascending radii.

    Ends after the first radius at which the robust accuracy is 0 at every β. radii_255: in 1/255 of the pixel range.
    The other arguments and the errors are those of `attack_each_beta`.
    """
    rows: list[AccuracyRow] = []
    for radius in sorted(radii_255):
        at_radius = evaluate_accuracy(
            model,
            images,
            betas=betas,
            epsilon_255=radius,
            steps=steps,
            attack=attack,
            seed=seed,
            on_batch=on_batch,
        )
        rows += at_radius
        if not any(row.robust.value for row in at_radius):
            break
    return rows


def epsilon_grid(epsilon_255: float) -> list[float]:
    """Returns radii in 1/255 for `evaluate_epsilon_curve`: 0, ½, 1, 2, 4 and 8 times `epsilon_255`, and 127.5.

    Omits radii above 127.5, which is half of the pixel range.
    """
    radii = {multiple * epsilon_255 for multiple in (0, 0.5, 1, 2, 4, 8)}
    return [*sorted(radius for radius in radii if radius < MID_GREY_RADIUS_255), MID_GREY_RADIUS_255]


@dataclass(frozen=True)
class AttackOutcome:
    """Whether each of n images is classified correctly, bool (n,).

    clean: without an attack. robust: both without an attack and under the attack.
    """

    clean: NDArray[np.bool_]
    robust: NDArray[np.bool_]

    def row(self, beta: float, attack: str, epsilon_255: float, norm: Norm = "linf") -> AccuracyRow:
        """Returns clean and robust accuracy with their 95 % intervals. attack: the name of the attack for reports."""
        n = len(self.clean)
        return AccuracyRow(
            beta=beta,
            n=n,
            clean=wilson_interval(int(self.clean.sum()), n),
            robust=wilson_interval(int(self.robust.sum()), n),
            attack=attack,
            epsilon_255=epsilon_255,
            norm=norm,
        )


def class_counts(beta: float, outcome: AttackOutcome, labels: NDArray[np.int64], classes: int) -> ClassCounts:
    """Returns three numbers of images for each class: all, correct without an attack, and robust.

    outcome: whether each of n images is correct and robust. labels: true classes of the images, int64 (n,), from 0 to
    `classes` − 1.
    """
    images, clean, robust = (
        np.bincount(labels[chosen], minlength=classes).tolist()
        for chosen in (np.ones(len(labels), np.bool_), outcome.clean, outcome.robust)
    )
    return ClassCounts(beta=beta, images=images, clean=clean, robust=robust)


def run_attack(
    forward: Forward,
    images: Images,
    *,
    device: torch.device,
    attack: str,
    epsilon_255: float,
    steps: int,
    seed: int,
    norm: Norm = "linf",
    on_batch: Callable[[], None] = lambda: None,
) -> AttackOutcome:
    """Returns which images `forward` classifies correctly, without an attack and under the attack.

    epsilon_255: as for `attack_each_beta`; 0 means no attack. The other arguments and the errors are those of
    `attack_each_beta`.
    """
    find_adversarial = find_attack(attack, norm)
    generator = torch.Generator(device).manual_seed(seed)
    clean, robust = [], []
    for x, labels in image_batches(images, device):
        is_clean = is_correct(forward, x, labels)
        adversarial = x
        if epsilon_255:
            adversarial = find_adversarial(
                forward, x, labels, epsilon=epsilon_255 / 255, steps=steps, generator=generator
            )
        clean.append(is_clean)
        robust.append(is_clean & is_correct(forward, adversarial, labels))
        on_batch()
    return AttackOutcome(np.concatenate(clean), np.concatenate(robust))


def image_batches(images: Images, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the images in batches, in order: images float32 (B, 3, H, W) in [0, 1], and labels int64 (B,)."""
    for start in range(0, len(images), BATCH):
        pixels = torch.from_numpy(images.pixels[start : start + BATCH]).to(device)
        yield images_from_pixels(pixels), torch.from_numpy(images.labels[start : start + BATCH]).to(device)


@torch.no_grad()
def is_correct(forward: Forward, x: Tensor, labels: Tensor) -> NDArray[np.bool_]:
    """Returns whether `forward` classifies each image correctly, bool (B,).

    Raises DivergedError if logits are not finite.
    """
    logits = forward(x)
    if not logits.isfinite().all():
        raise DivergedError(NOT_FINITE)
    result: NDArray[np.bool_] = (logits.argmax(1) == labels).cpu().numpy()
    return result


def model_device(model: nn.Module) -> torch.device:
    """Returns the device of the model's weights."""
    return next(model.parameters()).device


def make_predictor(model: nn.Module) -> Predict:
    """Returns the model as a function of NumPy arrays.

    The function maps pixels uint8 (B, H, W, 3) and B β, one for each image, to logits float32 (B, K).
    """
    device = model_device(model)

    @torch.no_grad()
    def predict(pixels: Pixels, betas: Sequence[float]) -> NDArray[np.float32]:
        x = images_from_pixels(torch.from_numpy(pixels).to(device))
        logits: NDArray[np.float32] = model(x, x.new_tensor(betas)).float().cpu().numpy()
        return logits

    return predict


def correct_by_beta(predict: Predict, images: Images, betas: Sequence[float]) -> NDArray[np.bool_]:
    """Returns whether each image is classified correctly at each β: bool, a row for each β, a column for each image.

    Raises DivergedError if logits are not finite.
    """
    correct = np.empty((len(betas), len(images)), dtype=np.bool_)
    for index, part, logits in predict_parts(predict, images, betas):
        correct[index, part] = logits.argmax(1) == images.labels[part]
    return correct


def predict_parts(
    predict: Predict, images: Images, betas: Sequence[float]
) -> Iterator[tuple[int, slice, NDArray[np.float32]]]:
    """Yields the logits (B, K) of one batch of images at one β, after the index of the β and the slice of the images.

    Yields the first batch at every β, then the second batch at every β, and so on. Raises DivergedError if logits are
    not finite.
    """
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        pixels = images.pixels[part]
        for index, beta in enumerate(betas):
            logits = predict(pixels, [beta] * len(pixels))
            if not np.isfinite(logits).all():
                raise DivergedError(NOT_FINITE)
            yield index, part, logits
