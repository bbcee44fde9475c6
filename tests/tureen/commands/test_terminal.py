import os
import subprocess
import sys

import pytest

from tureen.commands.terminal import terminal_columns, wrapped
from tureen.pictures.signs import drawn_picture


def test_a_long_line_is_continued_with_an_indent_and_a_short_one_stays():
    assert wrapped("  one two three\nfour\n\nfive", 10) == "  one two\n     three\nfour\n\nfive"


def test_a_word_is_never_broken():
    assert wrapped("see http://127.0.0.1:8000/ui", 10) == "see\n    http://127.0.0.1:8000/ui"


def test_text_that_is_not_for_a_terminal_stays():
    assert wrapped("one two three " * 20, None) == "one two three " * 20


def test_the_width_is_that_of_the_variable_and_none_without_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "33")
    assert terminal_columns() == 33
    monkeypatch.delenv("COLUMNS")
    code = "from tureen.commands.terminal import terminal_columns; print(terminal_columns())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "None\n"


@pytest.mark.parametrize("arguments", [["inspect", "signs"], ["demo", "--no-serve"], ["classify", "drawn.png"]])
def test_a_command_fits_20_columns_except_for_long_words(arguments, tmp_path):
    drawn_picture("stop", 0).save(tmp_path / "drawn.png")
    command = [sys.executable, "-m", "tureen.cli", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "20"}, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    too_long = [line for line in ran.stdout.splitlines() if len(line) > 20 and " " in line.strip()]
    assert too_long == []
