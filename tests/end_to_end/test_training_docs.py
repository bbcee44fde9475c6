"""Runs every command of docs/training.md, in order, on a small folder of images."""

import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

from training.recipes import RECIPES

GUIDE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
COMMANDS = [line.partition("  #")[0].partition(" #")[0].strip() for block in BLOCKS for line in block.splitlines()]
PYTHON = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
# The commands as they stand, on a model and a schedule that take seconds.
# The attack on the trained model breaks every image, so that none is left for the attacks that check it.
SHORT = ["epochs=1", "batch_size=24", "epsilon_255=255", "evaluation_steps=10", "evaluation_betas=0,1"]
SMALL = ["model.depth=1", "model.width=32"]


@pytest.fixture(scope="module")
def workplace(single_token_weights, tmp_path_factory):
    """An empty directory with `photos`, four classes of noisy pictures, and `vit.safetensors`, a single-token ViT."""
    directory = tmp_path_factory.mktemp("guide")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "cow", "dog", "hen")):
        folder = directory / "photos" / name
        folder.mkdir(parents=True)
        for i in range(30):
            level = np.array([(200, 60, 60), (60, 200, 60), (60, 60, 200), (200, 200, 60)][label])
            picture = (level + rng.integers(-60, 60, (36, 40, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / f"{i:03}.jpg")
    safetensors.torch.save_file(single_token_weights, directory / "vit.safetensors")
    return directory


def shortened(command):
    if " train " not in command or "--show" in command:
        return command
    settings = [*SHORT, *(["augmentation.crop_scale=1"] if " finetune " in command else SMALL)]
    return command + "".join(f" --set {setting}" for setting in settings)


def test_every_command_of_the_guide_runs(workplace, run_command, served):
    assert len(COMMANDS) >= 10
    assert PYTHON
    for command in COMMANDS:
        if command.startswith("tureen serve"):
            image = (workplace / "photos" / "dog" / "001.jpg").read_bytes()
            with (
                served(command, workplace) as url,
                urllib.request.urlopen(f"{url}/classify?beta=0.5", data=image) as answer,
            ):
                assert b'"label"' in answer.read()
            continue
        result = run_command(shortened(command), workplace)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    for block in PYTHON:
        shown = subprocess.run([sys.executable, "-c", block], cwd=workplace, capture_output=True, text=True, check=True)
        assert shown.stdout.startswith("torch.Size([2, 4]) ['cat'")
    pictures = {file.name for file in (workplace / "runs" / "photos").glob("*.png")}
    assert pictures == {"accuracy.png", "closer.png", "closer-matrix.png", "closer-epsilon.png"}


def test_every_recipe_is_in_the_guide_and_no_other():
    assert set(re.findall(r"^\| `([\w-]+)` \|", GUIDE, re.MULTILINE)) == set(RECIPES)
