"""Runs every command of docs/checkpoint-to-server.md, in order, with a small DeiT-III of timm and a local hub."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

PAGE = (Path(__file__).parents[2] / "docs" / "checkpoint-to-server.md").read_text()
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines()]
SAVING, CALLING = (block for language, block in BLOCKS if language == "python")
SMALL = "pretrained=False, img_size=32, patch_size=8, embed_dim=64, depth=1, num_heads=1"
# The attack on the trained model breaks every image, so that none is left for the attacks that check it.
SHORT = ["epochs=1", "batch_size=16", "epsilon_255=255", "evaluation_steps=10", "evaluation_betas=0,1"]


@pytest.fixture
def workplace(hub, timm, photos, tmp_path, monkeypatch):
    """A directory with the images of the page, and with the weights that its first program saves."""
    monkeypatch.setenv("TUREEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name, source in {"stop": "cat", "yield": "dog", "keep-right": "hen", "no-entry": "owl"}.items():
        shutil.copytree(photos / source, tmp_path / "photos" / name)
    (tmp_path / "photos" / "stop" / "000.jpg").rename(tmp_path / "photos" / "stop" / "00007_00012.jpg")
    exec(SAVING.replace("pretrained=True", SMALL))
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_page_runs(workplace, hub, run_command, served):
    assert "pretrained=True" in SAVING
    assert sorted(os.listdir("deit3")) == ["config.json", "model.safetensors"]
    server = answer = None
    for command in COMMANDS:
        if command.startswith("tureen serve"):
            server = command
        elif command.startswith("curl"):
            with served(server, workplace) as url:
                answer = run(run_command, command.replace("http://127.0.0.1:8000", url), workplace)
                program = CALLING.replace("http://127.0.0.1:8000", url)
                called = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
            first = json.loads(answer)["predictions"][0]
            assert called.stdout.split() == [first["label"], str(first["probability"])]
        else:
            settings = [f" --set {setting}" for setting in SHORT] if " train " in command else []
            run(run_command, command + "".join(settings), workplace)
    (request,) = (command for command in COMMANDS if command.startswith("curl"))
    with served(server, workplace) as url:  # the last one, of the bundle that was pulled
        pulled = run(run_command, request.replace("http://127.0.0.1:8000", url), workplace)
    assert json.loads(pulled)["version"] == json.loads(answer)["version"]
    card = ModelCard(hub.files("ada/photos")["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert "\n- init: model.safetensors\n" in card.text
    assert str(workplace) not in card.text


def run(run_command, command, directory):
    """Run a command of the page; return what it printed."""
    result = run_command(command, directory)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout
