"""Images of the example bundle as files, and jobs in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from serve.commands.batch import batch
from tureen.bundle.bundle import load_bundle
from tureen.commands.demo import EXAMPLES

BUNDLE = EXAMPLES / "cifar10"
ROOT = Path(__file__).parents[3]


@pytest.fixture
def photos(tmp_path):
    """23 images in folders, in the three formats, of which two pairs are the same picture."""
    folder = tmp_path / "photos"
    pixels = load_bundle(BUNDLE).golden.pixels
    for n in range(23):
        path = folder / f"{'abc'[n % 3]}" / f"image {n:02}.{('png', 'jpeg', 'webp')[n % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[n % len(pixels)]).resize((40 + n, 40)).save(path)
    return folder


@pytest.fixture
def run_batch(tmp_path):
    """`tureen batch` with the example bundle on ONNX Runtime, in this process; its exit status."""

    def run(*arguments):
        return batch([str(BUNDLE), *map(str, arguments), "--engine", "onnxruntime", "--threads", "1"])

    return run


@pytest.fixture(scope="session")
def interrupted():
    """Runs `tureen batch` in a process that goes wrong at a call: its exit status, and calls or the error's words."""
    command = [sys.executable, "-m", "tests.serve.jobs.interrupted"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:

        def run(at, how, *arguments):
            process.stdin.write(json.dumps([at, how, list(map(str, arguments))]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run
        process.stdin.close()
