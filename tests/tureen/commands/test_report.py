import pytest

from tureen.bundle.manifest import (
    Accuracy,
    AccuracyRow,
    AttackCheck,
    ClassCounts,
    ShiftRow,
    StrengthRow,
    SuspectCell,
    TransferMatrix,
)
from tureen.commands.report import (
    MAX_CLASSES_SHOWN,
    accuracy_table,
    check_results,
    class_table,
    ensemble_table,
    epsilon_table,
    matrix_table,
    shift_table,
    single_token_accuracy,
    strength_table,
)

FOOTNOTE = "* outside [0, 1]: an extension, never served"


def share(value):
    return Accuracy(value=value, low=max(0.0, value - 0.05), high=min(1.0, value + 0.05))


def row(beta, robust, *, clean=0.9, epsilon_255=8.0, attack="PGD-40"):
    return AccuracyRow(
        beta=beta, n=100, clean=share(clean), robust=share(robust), attack=attack, epsilon_255=epsilon_255
    )


def cells(text, name):
    """The numbers in the line that begins with that name."""
    (line,) = [line for line in text.splitlines() if line.strip().startswith(name)]
    return line.strip().removeprefix(name).split()


def test_a_beta_that_is_never_served_is_marked():
    inside = accuracy_table([row(0.0, 0.2), row(1.0, 0.5)])
    assert "*" not in inside
    beyond = accuracy_table([row(-0.25, 0.1), row(0.0, 0.2), row(1.0, 0.5)]).splitlines()
    assert beyond[-1] == FOOTNOTE
    assert [line.split()[0] for line in beyond[2:-1]] == ["-0.25*", "0.00", "1.00"]
    assert len({len(line) for line in beyond[1:-1]}) == 1


def test_a_robust_accuracy_whose_check_failed_is_marked_at_the_figure():
    checks = [
        AttackCheck(name=name, beta=beta, n=9, has_passed=has_passed, figures={}, sentence="Beware.")
        for name, beta, has_passed in (("one", 0.0, False), ("two", 0.0, False), ("one", 1.0, True))
    ]
    clean, robust = accuracy_table([row(0.0, 0.2), row(1.0, 0.5)], checks).splitlines()[2:]
    assert clean.endswith("20.0 (15.0– 25.0)  ! too high: check failed (one; two)")
    assert robust.endswith("50.0 (45.0– 55.0)")


def test_every_table_of_robust_accuracy_names_the_checks_that_failed():
    failed = AttackCheck(name="one", beta=0.5, n=9, has_passed=False, figures={}, sentence="Beware.")
    rows = [row(beta, 0.4) for beta in (0.0, 0.5)]
    strengths = [StrengthRow(**r.model_dump(), strength=r.beta, predicted_robust=0.4, n_fitted=9) for r in rows]
    counts = [ClassCounts(beta=r.beta, images=[5], clean=[4], robust=[2]) for r in rows]
    mark = "! too high: check failed (one)"
    for table in (
        lambda checks: ensemble_table([rows[1]], rows, checks),
        lambda checks: strength_table(strengths, checks),
        lambda checks: class_table(counts, ["cat"], checks),
        lambda checks: epsilon_table(rows, checks),
    ):
        marked = [line for line in table([failed]).splitlines() if mark in line]
        assert marked
        assert all("0.5" in line and "β = 0:" not in line for line in marked)
        assert mark not in table([failed.model_copy(update={"norm": "l2"})])
        assert mark not in table([failed.model_copy(update={"beta": 0.7})])


def test_the_norm_of_the_attack_is_printed():
    rows = [row(0.0, 0.2).model_copy(update={"norm": "l2", "epsilon_255": 128})]
    assert "l2 ε = 128/255" in accuracy_table(rows)


def test_an_ensemble_is_shown_with_the_soup_under_the_same_attack():
    soups = [row(0.5, 0.4), row(1.0, 0.5), row(0.5, 0.3, attack="PGD-10"), row(0.5, 0.2, epsilon_255=4)]
    lines = ensemble_table([row(0.5, 0.45, clean=0.95)], soups).splitlines()
    assert [line.split()[:4] for line in lines[2:]] == [["0.50", "soup", "1.0", "×"], ["0.50", "ensemble", "2.0", "×"]]
    assert " 40.0 (" in lines[2]
    assert " 45.0 (" in lines[3]


def test_a_single_token_model_has_one_line_of_accuracy():
    assert single_token_accuracy([]) == "accuracy: not measured"
    assert single_token_accuracy([row(0.0, 0.2), row(1.0, 0.2)]) == (
        "accuracy on 100 images, % (95 % interval): 90.0 (85.0–95.0); "
        "under PGD-40, white-box, l∞ ε = 8/255: 20.0 (15.0–25.0)"
    )
    assert "PGD" not in single_token_accuracy([row(0.0, 0.9, epsilon_255=0)])


