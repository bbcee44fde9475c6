"""`tureen push` and `tureen pull`, and the commands that take an address in place of a directory."""

import json

import pytest

from tests.remote_hosts import REPOSITORY, files_of
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES
from tureen.cli import main

# The client of the hub sends a body by a deprecated argument of httpx.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUREEN_CACHE_DIR", str(tmp_path / "cache"))


def run(capsys, *arguments):
    """Status, output and error of a command, without the progress of the client of the hub."""
    status = main([*map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_push_prints_each_file_and_pull_prints_the_directory(hub, tmp_path, capsys):
    status, out, _ = run(capsys, "push", "cifar10", f"hf://{REPOSITORY}", "--message", "First", "--private")
    assert status == 0
    commit = hub.branches[REPOSITORY, "main"]
    assert out.splitlines() == [
        *(f"uploaded   {name}" for name in load_bundle(EXAMPLES / "cifar10").manifest.files),
        "uploaded   manifest.json",
        f"hf://{REPOSITORY} has the bundle, commit {commit}",
    ]
    assert hub.messages == ["First"]
    assert REPOSITORY in hub.private
    status, out, _ = run(capsys, "pull", f"hf://{REPOSITORY}@{commit}", "--out", tmp_path / "out" / "digits")
    assert (status, out) == (0, f"{tmp_path}/out/digits\n")
    assert load_bundle(tmp_path / "out" / "digits").manifest.name == "cifar10"
    status, out, _ = run(capsys, "pull", f"hf://{REPOSITORY}")
    assert files_of(tmp_path / "out" / "digits").keys() == files_of(load_bundle(out.strip()).path).keys()
    status, out, _ = run(capsys, "push", tmp_path / "out" / "digits", f"hf://{REPOSITORY}")
    assert all(line.startswith("unchanged") for line in out.splitlines()[:-1])


def test_pull_keeps_a_directory_that_exists_and_refuses_a_path(hub, tmp_path, capsys):
    status, _, err = run(capsys, "pull", f"hf://{REPOSITORY}", "--out", tmp_path)
    assert (status, err) == (1, f"tureen pull: {tmp_path} exists already: choose another directory\n")
    status, _, err = run(capsys, "push", "cifar10", "runs/digits")
    assert status == 1
    assert err.startswith("tureen push: runs/digits is not an address: give hf://OWNER/NAME")


def test_inspect_classify_and_doctor_take_an_address(bucket, tmp_path, capsys):
    address = f"s3://{bucket}/digits"
    assert run(capsys, "push", "cifar10", address)[0] == 0
    status, out, _ = run(capsys, "inspect", address, "--json")
    assert (status, json.loads(out)["name"]) == (0, "cifar10")
    picture = tmp_path / "picture.png"
    picture.write_bytes((EXAMPLES.parents[1] / "docs" / "console-phone.png").read_bytes())
    status, out, err = run(capsys, "classify", picture, "--bundle", address)
    assert status == 0, err
    status, out, err = run(capsys, "doctor", "--bundle", f"s3://{bucket}/absent", "--json")
    assert json.loads(out)["bundle"]["problem"] == "there is no bundle at its address: it has no manifest.json (404)"
