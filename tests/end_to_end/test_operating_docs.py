"""Runs every command of docs/operating.md, in order, against the server that it starts."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES

GUIDE = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
SERVE, *COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.fixture
def workplace(tmp_path, admin_port):
    shutil.copytree(EXAMPLES / "cifar10", tmp_path / "bundle")
    pixels = load_bundle(tmp_path / "bundle").golden.pixels[0]
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    return tmp_path, admin_port


def test_the_commands_for_the_day_of_an_attack_run_as_documented(workplace, run_command, served, monkeypatch):
    directory, admin_port = workplace
    said = []
    with served(SERVE, directory) as url:
        monkeypatch.setenv("TUREEN_ADMIN_TOKEN", (directory / "state" / "admin-token").read_text().strip())
        for command in COMMANDS:
            here = command.replace("8000", url.rpartition(":")[2]).replace("8001", admin_port)
            result = run_command(here, directory)
            assert result.returncode == 0, f"{here}\n{result.stdout}\n{result.stderr}"
            said.append(result.stdout)
    looked, turned_up, answer, floor, by_policy, rolled_back, tenant, history, token, known = said
    curve = load_bundle(EXAMPLES / "cifar10").manifest.strength
    assert "default β 0, strength 0 (bundle), clean accuracy" in looked
    assert f"default β 0.9, strength {curve.strength_at(0.9):g} (operator)" in turned_up
    assert "planned" in turned_up
    assert json.loads(answer)["beta"] == 0.9
    assert json.loads(floor)["beta_min"] == 0.5
    assert json.loads(by_policy)["beta_source"] == "policy"
    assert "default β 0, strength 0 (bundle)" in rolled_back
    assert "policy    hospital → clean:0.5,robust:0.5, β from 0.2 to 0.8" in tenant
    assert "4 revisions" in history
    assert token.startswith("tureen_")
    assert "ada  operate" in known
