import contextlib
import io
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.malformed_images import malformed_images
from tests.valid_images import valid_images
from tureen.errors import (
    EmptyImageError,
    ImageError,
    ImageTooLargeError,
    UndecodableImageError,
    UnsupportedImageTypeError,
)
from tureen.preprocess import (
    ImageLimits,
    PreprocessSpec,
    decode,
    pixels_from_bytes,
    pixels_from_image,
    upright_rgb,
)

SPEC = PreprocessSpec(image_size=16)
WORK_S = 10  # of CPU time, which other work on the machine does not change


def png_with_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has almost no data: a decompression bomb's header."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_the_three_formats_are_read(encode, photograph, file_format):
    pixels = pixels_from_bytes(encode(photograph, file_format), SPEC)
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    # JPEG and WebP lose a little; the picture is smooth.
    assert np.abs(pixels.astype(int) - pixels_from_image(photograph, SPEC)).max() <= 12


def test_an_image_of_the_right_size_passes_unchanged(encode, checkpoint):
    """So that what training measured, on arrays, is what the server sees, in PNG files."""
    pixels = checkpoint.test.pixels[0]
    np.testing.assert_array_equal(pixels_from_bytes(encode(Image.fromarray(pixels)), checkpoint.preprocess), pixels)


def test_the_crop_is_the_centred_square(photograph):
    square = photograph.crop((8, 0, 56, 48))
    np.testing.assert_array_equal(
        pixels_from_image(photograph, SPEC), np.array(square.resize((16, 16), Image.Resampling.BICUBIC))
    )


def test_crop_fraction_keeps_the_middle(photograph):
    square = photograph.crop((20, 12, 44, 36))
    cropped = pixels_from_image(photograph, PreprocessSpec(image_size=16, crop_fraction=0.5))
    # Only the outermost rows differ: a folded crop lets the filter see the neighbours beyond the box.
    inner = np.array(square.resize((16, 16), Image.Resampling.BICUBIC))[2:-2, 2:-2]
    assert np.abs(cropped[2:-2, 2:-2].astype(int) - inner).max() <= 1


