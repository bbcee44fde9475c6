"""Checks the pixels of the plots: results appear, and missing results do not."""

import numpy as np
import pytest
from PIL import Image

from training.evaluation.accuracy import wilson_interval
from training.evaluation.plot import BLUE, VERMILION, plot_accuracy, plot_epsilon_curve, plot_matrix, plot_shifts
from tureen.bundle.manifest import AccuracyRow, ShiftRow, SuspectCell, TransferMatrix

BETAS = [0.0, 0.25, 0.5, 0.75, 1.0]
NEVER_SERVED = "#e6e6e6"


def rows(betas, epsilon_255=38.0):
    return [
        AccuracyRow(
            beta=beta,
            n=450,
            clean=wilson_interval(445, 450),
            robust=wilson_interval(max(0, int(120 + 180 * beta - 3 * (epsilon_255 - 38))), 450),
            attack="PGD-40",
            epsilon_255=epsilon_255,
        )
        for beta in betas
    ]


def matrix(suspects=()):
    return TransferMatrix(
        betas=BETAS,
        n=450,
        attack="PGD-40",
        epsilon_255=38,
        robust=[[0.27 + 0.06 * abs(i - j) + 0.1 * j for j in range(5)] for i in range(5)],
        joint_attack="PGD-40",
        joint=[0.31, 0.38, 0.55, 0.66, 0.7],
        worst=[wilson_interval(count, 450) for count in (118, 160, 245, 290, 300)],
        suspects=[SuspectCell(attacked=attacked, served=served, p_value=1e-5) for attacked, served in suspects],
    )


def shifts(families=("noise", "blur")):
    return [
        ShiftRow(
            name=f"{family}-{number}",
            family=family,
            beta=beta,
            n=450,
            accuracy={severity: 0.98 - 0.1 * severity * (1.2 - beta) for severity in range(1, 6)},
        )
        for family in families
        for number in range(2)
        for beta in BETAS
    ]


@pytest.fixture
def drawn(tmp_path):
    """Return the plot that a function draws, uint8 (H, W, 3)."""

    def draw(plot, records):
        path = tmp_path / f"{plot.__name__}.png"
        plot(records, path, title="digits: one model, every β")
        return np.asarray(Image.open(path).convert("RGB"))

    return draw


def count(picture, colour):
    """Return the number of pixels with that colour."""
    return int((picture == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2).sum())


def test_accuracy_over_beta_has_two_lines_and_marks_rows_that_are_never_served(drawn):
    inside, beyond = drawn(plot_accuracy, rows(BETAS)), drawn(plot_accuracy, rows([-0.5, *BETAS, 1.5]))
    for picture in (inside, beyond):
        assert count(picture, BLUE) > 500
        assert count(picture, VERMILION) > 500
    assert count(inside, NEVER_SERVED) < 1000  # the edges of letters
    assert count(beyond, NEVER_SERVED) > 10_000


def test_a_suspect_cell_of_the_matrix_is_framed(drawn):
    sound, suspect = (drawn(plot_matrix, matrix(cells)) for cells in ([], [(1.0, 0.0), (None, 0.5)]))
    assert count(sound, VERMILION) == 0
    columns = (suspect == [0xD5, 0x5E, 0x00]).all(axis=2).any(axis=0).nonzero()[0]
    assert count(suspect, VERMILION) > 1000
    assert (np.diff(columns) > 50).sum() == 1  # two frames, a column between them


def test_a_curve_has_a_line_for_each_beta(drawn):
    few, many = (
        drawn(plot_epsilon_curve, [row for epsilon in (0, 19, 38, 76, 127.5) for row in rows(betas, epsilon)])
        for betas in (BETAS[:1], BETAS)
    )
    assert count(few, "#440154") > 500  # the dark end of viridis
    colours = {tuple(pixel) for pixel in many.reshape(-1, 3)} - {tuple(pixel) for pixel in few.reshape(-1, 3)}
    assert len(colours) > 4


def test_a_curve_of_one_radius_is_drawn(drawn):
    assert drawn(plot_epsilon_curve, rows(BETAS, 0.0)).std() > 0


def test_shifts_have_a_panel_for_each_family(drawn):
    two, five = (
        drawn(plot_shifts, shifts(families))
        for families in (("noise", "blur"), ("noise", "blur", "weather", "digital", "shift"))
    )
    assert five.shape[1] > 2 * two.shape[1]
    assert count(five, "#440154") > 2 * count(two, "#440154") > 0
