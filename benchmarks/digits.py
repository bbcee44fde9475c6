"""Compares co-training on digits with nominal training alone (α = 1) and adversarial training alone (α = 0).

    python -m benchmarks.digits --seeds 0 1 2

All three have the same model and number of steps. Prints the training time and the accuracy by β of each seed, with its
95 % interval, and the mean over the seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import mean

from tqdm import tqdm

from benchmarks.machine import describe_machine
from training.cotrain import Cotraining
from training.data.datasets import load_digits
from training.distributed import best_device
from training.evaluation.accuracy import evaluate_accuracy
from training.recipes import load_recipe
from tureen.bundle.manifest import Accuracy, AccuracyRow

VARIANTS: dict[str, tuple[list[str], tuple[float, ...]]] = {
    "co-trained, two tokens": ([], (0.0, 0.25, 0.5, 0.75, 1.0)),
    "nominal only (α = 1)": (["alpha=1"], (0.0,)),
    "adversarial only (α = 0)": (["alpha=0"], (1.0,)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    options = parser.parse_args()
    print(describe_machine())
    for name, (changes, betas) in VARIANTS.items():
        runs = []
        for seed in options.seeds:
            rows, seconds = train_and_evaluate([*options.settings, *changes, f"seed={seed}"], betas, name)
            print(f"\n{name}, seed {seed}, trained in {seconds:.0f} s")
            for row in rows:
                clean, robust = format_accuracy(row.clean), format_accuracy(row.robust)
                print(f"  β = {row.beta:4.2f}   clean {clean}   robust {robust}", flush=True)
            runs.append(rows)
        print_mean(name, runs)


def train_and_evaluate(settings: Sequence[str], betas: Sequence[float], name: str) -> tuple[list[AccuracyRow], float]:
    """Returns the accuracy of a newly trained model at each β, and the seconds of its training."""
    recipe = load_recipe("digits", settings)
    data = load_digits()
    training = Cotraining(recipe, data, best_device())
    with tqdm(total=recipe.epochs, desc=name, unit="epoch", disable=None, leave=False) as bar:
        while not training.is_finished:
            training.run_epoch()
            bar.update()
    rows = evaluate_accuracy(
        training.average.eval(),
        data.test,
        betas=betas,
        epsilon_255=recipe.epsilon_255,
        steps=recipe.evaluation_steps,
    )
    return rows, training.seconds


def format_accuracy(accuracy: Accuracy) -> str:
    """Returns the accuracy and its interval as text, in per cent."""
    return f"{100 * accuracy.value:5.1f} % ({100 * accuracy.low:4.1f}–{100 * accuracy.high:5.1f})"


def print_mean(name: str, runs: Sequence[Sequence[AccuracyRow]]) -> None:
    """Prints the mean, the minimum and the maximum of the accuracy over the seeds, at each β."""
    print(f"\n{name}, mean over {len(runs)} seeds (minimum–maximum), n = {runs[0][0].n} each:")
    for rows in zip(*runs, strict=True):
        clean, robust = [row.clean.value for row in rows], [row.robust.value for row in rows]
        cells = [f"{100 * mean(v):5.1f} % ({100 * min(v):.1f}–{100 * max(v):.1f})" for v in (clean, robust)]
        print(f"  β = {rows[0].beta:4.2f}   clean {cells[0]}   robust {cells[1]}", flush=True)


if __name__ == "__main__":
    main()