def test_shrinking_is_antialiased():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = pixels_from_image(Image.fromarray(stripes), SPEC)
    assert pixels.min() > 120
    assert pixels.max() < 135


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_an_upright_image(encode, photograph, orientation):
    stored = {
        1: photograph,
        2: photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: photograph.transpose(Image.Transpose.ROTATE_180),
        4: photograph.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: photograph.transpose(Image.Transpose.TRANSPOSE),
        6: photograph.transpose(Image.Transpose.ROTATE_90),
        7: photograph.transpose(Image.Transpose.TRANSVERSE),
        8: photograph.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode(encode(stored, "PNG", exif=exif))
    np.testing.assert_array_equal(np.array(upright), np.array(photograph))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_impossible_orientation_is_ignored(encode, photograph, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(np.array(decode(encode(photograph, exif=exif))), np.array(photograph))


def test_damaged_exif_of_a_valid_image_is_ignored(encode, photograph):
    assert decode(encode(photograph, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")).size == photograph.size


def test_sixteen_bit_grey_is_scaled_not_clipped(encode):
    grey = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    decoded = np.array(decode(encode(Image.fromarray(grey))))
    np.testing.assert_array_equal(decoded[..., 0], (grey // 257).astype(np.uint8))
    assert len(np.unique(decoded)) > 250


def test_sixteen_bit_grey_keeps_its_transparency(encode):
    grey = np.full((4, 4), 1000, np.uint16)
    grey[0, 0] = 2000
    decoded = np.array(decode(encode(Image.fromarray(grey), transparency=2000)))
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[1, 1].tolist() == [3, 3, 3]


def test_palette_with_alpha_is_laid_over_white(encode):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 1)
    decoded = np.array(decode(encode(image, transparency=0)))
    assert decoded[0, 0].tolist() == [0, 0, 255]
    assert decoded[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P"])
def test_every_png_mode_becomes_rgb(encode, photograph, mode):
    assert decode(encode(photograph.convert(mode))).mode == "RGB"


def test_cmyk_jpeg_becomes_rgb(encode, photograph):
    decoded = decode(encode(photograph.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(np.array(decoded).astype(int) - np.array(photograph)).mean() < 6


def test_a_single_pixel_is_an_image(encode):
    assert pixels_from_bytes(encode(Image.new("RGB", (1, 1), "red")), SPEC).tolist() == [[[255, 0, 0]] * 16] * 16


def test_a_very_long_image_is_cheap(encode):
    assert pixels_from_bytes(encode(Image.new("RGB", (60_000, 1))), SPEC).shape == (16, 16, 3)


def test_of_an_animation_the_first_frame_counts(encode):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array(decode(data))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EmptyImageError),
        (b"just some text in a file named .jpg", UnsupportedImageTypeError),
        (b"\xff\xd8\xff", UndecodableImageError),
        (b"\x89PNG\r\n\x1a\n", UndecodableImageError),
        (b"RIFF\0\0\0\0WEBP", UndecodableImageError),
        (b"GIF89a" + b"\0" * 20, UnsupportedImageTypeError),
        (b"%!PS-Adobe-3.0 EPSF-3.0", UnsupportedImageTypeError),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UnsupportedImageTypeError),
    ],
)
def test_a_body_that_is_no_image_is_refused(data, error):
    with pytest.raises(error):
        decode(data)


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (8_000, 8_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_by_its_header(width, height):
    with pytest.raises((ImageTooLargeError, UndecodableImageError)) as caught:
        decode(png_with_header(width, height))
    if width < 2**31 - 1:  # the largest size that PNG can write is refused as damaged
        assert caught.type is ImageTooLargeError


def test_the_limits_are_settings(encode, photograph):
    data = encode(photograph)
    decode(data, ImageLimits(max_image_bytes=len(data), max_image_pixels=64 * 48))
    with pytest.raises(ImageTooLargeError, match="bytes"):
        decode(data, ImageLimits(max_image_bytes=len(data) - 1))
    with pytest.raises(ImageTooLargeError, match="pixels"):
        decode(data, ImageLimits(max_image_pixels=64 * 48 - 1))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_cut_image_is_refused_wherever_it_is_cut(encode, photograph, file_format):
    data = encode(photograph, file_format)
    for length in range(12, len(data) - 30, 37):  # the last bytes of a PNG are sums, its picture is whole without them
        with pytest.raises(ImageError):
            decode(data[:length])


@settings(max_examples=300)
@given(data=st.data())
def test_flipped_bytes_give_pixels_or_an_image_error(encode, photograph, data):
    file_format = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP"]))
    damaged = bytearray(encode(photograph, file_format))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert pixels_from_bytes(bytes(damaged), SPEC).shape == (16, 16, 3)
    except ImageError as error:
        assert "0x" not in str(error)
        assert io.__name__ not in str(error)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30, "subsampling": 2}, {"optimize": True}])
def test_a_jpeg_without_its_metadata_gives_the_pixels_of_the_whole_file(encode, photograph, mode, options):
    data = encode(photograph.resize((301, 207)).convert(mode), "JPEG", comment=b"none of this is a pixel", **options)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(whole))


def test_photographs_without_their_metadata_give_the_pixels_of_the_whole_file(photographs):
    for data in photographs[:30]:
        whole = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(whole))


def test_every_valid_image_is_read(photograph):
    picture = photograph.resize((48, 40))
    for name, data, expected in valid_images(picture):
        decoded = decode(data)
        assert decoded.size == expected.size, name
        # JPEG and WebP at quality 95 differ by up to 3 on average. In a wrong orientation, it is more than 20.
        assert np.abs(np.asarray(decoded).astype(int) - np.asarray(expected)).mean() < 6, name


