"""What each engine and precision costs a trained model: the table by which `tureen export` admits or refuses them.

    python -m benchmarks.precisions runs/digits
    python -m benchmarks.precisions tureen/examples/cifar10 --data cifar10   # folders train/CLASS/… and test/CLASS/…

Differences from PyTorch in fp32 on the same images: of logits, of labels, of accuracy, and of accuracy on images that
PGD-10 made adversarial for PyTorch's soup at each β. A bundle is enough, since its graph has the weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks.machine import describe_machine
from export.artefacts import Artefacts
from export.errors import ParityError
from export.graph import exportable, onnx_graph
from export.parity import ParityLimits, check_parity, measure_parity
from export.pipeline import MAX_IMAGES, attacked_reference
from export.proving import candidates
from export.quantization import calibration
from training.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint
from training.data.datasets import drawn_evenly, load_labelled
from training.models.vit import DualTokenViT
from training.recipes import load_recipe
from tureen.bundle.bundle import load_bundle
from tureen.bundle.manifest import ParityRow
from tureen.engines import compile_engine
from tureen.errors import TureenError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="run that `tureen train` left, or bundle that its recipe is known of")
    parser.add_argument("--data", help="labelled images, for a bundle")
    parser.add_argument("--images", type=int, default=MAX_IMAGES, help="to measure on (default: %(default)s)")
    options = parser.parse_args()
    if not options.model.is_dir():
        parser.error(f"there is no {options.model}: `tureen demo --no-serve` makes tureen-demo/run-…")
    print(describe_machine())
    checkpoint = load_checkpoint(options.model) if (options.model / CHECKPOINT).exists() else restored(options)
    print(f"{checkpoint.recipe.name}, {min(options.images, len(checkpoint.held_out))} images at each β\n")
    table(checkpoint, options.data)


def table(checkpoint: Checkpoint, data: str | None) -> None:
    model = exportable(checkpoint.model)
    expected = attacked_reference(checkpoint, model)
    images = calibration(checkpoint, data)
    artefacts = Artefacts(model, onnx_graph(model), expected, calibration=images, report=print)
    for engine, precision, name in candidates(has_calibration=images is not None):
        try:
            compiled = compile_engine(artefacts.get(engine, precision, name).data, engine, precision)
        except TureenError as error:
            print(f"{engine} {precision}: {error}\n")
            continue
        row = measure_parity(compiled, expected, name)
        compiled.close()
        print(lines(row), flush=True)


def lines(row: ParityRow) -> str:
    verdict = "admitted"
    try:
        check_parity(row, ParityLimits())
    except ParityError as error:
        verdict = f"refused: {error}"
    shown = [
        f"{row.engine} {row.precision}: {verdict}",
        f"  largest logit difference {row.max_abs_diff:.2g}, mean {row.mean_abs_diff:.2g}, "
        f"same label {100 * row.top1_agreement:.2f} % at the worst β",
        f"  {'β':>5}{'clean':>9}{'fp32':>8}{'points':>8}   {row.accuracy[0].attack:>6}{'fp32':>8}{'points':>8}",
    ]
    for at in row.accuracy:
        clean, robust = at.clean - at.clean_fp32, at.transferred - at.transferred_fp32
        shown.append(
            f"  {at.beta:5.2f}{100 * at.clean:9.2f}{100 * at.clean_fp32:8.2f}{100 * clean:+8.2f}   "
            f"{100 * at.transferred:6.2f}{100 * at.transferred_fp32:8.2f}{100 * robust:+8.2f}"
        )
    return "\n".join([*shown, ""])


def restored(options: argparse.Namespace) -> Checkpoint:
    """The checkpoint that a bundle was exported from, as far as its graph and manifest tell; images from --data."""
    bundle = load_bundle(options.model)
    manifest = bundle.manifest
    recipe = load_recipe(manifest.provenance["recipe"])
    model = DualTokenViT(recipe.model)
    weights = graph_weights(bundle.graph, model)
    weights |= {f"{name}_token": torch.from_numpy(vector) for name, vector in bundle.tokens.items()}
    model.load_state_dict(weights)
    held_out, _ = load_labelled(options.data, manifest.preprocess, manifest.labels, at_most=options.images, workers=2)
    return Checkpoint(
        model=model.eval().requires_grad_(False),
        held_out=drawn_evenly(held_out, options.images),
        recipe=recipe,
        labels=manifest.labels,
        preprocess=manifest.preprocess,
        accuracy=manifest.accuracy,
        provenance=manifest.provenance,
    )


def graph_weights(graph: bytes, model: DualTokenViT) -> dict[str, torch.Tensor]:
    """The model's state in a graph that torch exported: by name, but for matrices, which it transposes and numbers."""
    proto = onnx.load_from_string(graph).graph
    named = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.initializer}
    products = [node for node in proto.node if node.op_type == "MatMul" and node.input[1] in named]
    matrices: list[NDArray[np.float32]] = [named[node.input[1]].T for node in products]
    parts = ("qkv", "proj", "fc1", "fc2")
    order = [f"blocks.{i}.{part}.weight" for i in range(model.config.depth) for part in parts]
    weights = dict(zip(order, matrices, strict=True))
    for name in model.state_dict():
        if f"model.{name}" in named:
            weights[name] = named[f"model.{name}"]
    return {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}


if __name__ == "__main__":
    main()
