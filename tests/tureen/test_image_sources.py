import gzip
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tureen.errors import (
    ArgumentTypeError,
    EmptyImageError,
    ImageTooLargeError,
    InvalidPixelsError,
    UnreadableImageError,
    UnsupportedImageTypeError,
)
from tureen.image_sources import is_one_image, pixels_from_source
from tureen.preprocess import DEFAULT_LIMITS, ImageLimits, PreprocessSpec

SPEC = PreprocessSpec(image_size=16)


class Trickle:
    """A file that gives a byte at a time, as a socket may, and counts them."""

    def __init__(self, data: bytes) -> None:
        self._data, self.given = data, 0

    def read(self, size: int, /) -> bytes:
        part = self._data[self.given : self.given + min(size, 1)]
        self.given += len(part)
        return part


@pytest.fixture(scope="module")
def file(encode, photograph, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("images") / "photograph.png"
    path.write_bytes(encode(photograph))
    return path


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(lambda file: file, id="Path"),
        pytest.param(str, id="str"),
        pytest.param(lambda file: np.str_(file), id="NumPy's str"),
        pytest.param(Path.read_bytes, id="bytes"),
        pytest.param(lambda file: bytearray(file.read_bytes()), id="bytearray"),
        pytest.param(lambda file: memoryview(file.read_bytes()), id="memoryview"),
        pytest.param(lambda file: io.BytesIO(file.read_bytes()), id="BytesIO"),
        pytest.param(lambda file: Trickle(file.read_bytes()), id="a file that gives a byte at a time"),
        pytest.param(Image.open, id="Pillow image"),
        pytest.param(lambda file: np.array(Image.open(file)), id="array"),
        pytest.param(lambda file: np.asfortranarray(Image.open(file)), id="array in another order"),
    ],
)
def test_every_kind_of_source_gives_the_same_pixels(file, photograph, source):
    expected = pixels_from_source(photograph, SPEC, DEFAULT_LIMITS)
    np.testing.assert_array_equal(pixels_from_source(source(file), SPEC, DEFAULT_LIMITS), expected)


def test_an_open_file_is_read_and_left_open(file):
    with file.open("rb") as opened:
        pixels_from_source(opened, SPEC, DEFAULT_LIMITS)
        assert not opened.closed
        with pytest.raises(EmptyImageError):  # it stands at its end
            pixels_from_source(opened, SPEC, DEFAULT_LIMITS)


def test_at_most_one_byte_over_the_limit_is_read(file):
    trickle = Trickle(file.read_bytes())
    with pytest.raises(ImageTooLargeError):
        pixels_from_source(trickle, SPEC, ImageLimits(max_image_bytes=100))
    assert trickle.given == 101
    with pytest.raises(ImageTooLargeError):
        pixels_from_source("/dev/zero", SPEC, DEFAULT_LIMITS)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing.png", "missing.png cannot be read: No such file or directory"),
        (os.curdir, "cannot be read: Is a directory"),
        ("null\0character", "cannot be read: a path cannot contain a null character"),
        ("iVBORw0KGgo" * 1000, r"^iVBORw0KGgo.{186}\.\.\. cannot be read: File name too long$"),
    ],
)
def test_a_path_that_cannot_be_read_is_named_with_the_reason(path, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        pixels_from_source(path, SPEC, DEFAULT_LIMITS)


def test_an_unreadable_file_names_the_cause_to_check(file):
    with file.open("rb") as closed:
        pass
    with pytest.raises(UnreadableImageError, match="the file cannot be read: it is closed"):
        pixels_from_source(closed, SPEC, DEFAULT_LIMITS)
    with file.open("ab") as appended, pytest.raises(UnreadableImageError, match="not open for reading"):
        pixels_from_source(appended, SPEC, DEFAULT_LIMITS)


def test_a_file_in_text_mode_is_refused_with_the_mode_to_give(tmp_path):
    (tmp_path / "text").write_text("text")
    with (tmp_path / "text").open() as text, pytest.raises(ArgumentTypeError, match="binary mode, 'rb'"):
        pixels_from_source(text, SPEC, DEFAULT_LIMITS)


def test_a_picture_opened_as_text_is_refused_with_the_mode_to_give(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with (tmp_path / "a.png").open() as text, pytest.raises(ArgumentTypeError, match="binary mode, 'rb'"):
        pixels_from_source(text, SPEC, DEFAULT_LIMITS)


def test_a_file_whose_reading_fails_in_any_way_is_an_image_that_cannot_be_read():
    encoded = io.BytesIO(gzip.compress(b"x" * 10_000)[:-20])
    with gzip.open(encoded) as cut, pytest.raises(UnreadableImageError, match="cut short or damaged"):
        pixels_from_source(cut, SPEC, DEFAULT_LIMITS)
    with zipfile.ZipFile(whole := io.BytesIO(), "w") as written:
        written.writestr("a", b"x" * 100)
    damaged = bytearray(whole.getvalue())
    damaged[40] ^= 1
    with (
        zipfile.ZipFile(io.BytesIO(damaged)) as archive,
        archive.open("a") as member,
        pytest.raises(UnreadableImageError, match="cut short or damaged"),
    ):
        pixels_from_source(member, SPEC, DEFAULT_LIMITS)


@pytest.mark.parametrize("source", [None, 7, object(), [b"list"], {"path": "a.png"}])
def test_a_value_that_is_no_image_is_refused_with_the_accepted_types(source):
    with pytest.raises(ArgumentTypeError, match=f"type {type(source).__name__} is no image: give a path.*array"):
        pixels_from_source(source, SPEC, DEFAULT_LIMITS)


@pytest.mark.parametrize(
    "array",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 3), np.uint8), np.zeros((8, 8, 3))],
)
def test_an_array_that_is_no_image_is_refused_with_its_dtype_and_shape(array):
    shown = f"{array.dtype} {array.shape}".replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(InvalidPixelsError, match=rf"is {shown}: give uint8 RGB \(H, W, 3\)"):
        pixels_from_source(array, SPEC, DEFAULT_LIMITS)


def test_bytes_that_are_no_image_are_refused():
    with pytest.raises(UnsupportedImageTypeError):
        pixels_from_source(memoryview(b"text"), SPEC, DEFAULT_LIMITS)


def test_one_image_is_distinguished_from_several(file, photograph):
    array = np.asarray(photograph)
    with file.open("rb") as opened:
        for one in ("a.png", file, b"", bytearray(), memoryview(b""), opened, photograph, array, array[..., 0]):
            assert is_one_image(one)
    for several in (["a.png"], (), iter([]), array[None], np.array(["a.png"]), np.array([None, "a.png"])):
        assert not is_one_image(several)
