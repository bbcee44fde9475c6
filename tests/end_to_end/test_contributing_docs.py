"""The commands of CONTRIBUTING.md exist, and so do the tests that it names for each room."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_make_command_has_a_recipe():
    (block,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    commands = [line.partition("  #")[0].strip() for line in block.splitlines()]
    assert {"make setup", "make test", "make test-fast", "make check", "make bench"} <= set(commands)
    for command in commands:
        subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_every_path_of_the_table_exists():
    paths = re.findall(r"(?<![\w/.])(?:tests|serve|deploy)/[\w./]*", PAGE)
    assert len(paths) >= 15
    assert [path for path in paths if not (ROOT / path).exists()] == []
