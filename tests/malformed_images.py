"""Images as nobody should send them, made from photographs: cut, flipped, grafted, mislabelled, odd and enormous.

Deterministic, and lazy: (name, bytes) in an order that mixes the kinds, so that any beginning of it is a fair sample.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator, Sequence

from PIL import Image

COUNT = 10_000
SHRUNK = 96  # pixels of the longer side: decoding is not what is tested here, and ten thousand must be quick
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
    """That many of them."""
    sound = [
        (f"{index}.{name}", encoded(Image.open(io.BytesIO(data)).convert("RGB"), name, index))
        for index, data in enumerate(photographs)
        for name in FORMATS
    ]
    rng = random.Random(0)
    makers = (cut, flipped, grafted, mislabelled, repeated, emptied)
    yield from ENORMOUS.items()
    for number in range(count - len(ENORMOUS)):
        maker = makers[number % len(makers)]
        name, data = sound[number // len(makers) % len(sound)]
        yield f"{maker.__name__} {name} #{number}", maker(data, rng)


def encoded(image: Image.Image, file_format: str, index: int) -> bytes:
    """Shrunk, and in turns of every mode and kind that the format has."""
    image.thumbnail((SHRUNK, SHRUNK))
    modes = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "L", "P", "RGBA", "I;16", "1"), "WEBP": ("RGB", "RGBA")}
    mode = modes[file_format][index % len(modes[file_format])]
    options = {"progressive": bool(index % 2)} if file_format == "JPEG" else {}
    buffer = io.BytesIO()
    (image.convert("L") if mode == "I;16" else image).convert(mode).save(buffer, file_format, **options)
    return buffer.getvalue()


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    """One to twenty bytes are others, half of the time within the headers."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 20)):
        changed[rng.randrange(min(len(data), rng.choice((64, len(data)))))] = rng.randrange(256)
    return bytes(changed)


def grafted(data: bytes, rng: random.Random) -> bytes:
    """The head of one on the body of itself from elsewhere."""
    return data[: rng.randrange(8, len(data))] + data[rng.randrange(len(data)) :]


def mislabelled(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(SIGNATURES) + data[rng.randrange(16) :]


def repeated(data: bytes, rng: random.Random) -> bytes:
    """A stretch of it over and over: scans, chunks, frames."""
    start = rng.randrange(len(data) // 2)
    return data[:start] + data[start:] * rng.randint(2, 6)


def emptied(data: bytes, rng: random.Random) -> bytes:
    """A stretch of zeros, or of 0xff, in its midst."""
    start = rng.randrange(len(data))
    length = rng.randint(1, 400)
    return data[:start] + bytes([rng.choice((0, 255))]) * length + data[start + length :]


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def header(width: int, height: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def small(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(buffer, "JPEG", **options)
    return buffer.getvalue()


def scans(count: int) -> bytes:
    data = small(progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * count + b"\xff\xd9"


PIXELS, END = (b"IDAT", zlib.compress(bytes(20_000))), (b"IEND", b"")
BOMB = zlib.compress(bytes(50_000_000), 9)
ENORMOUS = {
    "nothing": b"",
    "40,000 × 40,000": png(header(40_000, 40_000), PIXELS, END),
    "65,535 × 1": png(header(65_535, 1), PIXELS, END),
    "2³¹ − 1 wide": png(header(2**31 - 1, 1), PIXELS, END),
    "0 × 0": png(header(0, 0), PIXELS, END),
    "16 bits of nothing": png(header(100, 100, 16), PIXELS, END),
    "an iTXt of 50 MB": png(header(10, 10), (b"iTXt", b"k\x00\x01\x00\x00\x00" + BOMB), PIXELS, END),
    "a zTXt of 50 MB": png(header(10, 10), (b"zTXt", b"k\x00\x00" + BOMB), PIXELS, END),
    "a profile of 50 MB": png(header(10, 10), (b"iCCP", b"k\x00\x00" + BOMB), PIXELS, END),
    "pixels of 50 MB for 10 × 10": png(header(10, 10), (b"IDAT", BOMB), END),
    "a thousand scans": scans(1000),
    "ninety scans": scans(90),
    "a comment of 60 kB, ten times": small()[:2] + (b"\xff\xfe\xff\xf0" + bytes(65_518)) * 10 + small()[2:],
}
