"""The gallery of a bundle: drawn pictures that its model reads rightly, each before and after two attacks.

`tureen gallery` makes the pictures, `tureen export --gallery` adds them to the bundle, and the console shows them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from tureen.bundle.files import invalid_content
from tureen.errors import BundleError

GALLERY: Final = "gallery.json"
MAX_PICTURES: Final = 100
MAX_PNG_CHARACTERS: Final = 512 * 1024  # of one picture in base64; a photograph of 384 × 384 has fewer

Png = Annotated[
    str,
    # The first characters are those of the signature of a PNG file.
    StringConstraints(pattern=r"^iVBORw0KGgo[A-Za-z0-9+/]+={0,2}$", max_length=MAX_PNG_CHARACTERS),
]
Title = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _-]{0,63}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GalleryPicture(_Record):
    """One picture in three versions. Each is a PNG in base64, in the size that the model sees."""

    title: Title = Field(description="such as stop; also a file name")
    label: Text = Field(description="the true class, a label of the bundle")
    drawn: Png = Field(description="the picture without an attack; the clean and the robust mode read it rightly")
    clean: Png = Field(description="after the attack on the clean token")
    both: Png = Field(description="after the attack on the clean and the robust token together")


class BundleGallery(_Record):
    """The content of gallery.json in a bundle. Its counts include the pictures that are not shown."""

    schema_version: Literal[1] = 1
    attack: Text = Field(description="name of the attack with its steps and runs")
    norm: Literal["linf"] = "linf"
    epsilon_255: float = Field(gt=0, le=255, description="largest change of a value, in 1/255")
    difference_factor: int = Field(ge=1, le=127, description="by how much the console multiplies the change of a value")
    signs: int = Field(ge=1, description="signs that were drawn")
    drawings_tried: int = Field(ge=1, description="a sign was drawn until an attack misled the clean mode")
    clean_attacks: int = Field(ge=1, description="drawings that both modes read rightly, and that were attacked for it")
    clean_attacks_failed: int = Field(ge=0, description="after it, the clean mode reads the drawing rightly")
    both_attacks_failed: int = Field(ge=0, description="after it, a mode reads the picture rightly")
    clean_wrong_robust_right: int = Field(ge=0, description="signs, after the attack on the clean token")
    pictures: list[GalleryPicture] = Field(min_length=1, max_length=MAX_PICTURES)


def parse_gallery(file: Path, data: bytes, labels: list[str]) -> BundleGallery:
    """Returns the gallery in the bytes of `file`. labels: those of the bundle.

    Raises BundleError if the content is not valid, or if a picture has another label.
    """
    try:
        gallery = BundleGallery.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise invalid_content(file, error) from error
    for picture in gallery.pictures:
        if picture.label not in labels:
            raise BundleError(f"{file} has a picture with the label {picture.label!r}, which the bundle does not have")
    return gallery
