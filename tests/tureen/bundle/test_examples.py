"""Bundles by name: in Python and for every command that takes a BUNDLE."""

import json
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


def test_a_path_that_exists_wins_over_an_example():
    Path("cifar10").mkdir()
    assert find_bundle("cifar10") == Path("cifar10")
    with pytest.raises(BundleError, match="cifar10 is not a bundle: it has no manifest"):
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
