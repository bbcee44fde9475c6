"""Runs every command of docs/gallery.md, in order, on a small model of the drawn signs."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tureen.bundle.bundle import load_bundle
from tureen.pictures.signs import SIGNS, drawn_picture

GUIDE = (Path(__file__).parents[2] / "docs" / "gallery.md").read_text()
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", GUIDE, re.M | re.S) for line in block.splitlines()]
FILES = re.findall(r"`stop([\w-]*\.png)`", GUIDE)


@pytest.fixture
def workplace(signs_run, tmp_path):
    """A directory with the drawing of a stop sign, and the small model as runs/signs."""
    drawn_picture("stop", 0).save(tmp_path / "stop.png")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "signs").symlink_to(signs_run)
    return tmp_path


def test_every_command_of_the_page_runs(workplace, run_command):
    assert len(COMMANDS) == 5
    for command in COMMANDS:
        # The commands as written, cut short.
        short = "--images 20 --engine onnxruntime --precision fp32" if "export" in command else "--steps 4"
        result = run_command(f"{command} {short}", workplace)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    for name in ("attacked", "attacked-both", "attacked-half"):
        with Image.open(workplace / f"{name}.png") as image:
            assert image.size == (32, 32)
    gallery = workplace / "gallery"
    pairs = json.loads((gallery / "gallery.json").read_text())["pairs"]
    files = {f"{pair['sign']}{end}" for pair in pairs for end in FILES}
    assert {file.name for file in gallery.iterdir()} == files | {"gallery.json"}
    assert {pair["sign"] for pair in pairs} <= set(SIGNS)
    assert len(load_bundle(workplace / "bundle").gallery.pictures) == len(pairs)


def test_the_page_names_each_file_of_a_sign():
    assert set(FILES) == {
        ".png", "-view.png", "-clean.png", "-both.png", "-clean-difference.png", "-both-difference.png"
    }  # fmt: skip
