"""The measurement of a run on all its test images, in parts."""

import sys

import numpy as np
import pytest

from benchmarks import whole_test_set
from tests.conftest import draw_signs
from training.data.datasets import Images


@pytest.fixture
def measure(signs_run, tmp_path, monkeypatch, capsys):
    """Runs the benchmark on drawn signs, in parts of 50. Returns its tables, and the first images of new parts."""
    file = tmp_path / "parts.jsonl"
    draw_signs(tmp_path / "data")
    attacked = []
    attack = whole_test_set.attack_each_beta

    def counted(*arguments, seed, **options):
        attacked.append(seed)
        return attack(*arguments, seed=seed, **options)

    monkeypatch.setattr(whole_test_set, "attack_each_beta", counted)
    monkeypatch.setattr(whole_test_set, "PART", 50)

    def measure(*arguments, model=signs_run):
        attacked.clear()
        command = [str(model), "--data", str(tmp_path / "data"), "--betas", "1", "--steps", "2", "--epsilon-255", "8"]
        monkeypatch.setattr(sys, "argv", ["whole_test_set", *command, "--parts", str(file), *arguments])
        whole_test_set.main()
        return capsys.readouterr().out.split("\n\n", 1)[1], list(attacked)

    measure.file = file
    return measure


def test_an_interrupted_measurement_continues_and_gives_the_same_tables(measure):
    tables, attacked = measure()
    assert attacked == [0, 50, 100]
    assert "all images" in tables
    assert "without dark images" in tables
    assert measure() == (tables, [])
    text = measure.file.read_text()
    measure.file.write_text(text[: text.index('"first":100') + 20])  # stopped while it wrote the last part
    assert measure() == (tables, [100])
    assert measure() == (tables, [])


def test_another_attack_is_measured_again(measure):
    measure()
    assert measure("--attack", "pgd")[1] == [0, 50, 100]
    tables, attacked = measure("--epsilon-255", "16")
    assert attacked == [0, 50, 100]
    assert "ε = 16/255" in tables


def test_the_model_of_a_bundle_is_attacked(measure):
    tables, attacked = measure("--images", "20", model="signs")
    assert attacked == [0]
    assert "ε = 8/255" in tables


def test_an_image_is_dark_by_the_mean_of_its_values():
    pixels = np.zeros((3, 4, 4, 3), np.uint8)
    pixels[1] = 29
    pixels[2] = 30
    assert whole_test_set.is_dark(Images(pixels, np.zeros(3, np.int64))).tolist() == [True, True, False]