def test_ten_thousand_malformed_images_give_pixels_or_an_image_error_and_no_warning(pictures):
    """A warning of Pillow would be a line in the server's log for each malformed image of a client."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, data in malformed_images(pictures):
            began_s = time.thread_time()
            with contextlib.suppress(ImageError):
                assert pixels_from_bytes(data, SPEC).shape == (16, 16, 3)
            assert time.thread_time() - began_s < WORK_S, name
            assert not caught, (name, [str(warning.message) for warning in caught])


WRITTEN = {  # the modes that each format holds without loss, and then those that lose a little
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("L", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
}


@st.composite
def written_images(draw):
    """(file format, image as stored, orientation or None, transparent value or None)"""
    file_format = draw(st.sampled_from(list(WRITTEN)))
    mode = draw(st.sampled_from(WRITTEN[file_format]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    if mode.startswith("I"):
        image = Image.fromarray(rng.integers(0, 65_536, (height, width), np.uint16)).convert(mode)
    else:
        colours = Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8))
        image = (colours.convert("RGB") if draw(st.booleans()) else colours).convert(mode)
    transparency = None
    has_alpha = mode == "P" and image.palette.mode == "RGBA"
    if file_format == "PNG" and mode in ("L", "P", "RGB", "I;16") and not has_alpha:
        corner = image.getpixel((0, 0))
        transparency = draw(st.sampled_from([None, corner, *([bytes([0, 128, 255])] if mode == "P" else [])]))
    return file_format, image, draw(st.sampled_from([None, *range(10)])), transparency


@settings(max_examples=200)
@given(written=written_images())
def test_a_file_and_the_pillow_image_of_it_give_the_same_pixels(encode, written):
    file_format, image, orientation, transparency = written
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    if transparency is not None:
        options["transparency"] = transparency
    if orientation is not None:
        options["exif"] = exif = Image.Exif()
        exif[0x0112] = orientation
    data = encode(image, file_format, **options)
    expected = np.asarray(decode(data))
    with Image.open(io.BytesIO(data)) as lazy:
        np.testing.assert_array_equal(np.asarray(upright_rgb(lazy)), expected)
    with Image.open(io.BytesIO(data)) as loaded:
        loaded.load()
        kept = loaded.copy()
        np.testing.assert_array_equal(np.asarray(upright_rgb(loaded)), expected)
        np.testing.assert_array_equal(np.asarray(loaded), np.asarray(kept))  # the caller's image stays as it was
        turned = ImageOps.exif_transpose(loaded)
        np.testing.assert_array_equal(np.asarray(upright_rgb(turned)), expected)
    if file_format != "JPEG":  # as a program makes it, without a file
        if transparency is not None:
            image.info["transparency"] = transparency
        if orientation is not None:
            image.info["exif"] = exif.tobytes()
        np.testing.assert_array_equal(np.asarray(upright_rgb(image)), expected)


def test_the_pillow_image_of_every_valid_file_gives_the_same_pixels(pictures):
    for name, data, _ in valid_images(Image.open(io.BytesIO(pictures[0])).convert("RGB").resize((48, 40))):
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(np.asarray(upright_rgb(image)), np.asarray(decode(data)), name)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_pillow_image_of_a_cut_file_is_refused_as_the_file_is(encode, photograph, file_format):
    data = encode(photograph.resize((200, 200)), file_format)
    image = Image.open(io.BytesIO(data[: len(data) // 2])) if file_format != "WEBP" else Image.open(io.BytesIO(data))
    if file_format == "WEBP":  # Pillow reads its whole file when it opens it
        image.close()
    with pytest.raises(UndecodableImageError, match="damaged, cut short or closed"):
        upright_rgb(image)


def test_the_limit_of_pixels_holds_for_a_pillow_image_before_it_is_loaded(encode, photograph):
    upright_rgb(photograph, ImageLimits(max_image_pixels=64 * 48))
    with (
        Image.open(io.BytesIO(encode(photograph))) as lazy,
        pytest.raises(ImageTooLargeError, match=r"3,071 pixels"),
    ):
        upright_rgb(lazy, ImageLimits(max_image_pixels=64 * 48 - 1))
    assert lazy._im is None


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("F", (2, 2), 0.5), "mode F may have any values"),
        (Image.new("I", (2, 2), 70_000), "mode I may have any values"),
        (Image.new("I", (2, 2), -1), "mode I may have any values"),
        (Image.new("La", (2, 2)), "mode La cannot be converted"),
    ],
)
def test_a_pillow_image_whose_mode_has_no_colour_is_refused(image, reason):
    with pytest.raises(UnsupportedImageTypeError, match=reason):
        upright_rgb(image)


def test_whole_numbers_of_32_bits_are_scaled_as_those_of_16_are():
    deep = Image.fromarray(np.arange(0, 65_536, 4096, dtype=np.uint16).reshape(4, 4))
    np.testing.assert_array_equal(np.asarray(upright_rgb(deep.convert("I"))), np.asarray(upright_rgb(deep)))


def test_a_pillow_image_without_pixels_is_empty():
    with pytest.raises(EmptyImageError):
        upright_rgb(Image.new("RGB", (0, 3)))
