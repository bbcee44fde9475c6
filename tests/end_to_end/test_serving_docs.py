"""Runs every command of docs/serving.md, in order, against the server that it starts."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from serve.settings import Settings
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES

GUIDE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
(SETTINGS,) = re.findall(r"^```toml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
(PRINTED,) = re.findall(r"^```text\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
SERVE, *COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    directory = tmp_path_factory.mktemp("guide")
    shutil.copytree(EXAMPLES / "cifar10", directory / "bundle")
    pixels = load_bundle(directory / "bundle").golden.pixels[0]
    Image.fromarray(pixels).save(directory / "photo.jpg", quality=95)
    (directory / "tureen.toml").write_text(SETTINGS)
    return directory


def test_every_command_of_the_page_runs(workplace, run_command, served):
    answers = []
    with served(SERVE, workplace) as url:
        port = url.rpartition(":")[2]
        for command in COMMANDS:
            # On the server's own port; and the signal to this server alone, whatever else runs here.
            here = command.replace("8000", port).replace("[t]ureen serve bundle", f"[s]erve bundle --port {port}")
            result = run_command(here, workplace)
            assert result.returncode == 0, f"{here}\n{result.stdout}\n{result.stderr}"
            answers.append(result.stdout)
    one, sweep, several, from_file, from_all, *_, metrics = answers
    assert json.loads(one)["beta"] == 0.7
    assert json.loads(sweep)["betas"] == [0, 0.25, 0.5, 0.75, 1]
    assert [result["beta"] for result in json.loads(several)["results"]] == [0, 1]
    assert "max_batch = 16  # file\n" in from_file
    assert all(line.replace("/srv", str(workplace)) in from_all.splitlines() for line in PRINTED.splitlines())
    assert "tureen_requests_total" in metrics


def test_every_option_of_the_page_exists():
    named = set(re.findall(r"`?--([a-z0-9-]+)", "".join(re.findall(r"`[^`\n]+`", GUIDE)))) - {
        "silent",
        "fail",
        "data-binary",
    }
    assert named <= {"config", "print-config", *(name.replace("_", "-") for name in Settings.model_fields)}
    assert len(named) >= 10
