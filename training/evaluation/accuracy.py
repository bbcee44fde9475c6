"""Clean and robust accuracy of a dual-token model at each β, every soup attacked itself; and of the modes' ensembles.

Robust accuracy here is empirical: an upper bound on what a better attack would leave, for one norm and one radius.
Whether the attack deserves belief is asked in `training.evaluation.attack_checks` and `training.evaluation.transfer`.
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

from training.attacks.catalogue import attack_label, find_attack
from training.attacks.gradient import Forward
from training.data.datasets import Images
from training.errors import DivergedError, RecipeError
from training.models.vit import images_from_pixels
from tureen.bundle.manifest import Accuracy, AccuracyRow
from tureen.preprocess import Pixels
from tureen.tokens import CLEAN_BETA, ROBUST_BETA, mix

BATCH = 256
NO_NUMBERS = "the model's logits are no numbers: it diverged in training, or its weights are damaged"
HALF_255 = 127.5
"""The radius from which everything may become mid-grey: no classifier stands it."""

Predict = Callable[[Pixels, Sequence[float]], NDArray[np.float32]]
"""Logits (B, K) of pixels uint8 (B, H, W, 3), image b at betas[b]; `tureen.Soup.logits` is one."""


def wilson(correct: int, n: int) -> Accuracy:
    """Return the share correct / n with its 95 % Wilson score interval (JASA 1927), all in [0, 1]."""
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return Accuracy(value=correct / n, low=interval.low, high=interval.high)


def sign_test(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return the one-sided p-value of the exact sign test: `first` is right on more images than `second` by chance.

    first, second: bool (n,), on the same images. The test counts the images on which the two differ (McNemar,
    Psychometrika 1947, without its approximation); the result is 1 if they differ on none.
    """
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    return float(binomtest(gained, gained + lost, alternative="greater").pvalue) if gained + lost else 1.0


def at_beta(model: nn.Module, beta: float) -> Forward:
    """The soup at β alone: images (B, 3, H, W) to logits (B, K)."""
    return lambda x: model(x, x.new_full((len(x),), beta))


def ensemble_at(model: nn.Module, beta: float) -> Forward:
    """Both modes' probabilities, mixed by β: images to the logarithm of (1 − β)·p_clean + β·p_robust, (B, K).

    Logarithms, so that an attack on these as logits follows the ensemble's own cross-entropy. Raises RecipeError for a
    β beyond [0, 1], where the mixture is no probability.
    """
    if not CLEAN_BETA <= beta <= ROBUST_BETA:
        raise RecipeError(f"an ensemble mixes probabilities, so its β lies in [0, 1], not at {beta:g}")

    def forward(x: Tensor) -> Tensor:
        weights = mix(x.new_tensor([1.0, 0.0]), x.new_tensor([0.0, 1.0]), beta)
        modes = [F.log_softmax(at_beta(model, mode)(x).float(), dim=1) for mode in (CLEAN_BETA, ROBUST_BETA)]
        return torch.logsumexp(torch.stack(modes) + weights.log()[:, None, None], dim=0)

    return forward


def evaluate(
    model: nn.Module,
    images: Images,
    *,
    betas: Sequence[float],
    epsilon_255: float,
    steps: int,
    attack: str = "pgd",
    seed: int = 0,
    forward_at: Callable[[nn.Module, float], Forward] = at_beta,
    on_batch: Callable[[], None] = lambda: None,
) -> list[AccuracyRow]:
    """One row a β: accuracy on the images, and under the attack on the very soup evaluated.

    model: images and β (B,) to logits (B, K), in eval mode. betas: any numbers; beyond [0, 1] the tokens are
    extrapolated. attack: a name in training.attacks.gradient. forward_at: what is evaluated at a β, the soup or
    `ensemble_at`.
    White-box: the attack follows the gradient of just that. An image counts as robust only if it is right without the
    attack too. Raises RecipeError for an unknown attack, ZeroGradientError where a whole batch gives the attack nothing
    to follow.
    """
    rows = []
    for beta in betas:
        outcome = attacked(
            forward_at(model, beta),
            images,
            device=device_of(model),
            attack=attack,
            epsilon_255=epsilon_255,
            steps=steps,
            seed=seed,
            on_batch=on_batch,
        )
        rows.append(outcome.row(beta, attack_label(attack, steps), epsilon_255))
    return rows


