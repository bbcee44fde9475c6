"""Compares co-training on digits with other ways to train the same model at the same cost, under APGD.

    python -m benchmarks.digits --seeds 0 1 2

There are four models: co-training with two tokens, co-training with one token, training on clean images alone, and
training on adversarial images alone. All have the same backbone and number of steps. Prints for each seed the training
time, and the accuracy at each β with its 95 % interval. Then prints the mean over the seeds. Runs one process per CPU,
each with one thread. Takes 40 minutes on two slow cores; with `--attack autoattack` two hours.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from statistics import mean

import torch
from tqdm import tqdm

from benchmarks.machine import describe_machine
from training.attacks.catalogue import ATTACKS
from training.cotrain import Cotraining
from training.data.datasets import balanced_sample, load_digits
from training.distributed import best_device, cpus_per_process
from training.evaluation.accuracy import evaluate_accuracy
from training.recipes import load_recipe
from tureen.arguments import positive_int
from tureen.bundle.manifest import Accuracy, AccuracyRow

VARIANTS: dict[str, tuple[list[str], tuple[float, ...]]] = {
    "two tokens": ([], (0.0, 0.5, 1.0)),
    "one token": (["model.adapter=none"], (1.0,)),
    "nominal": (["alpha=1"], (0.0,)),
    "adversarial": (["alpha=0"], (1.0,)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--attack", choices=list(ATTACKS), default="apgd")
    parser.add_argument("--steps", type=positive_int, default=40, help="steps of the attack (default: %(default)s)")
    parser.add_argument("--models", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--images", type=int, default=450, help="number of test images (default: %(default)s)")
    options = parser.parse_args()
    attack = [f"evaluation_attack={options.attack}", f"evaluation_steps={options.steps}"]
    print(describe_machine(), flush=True)
    with ProcessPoolExecutor(cpus_per_process(), mp_context=get_context("spawn")) as pool:
        runs = {
            pool.submit(
                train_and_evaluate,
                [*options.settings, *changes, f"seed={seed}", *attack],
                betas,
                options.images,
            ): (name, seed)
            for name in options.models
            for changes, betas in [VARIANTS[name]]
            for seed in options.seeds
        }
        results: dict[str, list[list[AccuracyRow]]] = {name: [] for name in options.models}
        for run in tqdm(as_completed(runs), total=len(runs), unit="run", disable=None):
            (name, seed), (rows, seconds) = runs[run], run.result()
            print(f"\n{name}, seed {seed}, trained in {seconds:.0f} s, {rows[0].attack}")
            for row in rows:
                clean, robust = format_accuracy(row.clean), format_accuracy(row.robust)
                print(f"  β = {row.beta:4.2f}   clean {clean}   robust {robust}", flush=True)
            results[name].append(rows)
    for name, rows_by_seed in results.items():
        print_mean(name, rows_by_seed)


def train_and_evaluate(settings: Sequence[str], betas: Sequence[float], images: int) -> tuple[list[AccuracyRow], float]:
    """Trains a model on the digits with one thread. Returns the accuracy at each β, and the training time in seconds.

    settings: changes of the recipe `digits`, as KEY=VALUE. images: number of test images.
    """
    torch.set_num_threads(1)
    recipe = load_recipe("digits", settings)
    data = load_digits()
    training = Cotraining(recipe, data, best_device())
    while not training.is_finished:
        training.run_epoch()
    rows = evaluate_accuracy(
        training.average.eval(),
        balanced_sample(data.test, images),
        betas=betas,
        epsilon_255=recipe.epsilon_255,
        steps=recipe.evaluation_steps,
        attack=recipe.evaluation_attack,
    )
    return rows, training.seconds


def format_accuracy(accuracy: Accuracy) -> str:
    """Returns the accuracy and its interval as text, in per cent."""
    return f"{100 * accuracy.value:5.1f} % ({100 * accuracy.low:4.1f}–{100 * accuracy.high:5.1f})"


def print_mean(name: str, runs: Sequence[Sequence[AccuracyRow]]) -> None:
    """Prints the mean, the minimum and the maximum of the accuracy over the seeds, at each β.

    runs: the accuracy rows of each seed, one row for each β.
    """
    print(f"\n{name}, mean over {len(runs)} seeds (minimum–maximum), n = {runs[0][0].n} each:")
    for rows in zip(*runs, strict=True):
        clean, robust = [row.clean.value for row in rows], [row.robust.value for row in rows]
        cells = [f"{100 * mean(v):5.1f} % ({100 * min(v):.1f}–{100 * max(v):.1f})" for v in (clean, robust)]
        print(f"  β = {rows[0].beta:4.2f}   clean {cells[0]}   robust {cells[1]}", flush=True)


if __name__ == "__main__":
    main()
