"""Runs every command of docs/adapting.md, in order, on drawn signs in fog."""

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.commands.parsers import adapt_parser
from tests.conftest import draw_signs
from tests.end_to_end.conftest import environment
from training.evaluation.corruptions import corrupt

GUIDE = (Path(__file__).parents[2] / "docs" / "adapting.md").read_text()
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", GUIDE, re.M | re.S) for line in block.splitlines()]
PYTHON = re.findall(r"^```python\n(.*?)^```", GUIDE, re.M | re.S)


@pytest.fixture
def workplace(tmp_path):
    """A directory with `foggy-signs`, two drawings of each of ten signs in fog, and a photograph of one of them."""
    draw_signs(tmp_path / "drawn")
    for file in sorted((tmp_path / "drawn").rglob("*.png"))[::7]:
        pixels = corrupt(np.asarray(Image.open(file))[None], "fog", 4, seed=1)[0]
        folder = tmp_path / "foggy-signs" / file.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / file.name)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    return tmp_path


def test_every_command_of_the_page_runs(workplace, run_command, served, admin_port):
    assert len(COMMANDS) == 13
    with ExitStack() as stack:
        run_all(workplace, run_command, lambda command: stack.enter_context(served(command, workplace)))
    for block in PYTHON:
        shown = subprocess.run(
            [sys.executable, "-c", block], cwd=workplace, env=environment(), capture_output=True, text=True, check=True
        )
        assert shown.stdout.endswith(" {'fog': 1.0}\n")


def run_all(workplace, run_command, serve):
    url = None
    for command in COMMANDS:
        if command.startswith("tureen serve"):
            url = serve(command)
            continue
        # As written, cut short. With two steps a token may not win, so it is forced.
        short = " --steps 2 --images 10 --epsilon-255 0 --force" if " adapt " in command else ""
        result = run_command(command.replace("http://127.0.0.1:8000", str(url)) + short, workplace)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        assert "fog" in result.stdout or command.startswith("mkdir")
    assert (workplace / "fog.token").exists()


def test_the_page_names_every_option_with_an_effect_on_the_result():
    options = {text for action in adapt_parser()._actions for text in action.option_strings if text.startswith("--")}
    assert options - {"--help", "--strict", "--workers"} == set(re.findall(r"`(--[\w-]+)", GUIDE)) & options | {
        "--data", "--name", "--out"
    }  # fmt: skip
