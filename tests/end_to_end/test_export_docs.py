"""Runs every command of docs/export.md, in order, on small data."""

import json
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from export.source_config import DEFAULT_CROP
from tureen.bundle.bundle import read_manifest
from tureen.bundle.examples import EXAMPLES

GUIDE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.fixture(scope="module")
def workplace(single_token_file, photos, tmp_path_factory):
    """A directory with `photos`, `vit.safetensors`, a co-trained `bundle`, and `held-out` images for it."""
    directory = tmp_path_factory.mktemp("guide")
    shutil.copytree(photos, directory / "photos")
    shutil.copytree(EXAMPLES / "cifar10", directory / "bundle")
    for name in ("cat", "dog"):
        shutil.copytree(photos / name, directory / "held-out" / name)
    shutil.copy(single_token_file, directory / "vit.safetensors")
    return directory


def test_every_command_of_the_page_runs_with_the_documented_result(workplace, run_command, served):
    assert len(COMMANDS) >= 5
    for command in COMMANDS:
        if command.startswith("tureen serve"):
            with served(command, workplace) as url:
                assert_served_without_a_beta(url, workplace)
            continue
        # As it stands, but on fewer images where any are measured, and with a short measurement of the speed.
        shortened = command.replace("--data photos", "--data photos --images 10").replace("--seconds 5", "--seconds 1")
        result = run_command(shortened, workplace)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    for name, has_two_tokens in {"vit-bundle": False, "vit-unmeasured": False, "vit-equal": True}.items():
        manifest = read_manifest(workplace / name)
        assert (manifest.has_two_tokens, manifest.is_cotrained) == (has_two_tokens, False), name
        assert bool(manifest.accuracy) == (name == "vit-bundle")
    assert read_manifest(workplace / "bundle").strength.n == 24


def assert_served_without_a_beta(url, directory):
    image = (directory / "photos" / "dog" / "001.jpg").read_bytes()
    with urllib.request.urlopen(f"{url}/classify", data=image) as answer:
        assert json.loads(answer.read())["beta"] is None
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{url}/classify?beta=0.5", data=image)
    assert refused.value.code == 422
    assert json.loads(refused.value.read())["code"] == "single_token"


def test_the_page_lists_the_usual_crop_fractions():
    for library, fraction in DEFAULT_CROP.items():
        assert f"{100 * fraction:g} % ({library})" in GUIDE
