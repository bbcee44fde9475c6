"""Clean and robust accuracy of a dual-token model at each β, with an attack on each soup; also of ensembles.

Robust accuracy is empirical: an upper bound on the accuracy under a better attack, for one norm and one radius.
`training.evaluation.attack_checks` and `training.evaluation.transfer` check that the attack is strong enough.
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
NOT_FINITE = "the logits of the model are not finite: it diverged in training, or its weights are damaged"
MID_GREY_RADIUS_255 = 127.5
"""With this radius every image can become mid-grey, so no classifier is robust."""

Predict = Callable[[Pixels, Sequence[float]], NDArray[np.float32]]
"""Logits (B, K) of pixels uint8 (B, H, W, 3), image b at betas[b]; for example `tureen.Soup.logits`."""


def wilson_interval(correct: int, n: int) -> Accuracy:
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


def forward_at_beta(model: nn.Module, beta: float) -> Forward:
    """Return the soup at β as a function of images (B, 3, H, W) to logits (B, K)."""
    return lambda x: model(x, x.new_full((len(x),), beta))


def ensemble_forward(model: nn.Module, beta: float) -> Forward:
    """Return the ensemble of both modes as a function: images to log((1 − β)·p_clean + β·p_robust), (B, K).

    The result is logarithms, so that an attack on them as logits uses the cross-entropy of the ensemble. Raises
    RecipeError for a β outside [0, 1], where the mix is not a probability.
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
    attack: str = "pgd",
    seed: int = 0,
    forward_at: Callable[[nn.Module, float], Forward] = forward_at_beta,
    on_batch: Callable[[], None] = lambda: None,
) -> list[AccuracyRow]:
    """Return one row for each β: accuracy on the images, and under a white-box attack on the same soup.

    model: images and β (B,) to logits (B, K), in eval mode. betas: any numbers; outside [0, 1] the tokens are
    extrapolated. attack: a name in training.attacks.catalogue. forward_at: the function that is evaluated and attacked
    at a β: `forward_at_beta` or `ensemble_forward`.
    An image counts as robust only if it is classified right without the attack too. Raises RecipeError for an unknown
    attack, ZeroGradientError if a whole batch has no gradient.
    """
    rows = []
    for beta in betas:
        outcome = run_attack(
            forward_at(model, beta),
            images,
            device=model_device(model),
            attack=attack,
            epsilon_255=epsilon_255,
            steps=steps,
            seed=seed,
            on_batch=on_batch,
        )
        rows.append(outcome.row(beta, attack_label(attack, steps), epsilon_255))
    return rows


def evaluate_epsilon_curve(
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
    """Return the rows of `evaluate_accuracy` by ascending radius; ends at the first with 0 % robust at every β."""
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
    """Return radii in 1/255 for `evaluate_epsilon_curve`: 0, ½, 1, 2, 4 and 8 times `epsilon_255`, and 127.5.

    Multiples above 127.5, half of the pixel range, are left out.
    """
    radii = {multiple * epsilon_255 for multiple in (0, 0.5, 1, 2, 4, 8)}
    return [*sorted(radius for radius in radii if radius < MID_GREY_RADIUS_255), MID_GREY_RADIUS_255]


@dataclass(frozen=True)
class AttackOutcome:
    """Which of n images are classified right, bool (n,). clean: without attack. robust: without and under attack."""

    clean: NDArray[np.bool_]
    robust: NDArray[np.bool_]

    def row(self, beta: float, attack: str, epsilon_255: float) -> AccuracyRow:
        """Return the accuracies with their intervals; `attack` is the label of the attack."""
        n = len(self.clean)
        return AccuracyRow(
            beta=beta,
            n=n,
            clean=wilson_interval(int(self.clean.sum()), n),
            robust=wilson_interval(int(self.robust.sum()), n),
            attack=attack,
            epsilon_255=epsilon_255,
        )


def run_attack(
    forward: Forward,
    images: Images,
    *,
    device: torch.device,
    attack: str,
    epsilon_255: float,
    steps: int,
    seed: int,
    on_batch: Callable[[], None] = lambda: None,
) -> AttackOutcome:
    """Attack `forward`, images (B, 3, H, W) to logits (B, K), on all images; returns which are classified right."""
    find_adversarial = find_attack(attack)
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
    """Yield the images in order, float32 (B, 3, H, W) in [0, 1], and their labels, int64 (B,)."""
    for start in range(0, len(images), BATCH):
        pixels = torch.from_numpy(images.pixels[start : start + BATCH]).to(device)
        yield images_from_pixels(pixels), torch.from_numpy(images.labels[start : start + BATCH]).to(device)


@torch.no_grad()
def is_correct(forward: Forward, x: Tensor, labels: Tensor) -> NDArray[np.bool_]:
    """Return which images get their label, bool (B,); raises DivergedError for logits that are not finite."""
    logits = forward(x)
    if not logits.isfinite().all():
        raise DivergedError(NOT_FINITE)
    result: NDArray[np.bool_] = (logits.argmax(1) == labels).cpu().numpy()
    return result


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the weights."""
    return next(model.parameters()).device


def make_predictor(model: nn.Module) -> Predict:
    """Return the model as a function of pixels and β with NumPy arrays."""
    device = model_device(model)

    @torch.no_grad()
    def predict(pixels: Pixels, betas: Sequence[float]) -> NDArray[np.float32]:
        x = images_from_pixels(torch.from_numpy(pixels).to(device))
        logits: NDArray[np.float32] = model(x, x.new_tensor(betas)).float().cpu().numpy()
        return logits

    return predict


def correct_by_beta(predict: Predict, images: Images, betas: Sequence[float]) -> NDArray[np.bool_]:
    """Return which of n images get their label at each of T β, bool (T, n); raises DivergedError."""
    correct = np.empty((len(betas), len(images)), dtype=np.bool_)
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        for index, beta in enumerate(betas):
            logits = predict(images.pixels[part], [beta] * len(images.labels[part]))
            if not np.isfinite(logits).all():
                raise DivergedError(NOT_FINITE)
            correct[index, part] = logits.argmax(1) == images.labels[part]
    return correct
