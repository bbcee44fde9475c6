import numpy as np
import pytest

from training.data.datasets import Images
from training.errors import RecipeError
from training.evaluation.corruptions import CORRUPTIONS, corrupt
from training.evaluation.shift_accuracy import evaluate_shifts
from training.evaluation.shifts import SHIFTS


def brighter_than(pixels, betas):
    """Return logits for class 1 if an image is brighter on average than 255·β."""
    margin = pixels.mean(axis=(1, 2, 3)) - 255 * np.asarray(betas)
    return np.stack([-margin, margin], axis=1).astype(np.float32)


@pytest.fixture
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    pixels[:10] //= 2
    return Images(pixels, np.repeat([0, 1], 10).astype(np.int64))


def test_every_beta_is_judged_on_the_same_corrupted_images(images):
    seen = []
    rows = evaluate_shifts(
        brighter_than,
        images,
        betas=[0.4, 0.6],
        names=["brightness", "inversion"],
        severities=[1, 5],
        seed=3,
        on_images=lambda: seen.append(1),
    )
    assert [(row.name, row.family, row.beta) for row in rows] == [
        ("brightness", "weather", 0.4),
        ("brightness", "weather", 0.6),
        ("inversion", "shift", 0.4),
        ("inversion", "shift", 0.6),
    ]
    assert len(seen) == 4
    for row in rows:
        assert row.n == 20
        assert list(row.accuracy) == [1, 5]
        for severity, accuracy in row.accuracy.items():
            answers = brighter_than(corrupt(images.pixels, row.name, severity, 3), [row.beta] * 20).argmax(1)
            assert accuracy == (answers == images.labels).mean()
    assert [row.accuracy[5] for row in rows] != [row.accuracy[1] for row in rows]


def test_all_corruptions_and_shifts_are_measured_if_none_is_named(images):
    rows = evaluate_shifts(brighter_than, images, betas=[0.4], severities=[2])
    assert [row.name for row in rows] == [*CORRUPTIONS, *SHIFTS]
    assert {row.family for row in rows} == {"noise", "blur", "weather", "digital", "shift"}


def test_an_unknown_corruption_is_an_error(images):
    with pytest.raises(RecipeError, match="no corruption or shift 'rain'"):
        evaluate_shifts(brighter_than, images, betas=[0.4], names=["rain"])
