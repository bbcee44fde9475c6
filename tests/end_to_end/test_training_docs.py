"""docs/training.md cannot lie: every command in it is run, in order, on a small folder of images."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
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
# The commands as they stand, on a model and a schedule that take seconds.
SHORT = ["epochs=2", "batch_size=8", "evaluation_steps=1"]
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


def run(command, directory):
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(["sh", "-c", command], cwd=directory, env=environment, capture_output=True, text=True)


def shortened(command):
    if " train " not in command or "--show" in command:
        return command
    settings = [*SHORT, *([] if " finetune " in command else SMALL)]
    return command + "".join(f" --set {setting}" for setting in settings)


def test_every_command_of_the_guide_runs(workplace):
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        if command.startswith("tureen serve"):
            assert serves(command, workplace)
            continue
        result = run(shortened(command), workplace)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    pictures = {file.name for file in (workplace / "runs" / "photos").glob("*.png")}
    assert pictures == {"accuracy.png", "closer.png", "closer-matrix.png", "closer-epsilon.png"}


def serves(command, directory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    arguments = command.replace("8000", port).split()
    server = subprocess.Popen(
        [str(Path(sys.executable).parent / arguments[0]), *arguments[1:]], cwd=directory, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").close()
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        image = (directory / "photos" / "dog" / "001.jpg").read_bytes()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/classify?beta=0.5", data=image) as answer:
            return b'"label"' in answer.read()
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


def test_every_recipe_is_in_the_guide_and_no_other():
    assert set(re.findall(r"^\| `([\w-]+)` \|", GUIDE, re.MULTILINE)) == set(RECIPES)
