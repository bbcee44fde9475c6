"""Attacks a model on all test images, in parts. An interrupted measurement continues with the same command.

    python -m benchmarks.whole_test_set signs --data gtsrb --betas 0 1 --epsilon-255 4

The model is that of a run or of a bundle. Each β is attacked in white-box mode. Prints clean and robust accuracy with
95 % intervals, of all images and of those that are not dark. An image is dark if the mean of its values is below 30 of
255. A finished part is kept in a file, by default whole-test-set.jsonl, and is not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn
from tqdm import tqdm

from benchmarks.machine import describe_machine
from export.torch_soup import load_torch
from training.attacks.catalogue import ATTACKS
from training.attacks.names import attack_label
from training.data.datasets import Images
from training.distributed import limit_threads
from training.evaluation.accuracy import AttackOutcome, attack_each_beta
from training.evaluation.measure import read_images
from tureen.arguments import positive_int, radius_argument
from tureen.commands.report import accuracy_table

DARK_BELOW = 30  # of 255, the mean of all values of an image
PART = 256  # images


class Measured(BaseModel):
    """The settings of a measurement. Parts in the file that have other settings are ignored."""

    model_config = ConfigDict(frozen=True)

    model: str  # SHA-256 of the weights
    data: str  # location and number of the images
    attack: str
    steps: int
    epsilon_255: float


class Part(BaseModel):
    """The results at one β for some consecutive images.

    first: index of the first image. clean, robust: whether each image is classified correctly without the attack, and
    also under the attack.
    """

    model_config = ConfigDict(frozen=True)

    measured: Measured
    beta: float
    first: int
    clean: list[bool]
    robust: list[bool]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a finished run, a bundle, or the name of an example")
    parser.add_argument("--data", required=True, metavar="DIR", help="labelled images that did not train the model")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--images", type=positive_int, default=10**6, help="at most so many (default: all)")
    parser.add_argument("--attack", choices=list(ATTACKS), default="apgd", help="attack (default: %(default)s)")
    parser.add_argument("--steps", type=positive_int, default=20, help="steps of the attack (default: %(default)s)")
    parser.add_argument("--epsilon-255", type=radius_argument, required=True, help="radius in 1/255")
    parser.add_argument("--parts", type=Path, default=Path("whole-test-set.jsonl"), help="file of the finished parts")
    options = parser.parse_args()
    limit_threads()
    print(describe_machine())
    soup = load_torch(options.model)
    images = read_images(options.data, soup.preprocess, soup.labels, at_most=options.images)
    measured = Measured(
        model=_sha256(soup.model),
        data=f"{options.data}, {len(images)} images",
        attack=options.attack,
        steps=options.steps,
        epsilon_255=options.epsilon_255,
    )
    outcomes = {beta: measure(soup.model, images, beta, measured, options.parts) for beta in options.betas}
    label = attack_label(measured.attack, measured.steps)
    for name, chosen in (("all images", np.ones(len(images), np.bool_)), ("without dark images", ~is_dark(images))):
        rows = [
            AttackOutcome(outcome.clean[chosen], outcome.robust[chosen]).row(beta, label, measured.epsilon_255)
            for beta, outcome in outcomes.items()
        ]
        print(f"\n{name}\n{accuracy_table(rows, images='images')}")


def is_dark(images: Images) -> NDArray[np.bool_]:
    """Returns whether each image is dark, bool (number of images,)."""
    dark: NDArray[np.bool_] = images.pixels.mean(axis=(1, 2, 3)) < DARK_BELOW
    return dark


def measure(model: nn.Module, images: Images, beta: float, measured: Measured, file: Path) -> AttackOutcome:
    """Returns whether each image is classified correctly at `beta`, without an attack and under the attack.

    model: in eval mode. images: in the order of `read_images`. file: has the finished parts; each new part is appended.
    """
    known = {part.first: part for part in _read_parts(file) if (part.measured, part.beta) == (measured, beta)}
    parts = []
    for first in tqdm(range(0, len(images), PART), desc=f"attack at β = {beta:g}", unit="part", disable=None):
        part = known.get(first)
        if part is None:
            (outcome,) = attack_each_beta(
                model,
                Images(images.pixels[first : first + PART], images.labels[first : first + PART]),
                betas=[beta],
                epsilon_255=measured.epsilon_255,
                steps=measured.steps,
                attack=measured.attack,
                seed=first,
            ).values()
            clean, robust = outcome.clean.tolist(), outcome.robust.tolist()
            part = Part(measured=measured, beta=beta, first=first, clean=clean, robust=robust)
            with file.open("a") as finished:
                finished.write(f"\n{part.model_dump_json()}\n")  # the first line break ends a line that was cut short
        parts.append(part)
    return AttackOutcome(
        np.array([one for part in parts for one in part.clean], np.bool_),
        np.array([one for part in parts for one in part.robust], np.bool_),
    )


def _sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _read_parts(file: Path) -> Iterator[Part]:
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(ValidationError):  # an empty line, or one that was cut short
            yield Part.model_validate_json(line)


if __name__ == "__main__":
    main()
