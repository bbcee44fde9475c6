"""Figure 2 of the paper, small: ResNets co-trained with shared and with dual normalisation, accuracy over training.

    python -m benchmarks.figure2 --seeds 0 1 2 --out docs/figure2.png --json figure2.json

Trains each norm with each adapter by Eq. 1 with α = ½ on scikit-learn's digits, and measures on the way clean accuracy
in clean mode and robust accuracy in robust mode, under APGD. Draws them, prints the last values, and says for each norm
whether the paper's lesson shows: with shared normalisation co-training ends with clearly less robust accuracy. Every
curve is kept in --json when it is done, so an interrupted benchmark continues.

Source: Rebuffi, Croce & Gowal, *Revisiting adapters with adversarial training*, ICLR 2023, Figure 2: ResNet-50 on
ImageNet. Data, size, schedule and attack here are ours, chosen for one CPU core.
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
from training.atomic import replace_file
from training.data.augment import augmented
from training.data.datasets import Images, load_digits
from training.data.loading import MemoryLoader, Order
from training.evaluation.accuracy import evaluate, predictor, right_answers
from training.loss import cotraining_losses, epsilon, eq1, learning_rate
from training.models.resnet import DualResNet, ResNetConfig
from training.models.vit import images_from_pixels
from training.recipes import Recipe, load_recipe
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
CLEAR = 0.05  # of accuracy: what the means over the seeds differ by at least where a gap is called clear

SCALE = f"{SETTINGS}, width {WIDTH}, {ATTACK}-{ATTACK_STEPS}, n = {HELD_OUT}, {POINTS} points"

Curve = dict[str, list[float]]  # step, clean, robust


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("figure2.png"))
    parser.add_argument("--json", type=Path, default=Path("figure2.json"), help="keeps the curves that are done")
    options = parser.parse_args()
    print(describe_machine())
    curves: dict[str, Curve] = {}
    if options.json.exists():
        kept = json.loads(options.json.read_text())
        if kept["scale"] != SCALE:
            parser.error(f"{options.json} has curves of another scale: remove it, or choose another --json")
        curves = kept["curves"]
    wanted = [(norm, adapter, seed) for seed in options.seeds for norm, adapter in VARIANTS]
    for norm, adapter, seed in tqdm(wanted, unit="curve", disable=None):
        name = f"{norm} {adapter} {seed}"
        if name not in curves:
            curves[name] = train(norm, adapter, load_recipe("digits", [*SETTINGS, f"seed={seed}"]))
            replace_file(options.json, json.dumps({"scale": SCALE, "curves": curves}, indent=1).encode())
    by_variant = {
        (norm, adapter): [curves[f"{norm} {adapter} {seed}"] for seed in options.seeds] for norm, adapter in VARIANTS
    }
    sentences = lesson(by_variant)
    print_table(by_variant)
    print("\n".join(sentences))
    draw(by_variant, sentences, options.out)


def train(norm: str, adapter: str, recipe: Recipe) -> Curve:
    """One curve: SGD with Nesterov momentum, everything else as the recipe has it."""
    data = load_digits()
    held_out = Images(data.held_out.pixels[:HELD_OUT], data.held_out.labels[:HELD_OUT])
    torch.manual_seed(recipe.seed)
    config = ResNetConfig(depth=18, image_size=8, classes=10, stem="small", width=WIDTH, norm=norm, adapter=adapter)
    model = DualResNet(config)
    decayed = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    others = [p for p in model.parameters() if not any(p is weight for weight in decayed)]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others}]
    optimiser = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=MOMENTUM, nesterov=True)
    generator = torch.Generator().manual_seed(recipe.seed)
    order = Order(recipe, len(data.train))
    steps = recipe.epochs * order.steps_per_epoch
    curve: Curve = {"step": [], "clean": [], "robust": []}
    for step, (pixels, labels) in enumerate(MemoryLoader(data.train, torch.device("cpu")).batches(order, 0), start=1):
        model.train()
        losses = cotraining_losses(
            model,
            augmented(images_from_pixels(pixels), recipe.augmentation, generator),
            labels,
            recipe=recipe,
            epsilon=epsilon(recipe, step / steps),
            generator=generator,
        )
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, (step - 0.5) / steps)
        optimiser.zero_grad()
        eq1(*losses, recipe.alpha).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimiser.step()
        if step * POINTS // steps > (step - 1) * POINTS // steps:
            clean = right_answers(predictor(model.eval()), held_out, [CLEAN_BETA]).mean()
            (robust,) = evaluate(
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


def last(curves: list[Curve], key: str) -> list[float]:
    """The last value of each seed's curve."""
    return [curve[key][-1] for curve in curves]


def lesson(by_variant: dict[tuple[str, str], list[Curve]]) -> list[str]:
    """For each norm, whether shared ends with clearly less robust accuracy than what keeps something apart."""
    sentences = []
    for norm, adapter in VARIANTS:
        if adapter == "shared":
            continue
        shared, apart = (last(by_variant[norm, which], "robust") for which in ("shared", adapter))
        gap = mean(apart) - mean(shared)
        is_clear = gap > CLEAR and min(apart) > max(shared)
        verdict = "the paper's lesson shows" if is_clear else "the paper's lesson does not show at this scale"
        sentences.append(f"{norm}: {adapter} ends {100 * gap:+.1f} points of robust accuracy from shared; {verdict}")
    return sentences


def print_table(by_variant: dict[tuple[str, str], list[Curve]]) -> None:
    recipe = load_recipe("digits", SETTINGS)
    print(
        f"last values, mean over seeds (least–most), %; n = {HELD_OUT}, {ATTACK.upper()}-{ATTACK_STEPS}, "
        f"l∞ ε = {recipe.epsilon_255:g}/255"
    )
    for (norm, adapter), curves in by_variant.items():
        cells = [
            f"{100 * mean(values):5.1f} ({100 * min(values):.1f}–{100 * max(values):.1f})"
            for values in (last(curves, "clean"), last(curves, "robust"))
        ]
        print(f"  {norm:<6} {adapter:<12} clean at β = 0 {cells[0]}   robust at β = 1 {cells[1]}", flush=True)


def draw(by_variant: dict[tuple[str, str], list[Curve]], sentences: list[str], out: Path) -> None:
    """Shared on the left, dual on the right; clean accuracy solid, robust dashed; bands from least to most."""
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
    figure.supxlabel("\n".join(sentences), fontsize="small")
    figure.savefig(out, format="png")


if __name__ == "__main__":
    main()
