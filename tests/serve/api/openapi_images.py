"""Registers real images with schemathesis, which otherwise sends random bytes and never gets status 200."""

import io
import random

import schemathesis
from hypothesis import strategies as st
from PIL import Image


def encoded(file_format, size, seed):
    """Return a noise image as a file."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1])).save(buffer, file_format)
    return buffer.getvalue()


for name in ("JPEG", "PNG", "WEBP"):
    sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
    valid = st.builds(encoded, st.just(name), sizes, st.integers(0, 2**16))
    schemathesis.openapi.media_type(f"image/{name.lower()}", st.one_of(valid, valid, st.binary(max_size=200)))
