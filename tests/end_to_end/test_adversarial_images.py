"""A served model classifies adversarial images, sent as PNG files, like the attacked model in PyTorch."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

import tureen
from benchmarks.black_box import HttpClassifier
from benchmarks.server_process import run_tureen
from training.attacks.apgd import apgd_both
from training.checkpoint import load_checkpoint
from training.models.vit import images_from_pixels, pixels_from_images
from tureen.bundle.bundle import read_manifest
from tureen.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STRENGTHS = (0, 1 / 3, 2 / 3, 1)
IMAGES = 300
CLOSE = 1e-3  # another kernel rounds differently, so it may exchange two labels whose logits are this close


@pytest.fixture(scope="module")
def published_bundle(published_digits_run, tmp_path_factory) -> Path:
    """The exported bundle of the recipe `digits`. Its modes differ much more than those of `bundle_path`."""
    out = tmp_path_factory.mktemp("export") / "bundle"
    assert main(["export", str(published_digits_run), "--out", str(out), "--engine", "onnxruntime"]) == 0
    return out


@pytest.fixture(scope="module")
def server(published_bundle, tmp_path_factory):
    """A server in fp32, like the model in PyTorch. A faster precision may change labels near a boundary."""
    flags = ("--engine", "onnxruntime", "--precision", "fp32", "--state-dir", str(tmp_path_factory.mktemp("state")))
    with run_tureen(published_bundle, *flags) as server:
        yield server


def test_adversarial_png_files_have_the_labels_and_the_accuracy_of_the_attack_in_float(
    server, published_bundle, published_digits_run
):
    manifest, checkpoint = read_manifest(published_bundle), load_checkpoint(published_digits_run)
    original = checkpoint.test.pixels[:IMAGES]
    x, y = images_from_pixels(torch.from_numpy(original)), torch.from_numpy(checkpoint.test.labels[:IMAGES])
    epsilon_255 = int(checkpoint.recipe.epsilon_255)
    assert epsilon_255 == checkpoint.recipe.epsilon_255  # a whole number of 8-bit steps, so rounding stays in the ball
    assert manifest.strength.n  # measured, so that strength is not β
    accuracies = []
    for strength in STRENGTHS:
        beta = manifest.strength.beta_at(strength)
        soup = tureen.load_torch(published_bundle).at(beta)
        generator = torch.Generator().manual_seed(0)
        attacked = apgd_both(soup, x, y, epsilon=epsilon_255 / 255, steps=10, generator=generator)
        pixels = pixels_from_images(attacked)
        assert np.abs(pixels.astype(int) - original).max() <= epsilon_255
        with torch.no_grad():
            expected, in_float = soup(images_from_pixels(torch.from_numpy(pixels))), soup(attacked).argmax(1)

        with closing(HttpClassifier(server.port, classes=len(manifest.labels), strength=strength)) as client:
            results = client.classify(pixels)
            log_probabilities = client.log_probabilities(attacked)

        assert {(result["beta"], result["beta_source"]) for result in results} == {(beta, "request")}
        temperature = manifest.temperatures.at([beta]).item()
        probabilities = (expected / temperature).log_softmax(1)
        torch.testing.assert_close(log_probabilities, probabilities, rtol=1e-3, atol=1e-3)  # fp32, another kernel
        labels = torch.tensor([result["predictions"][0]["index"] for result in results])
        differs = labels != expected.argmax(1)
        first, second = expected.topk(2).values.T
        assert not (differs & (first - second > CLOSE)).any()
        assert differs.sum() <= IMAGES / 200
        # The attack stops at the first point that fools the model, so rounding may undo it on a few images.
        accuracies.append((labels == y).float().mean().item())
        assert accuracies[-1] == pytest.approx((in_float == y).float().mean().item(), abs=0.02)
    assert accuracies[-1] > accuracies[0] + 0.2  # the server used the strength of the request
    assert accuracies[-1] < 0.9  # the attack fools the robust mode too
