import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.malformed_images import ENORMOUS, png_file, png_header
from tureen.errors import ImageError, UndecodableImageError
from tureen.image_cost import LEAST_COST, WORK_PER_BYTE, ImageKind, image_cost
from tureen.preprocess import decode


def cost(data, max_pixels=25_000_000):
    return image_cost(data, max_pixels=max_pixels, max_scans=32)


def test_photographs_that_a_camera_makes_are_small_up_to_a_million_pixels_and_large_beyond(encode):
    grain = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    for size, kind in (((640, 480), ImageKind.SMALL), ((1280, 800), ImageKind.LARGE), ((4000, 3000), ImageKind.LARGE)):
        image = Image.fromarray(grain).resize(size)
        assert cost(encode(image, "JPEG", quality=90)).kind is kind
        assert cost(encode(image, "JPEG", quality=90, progressive=True)).kind is kind
    assert cost(encode(Image.fromarray(grain).resize((2000, 1500)), "WEBP", quality=80)).kind is ImageKind.LARGE


@pytest.mark.parametrize(
    ("file_format", "options"), [("WEBP", {"lossless": True}), ("PNG", {}), ("JPEG", {"progressive": True})]
)
def test_a_small_file_of_many_pixels_is_disproportionate_below_a_million_too(encode, file_format, options):
    for size in (800, 5000):
        assert cost(encode(Image.new("RGB", (size, size)), file_format, **options)).kind is ImageKind.DISPROPORTIONATE
    assert cost(encode(Image.new("RGB", (64, 64)), file_format, **options)).kind is ImageKind.SMALL


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(30, 10**7))
def test_more_bytes_never_make_an_image_disproportionate_and_a_large_one_has_paid_for_its_work(width, height, size):
    head = b"RIFF\0\0\0\0WEBPVP8L" + bytes(4) + b"/" + struct.pack("<I", (height - 1) << 14 | width - 1)
    shorter, longer = (cost(head + bytes(length - len(head))) for length in (size, 2 * size))
    assert longer.kind is shorter.kind or shorter.kind is ImageKind.DISPROPORTIONATE
    assert shorter.kind is not ImageKind.LARGE or shorter.work <= WORK_PER_BYTE * size


def test_a_jpeg_costs_more_with_each_scan_and_holds_its_coefficients(encode):
    image = Image.new("RGB", (1000, 1000))
    baseline, progressive = encode(image, "JPEG"), encode(image, "JPEG", progressive=True)
    more = progressive[:-2] + progressive[progressive.rfind(b"\xff\xda") : -2] * 20 + b"\xff\xd9"
    works = [cost(data).work for data in (baseline, progressive, more)]
    assert works == sorted(set(works))
    assert works[2] > 5 * works[0]
    assert cost(progressive).memory > cost(baseline).memory


def test_deep_transparent_and_narrow_images_cost_more_than_plain_ones(encode):
    plain = cost(encode(Image.new("RGB", (1000, 1000))))
    for image in (Image.new("RGBA", (1000, 1000)), Image.new("RGB", (1, 1_000_000))):
        assert cost(encode(image)).work > plain.work
        assert cost(encode(image)).memory > plain.memory
    assert cost(encode(Image.new("I;16", (1000, 1000)))).memory > plain.memory
    assert cost(encode(Image.new("RGB", (1000, 1000)), transparency=(0, 0, 0))).memory > plain.memory


def test_an_image_refused_before_decoding_costs_the_least(encode):
    image = encode(Image.new("RGB", (100, 100)))
    assert cost(image, max_pixels=9_999) is LEAST_COST
    assert cost(b"") is cost(b"no image") is cost(image[:20]) is LEAST_COST
    assert cost(image, max_pixels=10_000).pixels == 10_000


def test_a_header_far_from_the_beginning_costs_the_most(encode):
    comment = b"\xff\xfe" + struct.pack(">H", 2)
    image = encode(Image.new("RGB", (10, 10)), "JPEG")
    hidden = image[:2] + comment * 300 + image[2:]
    assert cost(hidden).pixels == 25_000_000
    assert decode(hidden).size == (10, 10)


def test_an_image_with_two_sizes_is_refused_or_costs_the_most():
    pixels = (b"IDAT", b"")
    two = png_file(png_header(10, 10), png_header(4000, 4000), pixels)
    assert cost(two).pixels == 25_000_000
    webp = io.BytesIO()
    Image.new("RGB", (1000, 1000)).save(webp, "WEBP", lossless=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    data = bytearray(webp.getvalue())
    assert data[12:16] == b"VP8X"
    data[24:30] = bytes(6)  # a canvas of 1 x 1
    with pytest.raises(UndecodableImageError):
        decode(bytes(data))


@given(st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8X", b""]), st.binary(max_size=80))
def test_any_bytes_have_a_cost(signature, data):
    assert cost(signature + data).work > 0


def test_no_enormous_file_is_decoded_at_less_than_its_cost():
    for name, data in ENORMOUS.items():
        try:
            size = decode(data).size
        except ImageError:
            continue
        assert cost(data).pixels >= size[0] * size[1], name
