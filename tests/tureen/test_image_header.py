import io
import struct

from PIL import Image

from tests.valid_images import valid_images
from tureen.image_header import MAX_PARTS_READ, UNKNOWN_HEADER, read_header


def test_the_header_has_the_size_that_the_decoder_finds(photograph):
    for name, file, _ in valid_images(photograph):
        found = read_header(file, max_scans=32)
        with Image.open(io.BytesIO(file)) as image:
            assert (found.width, found.height) == image.size, name


def test_other_bytes_and_a_cut_header_have_no_size(encode):
    image = encode(Image.new("RGB", (100, 100)))
    for data in (b"", b"no image", image[:20]):
        assert read_header(data, max_scans=32) is None


def test_a_header_behind_too_many_parts_is_unknown(encode):
    image = encode(Image.new("RGB", (10, 10)), "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 2)
    near = image[:2] + comment * 100 + image[2:]
    far = image[:2] + comment * MAX_PARTS_READ + image[2:]
    assert read_header(near, max_scans=32).pixels == 100
    assert read_header(far, max_scans=32) is UNKNOWN_HEADER
