"""Prints how much each engine and precision changes the results of a trained model.

    python -m benchmarks.precisions runs/digits
    python -m benchmarks.precisions tureen/examples/cifar10 --data cifar10   # folders train/CLASS/… and test/CLASS/…

Measures parity as `tureen export` does, and prints whether export would admit the engine to a bundle. Compares logits,
labels and accuracy with those of PyTorch in fp32 on the same images. Transferred accuracy is the accuracy on
adversarial images that an attack on the PyTorch model generates. The argument is the output directory of
`tureen train`, or a bundle.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.machine import describe_machine
from export.artefacts import BundleArtefacts
from export.errors import ParityError
from export.graph import onnx_graph, require_exportable
from export.parity import MAX_IMAGES, ParityLimits, check_parity, measure_parity
from export.pipeline import attacked_reference
from export.proving import candidate_engines
from export.quantization import calibration_source
from export.torch_soup import model_of_bundle
from training.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint
from training.data.datasets import balanced_sample, load_evaluation_images
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
        parser.error(f"no directory {options.model}: `tureen demo --train digits --no-serve` creates tureen-demo/run-…")
    print(describe_machine())
    checkpoint = (
        load_checkpoint(options.model) if (options.model / CHECKPOINT).exists() else checkpoint_of_bundle(options)
    )
    print(f"{checkpoint.recipe.name}, {min(options.images, len(checkpoint.test))} images at each β\n")
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
    """Returns a checkpoint with the model of the bundle `options.model`.

    The weights come from the graph and the tokens of the bundle. Recipe, labels, preprocessing, accuracy and provenance
    come from the manifest, and the held-out images from --data. Raises BundleError for an invalid bundle. Raises
    ExportError if the model is not a ViT of `tureen train`.
    """
    bundle = load_bundle(options.model)
    manifest = bundle.manifest
    held_out, _ = load_evaluation_images(
        options.data, manifest.preprocess, manifest.labels, at_most=options.images, workers=2
    )
    return Checkpoint(
        model=model_of_bundle(bundle),
        test=balanced_sample(held_out, options.images),
        recipe=load_recipe(manifest.provenance["recipe"]),
        labels=manifest.labels,
        preprocess=manifest.preprocess,
        accuracy=manifest.accuracy,
        provenance=manifest.provenance,
    )


if __name__ == "__main__":
    main()
