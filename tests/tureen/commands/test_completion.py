import os
import pty
import shutil
import subprocess
import sys

import pytest

from tests.completion_scripts import scripts
from tests.patience import DEADLINE_S
from training.recipes import RECIPES
from tureen.bundle.examples import example_names
from tureen.cli import COMMANDS, main
from tureen.commands.completion import DIRECTORY, SCRIPTS

BASH = f"""
. "{DIRECTORY / SCRIPTS["bash"]}"
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
"$(complete -p tureen | sed 's/.*-F \\([^ ]*\\) .*/\\1/')"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
# A .zshrc. The first prompt completes the line as Tab does, but inserts all matches, and then writes the line.
ZSHRC = """
fpath=("$ZDOTDIR" $fpath)
autoload -Uz compinit && compinit -u -D
zle -C every-match complete-word _generic
zstyle ':completion:*' completer _all_matches _complete
zstyle ':completion:*' insert true
zle-line-init() {
  BUFFER=$LINE_TO_COMPLETE
  CURSOR=$#BUFFER
  zle every-match
  print -r -- "$BUFFER" > "$ZDOTDIR/line"
  exit
}
zle -N zle-line-init
"""


def completed_by_bash(words, directory, _):
    command = ["bash", "--norc", "-c", BASH, "bash", "tureen", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=directory).stdout.split()


def completed_by_zsh(words, directory, home, rc=ZSHRC):
    (home / ".zshrc").write_text(rc)
    shutil.copy(DIRECTORY / SCRIPTS["zsh"], home / "_tureen")
    line = " ".join(["tureen", *words])
    environment = {**os.environ, "ZDOTDIR": str(home), "LINE_TO_COMPLETE": line, "LC_ALL": "C.UTF-8", "TERM": "dumb"}
    terminal, side_of_the_shell = pty.openpty()
    with os.fdopen(terminal), os.fdopen(side_of_the_shell) as stream:
        command = ["zsh", "--no-global-rcs", "-i"]
        pipes = {"stdin": stream, "stdout": stream, "stderr": stream}
        ran = subprocess.run(
            command, **pipes, cwd=directory, env=environment, start_new_session=True, timeout=DEADLINE_S
        )
    assert ran.returncode == 0
    inserted = (home / "line").read_text().split()[len(words) :]
    return [] if inserted == [words[-1]] else [match.rstrip("=/") for match in inserted]


def completed_by_fish(words, directory, home):
    for name, file in {"tureen": home / "tureen", "script": home / "fish" / "completions" / "tureen.fish"}.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text((DIRECTORY / SCRIPTS["fish"]).read_text() if name == "script" else "#!/bin/sh\n")
        file.chmod(0o755)
    environment = {**os.environ, "PATH": f"{home}:{os.environ['PATH']}", "HOME": str(home), "LC_ALL": "C.UTF-8"}
    environment |= {"XDG_CONFIG_HOME": str(home), "LINE_TO_COMPLETE": " ".join(["tureen", *words])}
    command = ["fish", "--private", "--command", 'complete --do-complete "$LINE_TO_COMPLETE"']
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=directory, env=environment)
    assert ran.stderr == ""
    return [line.split("\t")[0].rstrip("/") for line in ran.stdout.splitlines()]


COMPLETED = {"bash": completed_by_bash, "zsh": completed_by_zsh, "fish": completed_by_fish}


@pytest.fixture(params=SCRIPTS)
def completed(request, tmp_path_factory):
    """A function that returns what a shell completes at the last of the words."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed (package {request.param})")
    home = tmp_path_factory.mktemp("home")

    def complete(*words, directory=home / "empty"):
        (home / "empty").mkdir(exist_ok=True)
        return set(COMPLETED[request.param](words, directory, home))

    return complete


def test_the_commands_are_completed(completed):
    assert completed("") == set(COMMANDS)
    assert completed("ca") == {"calibrate"}
    assert completed("beta", "") == {"get", "set", "history", "rollback", "cancel", "watch"}


def test_the_names_of_recipes_are_completed(completed):
    assert completed("train", "") == set(RECIPES)
    assert completed("train", "dig") == {name for name in RECIPES if name.startswith("dig")}


@pytest.mark.parametrize("command", ["serve", "inspect", "bench", "evaluate", "batch", "credentials"])
def test_the_names_of_examples_and_directories_are_completed(completed, command, tmp_path):
    (tmp_path / "my-bundle").mkdir()
    (tmp_path / "a-file").touch()
    assert completed(command, "", directory=tmp_path) - {"make", "list", "revoke"} == {*example_names(), "my-bundle"}
    assert completed(command, "sig", directory=tmp_path) == {"signs"}


def test_options_are_completed(completed):
    assert completed("serve", "--max-b") == {"--max-batch", "--max-body-memory"}
    assert completed("serve", "signs", "--no-c") == {"--no-calibration"}
    assert completed("tokens", "add", "--rea") == {"--reason"}
    assert completed("jobs", "show", "--js") == {"--json"}


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
def test_the_choices_of_an_option_are_completed(completed, words, choices):
    assert completed(*words) == choices


def test_the_files_of_config_are_completed(completed, tmp_path):
    (tmp_path / "tureen.toml").touch()
    assert completed("serve", "--config", "tur", directory=tmp_path) == {"tureen.toml"}


def test_a_command_after_a_bundle_is_completed(completed):
    assert completed("credentials", "signs", "") == {"make", "list", "revoke"}
    assert completed("credentials", "signs", "make", "--ro") == {"--role"}
    assert completed("credentials", "signs", "make", "prometheus", "--role", "") == {"read", "operate"}


@pytest.mark.parametrize("completed", ["zsh", "fish"], indirect=True)
def test_a_value_after_an_equals_sign_is_completed(completed):
    assert completed("serve", "--engine=open") == {"--engine=openvino"}


def test_zsh_completes_after_the_script_is_sourced(tmp_path):
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed (package zsh)")
    rc = ZSHRC.replace('fpath=("$ZDOTDIR" $fpath)', "") + '. "$ZDOTDIR/_tureen"\n'
    assert completed_by_zsh(["serve", "--engine", "open"], tmp_path, tmp_path, rc) == ["openvino"]


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
        pytest.skip(f"{shell} is not installed (package {shell})")
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
