"""The commands of CONTRIBUTING.md exist, and so do the tests that it names for each room."""

import re
import subprocess
from pathlib import Path

from tests.fast import SLOW_FIXTURES, SLOW_PATHS, SLOW_TESTS, TESTS

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


def test_every_path_test_and_fixture_that_is_left_out_of_the_fast_tests_exists():
    assert [path for path in SLOW_PATHS if not (TESTS / path).exists()] == []
    sources = "".join(path.read_text() for path in TESTS.rglob("*.py"))
    names = SLOW_TESTS | SLOW_FIXTURES
    assert [name for name in sorted(names) if not re.search(rf"^ *def {name}\(", sources, re.MULTILINE)] == []
