"""docs/support.md: its command runs, and its table names every part that the command prints."""

import re
from pathlib import Path

from tureen.commands.completion import SCRIPTS

PAGE = (Path(__file__).parents[2] / "docs" / "support.md").read_text()
SECTION = PAGE[PAGE.index("## This machine") : PAGE.index("## Shell completion")]
COMPLETION = PAGE[PAGE.index("## Shell completion") :]
(COMMAND,) = re.findall(r"^```sh\n(.*)\n```", SECTION, re.MULTILINE)


def test_the_command_prints_the_parts_of_the_table(run_command, tmp_path, monkeypatch):
    monkeypatch.setenv("TUREEN_PORT", "0")
    ran = run_command(COMMAND, tmp_path)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    printed = {line.split()[0] for line in ran.stdout.split("\n\n", 1)[1].splitlines() if not line.startswith(" ")}
    named = [
        name for row in re.findall(r"^\| (`.*?) \|", SECTION, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    ]
    assert set(named) == printed


def test_the_commands_for_completion_run_and_every_shell_has_its_row(run_command, tmp_path):
    (block,) = re.findall(r"^```sh\n(.*?)^```", COMPLETION, re.MULTILINE | re.DOTALL)
    first, second = block.splitlines()
    assert run_command(first, tmp_path).returncode == 0
    ran = run_command(f"bash -c '{second} && complete -p tureen'", tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert set(re.findall(r"^\| (\w+) \| [`_]", COMPLETION, re.MULTILINE)) == set(SCRIPTS)
