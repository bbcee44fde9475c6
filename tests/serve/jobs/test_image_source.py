"""What every input source shares: which names are no images, and how an unreadable input file is reported."""

from pathlib import Path

import pytest

from serve.errors import InputError
from serve.jobs.image_source import is_excluded, is_system_file, open_input_file
from serve.jobs.rooted_files import Files


@pytest.mark.parametrize(
    ("name", "excluded", "system"),
    [
        ("a.png", False, False),
        ("a/b.png", False, False),
        ("../a.png", False, False),
        (".hidden.png", True, False),
        (".thumbs/a.png", True, False),
        ("a/.b/c.png", True, False),
        ("__MACOSX/a.png", True, True),
        ("a/__MACOSX/b.png", True, True),
        ("Thumbs.db", True, True),
        ("a/desktop.ini", True, True),
        ("Icon\r", True, True),
        ("out/_SUCCESS", True, True),
        ("my_success.png", False, False),
        ("", False, False),
    ],
)
def test_hidden_files_and_system_files_are_no_images(name, excluded, system):
    assert (is_excluded(name), is_system_file(name)) == (excluded, system)


def test_an_input_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"path\n")
    with open_input_file(Files(), tmp_path / "list.csv") as file:
        assert file.read() == b"path\n"
    for name in ("none.csv", "."):
        with pytest.raises(InputError, match=str(tmp_path)):
            open_input_file(Files(), Path(tmp_path, name))
