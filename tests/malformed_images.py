"""Malformed images made from photographs: truncated, corrupted, spliced, with a wrong signature, odd and enormous.

Yields (name, bytes), deterministically and lazily, in an order that mixes the kinds: any prefix is a fair sample.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator, Sequence

from PIL import Image

COUNT = 10_000
SHRUNK = 96  # pixels of the longer side; small, so that ten thousand images are fast
FORMATS = ("JPEG", "PNG", "WEBP")
SIGNATURES = (
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\xff\xff\xff\x7fWEBP",
    b"GIF89a",
    b"BM",
    b"II*\x00",
    b"%!PS",
)


def malformed_images(photographs: Sequence[bytes], count: int = COUNT) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of `count` malformed images."""
    valid = [
        (f"{index}.{name}", encode_variant(Image.open(io.BytesIO(data)).convert("RGB"), name, index))
        for index, data in enumerate(photographs)
        for name in FORMATS
    ]
    rng = random.Random(0)
    makers = (truncate, corrupt_bytes, splice, replace_signature, repeat_stretch, overwrite_stretch)
    yield from ENORMOUS.items()
    for number in range(count - len(ENORMOUS)):
        maker = makers[number % len(makers)]
        name, data = valid[number // len(makers) % len(valid)]
        yield f"{maker.__name__} {name} #{number}", maker(data, rng)


def encode_variant(image: Image.Image, file_format: str, index: int) -> bytes:
    """Encode the shrunk image, with the modes and options of the format in turn."""
    image.thumbnail((SHRUNK, SHRUNK))
    modes = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "L", "P", "RGBA", "I;16", "1"), "WEBP": ("RGB", "RGBA")}
    mode = modes[file_format][index % len(modes[file_format])]
    options = {"progressive": bool(index % 2)} if file_format == "JPEG" else {}
    exif = Image.Exif()
    exif.update({0x010E: "A note on the picture", 0x0112: index % 10, 0x0132: "2026:01:01 00:00:00"})
    buffer = io.BytesIO()
    (image.convert("L") if mode == "I;16" else image).convert(mode).save(buffer, file_format, exif=exif, **options)
    return buffer.getvalue()


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def corrupt_bytes(data: bytes, rng: random.Random) -> bytes:
    """Replace 1 to 20 random bytes, half of the time within the headers."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 20)):
        changed[rng.randrange(min(len(data), rng.choice((64, len(data)))))] = rng.randrange(256)
    return bytes(changed)


def splice(data: bytes, rng: random.Random) -> bytes:
    """Join a prefix of the file and a suffix that starts elsewhere."""
    return data[: rng.randrange(8, len(data))] + data[rng.randrange(len(data)) :]


def replace_signature(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(SIGNATURES) + data[rng.randrange(16) :]


def repeat_stretch(data: bytes, rng: random.Random) -> bytes:
    """Repeat a stretch of the file, which repeats scans, chunks or frames."""
    start = rng.randrange(len(data) // 2)
    return data[:start] + data[start:] * rng.randint(2, 6)


def overwrite_stretch(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a random stretch with zeros or 0xff."""
    start = rng.randrange(len(data))
    length = rng.randint(1, 400)
    return data[:start] + bytes([rng.choice((0, 255))]) * length + data[start + length :]


def png_file(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def small_jpeg(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(buffer, "JPEG", **options)
    return buffer.getvalue()


def jpeg_of_scans(count: int) -> bytes:
    data = small_jpeg(progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * count + b"\xff\xd9"


def animated_webp(side: int, count: int) -> bytes:
    """Return a WebP that declares `side` × `side` pixels and has `count` frames of 16 × 16."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(buffer, "WEBP")
    frame = bytes(6) + b"\x0f\0\0" * 2 + bytes(4) + buffer.getvalue()[12:]
    size = (side - 1).to_bytes(3, "little")
    parts = [(b"VP8X", b"\x02\0\0\0" + size * 2), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * count]
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(data)) + data for name, data in parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


PIXELS, END = (b"IDAT", zlib.compress(bytes(20_000))), (b"IEND", b"")
BOMB, MEGABYTE = zlib.compress(bytes(50_000_000), 9), zlib.compress(bytes(10**6), 9)
ENTRIES = b"".join(struct.pack(">HHII", tag, 7, 60_000, 4) for tag in range(5000))
ENORMOUS = {
    "nothing": b"",
    "40,000 × 40,000": png_file(png_header(40_000, 40_000), PIXELS, END),
    "65,535 × 1": png_file(png_header(65_535, 1), PIXELS, END),
    "2³¹ − 1 wide": png_file(png_header(2**31 - 1, 1), PIXELS, END),
    "0 × 0": png_file(png_header(0, 0), PIXELS, END),
    "16 bits of nothing": png_file(png_header(100, 100, 16), PIXELS, END),
    "an iTXt of 50 MB": png_file(png_header(10, 10), (b"iTXt", b"k\x00\x01\x00\x00\x00" + BOMB), PIXELS, END),
    "a zTXt of 50 MB": png_file(png_header(10, 10), (b"zTXt", b"k\x00\x00" + BOMB), PIXELS, END),
    "a profile of 50 MB": png_file(png_header(10, 10), (b"iCCP", b"k\x00\x00" + BOMB), PIXELS, END),
    "pixels of 50 MB for 10 × 10": png_file(png_header(10, 10), (b"IDAT", BOMB), END),
    "a thousand scans": jpeg_of_scans(1000),
    "thirty scans": jpeg_of_scans(21),
    "ninety scans": jpeg_of_scans(90),
    "a hundred thousand comments": small_jpeg()[:2] + b"\xff\xfe\x00\x02" * 100_000 + small_jpeg()[2:],
    "ten thousand notes on exposure": small_jpeg()[:2] + b"\xff\xe1\x00\x08Exif\0\0" * 10_000 + small_jpeg()[2:],
    "a note on exposure of five thousand damaged entries": small_jpeg(
        exif=b"Exif\0\0MM\0*\0\0\0\x08\x13\x88" + ENTRIES
    ),
    "a megabyte of 0xff": small_jpeg()[:2] + b"\xff" * 10**6 + small_jpeg()[2:],
    "a hundred thousand chunks": png_file(png_header(10, 10), *[(b"IDAT", b"")] * 100_000, PIXELS, END),
    "a thousand profiles of 1 MB": png_file(
        png_header(10, 10), *[(b"iCCP", b"k\x00\x00" + MEGABYTE)] * 1000, PIXELS, END
    ),
    "a film of 16,384 × 16,384": animated_webp(16_384, 1),
    "a film of ten thousand frames": animated_webp(16, 10_000),
    "a comment of 60 kB, ten times": small_jpeg()[:2] + (b"\xff\xfe\xff\xf0" + bytes(65_518)) * 10 + small_jpeg()[2:],
}
