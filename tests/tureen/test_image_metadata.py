"""The parts that are removed from an image before it is decoded, and the limits on its parts and scans."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tureen.errors import ImageTooLargeError, UndecodableImageError
from tureen.image_metadata import orientation, strip_metadata
from tureen.preprocess import ImageLimits, decode

LIMITS = {"max_parts": 10_000, "max_scans": 32}
SCAN = b"\xff\xda"


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(value, order=">", kind=3, tag=0x0112, length=1, entries=1):
    number = struct.pack(order + {3: "H2x", 4: "I", 9: "i"}[kind], value)
    entry = struct.pack(order + "HHI", tag, kind, length) + number
    head = {">": b"MM\0*", "<": b"II*\0"}[order] + struct.pack(order + "I", 8)
    return head + struct.pack(order + "H", entries) + entry * entries


@pytest.fixture(scope="module")
def jpeg(photograph, encode):
    return encode(photograph, "JPEG")


@pytest.fixture(scope="module")
def progressive(photograph, encode):
    return encode(photograph, "JPEG", progressive=True)


def pixels(data, **limits):
    return np.asarray(decode(data, ImageLimits(**limits)))


def test_comments_profiles_previews_and_padding_go_and_every_pixel_stays(jpeg):
    extra = segment(0xFE, b"a comment") + segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(500)) + segment(0xED, b"Photoshop")
    crowded = jpeg[:2] + extra + b"\xff" * 9 + jpeg[2:20] + b"junk\xff\0junk" + jpeg[20:]
    assert strip_metadata(crowded, **LIMITS).data == jpeg
    np.testing.assert_array_equal(pixels(crowded), pixels(jpeg))


def test_the_colour_marker_of_a_jpeg_stays(photograph, encode):
    for image in (encode(photograph, "JPEG", keep_rgb=True), encode(photograph.convert("CMYK"), "JPEG")):
        assert b"Adobe" in strip_metadata(image, **LIMITS).data
        with Image.open(io.BytesIO(image)) as opened:
            np.testing.assert_array_equal(pixels(image), np.asarray(opened.convert("RGB")))


def test_of_a_png_texts_profiles_and_frames_go(photograph, encode):
    plain = encode(photograph)
    crowded = encode(photograph, save_all=True, append_images=[photograph.rotate(90)], icc_profile=bytes(500))
    assert {b"acTL", b"iCCP", b"fdAT"} <= {crowded[i : i + 4] for i in range(len(crowded))}
    left = strip_metadata(crowded, **LIMITS).data
    assert not {b"acTL", b"iCCP", b"fdAT", b"fcTL"} & {left[i : i + 4] for i in range(len(left))}
    np.testing.assert_array_equal(pixels(crowded), pixels(plain))


def test_a_webp_is_left_to_its_library(photograph, encode):
    data = encode(photograph, "WEBP")
    assert strip_metadata(data, **LIMITS) == (data, b"", b"")


def test_a_photograph_that_cameras_store_with_a_second_one_is_its_first(photograph, encode):
    """Pillow calls it MPO, not JPEG; nothing that holds for JPEG may depend on that name."""
    data = encode(photograph, "MPO", save_all=True, append_images=[photograph.rotate(90)])
    np.testing.assert_array_equal(pixels(data), pixels(encode(photograph, "JPEG")))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_the_orientation_is_read_in_either_byte_order(order, kind):
    for value in range(1, 9):
        assert orientation(tiff(value, order, kind), b"") == value
        assert orientation(b"Exif\0\0" + tiff(value, order, kind), b"") == value


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"neither order",
        b"MM\0*",
        tiff(6)[:-3],
        tiff(0),
        tiff(9),
        tiff(65_535),
        tiff(2**31, kind=4),
        tiff(6, kind=9),
        tiff(6, length=2),
        tiff(6, tag=0x0113, entries=65_535),
        b"MM\0*\xff\xff\xff\xff",
    ],
)
def test_an_orientation_that_is_damaged_or_impossible_is_none(exif):
    assert orientation(exif, b"") == 1


def test_an_orientation_in_xmp_counts_if_exif_has_none(photograph, encode):
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    assert (orientation(b"", xmp), orientation(tiff(3), xmp), orientation(tiff(3, tag=1), xmp)) == (6, 3, 6)
    assert decode(encode(photograph, "JPEG", xmp=xmp)).size == (48, 64)
    assert decode(encode(photograph, "WEBP", xmp=xmp)).size == (48, 64)


def test_a_file_of_nothing_but_parts_is_refused(jpeg, photograph, encode):
    png = encode(photograph)
    comments = jpeg[:2] + segment(0xFE, b"") * 20_000 + jpeg[2:]
    exifs = jpeg[:2] + segment(0xE1, b"Exif\0\0") * 20_000 + jpeg[2:]
    with pytest.raises(ImageTooLargeError, match="more than 10,000 segments"):
        decode(comments)
    with pytest.raises(ImageTooLargeError, match="more than 10,000 segments"):
        decode(exifs)
    for kind in (b"tEXt", b"IDAT", b"prIv"):
        with pytest.raises(ImageTooLargeError, match="more than 10,000 chunks"):
            decode(png[:33] + chunk(kind) * 20_000 + png[33:])
    assert pixels(comments, max_image_parts=30_000).shape == (48, 64, 3)


def test_a_jpeg_without_pixels_is_damaged(jpeg):
    with pytest.raises(UndecodableImageError):
        strip_metadata(jpeg[: jpeg.index(SCAN)], **LIMITS)


def with_scans(progressive, count, before=b""):
    """One scan repeated: each costs a whole decoding and adds nothing."""
    start = progressive.rindex(SCAN)
    return progressive[:start] + (before + progressive[start:-2]) * count + progressive[-2:]


def test_scans_are_counted_before_anything_is_decoded(progressive):
    with pytest.raises(ImageTooLargeError, match="more than 32 scans"):
        decode(with_scans(progressive, 1000))
    assert pixels(with_scans(progressive, 20)).shape == (48, 64, 3)
    with pytest.raises(ImageTooLargeError, match="more than 3 scans"):
        decode(progressive, ImageLimits(max_jpeg_scans=3))


def test_scans_are_found_in_a_second_picture_and_behind_skipped_bytes(progressive, photograph, encode):
    second = encode(photograph, "MPO", save_all=True, append_images=[photograph])
    start = second.index(b"MPF\0") - 4
    length = 2 + int.from_bytes(second[start + 2 : start + 4], "big")
    crowded = with_scans(progressive, 1000)
    for data in (
        crowded[:2] + second[start : start + length] + crowded[2:],
        with_scans(progressive, 1000, before=b"\xff\x01"),
        with_scans(progressive, 1000, before=b"\xff\x02\xff\xff"),
        with_scans(progressive, 1000, before=b"\xff\xff\xd0\xff"),
        with_scans(progressive, 1000, before=segment(0xFE, b"\xff\xd9")),
    ):
        with pytest.raises(ImageTooLargeError, match="more than 32 scans"):
            decode(data)


def test_segments_between_scans_are_counted_too(progressive):
    with pytest.raises(ImageTooLargeError, match="more than 10,000 segments"):
        decode(with_scans(progressive, 1, before=segment(0xFE, b"\xff\xda" * 3) * 20_000))


def test_a_video_behind_a_photograph_does_not_count_as_scans(progressive):
    """As telephones store them: some megabytes of anything, in which the two bytes of a scan occur by chance."""
    np.testing.assert_array_equal(pixels(progressive + SCAN * 1000), pixels(progressive))
