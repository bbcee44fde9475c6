"""Measures whether equal steps of strength change the robust accuracy of a bundle by equal amounts.

    python -m benchmarks.dial tureen/examples/cifar10 --data cifar10

A strength is a number from 0 (clean mode) to 1 (robust mode). The curve in the bundle maps it to β. Attacks the model
at strength 0, ¼, ½, ¾ and 1 by APGD, in PyTorch with the weights of the bundle. Prints clean and robust accuracy with
95 % intervals. The robust gain is the robust accuracy at strength 1 minus the robust accuracy at strength 0. Prints the
share of the gain that each quarter of strength adds.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

from benchmarks.machine import describe_machine
from export.torch_soup import load_torch
from training.attacks.catalogue import ATTACKS
from training.evaluation.measure import Measurement, read_images
from training.recipes import load_recipe
from tureen.arguments import positive_int
from tureen.bundle.bundle import load_bundle
from tureen.commands.report import accuracy_table

QUARTERS = (0, 0.25, 0.5, 0.75, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True, metavar="DIR", help="labelled images that did not train the model")
    parser.add_argument("--images", type=positive_int, default=500, help="number of images (default: %(default)s)")
    parser.add_argument("--attack", choices=list(ATTACKS), default="apgd")
    parser.add_argument("--steps", type=positive_int, default=20, help="steps of the attack (default: %(default)s)")
    parser.add_argument("--epsilon-255", type=float, help="radius in 1/255 (default: that of the model's recipe)")
    options = parser.parse_args()
    print(describe_machine())
    manifest, soup = load_bundle(options.bundle).manifest, load_torch(options.bundle)
    epsilon_255 = options.epsilon_255
    if epsilon_255 is None:
        epsilon_255 = load_recipe(str(manifest.provenance["recipe"])).epsilon_255
    betas = [manifest.strength.beta_at(strength) for strength in QUARTERS]
    rows = Measurement(
        soup.model,
        read_images(options.data, soup.preprocess, soup.labels, at_most=options.images),
        betas,
        attack=options.attack,
        steps=options.steps,
        epsilon_255=epsilon_255,
    ).accuracy()
    print(accuracy_table(rows, images="images"))
    robust = [row.robust.value for row in rows]
    gains = [f"{100 * (after - before) / (robust[-1] - robust[0]):.0f} %" for before, after in pairwise(robust)]
    print(f"share of the robust gain of each quarter of strength: {', '.join(gains)}")


if __name__ == "__main__":
    main()
