import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.datasets import Images
from training.errors import DataError, RecipeError
from training.evaluation.tune import choose_beta, tune_beta, tuned_table

GRID = [0.0, 0.25, 0.5, 0.75, 1.0]


def answers(*rows):
    """Return bool (T, n) from strings, one row for each β; 1 means a right prediction."""
    return np.array([[letter == "1" for letter in row] for row in rows])


def draw(accuracies, n, seed=0):
    """Return right predictions at these rates; most images are equally difficult at all β."""
    rng = np.random.default_rng(seed)
    own, shared = rng.random((len(accuracies), n)), rng.random(n)
    return np.where(rng.random(own.shape) < 0.8, shared, own) < np.array(accuracies)[:, None]


def test_the_best_beta_is_chosen_and_its_interval_excludes_the_worse():
    tuned = choose_beta(draw([0.3, 0.5, 0.8, 0.9, 0.6], 400), GRID)
    assert tuned.beta == 0.75
    assert (tuned.low, tuned.high) == (0.75, 0.75)
    assert tuned.n == 400
    assert tuned.accuracies[3].value == max(accuracy.value for accuracy in tuned.accuracies)
    assert tuned.gain.low < 0.6 < tuned.gain.high
    assert tuned.gain.high - tuned.gain.low < 0.15


@pytest.mark.parametrize(
    ("rows", "beta"),
    [
        (("1111", "1111", "1111", "1111", "1111"), 0.5),  # nothing to choose by
        (("0000", "0000", "0000", "0000", "0000"), 0.5),
        (("0011", "1111", "1111", "1111", "0011"), 0.5),
        (("1111", "1111", "1111", "0011", "0011"), 0.25),
        (("0001", "0011", "0111", "1111", "1111"), 0.75),  # of two in the middle the lower
        (("1111", "1111", "0011", "0001", "0001"), 0.0),
        (("1111", "0011", "1111", "1111", "1111"), 0.75),  # the longest run
    ],
)
def test_ties_are_broken_in_the_middle_of_the_plateau(rows, beta):
    assert choose_beta(answers(*rows), GRID).beta == beta


def test_few_images_leave_beta_open_and_many_do_not():
    accuracies = [0.70, 0.73, 0.76, 0.79, 0.82]
    few, many = (choose_beta(draw(accuracies, n), GRID) for n in (10, 1000))
    assert (few.low, few.high) == (0, 1)
    assert many.low > 0.5
    assert few.gain.low < 0
    assert many.gain.low > 0.05
    assert "no β is significantly better than another" in tuned_table(few)
    assert "no β is significantly better than another" not in tuned_table(many)


def test_the_interval_holds_the_best_beta_more_often_than_it_claims():
    accuracies = [0.70, 0.72, 0.74, 0.75, 0.74]
    tuned = [choose_beta(draw(accuracies, 50, seed), GRID) for seed in range(100)]
    assert sum(t.low <= 0.75 <= t.high for t in tuned) >= 95


def test_the_reported_accuracy_is_not_biased_by_the_images_that_chose():
    """If all β are equally good, ten images still favour one; the reported accuracy stays at one half."""
    rng = np.random.default_rng(0)
    told, flattered, gain = [], [], []
    for _ in range(200):
        tuned = choose_beta(rng.random((11, 10)) < 0.5, np.linspace(0, 1, 11).round(1).tolist())
        told.append(tuned.accuracy.value)
        flattered.append(max(accuracy.value for accuracy in tuned.accuracies))
        gain.append(tuned.gain.value)
    assert np.mean(flattered) > 0.7
    assert np.mean(told) < 0.54
    assert abs(np.mean(gain)) < 0.05


def test_the_gains_interval_is_bonett_and_prices():
    """12 of 30 images gained and 3 lost: (13 − 4)/32 ± 1.96·√((17/32 − (9/32)²)/32), by hand 0.0483 to 0.5142."""
    correct = np.zeros((3, 30), dtype=bool)
    correct[0, :3] = True
    correct[1:, 3:15] = True
    tuned = choose_beta(correct, [0.0, 0.5, 1.0])
    assert tuned.beta == 0.5
    assert tuned.gain.value == pytest.approx(9 / 30)
    assert (tuned.gain.low, tuned.gain.high) == pytest.approx((0.0483, 0.5142), abs=1e-4)


@given(st.integers(2, 30), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_for_any_predictions_the_choice_is_on_the_grid_and_in_its_interval(n, count, seed):
    correct = np.random.default_rng(seed).random((count, n)) < 0.7
    betas = [index / count for index in range(count)]
    tuned = choose_beta(correct, betas)
    assert tuned.beta in betas
    assert tuned.low <= tuned.beta <= tuned.high
    assert tuned.gain.low <= tuned.gain.value <= tuned.gain.high


@pytest.mark.parametrize("betas", [[0.25, 0.5, 0.75], [0.0, 1.0, 0.5], [0.0, 0.5, 0.5]])
def test_the_grid_ascends_from_zero(betas):
    with pytest.raises(RecipeError, match="must ascend and contain 0"):
        choose_beta(np.ones((3, 10), dtype=bool), betas)


@pytest.mark.parametrize("n", [0, 1])
def test_one_image_chooses_nothing(n):
    with pytest.raises(DataError, match=f"{n} labelled images are too few to choose β"):
        choose_beta(np.ones((5, n), dtype=bool), GRID)


def test_a_model_classifies_every_image_at_every_beta():
    """A predict function with the arguments of `tureen.Soup.logits`: pixels, and one β for each image."""
    asked = []

    def predict(pixels, betas):
        asked.append((len(pixels), betas))
        logits = np.zeros((len(pixels), 3), dtype=np.float32)
        logits[:, 1] = np.where(np.abs(np.asarray(betas) - 0.75) < 0.2, 1, -1)
        return logits

    images = Images(np.zeros((20, 4, 4, 3), dtype=np.uint8), np.ones(20, dtype=np.int64))
    tuned = tune_beta(predict, images, GRID)
    assert asked == [(20, [beta] * 20) for beta in GRID]
    assert tuned.beta == 0.75
    lines = tuned_table(tuned).splitlines()
    assert "on 20 images" in lines[0]
    assert [line.endswith("chosen") for line in lines[1:6]] == [False, False, False, True, False]
    assert "no β between 0.75 and 0.75 is significantly worse" in lines[7]
