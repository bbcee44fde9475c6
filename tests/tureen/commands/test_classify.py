"""`tureen classify` on the terminal and as JSON."""

import json
import subprocess
import sys

import pytest

import tureen
from tureen.bundle.examples import EXAMPLES
from tureen.cli import main
from tureen.commands.classify import Readings, readings_text
from tureen.interface.predictions import Classification, Prediction
from tureen.pictures.ship import drawn_ship
from tureen.pictures.signs import drawn_picture


def reading(beta, strength, **probabilities):
    predictions = [Prediction(label=label, index=len(label), probability=p) for label, p in probabilities.items()]
    predictions.sort(key=lambda one: -one.probability)
    return Classification(beta=beta, strength=strength, calibrated=True, predictions=predictions)


CAT_OR_TRUCK = Readings(
    reading(0.6, 0.5, cat=0.75, truck=0.25), reading(0, 0, cat=0.1, truck=0.9), reading(1, 1, cat=1, truck=0)
)


@pytest.fixture
def ship(tmp_path):
    drawn_ship().save(tmp_path / "ship.png")
    return str(tmp_path / "ship.png")


def test_each_label_has_a_bar_and_its_probability_in_both_modes():
    assert readings_text("a.jpg", CAT_OR_TRUCK, 5, 200).splitlines() == [
        "a.jpg: cat 75.0 % at strength 0.50 (β 0.60); clean mode truck 90.0 %; robust mode cat 100.0 %",
        "                                             strength 0.50   clean mode  robust mode",
        "  cat    ██████████████████████████████             75.0 %       10.0 %      100.0 %",
        "  truck  ██████████                                 25.0 %       90.0 %        0.0 %",
    ]


def test_on_a_narrow_terminal_the_bars_are_shorter():
    lines = readings_text("a.jpg", CAT_OR_TRUCK, 1, 52).splitlines()
    assert lines[2:] == ["  cat  ███████▌     75.0 %       10.0 %      100.0 %"]


@pytest.mark.parametrize("columns", [20, 30, 51])
def test_on_a_terminal_too_narrow_for_bars_no_line_is_longer_than_the_terminal(columns):
    lines = readings_text("a.jpg", CAT_OR_TRUCK, 2, columns).splitlines()
    assert [line for line in lines if len(line) > columns] == []
    assert [line.strip() for line in lines[-8:]] == [
        *("cat", "75.0 %", "clean 10.0 %", "robust 100.0 %"),
        *("truck", "25.0 %", "clean 90.0 %", "robust 0.0 %"),
    ]


def test_a_model_of_one_token_has_one_reading():
    readings = Readings(reading(None, None, cat=0.5, truck=0.5), None, None)
    assert readings_text("a.jpg", readings, 1, 40).splitlines() == [
        "a.jpg: cat 50.0 %",
        "  cat  ████████████               50.0 %",
    ]


def test_a_file_name_cannot_control_the_terminal():
    assert "\x1b" not in readings_text("a\x1b[2J.jpg", CAT_OR_TRUCK, 1, 80)


def test_the_example_is_the_default_and_a_bad_file_is_named_and_leaves_the_others(tmp_path, capsys):
    stop = str(tmp_path / "stop.png")
    drawn_picture("stop", 0).save(stop)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    bad = [str(tmp_path / "broken.png"), str(tmp_path / "nowhere.jpg")]
    assert main(["classify", bad[0], stop, bad[1], stop, "--strength", "0.7", "--top-k", "2"]) == 1
    shown = capsys.readouterr()
    assert shown.out.count(f"{stop}: 14-stop ") == 2
    assert "at strength 0.70" in shown.out
    assert len(shown.out.splitlines()) == 2 * 4
    broken, nowhere = shown.err.splitlines()
    assert broken.startswith(f"tureen classify: {bad[0]}: the image cannot be decoded")
    assert nowhere.startswith(f"tureen classify: {bad[1]} cannot be read: No such file")


def test_json_has_the_results_of_python_and_both_modes_and_the_errors(ship, tmp_path, capsys):
    bad = str(tmp_path / "nowhere.jpg")
    assert main(["classify", ship, bad, "--bundle", "cifar10", "--beta", "0.7", "--top-k", "3", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    with tureen.load(EXAMPLES / "cifar10") as soup:
        chosen, clean, robust = soup.classify([ship] * 3, [0.7, 0, 1], top_k=3)
        assert (found["model"], found["version"]) == ("cifar10", soup.bundle.manifest.version)
    first, second = found["images"]
    assert (first["image"], first["beta"], first["strength"]) == (ship, 0.7, chosen.strength)
    for name, expected in (("predictions", chosen), ("clean", clean), ("robust", robust)):
        assert [one["label"] for one in first[name]] == [one.label for one in expected.predictions]
    assert second["image"] == bad
    assert "cannot be read" in second["error"]


@pytest.mark.parametrize("arguments", [[], ["x.jpg", "--beta", "0", "--strength", "0"], ["x.jpg", "--strength", "2"]])
def test_wrong_arguments_exit_with_2(arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["classify", *arguments])
    assert exit_.value.code == 2


def test_classifying_imports_neither_torch_nor_the_server(ship):
    code = (
        f"import sys; from tureen.cli import main; main(['classify', {ship!r}]); "
        "print({'torch', 'fastapi', 'training', 'serve'} & set(sys.modules))"
    )
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert shown.stdout.endswith("set()\n"), shown.stderr
    assert " ######" in shown.stdout  # a bar for a terminal without the blocks of Unicode