@pytest.fixture
def matrix():
    return TransferMatrix(
        betas=[0.0, 1.0, 1.5],
        n=100,
        attack="PGD-40",
        epsilon_255=8,
        robust=[[0.20, 0.60, 0.61], [0.10, 0.50, 0.62], [0.30, 0.55, 0.45]],
        joint_attack="APGD-10 on the mean over β",
        joint=[0.22, 0.40, 0.46],
        worst=[share(0.09), share(0.39), share(0.44)],
        suspects=[
            SuspectCell(attacked=1.0, served=0.0, p_value=0.0004),
            SuspectCell(attacked=None, served=1.0, p_value=0.002),
        ],
    )


def test_a_matrix_shows_its_rows_its_worst_and_suspect_results(matrix):
    text = matrix_table(matrix)
    assert text.splitlines()[1].split() == ["0.00", "1.00", "1.50*"]
    assert text.splitlines()[2].split() == ["0.00", "20.0", "60.0", "61.0"]
    assert cells(text, "all at once ") == ["22.0", "40.0!", "46.0"]
    assert cells(text, "worst, by image") == ["9.0", "39.0", "44.0"]
    assert text.splitlines()[3].split() == ["1.00", "10.0!", "50.0", "62.0"]
    assert "! the attack on β = 1 breaks β = 0 better than the attack on it (p = 0.0004): gradient masking" in text
    assert "! the attack on all β at once breaks β = 1 better" in text
    assert "all at once: APGD-10 on the mean over β" in text
    assert text.endswith(FOOTNOTE)


def test_radii_go_down_and_betas_across():
    curve = [
        row(beta, robust, epsilon_255=e)
        for e, pair in {0: (0.9, 0.8), 8: (0.1, 0.5)}.items()
        for beta, robust in zip((0.0, 1.0), pair, strict=True)
    ]
    text = epsilon_table(curve)
    assert cells(text, "0 ") == ["90.0", "80.0"]
    assert cells(text, "8 ") == ["10.0", "50.0"]


def test_every_corruption_counts_once_in_a_mean():
    values = {("fog", "weather"): (0.5, 0.7), ("snow", "weather"): (0.9, 0.9), ("contrast", "digital"): (0.1, 0.2)}
    rows = [
        ShiftRow(name=name, family=family, beta=beta, n=100, accuracy={1: value, 5: value - 0.1})
        for (name, family), pair in {**values, ("rotation", "shift"): (0.4, 0.4)}.items()
        for beta, value in zip((0.0, 1.0), pair, strict=True)
    ]
    text = shift_table(rows)
    assert "severity 1, 5" in text
    assert cells(text, "fog") == ["45.0", "65.0"]
    assert cells(text, "weather, mean") == ["65.0", "75.0"]
    assert cells(text, "all corruptions, mean") == ["45.0", "55.0"]
    assert cells(text, "shift, mean") == ["35.0", "35.0"]
    assert "all corruptions" not in shift_table(rows[-2:])


def test_the_meaning_of_a_failed_check_follows_it():
    passed, failed = (
        AttackCheck(
            name=name, beta=1, n=128, has_passed=has_passed, figures={"PGD-4": 0.5, "FGSM": 0.25}, sentence="Beware."
        )
        for name, has_passed in (("one thing holds", True), ("another holds", False))
    )
    assert check_results([passed, failed]).splitlines() == [
        "checks on the attack, on 128 images",
        "  ok      β = 1     one thing holds: PGD-4 50.0 %, FGSM 25.0 %",
        "  FAILED  β = 1     another holds: PGD-4 50.0 %, FGSM 25.0 %",
        "          Beware.",
    ]


def test_the_accuracy_by_class_is_a_row_for_each_class():
    counts = [
        ClassCounts(beta=0, images=[10, 4, 0], clean=[9, 4, 0], robust=[1, 0, 0]),
        ClassCounts(beta=1, images=[10, 4, 0], clean=[8, 3, 0], robust=[5, 2, 0]),
    ]
    lines = class_table(counts, ["cat", "dog\n", "owl"]).splitlines()
    assert [line.split() for line in lines[3:]] == [
        ["10", "90.0", "10.0", "80.0", "50.0", "cat"],
        ["4", "100.0", "0.0", "75.0", "50.0", "dog\\n"],
        ["0", "owl"],
    ]


def test_of_many_classes_those_of_the_lowest_robust_accuracy_are_shown():
    count = MAX_CLASSES_SHOWN + 10
    counts = ClassCounts(
        beta=1, images=[0] + [100] * (count - 1), clean=[0] + [100] * (count - 1), robust=list(range(count))[::-1]
    )
    heading, *lines = class_table([counts], [f"label{index}" for index in range(count)]).splitlines()
    assert f"the 50 of {count} classes with the lowest robust accuracy at β = 1" in heading
    assert [line.split()[-1] for line in lines[2:]] == [f"label{index}" for index in range(count - 1, 9, -1)]
