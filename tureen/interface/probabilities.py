"""Turns logits into probabilities, and into the most probable labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tureen.errors import ArgumentError
from tureen.interface.predictions import Prediction


def top_predictions(
    logits: NDArray[np.float32], labels: Sequence[str], top_k: int, temperature: float = 1.0
) -> list[Prediction]:
    """Returns the `top_k` most probable labels of one image, the most probable first.

    logits: of the image, float (K,). labels: K names. temperature: divides the logits before the softmax. Equal logits
    keep the order of the labels. A top_k above K returns all K labels. Raises ArgumentError if top_k is below 1.
    """
    if top_k < 1:
        raise ArgumentError(f"top_k is {top_k}; give 1 or more")
    row = probabilities(logits, temperature)
    best = np.argsort(-logits, kind="stable")[:top_k]
    return [Prediction(label=labels[i], index=int(i), probability=float(row[i])) for i in best]


def probabilities(logits: NDArray[np.float32], temperatures: float | NDArray[np.float64] = 1.0) -> NDArray[np.float64]:
    """Returns the softmax of logits / temperature over the K classes, float64 (…, K).

    logits: (…, K). temperatures: one number, or one for each image, (…).
    """
    differences = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(differences / np.asarray(temperatures)[..., None])
    total: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return total
