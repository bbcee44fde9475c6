"""Reproduces Figure 2 of the paper at small scale: ResNets co-trained with shared and with dual normalisation.

    python -m benchmarks.figure2 --seeds 0 1 2 --out docs/figure2.png --json figure2.json

Trains one model for each kind of normalisation, shared and dual, on the digits of scikit-learn. Clean and adversarial
images have equal weight in the loss (Eq. 1 with α = ½). With dual normalisation, clean and robust mode have separate
parameters; one variant of batch norm still shares the statistics. Measures accuracy during the training: clean accuracy
in clean mode, and accuracy under APGD in robust mode. Plots the curves, and prints the last values. The finding of the
paper is that a model with shared normalisation ends with clearly less robust accuracy. Prints for each kind of
normalisation whether this finding appears. An interrupted benchmark resumes from the curves in the file --json.

Source: Rebuffi, Croce & Gowal, *Revisiting adapters with adversarial training*, ICLR 2023, Figure 2: ResNet-50 on
ImageNet. Data, size, schedule and attack differ from the paper, to suit one CPU core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

import torch
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from benchmarks.machine import describe_machine
from training.data.augment import augment_images
from training.data.datasets import Images, load_digits
from training.data.loading import BatchOrder, MemoryLoader
from training.evaluation.accuracy import correct_by_beta, evaluate_accuracy, make_predictor
from training.loss import combined_loss, cotraining_losses
from training.models.resnet import DualResNet
from training.models.shapes import ResNetConfig
from training.models.vit import images_from_pixels
from training.recipes import Recipe, load_recipe
from training.schedules import scheduled_attack_steps, scheduled_epsilon, scheduled_learning_rate
from tureen.atomic_file import write_atomically
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

VARIANTS = (
    ("batch", "shared"),
    ("layer", "shared"),
    ("group", "shared"),
    ("batch", "dual"),
    ("batch", "dual_params"),
    ("layer", "dual"),
    ("group", "dual"),
)
COLOURS = {"batch": "#0072b2", "layer": "#d55e00", "group": "#009e73"}
SETTINGS = ["epochs=20", "learning_rate=0.05", "warmup=0.1", "epsilon_ramp=0.3"]
WIDTH = 8
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
POINTS = 6
ATTACK, ATTACK_STEPS = "apgd", 20
HELD_OUT = 225
CLEAR_GAP = 0.05  # a smaller difference of the mean accuracies over the seeds is not a clear gap

SCALE = f"{SETTINGS}, width {WIDTH}, {ATTACK}-{ATTACK_STEPS}, n = {HELD_OUT}, {POINTS} points"

Curve = dict[str, list[float]]  # step, clean, robust


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("figure2.png"))
    parser.add_argument(
        "--json", type=Path, default=Path("figure2.json"), help="file of the complete curves (default: %(default)s)"
    )
    options = parser.parse_args()
    print(describe_machine())
    curves: dict[str, Curve] = {}
    if options.json.exists():
        kept = json.loads(options.json.read_text())
        if kept["scale"] != SCALE:
            parser.error(f"{options.json} has curves of another scale: remove it, or pass another --json")
        curves = kept["curves"]
    runs = [(norm, adapter, seed) for seed in options.seeds for norm, adapter in VARIANTS]
    for norm, adapter, seed in tqdm(runs, unit="curve", disable=None):
        name = f"{norm} {adapter} {seed}"
        if name not in curves:
            curves[name] = train(norm, adapter, load_recipe("digits", [*SETTINGS, f"seed={seed}"]))
            write_atomically(options.json, json.dumps({"scale": SCALE, "curves": curves}, indent=1).encode())
    by_variant = {
        (norm, adapter): [curves[f"{norm} {adapter} {seed}"] for seed in options.seeds] for norm, adapter in VARIANTS
    }
    findings = compare_shared_and_dual(by_variant)
    print_table(by_variant)
    print("\n".join(findings))
    plot(by_variant, findings, options.out)


def train(norm: str, adapter: str, recipe: Recipe) -> Curve:
    """Trains a ResNet by the recipe, with SGD and Nesterov momentum in place of AdamW.

    Returns the curve of the training: step number, clean accuracy and robust accuracy at POINTS steps.
    """
    data = load_digits()
    held_out = Images(data.test.pixels[:HELD_OUT], data.test.labels[:HELD_OUT])
    torch.manual_seed(recipe.seed)
    config = ResNetConfig(depth=18, image_size=8, classes=10, stem="small", width=WIDTH, norm=norm, adapter=adapter)
    model = DualResNet(config)
    decayed = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    others = [p for p in model.parameters() if not any(p is weight for weight in decayed)]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others}]
    optimiser = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=MOMENTUM, nesterov=True)
    generator = torch.Generator().manual_seed(recipe.seed)
    order = BatchOrder(recipe, len(data.train))
    steps = recipe.epochs * order.steps_per_epoch
    curve: Curve = {"step": [], "clean": [], "robust": []}
    for step, (pixels, labels) in enumerate(MemoryLoader(data.train, torch.device("cpu")).batches(order, 0), start=1):
        model.train()
        losses = cotraining_losses(
            model,
            augment_images(images_from_pixels(pixels), recipe.augmentation, generator),
            labels,
            recipe=recipe,
            epsilon=scheduled_epsilon(recipe, step / steps),
            attack_steps=scheduled_attack_steps(recipe, step / steps),
            generator=generator,
        )
        for group in optimiser.param_groups:
            group["lr"] = scheduled_learning_rate(recipe, (step - 0.5) / steps)
        optimiser.zero_grad()
        combined_loss(*losses, recipe.alpha).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimiser.step()
        if step * POINTS // steps > (step - 1) * POINTS // steps:
            clean = correct_by_beta(make_predictor(model.eval()), held_out, [CLEAN_BETA]).mean()
            (robust,) = evaluate_accuracy(
                model,
                held_out,
                betas=[ROBUST_BETA],
                epsilon_255=recipe.epsilon_255,
                steps=ATTACK_STEPS,
                attack=ATTACK,
            )
            for key, value in (("step", step), ("clean", float(clean)), ("robust", robust.robust.value)):
                curve[key].append(value)
    return curve


def last_values(curves: list[Curve], key: str) -> list[float]:
    """Returns the last value of `key` ("clean" or "robust") in each curve. There is one curve per seed."""
    return [curve[key][-1] for curve in curves]


def compare_shared_and_dual(by_variant: dict[tuple[str, str], list[Curve]]) -> list[str]:
    """Returns a sentence for each variant with dual normalisation: whether the finding of the paper appears.

    The finding is that shared normalisation ends with clearly less robust accuracy. It appears if the means differ by
    more than CLEAR_GAP, and if every seed of the dual variant is above every seed of the shared one.
    """
    findings = []
    for norm, adapter in VARIANTS:
        if adapter == "shared":
            continue
        shared, dual = (last_values(by_variant[norm, which], "robust") for which in ("shared", adapter))
        gap = mean(dual) - mean(shared)
        is_clear = gap > CLEAR_GAP and min(dual) > max(shared)
        verdict = (
            "the finding of the paper appears" if is_clear else "the finding of the paper does not appear at this scale"
        )
        findings.append(f"{norm}: {adapter} ends {100 * gap:+.1f} points of robust accuracy from shared; {verdict}")
    return findings


def print_table(by_variant: dict[tuple[str, str], list[Curve]]) -> None:
    recipe = load_recipe("digits", SETTINGS)
    print(
        f"last values, mean over seeds (minimum–maximum), %; n = {HELD_OUT}, {ATTACK.upper()}-{ATTACK_STEPS}, "
        f"l∞ ε = {recipe.epsilon_255:g}/255"
    )
    for (norm, adapter), curves in by_variant.items():
        cells = [
            f"{100 * mean(values):5.1f} ({100 * min(values):.1f}–{100 * max(values):.1f})"
            for values in (last_values(curves, "clean"), last_values(curves, "robust"))
        ]
        print(f"  {norm:<6} {adapter:<12} clean at β = 0 {cells[0]}   robust at β = 1 {cells[1]}", flush=True)


def plot(by_variant: dict[tuple[str, str], list[Curve]], findings: list[str], out: Path) -> None:
    """Draws the curves into the PNG file `out`: shared normalisation on the left, dual on the right.

    Clean accuracy is a solid line, robust accuracy a dashed one. Bands reach from minimum to maximum over the seeds.
    """
    figure = Figure(figsize=(10, 5.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for (norm, adapter), curves in by_variant.items():
        axes = panels[0 if adapter == "shared" else 1]
        name = f"{norm} norm" + (", dual parameters only" if adapter == "dual_params" else "")
        colour = "#cc79a7" if adapter == "dual_params" else COLOURS[norm]
        for key, line in (("clean", "-"), ("robust", "--")):
            values = [[100 * value for value in at_step] for at_step in zip(*(c[key] for c in curves), strict=True)]
            steps = curves[0]["step"]
            label = name if key == "clean" else None
            axes.plot(steps, [mean(v) for v in values], line, color=colour, label=label)
            axes.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15, lw=0)
    for axes, title in zip(panels, ("shared normalisation", "dual normalisation"), strict=True):
        axes.set(title=title, xlabel="training steps", ylim=(0, 101))
        axes.grid(alpha=0.3)
        axes.legend(loc="center right")
    panels[0].set_ylabel("accuracy, %:  solid clean,  dashed robust")
    seeds = len(next(iter(by_variant.values())))
    radius = load_recipe("digits", SETTINGS).epsilon_255
    figure.suptitle(
        f"ResNet-18 of width {WIDTH}, 8 × 8 digits, seeds: {seeds}; {ATTACK.upper()}-{ATTACK_STEPS}, ε = {radius:g}/255"
    )
    figure.supxlabel("\n".join(findings), fontsize="small")
    figure.savefig(out, format="png")


if __name__ == "__main__":
    main()
