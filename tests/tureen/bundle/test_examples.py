"""Bundles by name: in Python and for every command that takes a BUNDLE."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tureen
from tureen.bundle.bundle import read_manifest
from tureen.bundle.examples import DEFAULT_EXAMPLE, EXAMPLES, example_names, find_bundle
from tureen.cli import main
from tureen.errors import BundleError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_example_has_its_name_and_the_default_is_one():
    assert DEFAULT_EXAMPLE in example_names()
    for name in example_names():
        assert find_bundle(name) == EXAMPLES / name
        assert read_manifest(find_bundle(name)).name == name


def test_a_directory_that_is_no_bundle_does_not_hide_the_example_and_the_log_says_so(caplog):
    Path("cifar10").mkdir()
    Path("cifar10/a.png").touch()
    assert find_bundle("cifar10") == find_bundle("cifar10", must_exist=False) == EXAMPLES / "cifar10"
    assert caplog.messages == ["the directory cifar10 holds no bundle: this is the example cifar10 of Tureen"] * 2


def test_a_directory_that_is_a_bundle_wins_over_the_example_and_the_log_says_so(caplog):
    shutil.copytree(EXAMPLES / "signs", "cifar10")
    assert find_bundle("cifar10") == find_bundle("cifar10", must_exist=False) == Path("cifar10")
    assert caplog.messages == ["this is the bundle in the directory cifar10, not the example cifar10 of Tureen"] * 2


def test_a_directory_with_a_run_wins_only_where_a_run_may_be(caplog):
    Path("cifar10").mkdir()
    Path("cifar10/checkpoint.json").touch()
    assert find_bundle("cifar10") == EXAMPLES / "cifar10"
    assert find_bundle("cifar10", must_exist=False) == Path("cifar10")
    assert caplog.messages[1] == "this is the run in the directory cifar10, not the example cifar10 of Tureen"


def test_a_command_says_on_the_terminal_which_bundle_it_uses():
    Path("cifar10").mkdir()
    command = [sys.executable, "-m", "tureen.cli", "inspect", "cifar10", "--json"]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert json.loads(shown.stdout)["name"] == "cifar10"
    assert shown.stderr == "the directory cifar10 holds no bundle: this is the example cifar10 of Tureen\n"


def test_a_file_that_exists_wins_over_an_example():
    Path("cifar10").touch()
    assert find_bundle("cifar10") == Path("cifar10")
    with pytest.raises(BundleError, match="cifar10"):
        tureen.load("cifar10")


def test_a_link_to_nothing_is_a_path_that_exists():
    Path("cifar10").symlink_to("nowhere")
    assert find_bundle("cifar10") == Path("cifar10")


@pytest.mark.parametrize("name", ["nowhere", "cifar10/", "./cifar10", "x/cifar10", "../cifar10"])
def test_only_the_bare_name_is_an_example(name):
    if Path(name) == Path("cifar10"):  # pathlib removes the dot and the slash
        assert find_bundle(name) == EXAMPLES / "cifar10"
        return
    with pytest.raises(BundleError, match=r"there is no such path; .* the name of an example: cifar10"):
        find_bundle(name)
    assert find_bundle(name, must_exist=False) == Path(name)


def test_a_soup_by_name_classifies_and_names_the_path_of_its_bundle():
    with tureen.load("cifar10", engine="onnxruntime", precision="fp32") as soup:
        assert soup.bundle.path == EXAMPLES / "cifar10"
        assert soup.classify([soup.bundle.golden.pixels[0]], beta=0.0)[0].predictions


def test_inspect_takes_the_name_of_an_example(capsys):
    assert main(["inspect", "cifar10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "cifar10"
