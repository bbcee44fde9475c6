import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tureen import preprocess
from tureen.errors import (
    EmptyImageError,
    ImageError,
    ImageTooLargeError,
    UndecodableImageError,
    UnsupportedImageTypeError,
)
from tureen.preprocess import ImageLimits, PreprocessSpec, decode, pixels_from_bytes, pixels_from_image

SPEC = PreprocessSpec(image_size=16)


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
    pixels = checkpoint.held_out.pixels[0]
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
def test_every_exif_orientation_comes_out_upright(encode, photograph, orientation):
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


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_beside_a_sound_picture_is_ignored(encode, photograph):
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
def test_what_is_not_an_image(data, error):
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


@settings(max_examples=300, deadline=None)
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
def test_the_fast_decoder_gives_the_pixels_of_pillow(encode, photograph, monkeypatch, mode, options):
    data = encode(photograph.resize((301, 207)).convert(mode), "JPEG", **options)
    assert preprocess.simplejpeg is not None
    fast = np.asarray(decode(data))
    monkeypatch.setattr(preprocess, "simplejpeg", None)
    np.testing.assert_array_equal(fast, np.asarray(decode(data)))


def test_on_photographs_the_fast_decoder_gives_the_pixels_of_pillow(photographs, monkeypatch):
    fast = [np.asarray(decode(data)) for data in photographs[:30]]
    monkeypatch.setattr(preprocess, "simplejpeg", None)
    for data, pixels in zip(photographs, fast, strict=False):
        np.testing.assert_array_equal(pixels, np.asarray(decode(data)))


def progressive_with_scans(encode, photograph, count):
    """A progressive JPEG with one scan repeated: each costs a whole decoding and adds nothing."""
    data = encode(photograph, "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * count + b"\xff\xd9"


def test_a_jpeg_of_a_thousand_scans_is_refused_before_it_is_decoded(encode, photograph):
    with pytest.raises(ImageTooLargeError, match="more than 100 scans"):
        decode(progressive_with_scans(encode, photograph, 1000))
    assert decode(progressive_with_scans(encode, photograph, 5), ImageLimits(max_jpeg_scans=50)).size == photograph.size
    with pytest.raises(ImageTooLargeError, match="more than 3 scans"):
        decode(encode(photograph, "JPEG", progressive=True), ImageLimits(max_jpeg_scans=3))


def test_scaling_a_jpeg_as_it_is_decoded_is_asked_for_and_close(encode, photograph):
    large = encode(photograph.resize((640, 480), Image.Resampling.BICUBIC), "JPEG", quality=95)
    whole, scaled = (pixels_from_bytes(large, SPEC, jpeg_scaling=asked) for asked in (False, True))
    assert (whole != scaled).any()
    assert np.abs(whole.astype(int) - scaled).mean() < 3  # a smooth picture: the two filters see much the same
    small = encode(photograph, "PNG")
    np.testing.assert_array_equal(pixels_from_bytes(small, SPEC), pixels_from_bytes(small, SPEC, jpeg_scaling=True))
