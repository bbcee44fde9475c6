"""Images of the example bundle as files, batch jobs in processes, and jobs below the roots of a server."""

import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from serve.commands.batch import batch
from serve.jobs.decoding import decode_in_threads
from serve.jobs.job_run import JobProgress, run_job
from serve.jobs.job_store import JobRecord, JobRequest
from serve.jobs.rooted_files import RootedFiles
from tests.serve.jobs.interrupted import CheapEngine
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES
from tureen.soup import Soup

BUNDLE = EXAMPLES / "cifar10"
ROOT = Path(__file__).parents[3]
INSIDE, SECRET = (13, 17, 19), (200, 1, 2)


@pytest.fixture
def photos(tmp_path):
    """A folder tree of 23 images in the three formats; two pairs have the same content."""
    folder = tmp_path / "photos"
    pixels = load_bundle(BUNDLE).golden.pixels
    for n in range(23):
        path = folder / f"{'abc'[n % 3]}" / f"image {n:02}.{('png', 'jpeg', 'webp')[n % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[n % len(pixels)]).resize((40 + n, 40)).save(path)
    return folder


@pytest.fixture
def run_batch(tmp_path):
    """A function that runs `tureen batch` with the example bundle in this process, and returns its exit status."""

    def run(*arguments):
        return batch([str(BUNDLE), *map(str, arguments), "--engine", "onnxruntime", "--threads", "1"])

    return run


@pytest.fixture(scope="session")
def interrupted():
    """A function that runs `tureen batch` with a fault at a disk call; returns exit status, and calls or error text."""
    command = [sys.executable, "-m", "tests.serve.jobs.interrupted"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:

        def run(at, how, *arguments):
            process.stdin.write(json.dumps([at, how, list(map(str, arguments))]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run
        process.stdin.close()


def picture(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def world(tmp_path):
    """Root directories with a picture, and beside them directories that no job may reach."""
    for name in ("in/photos", "out", "secret", "in-evil", "out-evil"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "in/photos/a.png").write_bytes(picture(INSIDE))
    (tmp_path / "secret/s.png").write_bytes(picture(SECRET))
    (tmp_path / "in-evil/s.png").write_bytes(picture(SECRET))
    return tmp_path


@pytest.fixture
def files(world):
    return RootedFiles([world / "in"], [world / "out"])


@pytest.fixture
def run_on_server(world, files):
    """Runs a job as a server does, on CheapEngine and with decoding on a thread."""
    soup = Soup(load_bundle(BUNDLE), CheapEngine())
    run = partial(
        run_job,
        files=files,
        soup=soup,
        classify=soup.logits,
        batch_rows=4,
        streams=1,
        open_pool=lambda source, options: decode_in_threads(source, options, 1),
    )

    def started(output, given=None):
        request = JobRequest.model_construct(**JobRequest(input="/x", output="/x").model_dump())
        request = request.model_copy(update={"input": given or f"{world}/in/photos", "output": output})
        record = JobRecord("1" * 16, "running", "ada", request, 0.5, "", {})
        return run(record, progress=JobProgress(1000))

    return started
