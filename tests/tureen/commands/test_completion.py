import shutil
import subprocess
import sys

import pytest

from tests.completion_scripts import scripts
from training.recipes import RECIPES
from tureen.bundle.examples import example_names
from tureen.cli import COMMANDS, main
from tureen.commands.completion import DIRECTORY, SCRIPTS


def completed(*words, directory="/"):
    """Returns what bash completes at the last of the words."""
    program = f"""
. "{DIRECTORY / SCRIPTS["bash"]}"
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
"$(complete -p tureen | sed 's/.*-F \\([^ ]*\\) .*/\\1/')"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    command = ["bash", "--norc", "-c", program, "bash", "tureen", *words]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=directory).stdout.split())


def test_bash_completes_the_commands():
    assert completed("") == set(COMMANDS)
    assert completed("ca") == {"calibrate"}
    assert completed("beta", "") == {"get", "set", "history", "rollback", "cancel", "watch"}


def test_bash_completes_the_names_of_recipes():
    assert completed("train", "") == set(RECIPES)
    assert completed("train", "dig") == {name for name in RECIPES if name.startswith("dig")}


@pytest.mark.parametrize("command", ["serve", "inspect", "bench", "evaluate", "batch", "credentials"])
def test_bash_completes_the_names_of_examples_and_directories(command, tmp_path):
    (tmp_path / "my-bundle").mkdir()
    (tmp_path / "a-file").touch()
    assert completed(command, "", directory=tmp_path) - {"make", "list", "revoke"} == {*example_names(), "my-bundle"}
    assert completed(command, "sig", directory=tmp_path) == {"signs"}


def test_bash_completes_options():
    assert completed("serve", "--max-b") == {"--max-batch", "--max-body-memory"}
    assert completed("serve", "signs", "--no-c") == {"--no-calibration"}
    assert completed("tokens", "add", "--rea") == {"--reason"}


@pytest.mark.parametrize(
    ("words", "choices"),
    [
        (("serve", "signs", "--log-level", ""), {"debug", "info", "warning", "error"}),
        (("serve", "--calibration", ""), {"true", "false"}),
        (("serve", "--engine", "open"), {"openvino"}),
        (("evaluate", "runs/digits", "--attack", "sq"), {"square"}),
        (("demo", "--bundle", ""), {*example_names()}),
        (("completion", ""), {*SCRIPTS}),
    ],
)
def test_bash_completes_the_choices_of_an_option(words, choices):
    assert completed(*words) == choices


def test_bash_completes_the_files_of_config(tmp_path):
    (tmp_path / "tureen.toml").touch()
    assert completed("serve", "--config", "tur", directory=tmp_path) == {"tureen.toml"}


def test_the_scripts_are_those_of_the_options_of_all_commands():
    found = [(path.name, path.read_text() == text) for path, text in scripts()]
    assert found == [(name, True) for name in SCRIPTS.values()], "run make completions"


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_command_prints_the_script_of_each_shell(shell, capsys):
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == (DIRECTORY / SCRIPTS[shell]).read_text()


@pytest.mark.parametrize(("shell", "check"), [("zsh", ["-n"]), ("fish", ["--no-execute"])])
def test_the_shell_accepts_the_syntax_of_its_script(shell, check):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not on this machine")
    subprocess.run([shell, *check, str(DIRECTORY / SCRIPTS[shell])], check=True)


def test_a_misspelt_shell_is_refused_with_the_similar_one(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["completion", "bsh"])
    assert exit_.value.code == 2
    assert "did you mean 'bash'?" in capsys.readouterr().err


def test_the_command_imports_neither_torch_nor_the_server():
    code = (
        "import sys, tureen.cli as c; c.main(['completion', 'bash']); "
        "print({'torch', 'fastapi', 'onnx', 'shtab', 'serve', 'training'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("set()\n")
