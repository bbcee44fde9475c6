"""The command `tureen attack`: changes one image slightly, so that the model predicts a wrong label for it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from export.commands.parsers import attack_parser
from training.checkpoint import load_checkpoint
from training.distributed import best_device, limit_threads
from training.errors import DataError
from training.evaluation.accuracy import Predict, make_predictor
from training.evaluation.picture_attack import (
    PictureAttack,
    Reading,
    checkpoint_curve,
    difference_factor,
    difference_image,
    find_label,
    picture_bytes,
    png_bytes,
    read_picture,
)
from training.models.registry import Model
from tureen.atomic_file import write_atomically
from tureen.bundle.bundle import MANIFEST, load_bundle
from tureen.bundle.examples import DEFAULT_EXAMPLE, EXAMPLES
from tureen.bundle.strength_curve import StrengthCurve
from tureen.errors import printable
from tureen.image_sources import pixels_from_source
from tureen.preprocess import DEFAULT_LIMITS, Pixels, PreprocessSpec, pixels_from_bytes
from tureen.remote.locate import locate_bundle
from tureen.tokens import CLEAN_BETA, ROBUST_BETA

DEFAULT_EPSILON_255 = 8.0
"""The radius for a bundle that has no measured robust accuracy."""
DIFFERENCE_SIDE = 256
"""The picture of --difference is enlarged to at least this width, in pixels."""


@dataclass(frozen=True)
class AttackedModel:
    """The model to attack, from a checkpoint or from a bundle.

    epsilon_255: the radius that is used without --epsilon-255. curve: maps a strength to a β.
    """

    model: Model
    labels: list[str]
    preprocess: PreprocessSpec
    epsilon_255: float
    curve: StrengthCurve


class AttackReport(BaseModel):
    """The result of `tureen attack`, as --json prints it.

    The values after the attack are measured on the file that --out saved. Its pixels are rounded to 8 bits.
    """

    model_config = ConfigDict(frozen=True)

    label: str
    label_source: str
    attack: str
    norm: str = "linf"
    epsilon_255: float
    betas: list[float]
    largest_change: int
    right_before: list[bool]
    right_after: list[bool]
    succeeded: bool
    before: list[Reading]
    after: list[Reading]


def attack(arguments: list[str]) -> int:
    """Runs `tureen attack`: changes one image so that a soup predicts a wrong label. Returns the exit status.

    arguments: those after `tureen attack`. If the attack fails, the exit status is 0 too. Raises DataError if the model
    predicts a wrong label at all attacked β before the attack.
    """
    options = attack_parser().parse_args(arguments)
    limit_threads()
    attacked_model = load_attacked_model(options.checkpoint or options.bundle or EXAMPLES / DEFAULT_EXAMPLE)
    spec, labels, curve = attacked_model.preprocess, attacked_model.labels, attacked_model.curve
    pixels = pixels_from_source(options.image, spec, DEFAULT_LIMITS)
    label = None if options.label is None else find_label(labels, options.label)
    radius = attacked_model.epsilon_255 if options.epsilon_255 is None else options.epsilon_255
    model = attacked_model.model.to(best_device())
    predict = make_predictor(model)
    if label is None:
        label = int(predict(pixels[None], [CLEAN_BETA])[0].argmax())
    betas = _betas(options, curve)
    picture_attack = PictureAttack(model, betas, radius, options.steps, options.seed)
    right_before = _is_right(predict, pixels, label, betas)
    before = read_picture(predict, pixels, label, labels=labels, curve=curve)
    if not any(right_before):
        raise DataError(
            f"{printable(options.image.name)} is not {labels[label]} for β = {_list(betas)} even before the attack: "
            "give its class with --label, or another image"
        )
    with tqdm(total=picture_attack.total_passes(len(labels)), desc="attack", unit="pass", disable=None) as bar:
        attacked = picture_attack.run(pixels, label, lambda: bar.update() and None)
    _write(options.out, picture_bytes(attacked, spec))
    saved = pixels_from_bytes(options.out.read_bytes(), spec)
    right_after = _is_right(predict, saved, label, betas)
    report = AttackReport(
        label=labels[label],
        label_source="clean mode" if options.label is None else "--label",
        attack=picture_attack.name(len(labels)),
        epsilon_255=radius,
        betas=betas,
        largest_change=int(np.abs(saved.astype(int) - pixels).max()),
        right_before=right_before,
        right_after=right_after,
        succeeded=not any(right_after),
        before=before,
        after=read_picture(predict, saved, label, labels=labels, curve=curve),
    )
    factor = difference_factor(radius)
    if options.difference is not None:
        _write(options.difference, png_bytes(_enlarged(difference_image(pixels, saved, factor))))
    if options.json:
        print(report.model_dump_json(indent=2))
        return 0
    print(report_text(report, image=options.image.name, out=options.out))
    if options.difference is not None:
        print(f"{options.difference}: the difference × {factor}, added to grey")
    return 0


def load_attacked_model(path: Path) -> AttackedModel:
    """Returns the model of a checkpoint or a bundle. path: its directory, or the name of an example bundle.

    Rebuilds the model of a bundle in PyTorch. Raises CheckpointError or BundleError if there is neither at `path`, or
    if its files are damaged. Raises ExportError if the model of a bundle cannot be rebuilt.
    """
    path = locate_bundle(path, must_exist=False)
    if not (path / MANIFEST).exists():
        checkpoint = load_checkpoint(path)
        curve, radius = checkpoint_curve(checkpoint), checkpoint.recipe.epsilon_255
        return AttackedModel(checkpoint.model, checkpoint.labels, checkpoint.preprocess, radius, curve)
    from export.torch_soup import model_of_bundle  # needs onnx, which a checkpoint does not need

    bundle = load_bundle(path)
    manifest = bundle.manifest
    radius = manifest.accuracy[0].epsilon_255 if manifest.accuracy else DEFAULT_EPSILON_255
    model = model_of_bundle(bundle)
    return AttackedModel(model, manifest.labels, manifest.preprocess, radius, manifest.strength)


def report_text(report: AttackReport, *, image: str, out: Path) -> str:
    """Returns the report as text for a terminal. image: name of the original file. out: path of the attacked image."""
    source = "as clean mode reads it" if report.label_source == "clean mode" else "as --label says"
    return "\n".join(
        [
            f"{printable(image)}: {report.label}, {source}",
            f"attack: {report.attack}, l∞, ε = {report.epsilon_255:g}/255, for β = {_list(report.betas)}",
            "",
            readings_table(report.before, report.after),
            "",
            f"{out}: no value changed by more than {report.largest_change} of 255",
            f"{_verdict(report)} The readings are those of the saved 8-bit file.",
            "One image is no measurement of robustness: `tureen evaluate` measures it.",
        ]
    )


def readings_table(before: Sequence[Reading], after: Sequence[Reading]) -> str:
    """Returns a table of the most probable label at each strength, before and after the attack.

    before, after: the readings of the image at the same strengths, in the same order.
    """
    width = max(len("before"), *(len(reading.label) for reading in before))
    lines = [f"strength      β  {'before':<{width + 8}}  after"]
    for first, second in zip(before, after, strict=True):
        mark = "" if first.label == second.label else "  changed"
        lines.append(
            f"{first.strength:8.2f}  {first.beta:5.3f}  {first.label:<{width}} {100 * first.probability:5.1f} %  "
            f"{second.label} {100 * second.probability:.1f} %{mark}"
        )
    return "\n".join(lines)


def _betas(options: argparse.Namespace, curve: StrengthCurve) -> list[float]:
    """Returns the β to attack: 0 and 1 with --joint, one β with --beta or --strength, and 0 without these options.

    curve: maps a strength to a β.
    """
    if options.joint:
        return [CLEAN_BETA, ROBUST_BETA]
    if options.strength is not None:
        return [curve.beta_at(options.strength.value)]
    return [CLEAN_BETA if options.beta is None else options.beta]


def _verdict(report: AttackReport) -> str:
    right = [beta for beta, is_right in zip(report.betas, report.right_after, strict=True) if is_right]
    if right:
        return f"The attack failed: the image is still read rightly at β = {_list(right)}."
    return f"The attack succeeded: the image is read wrongly at β = {_list(report.betas)}."


def _is_right(predict: Predict, pixels: Pixels, label: int, betas: Sequence[float]) -> list[bool]:
    """Returns for each β in `betas` whether the model predicts `label`."""
    right: list[bool] = (predict(np.stack([pixels] * len(betas)), betas).argmax(1) == label).tolist()
    return right


def _enlarged(image: Image.Image) -> Image.Image:
    scale = -(-DIFFERENCE_SIDE // image.width)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)


def _list(betas: Sequence[float]) -> str:
    return " and ".join(f"{beta:g}" for beta in betas)
