"""Runs every command of docs/hub.md, in order, with a local hub and a local S3 server."""

import json
import re
import shutil
import urllib.request
from pathlib import Path

import pytest

from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES

PAGE = (Path(__file__).parents[2] / "docs" / "hub.md").read_text()
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]


@pytest.fixture
def workplace(hub, bucket, tmp_path, monkeypatch):
    """A directory with the bundle and the picture of the page; the bucket of the page exists."""
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    client.close()
    monkeypatch.setenv("TUREEN_CACHE_DIR", str(tmp_path / "cache"))
    shutil.copytree(EXAMPLES / "cifar10", tmp_path / "digits-bundle")
    samples = tmp_path / "tureen-demo" / "samples"
    samples.mkdir(parents=True)
    shutil.copy(EXAMPLES.parents[1] / "docs" / "console-phone.png", samples / "stop.png")
    return tmp_path


def test_every_command_of_the_page_runs(hub, workplace, run_command, served):
    *others, serve = COMMANDS
    assert len(others) == 5
    printed = {}
    for command in others:
        result = run_command(command, workplace)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        printed[command] = result.stdout
    assert hub.messages == ["Train for 100 epochs"]
    assert load_bundle(workplace / "digits").manifest.name == "cifar10"
    with served(serve, workplace) as url, urllib.request.urlopen(f"{url}/v2/models/cifar10") as response:
        assert json.load(response)["name"] == "cifar10"
