"""The logits of PyTorch that engines must reproduce."""

import numpy as np

from export.reference import BETAS, attack_images, compute_reference
from training.data.datasets import Images


def test_the_reference_equals_the_evaluated_accuracy(checkpoint, expected):
    """Clean accuracy of the reference equals that of the training: same preprocessing, same meaning of β."""
    for row in checkpoint.accuracy:
        right = expected.images.logits[BETAS.index(row.beta)].argmax(1) == checkpoint.test.labels
        assert right.mean() == row.clean.value


def test_the_reference_has_a_row_of_logits_for_each_beta_and_the_tokens_of_both_modes(checkpoint):
    model, pixels = checkpoint.model, checkpoint.test.pixels[:5]
    found = compute_reference(model, pixels, (0.0, 1.0))
    assert found.betas == (0.0, 1.0)
    assert found.images.pixels.shape == (2, 5, 8, 8, 3)
    assert found.images.logits.shape == (2, 5, 10)
    assert found.attacked is None
    np.testing.assert_array_equal(found.clean_token, model.soup(0.0).numpy(force=True))
    np.testing.assert_array_equal(found.robust_token, model.soup(1.0).numpy(force=True))


def test_attacked_images_stay_within_the_radius_and_are_counted(checkpoint):
    few = Images(checkpoint.test.pixels[:3], checkpoint.test.labels[:3])
    done = []
    attacked = attack_images(checkpoint.model, few, epsilon_255=8, steps=2, betas=(0.0, 1.0), on_images=done.append)
    distance = attacked.sample.pixels.astype(int) - few.pixels
    assert 0 < np.abs(distance).max() <= 8
    assert (attacked.attack, attacked.epsilon_255, sum(done)) == ("APGD-2 (CE, DLR, widest margin)", 8, 6)
    np.testing.assert_array_equal(attacked.labels, few.labels)
