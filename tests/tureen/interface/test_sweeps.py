import subprocess
import sys

import matplotlib

from tureen.interface.sweeps import Curve, Sweep, SweepChange, changes_between

matplotlib.use("Agg")
BETAS = [0, 0.5, 1]


def sweep(betas=BETAS, answers=("cat", "cat", "dog"), labels=("cat", "dog")):
    answers = list(answers)
    return Sweep(
        calibrated=True,
        betas=betas,
        strengths=[beta**2 for beta in betas],
        answers=answers,
        curves=[Curve(label=label, index=i, probabilities=[0.5] * len(betas)) for i, label in enumerate(labels)],
        changes=changes_between(betas, answers),
    )


def test_the_changes_are_between_neighbouring_betas():
    assert changes_between([0, 0.5, 1], ["a", "a", "a"]) == []
    assert changes_between([0.5], ["a"]) == []
    assert changes_between([0, 0.5, 1], ["a", "b", "a"]) == [
        SweepChange(after_beta=0, before_beta=0.5, from_label="a", to_label="b"),
        SweepChange(after_beta=0.5, before_beta=1, from_label="b", to_label="a"),
    ]


def test_a_plot_has_a_line_for_each_label_and_each_change():
    from matplotlib import pyplot

    axes = sweep().plot()
    try:
        curves, change = axes.lines[:2], axes.lines[2]
        assert [list(line.get_xdata()) for line in curves] == [[0, 0.25, 1]] * 2
        assert list(change.get_xdata()) == [0.625, 0.625]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["cat", "dog"]
        assert len(sweep().plot(axes).lines) == 6
    finally:
        pyplot.close(axes.figure)


def test_a_plot_shows_any_label_as_it_is(tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    axes = sweep(labels=("_hidden", "$x^{", "a\\b", "é")).plot(figure.subplots())
    figure.savefig(tmp_path / "plot.png")
    assert len(axes.get_legend().get_texts()) == 4


def test_without_matplotlib_the_error_names_the_extra():
    program = f"""
import sys
sys.modules["matplotlib"] = None
from tureen.interface.sweeps import Sweep
Sweep.model_validate_json({sweep().model_dump_json()!r}).plot()
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "matplotlib is not installed: install Tureen with its extra [plot]" in ran.stderr


def test_the_html_has_a_row_for_each_beta():
    html = sweep(answers=("cat", "<b>", "dog"))._repr_html_()
    assert html.count("<tr>") == 4
    assert "<caption>3 β; the label changes 2 times</caption>" in html
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert "changes once" in sweep()._repr_html_()
    assert "does not change" in sweep(answers=("cat",) * 3)._repr_html_()


def test_the_html_of_a_long_sweep_has_a_selection_with_both_ends():
    betas = [i / 100 for i in range(101)]
    html = sweep(betas, ("cat",) * 101)._repr_html_()
    assert html.count("<tr>") == 22
    assert "21 of 101 β" in html
    assert ">0<" in html
    assert ">1<" in html