def epsilon_curve(
    model: nn.Module,
    images: Images,
    *,
    betas: Sequence[float],
    radii_255: Sequence[float],
    steps: int,
    attack: str = "pgd",
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> list[AccuracyRow]:
    """The rows of `evaluate` at each radius in turn, ascending, as far as the first that leaves nothing at any β."""
    rows: list[AccuracyRow] = []
    for radius in sorted(radii_255):
        at_radius = evaluate(
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
    """Radii for `epsilon_curve`: 0, ½, 1, 2, 4 and 8 times that one, as far as they are below a half of the range;
    and that half."""
    radii = {multiple * epsilon_255 for multiple in (0, 0.5, 1, 2, 4, 8)}
    return [*sorted(radius for radius in radii if radius < HALF_255), HALF_255]


@dataclass(frozen=True)
class Outcome:
    """Which of n images are right, bool (n,): without an attack; and both without and under it."""

    clean: NDArray[np.bool_]
    robust: NDArray[np.bool_]

    def row(self, beta: float, attack: str, epsilon_255: float) -> AccuracyRow:
        n = len(self.clean)
        return AccuracyRow(
            beta=beta,
            n=n,
            clean=wilson(int(self.clean.sum()), n),
            robust=wilson(int(self.robust.sum()), n),
            attack=attack,
            epsilon_255=epsilon_255,
        )


def attacked(
    forward: Forward,
    images: Images,
    *,
    device: torch.device,
    attack: str,
    epsilon_255: float,
    steps: int,
    seed: int,
    on_batch: Callable[[], None] = lambda: None,
) -> Outcome:
    """What a white-box attack on `forward`, images (B, 3, H, W) to logits (B, K), leaves of the images."""
    find_adversarial = find_attack(attack)
    generator = torch.Generator(device).manual_seed(seed)
    clean, robust = [], []
    for x, labels in batches(images, device):
        is_right = right(forward, x, labels)
        adversarial = x
        if epsilon_255:
            adversarial = find_adversarial(
                forward, x, labels, epsilon=epsilon_255 / 255, steps=steps, generator=generator
            )
        clean.append(is_right)
        robust.append(is_right & right(forward, adversarial, labels))
        on_batch()
    return Outcome(np.concatenate(clean), np.concatenate(robust))


def batches(images: Images, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The images, float32 (B, 3, H, W) in [0, 1], and their labels, int64 (B,), in order."""
    for start in range(0, len(images), BATCH):
        pixels = torch.from_numpy(images.pixels[start : start + BATCH]).to(device)
        yield images_from_pixels(pixels), torch.from_numpy(images.labels[start : start + BATCH]).to(device)


@torch.no_grad()
def right(forward: Forward, x: Tensor, labels: Tensor) -> NDArray[np.bool_]:
    """Which images get their label, bool (B,)."""
    logits = forward(x)
    if not logits.isfinite().all():
        raise DivergedError(NO_NUMBERS)
    is_right: NDArray[np.bool_] = (logits.argmax(1) == labels).cpu().numpy()
    return is_right


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are."""
    return next(model.parameters()).device


def predictor(model: nn.Module) -> Predict:
    """The model as a function of pixels and β, NumPy in and out."""
    device = device_of(model)

    @torch.no_grad()
    def predict(pixels: Pixels, betas: Sequence[float]) -> NDArray[np.float32]:
        x = images_from_pixels(torch.from_numpy(pixels).to(device))
        logits: NDArray[np.float32] = model(x, x.new_tensor(betas)).float().cpu().numpy()
        return logits

    return predict


def right_answers(predict: Predict, images: Images, betas: Sequence[float]) -> NDArray[np.bool_]:
    """Which images get their label at which β, bool (T, n)."""
    answers = np.empty((len(betas), len(images)), dtype=np.bool_)
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        for index, beta in enumerate(betas):
            logits = predict(images.pixels[part], [beta] * len(images.labels[part]))
            if not np.isfinite(logits).all():
                raise DivergedError(NO_NUMBERS)
            answers[index, part] = logits.argmax(1) == images.labels[part]
    return answers
