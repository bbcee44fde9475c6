"""Makes the gallery: ten drawings of traffic signs, each attacked in clean mode, and in both modes together.

Draws each sign again until the attack on the clean token misleads the clean mode, and counts the attacks that failed.
That attack uses a radius at which it succeeds, and at which 1/255 less would fail: a change that is hard to see. The
attack on both tokens uses the whole radius.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from training.checkpoint import Checkpoint, weights_sha256
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
from tureen.atomic_file import write_atomically
from tureen.bundle.strength_curve import StrengthCurve
from tureen.pictures.signs import SIGNS, drawn_picture
from tureen.preprocess import Pixels, pixels_from_bytes, pixels_from_image
from tureen.tokens import CLEAN_BETA, ROBUST_BETA
from tureen.version import __version__

GALLERY: Final = "gallery.json"
MODES = (CLEAN_BETA, ROBUST_BETA)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AttackedPicture(_Record):
    """A picture after an attack. All readings are those of the saved 8-bit file."""

    picture: str = Field(description="file name; its pixels are exactly those that the model sees")
    difference: str = Field(description="file name; the change of each pixel times `difference_factor`, added to grey")
    largest_change: int = Field(description="of a value of the picture, in 1/255")
    clean_is_wrong: bool
    robust_is_wrong: bool
    succeeded: bool = Field(description="each attacked mode reads the picture wrongly")
    readings: list[Reading]


class SignPair(_Record):
    """One sign: a drawing that both modes classify correctly, and the same drawing after each of two attacks.

    It is the first drawing on which the attack for the clean token succeeds, or the first of all if none does.
    """

    sign: str
    label: str
    seed: int = Field(description="of the drawing")
    drawings_tried: int = Field(description="up to the one that is shown, or all if each attack failed")
    clean_attacks: int = Field(
        description="drawings that both modes read rightly, and that were attacked for the clean token; all attacks "
        "failed, but for the last one if `clean` succeeded"
    )
    drawing: str = Field(description="file name; the server reduces it to the pixels of `view`")
    view: str = Field(description="file name; the drawing in the size that the model sees")
    readings: list[Reading]
    clean: AttackedPicture = Field(description="attacked for the clean token")
    both: AttackedPicture = Field(description="attacked for the clean and the robust token together")


class UnreadSign(_Record):
    """A sign for which no drawing was found that both modes classify correctly."""

    sign: str
    label: str
    drawings_tried: int


class GalleryCounts(_Record):
    """The numbers of signs, drawings, attacks and results."""

    signs: int
    signs_without_picture: int
    drawings_tried: int
    drawings_read_wrongly: int = Field(description="by the clean or the robust mode, without an attack")
    clean_attacks: int = Field(description="drawings that were attacked for the clean token")
    clean_attacks_failed: int = Field(description="the clean mode still reads the drawing rightly")
    both_attacks: int = Field(description="pictures that were attacked for both tokens")
    both_attacks_failed: int = Field(description="the clean or the robust mode still reads the picture rightly")
    clean_wrong_robust_right: int = Field(description="pictures, after the attack for the clean token")


class Gallery(_Record):
    """The content of gallery.json."""

    schema_version: Literal[1] = 1
    model: str
    recipe: str
    model_sha256: str = Field(description="of model.safetensors in the run")
    made_by: str
    image_size: int
    attack: str
    norm: Literal["linf"] = "linf"
    epsilon_255: float
    difference_factor: int
    strength: StrengthCurve = Field(description="map from strength to β, as measured on the images of the run")
    probabilities: Literal["softmax of the logits, not calibrated"] = "softmax of the logits, not calibrated"
    counts: GalleryCounts
    pairs: list[SignPair]
    unread: list[UnreadSign]


class _Maker:
    """Draws, attacks, reads and writes the pictures of one gallery."""

    def __init__(
        self, checkpoint: Checkpoint, out: Path, *, epsilon_255: float, steps: int, seed: int, drawings: int
    ) -> None:
        self.model = checkpoint.model
        self.labels, self.spec = checkpoint.labels, checkpoint.preprocess
        self._epsilon_255, self._steps, self._seed = epsilon_255, steps, seed
        self.factor = difference_factor(epsilon_255)
        self.predict: Predict = make_predictor(self.model)
        self.curve = checkpoint_curve(checkpoint)
        self._out, self._drawings = out, drawings

    def make(self, sign: str, label: int) -> SignPair | UnreadSign:
        """Writes the pictures of a sign, and returns its record. Tries drawings in the order of their seeds."""
        shown, attacks, is_misled = None, 0, False
        for seed in range(self._drawings):
            drawing = drawn_picture(sign, seed)
            view = pixels_from_image(drawing, self.spec)
            if any(self._is_wrong(view, label)):
                continue
            attacks += 1
            attacked = self._attack((CLEAN_BETA,), self._epsilon_255, view, label)
            is_misled = self._is_wrong(attacked, label)[0]
            if is_misled or shown is None:
                shown = seed, drawing, view, attacked
            if is_misled:
                break
        if shown is None:
            return UnreadSign(sign=sign, label=self.labels[label], drawings_tried=self._drawings)
        shown_seed, drawing, view, attacked = shown
        clean = self._smallest_attack(view, attacked, label) if is_misled else attacked
        both = self._attack(MODES, self._epsilon_255, view, label)
        return SignPair(
            sign=sign,
            label=self.labels[label],
            seed=shown_seed,
            drawings_tried=seed + 1,
            clean_attacks=attacks,
            drawing=self._write(f"{sign}.png", png_bytes(drawing)),
            view=self._write(f"{sign}-view.png", picture_bytes(view, self.spec)),
            readings=self._readings(view, label),
            clean=self._attacked(f"{sign}-clean", view, clean, label, needs_both=False),
            both=self._attacked(f"{sign}-both", view, both, label, needs_both=True),
        )

    def _smallest_attack(self, view: Pixels, attacked: Pixels, label: int) -> Pixels:
        """Returns an attacked image that misleads the clean mode, by an attack that fails with 1/255 less.

        attacked: the result of the attack with radius ε, which misleads the clean mode.
        """
        fails, succeeds = 0, math.ceil(self._epsilon_255)  # radii in 1/255; the loop halves the distance
        while succeeds - fails > 1:
            radius = (fails + succeeds) // 2
            weaker = self._attack((CLEAN_BETA,), radius, view, label)
            if self._is_wrong(weaker, label)[0]:
                attacked, succeeds = weaker, radius
            else:
                fails = radius
        return attacked

    def _attack(self, betas: Sequence[float], epsilon_255: float, view: Pixels, label: int) -> Pixels:
        return PictureAttack(self.model, betas, epsilon_255, self._steps, self._seed).run(view, label)

    def _attacked(self, name: str, view: Pixels, attacked: Pixels, label: int, *, needs_both: bool) -> AttackedPicture:
        """Writes an attacked picture and its difference to `view`. needs_both: whether both modes must be wrong."""
        picture = self._write(f"{name}.png", picture_bytes(attacked, self.spec))
        saved = pixels_from_bytes((self._out / picture).read_bytes(), self.spec)
        clean_is_wrong, robust_is_wrong = self._is_wrong(saved, label)
        difference = png_bytes(difference_image(view, saved, self.factor))
        return AttackedPicture(
            picture=picture,
            difference=self._write(f"{name}-difference.png", difference),
            largest_change=int(np.abs(saved.astype(int) - view).max()),
            clean_is_wrong=clean_is_wrong,
            robust_is_wrong=robust_is_wrong,
            succeeded=clean_is_wrong and (robust_is_wrong or not needs_both),
            readings=self._readings(saved, label),
        )

    def _is_wrong(self, pixels: Pixels, label: int) -> tuple[bool, bool]:
        """Returns two values: whether the clean mode predicts a wrong label, and whether the robust mode does."""
        clean, robust = (self.predict(np.stack([pixels] * 2), MODES).argmax(1) != label).tolist()
        return clean, robust

    def _readings(self, pixels: Pixels, label: int) -> list[Reading]:
        return read_picture(self.predict, pixels, label, labels=self.labels, curve=self.curve)

    def _write(self, name: str, data: bytes) -> str:
        write_atomically(self._out / name, data)
        return name


def make_gallery(
    checkpoint: Checkpoint, run: Path, out: Path, *, epsilon_255: float, steps: int, seed: int = 0, drawings: int = 20
) -> Gallery:
    """Writes the pictures and gallery.json into the directory `out`, and returns the content of gallery.json.

    run: the directory of the checkpoint. epsilon_255: largest radius in 1/255, 1 or more. drawings: maximum number of
    drawings to try for each sign. Shows a progress bar. Raises DataError if the model has no label for a sign.
    """
    labels = _labels_of_signs(checkpoint)
    maker = _Maker(checkpoint, out, epsilon_255=epsilon_255, steps=steps, seed=seed, drawings=drawings)
    out.mkdir(parents=True, exist_ok=True)
    made = [maker.make(sign, label) for sign, label in tqdm(labels.items(), "attack", unit="sign", disable=None)]
    pairs = [one for one in made if isinstance(one, SignPair)]
    unread = [one for one in made if isinstance(one, UnreadSign)]
    gallery = Gallery(
        model=checkpoint.name or checkpoint.recipe.name,
        recipe=checkpoint.recipe.name,
        model_sha256=weights_sha256(run),
        made_by=f"tureen {__version__}",
        image_size=checkpoint.preprocess.image_size,
        attack=PictureAttack(checkpoint.model, MODES, epsilon_255, steps).name(len(checkpoint.labels)),
        epsilon_255=epsilon_255,
        difference_factor=maker.factor,
        strength=maker.curve,
        counts=_counts(pairs, unread),
        pairs=pairs,
        unread=unread,
    )
    write_atomically(out / GALLERY, (gallery.model_dump_json(indent=2) + "\n").encode())
    return gallery


def _counts(pairs: list[SignPair], unread: list[UnreadSign]) -> GalleryCounts:
    tried = sum(pair.drawings_tried for pair in pairs) + sum(sign.drawings_tried for sign in unread)
    attacks = sum(pair.clean_attacks for pair in pairs)
    return GalleryCounts(
        signs=len(pairs) + len(unread),
        signs_without_picture=len(unread),
        drawings_tried=tried,
        drawings_read_wrongly=tried - attacks,
        clean_attacks=attacks,
        clean_attacks_failed=attacks - sum(pair.clean.succeeded for pair in pairs),
        both_attacks=len(pairs),
        both_attacks_failed=sum(not pair.both.succeeded for pair in pairs),
        clean_wrong_robust_right=sum(pair.clean.clean_is_wrong and not pair.clean.robust_is_wrong for pair in pairs),
    )


def _labels_of_signs(checkpoint: Checkpoint) -> dict[str, int]:
    """Returns the index of the label of each sign. Raises DataError with the names of all signs without a label."""
    found, missing = {}, []
    for sign in SIGNS:
        try:
            found[sign] = find_label(checkpoint.labels, sign)
        except DataError:
            missing.append(sign)
    if missing:
        raise DataError(
            f"the model has no label for {', '.join(missing)}: the gallery needs a model of traffic signs, such as "
            "that of the recipe signs"
        )
    return found
