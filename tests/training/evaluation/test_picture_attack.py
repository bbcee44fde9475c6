"""Attacks on single images, on a model whose margins are known, and the files of images."""

import numpy as np
import pytest

from training.errors import DataError, RecipeError
from training.evaluation.accuracy import make_predictor
from training.evaluation.picture_attack import (
    PictureAttack,
    checkpoint_curve,
    difference_factor,
    difference_image,
    find_label,
    picture_bytes,
    read_picture,
)
from tureen.bundle.strength_curve import UNMEASURED_STRENGTH
from tureen.preprocess import PreprocessSpec, pixels_from_bytes

LABELS = ["13-yield", "14-stop", "14-no-stop", "9-stopping"]


def grey(level):
    return np.full((8, 8, 3), level, np.uint8)


def is_class_0(model, pixels, beta):
    return make_predictor(model)(pixels[None], [beta])[0].argmax() == 0


def test_the_attack_fools_the_attacked_mode_within_the_radius(grey_model):
    """At β = 0 the reach of 1 pixel level is 3; at β = 1 it is 1: level 134 falls to ε = 4 in clean mode alone."""
    attacked = PictureAttack(grey_model, [0.0], 4, steps=10).run(grey(134), 0)
    assert np.abs(attacked.astype(int) - 134).max() == 4
    assert not is_class_0(grey_model, attacked, 0.0)
    assert is_class_0(grey_model, attacked, 1.0)


def test_a_joint_attack_fools_both_modes_if_the_radius_reaches_both(grey_model):
    assert is_class_0(grey_model, grey(131), 1.0)
    attacked = PictureAttack(grey_model, [0.0, 1.0], 5, steps=10).run(grey(131), 0)
    assert not is_class_0(grey_model, attacked, 0.0)
    assert not is_class_0(grey_model, attacked, 1.0)


def test_an_attack_that_cannot_succeed_returns_an_image_that_is_read_rightly(grey_model):
    attacked = PictureAttack(grey_model, [0.0, 1.0], 2, steps=4).run(grey(200), 0)
    assert is_class_0(grey_model, attacked, 0.0)
    assert np.abs(attacked.astype(int) - 200).max() <= 2


def test_rounding_to_8_bits_does_not_exceed_a_fractional_radius(grey_model):
    attacked = PictureAttack(grey_model, [0.0], 1.7, steps=4).run(grey(200), 0)
    assert np.abs(attacked.astype(int) - 200).max() == 1


def test_the_passes_are_counted_as_announced(grey_model):
    for betas in ([0.0], [0.0, 1.0]):
        attack, passes = PictureAttack(grey_model, betas, 4, steps=5), []
        attack.run(grey(134), 0, lambda passes=passes: passes.append(1))
        assert len(passes) == attack.total_passes(classes=4)


def test_two_classes_have_no_second_loss(grey_model):
    attack = PictureAttack(lambda x, betas: grey_model(x, betas)[:, :2], [0.0], 4, steps=5)
    assert attack.name(2) == "APGD-5 (CE, widest margin)"
    assert attack.name(4) == "APGD-5 (CE, DLR, widest margin)"


@pytest.mark.parametrize("epsilon_255", [0, 0.5, 256, float("nan")])
def test_a_radius_that_8_bits_cannot_hold_is_refused(grey_model, epsilon_255):
    with pytest.raises(RecipeError, match="give 1 to 255"):
        PictureAttack(grey_model, [0.0], epsilon_255, steps=1)


def test_a_seed_repeats_the_attack(grey_model):
    first, second = (PictureAttack(grey_model, [0.0], 4, steps=3, seed=5).run(grey(140), 0) for _ in range(2))
    assert (first == second).all()


def test_a_picture_is_read_at_five_strengths(grey_model):
    readings = read_picture(make_predictor(grey_model), grey(140), 1, labels=LABELS, curve=UNMEASURED_STRENGTH)
    assert [reading.strength for reading in readings] == [0, 0.25, 0.5, 0.75, 1]
    assert {reading.label for reading in readings} == {"13-yield"}
    assert all(reading.probability > 0.5 > reading.true_label_probability for reading in readings)


def test_the_curve_of_a_checkpoint_needs_no_validation_images(checkpoint):
    assert checkpoint.validation is not None
    curve = checkpoint_curve(checkpoint)
    assert curve.n == min(1000, len(checkpoint.validation))


def test_a_label_is_found_with_and_without_its_number():
    assert find_label(LABELS, "14-stop") == 1
    assert find_label(LABELS, "stop") == 1
    assert find_label(LABELS, "no-stop") == 2


def test_an_unknown_label_is_an_error_with_a_suggestion():
    with pytest.raises(DataError, match=r"no label 'stpo': did you mean 14-stop"):
        find_label(LABELS, "stpo")
    with pytest.raises(DataError, match=r"choose one of 13-yield, 14-stop, 14-no-stop, 9-stopping"):
        find_label(LABELS, "zebra")
    with pytest.raises(DataError, match="the name of 2 labels: 1-a, 2-a"):
        find_label(["1-a", "2-a"], "a")


@pytest.mark.parametrize(("size", "crop_fraction"), [(32, 1.0), (224, 0.875), (64, 0.8)])
def test_a_saved_picture_is_read_as_the_same_pixels(size, crop_fraction):
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    spec = PreprocessSpec(image_size=size, crop_fraction=crop_fraction)
    assert (pixels_from_bytes(picture_bytes(pixels, spec), spec) == pixels).all()


def test_a_border_that_is_no_whole_number_of_pixels_gives_an_image_of_the_right_size():
    spec = PreprocessSpec(image_size=32, crop_fraction=0.875)
    assert pixels_from_bytes(picture_bytes(grey(99).repeat(4, 0).repeat(4, 1), spec), spec).shape == (32, 32, 3)


def test_a_difference_is_amplified_around_grey():
    assert difference_factor(4) == 31
    assert difference_factor(200) == 1
    shown = np.asarray(difference_image(grey(100), grey(104), difference_factor(4)))
    assert (shown == 128 + 4 * 31).all()
    assert (np.asarray(difference_image(grey(9), grey(9), 31)) == 128).all()
