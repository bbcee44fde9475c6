"""Prints how much each engine and precision changes the results of a trained model, as `tureen export` measures it.

    python -m benchmarks.precisions runs/digits
    python -m benchmarks.precisions tureen/examples/cifar10 --data cifar10   # folders train/CLASS/… and test/CLASS/…

The table has differences from PyTorch in fp32 on the same images: of logits, labels, accuracy and transferred accuracy.
For the last, PGD-10 attacks PyTorch's model at each β. The model is a run or a bundle, whose graph has the weights.
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
from export.artefacts import BundleArtefacts
from export.errors import ParityError
from export.graph import onnx_graph, require_exportable
from export.parity import ParityLimits, check_parity, measure_parity
from export.pipeline import MAX_IMAGES, attacked_reference
from export.proving import candidate_engines
from export.quantization import calibration_source
from training.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint
from training.data.datasets import balanced_sample, load_evaluation_images
from training.models.vit import DualTokenViT
from training.recipes import load_recipe
from tureen.bundle.bundle import load_bundle
from tureen.bundle.manifest import ParityRow
from tureen.engines import compile_engine
from tureen.errors import TureenError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="output directory of `tureen train`, or a bundle with a known recipe")
    parser.add_argument("--data", help="labelled images, needed for a bundle")
    parser.add_argument("--images", type=int, default=MAX_IMAGES, help="number of images (default: %(default)s)")
    options = parser.parse_args()
    if not options.model.is_dir():
        parser.error(f"no directory {options.model}: `tureen demo --no-serve` creates tureen-demo/run-…")
    print(describe_machine())
    checkpoint = (
        load_checkpoint(options.model) if (options.model / CHECKPOINT).exists() else checkpoint_of_bundle(options)
    )
    print(f"{checkpoint.recipe.name}, {min(options.images, len(checkpoint.held_out))} images at each β\n")
    print_table(checkpoint, options.data)


def print_table(checkpoint: Checkpoint, data: str | None) -> None:
    model = require_exportable(checkpoint.model)
    expected = attacked_reference(checkpoint, model)
    images = calibration_source(checkpoint, data)
    artefacts = BundleArtefacts(model, onnx_graph(model), expected, calibration=images, report=print)
    for engine, precision, name in candidate_engines(has_calibration=images is not None):
        try:
            compiled = compile_engine(artefacts.get(engine, precision, name).data, engine, precision)
        except TureenError as error:
            print(f"{engine} {precision}: {error}\n")
            continue
        row = measure_parity(compiled, expected, name)
        compiled.close()
        print(format_row(row), flush=True)


def format_row(row: ParityRow) -> str:
    verdict = "admitted"
    try:
        check_parity(row, ParityLimits())
    except ParityError as error:
        verdict = f"refused: {error}"
    text = [
        f"{row.engine} {row.precision}: {verdict}",
        f"  largest logit difference {row.max_abs_diff:.2g}, mean {row.mean_abs_diff:.2g}, "
        f"same label {100 * row.top1_agreement:.2f} % at the worst β",
        f"  {'β':>5}{'clean':>9}{'fp32':>8}{'points':>8}   {row.accuracy[0].attack:>6}{'fp32':>8}{'points':>8}",
    ]
    for accuracy in row.accuracy:
        clean, robust = accuracy.clean - accuracy.clean_fp32, accuracy.transferred - accuracy.transferred_fp32
        text.append(
            f"  {accuracy.beta:5.2f}{100 * accuracy.clean:9.2f}{100 * accuracy.clean_fp32:8.2f}{100 * clean:+8.2f}   "
            f"{100 * accuracy.transferred:6.2f}{100 * accuracy.transferred_fp32:8.2f}{100 * robust:+8.2f}"
        )
    return "\n".join([*text, ""])


def checkpoint_of_bundle(options: argparse.Namespace) -> Checkpoint:
    """Returns a checkpoint made from the bundle `options.model`, for a parity measurement.

    The weights come from its graph and tokens; recipe, labels, preprocessing, accuracy and provenance from its
    manifest; the held-out images from --data. Raises BundleError for an invalid bundle, and RecipeError for an unknown
    recipe.
    """
    bundle = load_bundle(options.model)
    manifest = bundle.manifest
    recipe = load_recipe(manifest.provenance["recipe"])
    model = DualTokenViT(recipe.model)
    weights = model_weights(bundle.graph, model)
    weights |= {f"{name}_token": torch.from_numpy(vector) for name, vector in bundle.tokens.items()}
    model.load_state_dict(weights)
    held_out, _ = load_evaluation_images(
        options.data, manifest.preprocess, manifest.labels, at_most=options.images, workers=2
    )
    return Checkpoint(
        model=model.eval().requires_grad_(False),
        held_out=balanced_sample(held_out, options.images),
        recipe=recipe,
        labels=manifest.labels,
        preprocess=manifest.preprocess,
        accuracy=manifest.accuracy,
        provenance=manifest.provenance,
    )


def model_weights(graph: bytes, model: DualTokenViT) -> dict[str, torch.Tensor]:
    """Returns the state dict of the model, read from an ONNX graph that torch exported.

    Finds tensors by name, but matrices by their order, because torch transposes them and replaces their names.
    """
    proto = onnx.load_from_string(graph).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.initializer}
    products = [node for node in proto.node if node.op_type == "MatMul" and node.input[1] in arrays]
    matrices: list[NDArray[np.float32]] = [arrays[node.input[1]].T for node in products]
    parts = ("qkv", "proj", "fc1", "fc2")
    order = [f"blocks.{i}.{part}.weight" for i in range(model.config.depth) for part in parts]
    weights = dict(zip(order, matrices, strict=True))
    for name in model.state_dict():
        if f"model.{name}" in arrays:
            weights[name] = arrays[f"model.{name}"]
    return {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}


if __name__ == "__main__":
    main()
