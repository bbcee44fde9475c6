"""`Soup.sweep`: one image at many β."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

import tureen
from tests.conftest import encoded
from tureen.bundle.examples import EXAMPLES
from tureen.soup import Soup

PNG = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)))


@pytest.fixture(scope="module")
def example() -> Iterator[Soup]:
    with tureen.load(EXAMPLES / "signs", engine="onnxruntime", precision="fp32") as soup:
        yield soup


def test_a_sweep_has_what_classify_gives_at_each_beta(example):
    sweep = example.sweep(PNG, "0:1:0.05", top_k=3)
    answers = example.classify([PNG] * 21, beta=sweep.betas, top_k=43)
    assert sweep.betas == [round(0.05 * i, 2) for i in range(21)]
    assert sweep.answers == [answer.predictions[0].label for answer in answers]
    assert sweep.strengths == [answer.strength for answer in answers]
    assert sweep.calibrated == answers[0].calibrated
    assert len(sweep.curves) == 3
    for curve in sweep.curves:
        assert example.labels[curve.index] == curve.label
        for probability, answer in zip(curve.probabilities, answers, strict=True):
            (same,) = [one.probability for one in answer.predictions if one.label == curve.label]
            assert probability == pytest.approx(same, abs=1e-4)  # the batches differ, and with them rounding errors
    highest = [max(curve.probabilities) for curve in sweep.curves]
    assert highest == sorted(highest, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "betas"),
    [
        ({}, [round(0.1 * i, 1) for i in range(11)]),
        ({"betas": "1,0.5,clean"}, [0, 0.5, 1]),
        ({"betas": [1, "clean", 0.5, 0.5]}, [0, 0.5, 1]),
        ({"betas": np.linspace(0, 1, 3)}, [0, 0.5, 1]),
        ({"strengths": "0:1:1"}, [0, 1]),
        ({"strengths": (1.0, 0.0)}, [0, 1]),
    ],
)
def test_the_betas_are_a_grid_or_an_iterable_and_ascend(example, arguments, betas):
    assert example.sweep(PNG, **arguments).betas == betas


def test_strengths_are_mapped_to_betas_by_the_bundle(example):
    sweep = example.sweep(PNG, strengths=[0.5])
    assert sweep.strengths == [0.5]
    assert sweep.betas == [example.bundle.manifest.strength.beta_at(0.5)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"betas": "0:2:1"}, tureen.InvalidBetaError),
        ({"betas": [0.5, 2]}, tureen.InvalidBetaError),
        ({"strengths": "robust"}, tureen.InvalidStrengthError),
        ({"strengths": [float("nan")]}, tureen.InvalidStrengthError),
        ({"betas": []}, tureen.ArgumentError),
        ({"betas": [0], "strengths": [0]}, tureen.ArgumentError),
        ({"top_k": 0}, tureen.ArgumentError),
    ],
)
def test_wrong_arguments_are_refused(example, arguments, error):
    with pytest.raises(error):
        example.sweep(PNG, **arguments)


def test_a_wrong_image_and_a_closed_soup_are_refused():
    with tureen.load("signs", engine="onnxruntime", precision="fp32") as soup:
        with pytest.raises(tureen.ImageError):
            soup.sweep(b"no image")
        with pytest.raises(tureen.ArgumentTypeError):
            soup.sweep([PNG])
    with pytest.raises(tureen.ClosedError):
        soup.sweep(PNG)


def test_a_model_of_one_token_has_no_sweep(single_token_bundle):
    with tureen.load(single_token_bundle) as soup, pytest.raises(tureen.SingleTokenError, match="leave betas out"):
        soup.sweep(PNG)
