"""The black-box benchmark attacks a server through HTTP, stays in the ball, and says when Square is stronger."""

from contextlib import closing

import numpy as np
import pytest
import torch

from benchmarks.black_box import (
    BlackBoxResult,
    HttpClassifier,
    attack_server,
    is_stronger,
    report_strength,
    report_verdict,
)
from benchmarks.server_process import run_tureen
from training.attacks.autoattack import square
from training.data.datasets import Images
from training.evaluation.accuracy import wilson_interval
from training.models.vit import images_from_pixels, pixels_from_images
from tureen.bundle.bundle import read_manifest


@pytest.fixture(scope="module")
def server(bundle_path, tmp_path_factory):
    with run_tureen(bundle_path, "--engine", "onnxruntime", "--state-dir", str(tmp_path_factory.mktemp("state"))) as it:
        yield it


@pytest.fixture
def manifest(bundle_path):
    return read_manifest(bundle_path)


def result(kept, n=100, beta=1.0):
    return BlackBoxResult(wilson_interval(n, n), wilson_interval(kept, n), n, beta, queries=n)


def test_square_attacks_a_server_with_png_files_alone(server, manifest, held_out):
    images = Images(held_out.pixels[:4], held_out.labels[:4])
    attacked = attack_server(server.port, images, manifest=manifest, strength=0.5, epsilon_255=38, queries=5)
    assert attacked.n == 4
    assert attacked.beta == manifest.strength.beta_at(0.5)
    assert attacked.after.value <= attacked.before.value
    # One for β, four before, at most seven of Square for each image and once more all of them, four after.
    assert 9 <= attacked.queries <= 1 + 4 + (4 + 4 * 6 + 4) + 4


def test_an_image_that_the_server_refuses_ends_the_measurement(server):
    with (
        closing(HttpClassifier(server.port, classes=10, strength=2)) as client,
        pytest.raises(RuntimeError, match="status 422"),
    ):
        client.classify(np.zeros((1, 8, 8, 3), np.uint8))


def test_no_image_gives_no_scores():
    with closing(HttpClassifier(1, classes=10, strength=0)) as client:  # sends nothing
        assert client.log_probabilities(torch.zeros(0, 3, 8, 8)).shape == (0, 10)


def test_every_point_of_square_is_an_8_bit_image_in_the_ball():
    generator = torch.Generator().manual_seed(0)
    images = images_from_pixels(torch.randint(256, (20, 8, 8, 3), dtype=torch.uint8, generator=generator))
    weights, points = torch.randn(3 * 64, 10, generator=generator), []

    def forward(x):
        points.append(x)
        return x.flatten(1) @ weights

    labels = forward(images).argmax(1)
    adversarial = square(forward, images, labels, epsilon=8 / 255, steps=100, generator=generator)
    assert (forward(adversarial).argmax(1) != labels).sum() > 5
    assert np.abs(pixels_from_images(adversarial).astype(int) - pixels_from_images(images)).max() == 8
    for x in points:
        torch.testing.assert_close(images_from_pixels(torch.from_numpy(pixels_from_images(x))), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kept", "expected"), [(70, False), (60, False), (50, False), (40, True)])
def test_square_is_stronger_only_beyond_chance(kept, expected):
    assert is_stronger(result(kept), white_box=0.6, n=500, tests=3) is expected


def test_the_report_says_at_which_strength_square_is_stronger(manifest, capsys):
    epsilon_255 = manifest.accuracy[0].epsilon_255
    stronger = {
        strength: report_strength(manifest, strength, result(kept, beta=strength), epsilon_255=epsilon_255, tests=2)
        for strength, kept in ((0.0, 100), (1.0, 0))
    }
    assert stronger == {0.0: False, 1.0: True}
    report_verdict(stronger)
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert "STRONGER than the white-box attack" in verdict
    assert "at strength 1:" in verdict


def test_the_report_says_that_square_is_not_stronger(capsys):
    report_verdict({0.0: False, 1.0: False})
    assert "at no strength stronger" in capsys.readouterr().out


def test_the_report_compares_no_figures_of_different_radii(manifest, capsys):
    assert report_strength(manifest, 1.0, result(0), epsilon_255=3, tests=1) is None
    report_verdict({1.0: None})
    output = capsys.readouterr().out
    assert "not measured at this ε" in output
    assert "no white-box figure at this ε" in output
