"""Makes the gallery: ten drawings of traffic signs, each attacked in clean mode, and in both modes together.

For each sign, attacks the first drawing that both modes classify correctly. The result of an attack selects nothing:
the drawing stays in the gallery if the attack fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import Image
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
from tureen.bundle.manifest import StrengthCurve
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
    """One sign: a drawing that both modes classify correctly, and the same drawing after each of two attacks."""

    sign: str
    label: str
    seed: int = Field(description="of the drawing")
    drawings_tried: int = Field(description="up to this one; both modes read only the last of them rightly")
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
    """The numbers of signs, drawings, attacks and results. Each sign with a `SignPair` is attacked twice."""

    signs: int
    drawings_tried: int
    drawings_read_wrongly: int = Field(description="by the clean or the robust mode, without an attack")
    signs_without_picture: int
    attacks: int
    clean_attacks_failed: int = Field(description="the clean mode still reads the picture rightly")
    both_attacks_failed: int = Field(description="the clean or the robust mode still reads the picture rightly")
    clean_wrong_robust_right: int = Field(description="signs, after the attack for the clean token")


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
        model = checkpoint.model
        self.labels, self.spec = checkpoint.labels, checkpoint.preprocess
        self.attacks = [PictureAttack(model, betas, epsilon_255, steps, seed) for betas in ((CLEAN_BETA,), MODES)]
        self.factor = difference_factor(epsilon_255)
        self.predict: Predict = make_predictor(model)
        self.curve = checkpoint_curve(checkpoint)
        self._out, self._drawings = out, drawings

    def make(self, sign: str, label: int, on_pass: Callable[[], None]) -> SignPair | UnreadSign:
        """Writes the pictures of a sign, and returns its record. Tries drawings in the order of their seeds."""
        for seed in range(self._drawings):
            drawing = drawn_picture(sign, seed)
            view = pixels_from_image(drawing, self.spec)
            if not any(self._is_wrong(view, label)):
                return self._pair(sign, label, seed, drawing, view, on_pass)
        return UnreadSign(sign=sign, label=self.labels[label], drawings_tried=self._drawings)

    def _pair(
        self, sign: str, label: int, seed: int, drawing: Image.Image, view: Pixels, on_pass: Callable[[], None]
    ) -> SignPair:
        clean, both = (
            self._attacked(attack, f"{sign}-{name}", view, label, on_pass)
            for attack, name in zip(self.attacks, ("clean", "both"), strict=True)
        )
        return SignPair(
            sign=sign,
            label=self.labels[label],
            seed=seed,
            drawings_tried=seed + 1,
            drawing=self._write(f"{sign}.png", png_bytes(drawing)),
            view=self._write(f"{sign}-view.png", picture_bytes(view, self.spec)),
            readings=self._readings(view, label),
            clean=clean,
            both=both,
        )

    def _attacked(
        self, attack: PictureAttack, name: str, view: Pixels, label: int, on_pass: Callable[[], None]
    ) -> AttackedPicture:
        picture = self._write(f"{name}.png", picture_bytes(attack.run(view, label, on_pass), self.spec))
        saved = pixels_from_bytes((self._out / picture).read_bytes(), self.spec)
        difference = png_bytes(difference_image(view, saved, self.factor))
        clean_is_wrong, robust_is_wrong = self._is_wrong(saved, label)
        return AttackedPicture(
            picture=picture,
            difference=self._write(f"{name}-difference.png", difference),
            largest_change=int(np.abs(saved.astype(int) - view).max()),
            clean_is_wrong=clean_is_wrong,
            robust_is_wrong=robust_is_wrong,
            succeeded=clean_is_wrong and (robust_is_wrong or ROBUST_BETA not in attack.betas),
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

    run: the directory of the checkpoint. epsilon_255: radius in 1/255, 1 or more. drawings: maximum number of drawings
    to try for each sign. Shows progress bars. Raises DataError if the model has no label for a sign.
    """
    labels = _labels_of_signs(checkpoint)
    maker = _Maker(checkpoint, out, epsilon_255=epsilon_255, steps=steps, seed=seed, drawings=drawings)
    out.mkdir(parents=True, exist_ok=True)
    classes = len(checkpoint.labels)
    total = len(SIGNS) * sum(attack.total_passes(classes) for attack in maker.attacks)
    with tqdm(total=total, desc="attack the signs", unit="pass", disable=None) as bar:
        made = [maker.make(sign, label, lambda: bar.update() and None) for sign, label in labels.items()]
    pairs = [one for one in made if isinstance(one, SignPair)]
    unread = [one for one in made if isinstance(one, UnreadSign)]
    gallery = Gallery(
        model=checkpoint.name or checkpoint.recipe.name,
        recipe=checkpoint.recipe.name,
        model_sha256=weights_sha256(run),
        made_by=f"tureen {__version__}",
        image_size=checkpoint.preprocess.image_size,
        attack=maker.attacks[0].name(classes),
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
    return GalleryCounts(
        signs=len(pairs) + len(unread),
        drawings_tried=tried,
        drawings_read_wrongly=tried - len(pairs),
        signs_without_picture=len(unread),
        attacks=2 * len(pairs),
        clean_attacks_failed=sum(not pair.clean.succeeded for pair in pairs),
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
