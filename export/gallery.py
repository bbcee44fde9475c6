"""Reads a gallery that `tureen gallery` wrote: pictures before and after an attack. A bundle may contain a gallery."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import ValidationError

from export.errors import ExportError
from training.checkpoint import weights_sha256
from training.evaluation.sign_gallery import GALLERY, Gallery
from tureen.bundle.gallery import BundleGallery, GalleryPicture


def read_gallery(directory: Path, run: Path) -> BundleGallery:
    """Returns the gallery that `tureen gallery` wrote to `directory`, with its pictures, the clearest drawing first.

    The clearest drawing has the largest contrast. The console shows the first picture when it is opened.

    run: the directory of the checkpoint that is exported. Raises ExportError if a file is missing or not valid, or if
    the gallery was made for another model.
    """
    file = directory / GALLERY
    remedy = f"make it with tureen gallery {run} --out {directory}"
    try:
        made = Gallery.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ExportError(f"{file} cannot be read: {remedy}") from error
    except ValidationError as error:
        raise ExportError(f"{file} is not the record of a gallery: {remedy}") from error
    if made.model_sha256 != weights_sha256(run):
        raise ExportError(f"{file} was made for another model than that of {run}: {remedy}")
    if not made.pairs:
        raise ExportError(f"{file} has no picture: the model reads none of the drawn signs rightly in both modes")

    def png(name: str) -> str:
        try:
            return base64.b64encode((directory / name).read_bytes()).decode()
        except OSError as error:
            raise ExportError(f"{directory / name} cannot be read: {remedy}") from error

    try:
        return BundleGallery(
            attack=made.attack,
            norm=made.norm,
            epsilon_255=made.epsilon_255,
            difference_factor=made.difference_factor,
            signs=made.counts.signs,
            drawings_tried=made.counts.drawings_tried,
            clean_attacks=made.counts.clean_attacks,
            clean_attacks_failed=made.counts.clean_attacks_failed,
            both_attacks_failed=made.counts.both_attacks_failed,
            clean_wrong_robust_right=made.counts.clean_wrong_robust_right,
            pictures=[
                GalleryPicture(
                    title=pair.sign,
                    label=pair.label,
                    drawn=png(pair.view),
                    clean=png(pair.clean.picture),
                    both=png(pair.both.picture),
                )
                for pair in sorted(made.pairs, key=lambda pair: _contrast(directory / pair.view), reverse=True)
            ],
        )
    except ValidationError as error:
        raise ExportError(f"a picture of {directory} is no PNG file or is too large: {remedy}") from error


def _contrast(file: Path) -> float:
    """Returns the difference of the luminances that 95 % and 5 % of the pixels of an image are below, 0 to 255.

    Returns 0 if the file is no image: then `BundleGallery` refuses it.
    """
    try:
        with Image.open(file) as image:
            low, high = np.percentile(np.asarray(image.convert("L")), [5, 95])
    except OSError:
        return 0.0
    return float(high - low)
