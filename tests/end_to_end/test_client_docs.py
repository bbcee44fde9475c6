"""Runs every example of docs/client.md, in order, against the server that the page starts."""

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.end_to_end.conftest import environment
from tureen import client as package
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES
from tureen.client import AsyncClient, Client, ClientError
from tureen.client.attempts import DEFAULT_MAX_RETRIES, DEFAULT_TIMEOUT_S, SERVER_TIMEOUT_MS
from tureen.client.client_errors import LOCAL_CODES
from tureen.client.image_groups import DEFAULT_CONCURRENCY, DEFAULT_IMAGES_PER_REQUEST

GUIDE = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
EXAMPLES_OF_PAGE = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
INSTALL, SERVE = re.search(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)[1].splitlines()


def table(title):
    start = GUIDE.index(f"| {title} |")
    rows = GUIDE[start : GUIDE.index("\n\n", start)].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def names(title):
    return {name for row in table(title) for name in re.findall(r"`(\w+)`", row[0])}


def parameters(function):
    return set(inspect.signature(function).parameters) - {"self"}


@pytest.fixture
def workplace(tmp_path):
    shutil.copytree(EXAMPLES / "cifar10", tmp_path / "bundle")
    pixels = load_bundle(tmp_path / "bundle").golden.pixels[0]
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    return tmp_path


def test_every_example_of_the_page_runs(workplace, served):
    assert INSTALL == 'pip install ".[client]"'
    with served(SERVE, workplace) as url:
        script = "\n".join(EXAMPLES_OF_PAGE).replace("http://127.0.0.1:8000", url)
        shown = subprocess.check_output([sys.executable, "-c", script], cwd=workplace, env=environment(), text=True)
    lines = shown.splitlines()
    assert lines[1].endswith("request 0")
    assert [line.split()[0] for line in lines[2:7]] == ["0.0", "0.25", "0.5", "0.75", "1.0"]
    assert [line.split()[0] for line in lines[7:10]] == ["0.0", "unsupported_image_type", "1.0"]
    assert len(lines) == 10 + 1 + 20 + 1
    assert lines[-1].startswith("invalid_beta ")


def test_every_argument_is_on_the_page():
    assert names("argument of `classify`") == parameters(Client.classify) - {"image"}
    assert names("argument of `Client`") == parameters(Client.__init__) - {"url"}
    many = parameters(Client.classify_many) - {"images", "normalize", "policy", "top_k"}
    assert names("argument of `classify_many`") == many
    defaults = {row[0].strip("`"): row[2] for row in table("argument of `Client`")}
    assert (float(defaults["timeout_s"]), int(defaults["max_retries"])) == (DEFAULT_TIMEOUT_S, DEFAULT_MAX_RETRIES)
    defaults = {row[0].strip("`"): row[2] for row in table("argument of `classify_many`")}
    assert int(defaults["concurrency"]) == DEFAULT_CONCURRENCY
    assert int(defaults["images_per_request"]) == DEFAULT_IMAGES_PER_REQUEST
    assert f"More than {SERVER_TIMEOUT_MS // 1000} seconds" in GUIDE


def test_both_clients_have_the_same_methods_with_the_same_arguments():
    for name in ("__init__", "classify", "sweep", "classify_many", "close"):
        ours, theirs = (inspect.signature(getattr(client, name)) for client in (Client, AsyncClient))
        assert list(ours.parameters.values()) == list(theirs.parameters.values()), name


def test_every_error_is_on_the_page():
    errors = {name for name in package.__all__ if name.endswith("Error")}
    assert names("class") == errors - {ClientError.__name__}
    assert LOCAL_CODES - {"deadline_exceeded"} <= set(re.findall(r"code `(\w+)`", GUIDE))
