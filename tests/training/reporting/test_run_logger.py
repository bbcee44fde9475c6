"""The names of the final figures."""

from training.reporting.run_logger import accuracy_figures
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES


def test_each_row_has_a_clean_and_a_robust_figure():
    rows = load_bundle(EXAMPLES / "cifar10").manifest.accuracy
    figures = accuracy_figures(rows)
    assert len(figures) == 2 * len(rows)
    assert figures["clean_accuracy_at_beta_0"] == rows[0].clean.value
    assert figures["robust_accuracy_at_beta_1"] == rows[-1].robust.value
