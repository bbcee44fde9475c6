"""Runs every command of docs/batch.md, in order, and compares its tables with the code."""

import re
import shutil
from pathlib import Path

from PIL import Image

from serve.jobs.input_sources import MANIFEST_SUFFIXES, TAR_SUFFIXES
from serve.jobs.shard_file import COLUMNS
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES

GUIDE = (Path(__file__).parents[2] / "docs" / "batch.md").read_text()
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", GUIDE, re.M | re.S) for line in block.splitlines()]


def test_every_command_of_the_page_runs(tmp_path, run_command, served, admin_port):
    shutil.copytree(EXAMPLES / "cifar10", tmp_path / "bundle")
    (tmp_path / "photos").mkdir()
    for n, pixels in enumerate(load_bundle(tmp_path / "bundle").golden.pixels):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{n}.jpg")
    said = []

    def run(commands):
        for command in commands:
            result = run_command(command, tmp_path)
            assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
            said.append(result.stdout)

    (serve,) = [n for n, command in enumerate(COMMANDS) if command.startswith("tureen serve")]
    run(COMMANDS[:serve])
    with served(COMMANDS[serve], tmp_path):
        run(COMMANDS[serve + 1 :])
    images = len(list((tmp_path / "photos").iterdir()))
    assert f"{images} rows of {images} images in results, β 0.7" in said[0]
    assert f"{5 * images} rows" in said[1]
    assert "label" in said[2]
    assert said[3] == said[4] == said[0]
    assert f"{images} rows of {images} images in elsewhere, β 0.7" in said[5]
    assert f"succeeded            {images}/{images}, 0 failed" in said[7]
    assert said[8] == said[7].splitlines(keepends=True)[0]


def test_the_tables_have_every_column_and_every_kind_of_input():
    rows = re.findall(r"^\| (`.*?) \|", GUIDE, re.M)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert set(COLUMNS) <= set(named)
    assert {*TAR_SUFFIXES, ".zip"} <= set(named)
    assert all(f"`{suffix}`" in GUIDE for suffix in MANIFEST_SUFFIXES)
