import io
from pathlib import Path

import pytest

from tureen.errors import ArgumentTypeError, UnreadableImageError
from tureen.interface.image_bytes import encoded_bytes, is_encoded_source


@pytest.mark.parametrize(
    "source",
    [
        Path,
        str,
        Path.read_bytes,
        lambda path: memoryview(path.read_bytes()),
        lambda path: io.BytesIO(path.read_bytes()),
    ],
)
def test_every_kind_of_source_gives_the_bytes_of_the_file(tmp_path, source):
    (file := tmp_path / "photo.jpg").write_bytes(b"encoded")
    given = source(file)
    assert is_encoded_source(given)
    assert encoded_bytes(given, 100) == b"encoded"


def test_a_file_is_read_up_to_one_byte_beyond_the_limit(tmp_path):
    (file := tmp_path / "photo.jpg").write_bytes(b"encoded")
    assert encoded_bytes(file, 3) == encoded_bytes(io.BytesIO(b"encoded"), 3) == b"enco"


def test_a_missing_file_and_an_object_without_bytes_are_refused(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"missing.jpg cannot be read: No such file"):
        encoded_bytes(tmp_path / "missing.jpg", 100)
    assert not is_encoded_source(7)
    with pytest.raises(ArgumentTypeError, match="type int is no image: give a path"):
        encoded_bytes(7, 100)
