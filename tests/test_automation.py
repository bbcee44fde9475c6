"""The files for GitHub and pre-commit are valid, run existing commands, and agree with the Makefile and each other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.test_wheel import PYTHONS

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
COMMANDS = [step["run"] for step in STEPS if "run" in step]


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("vendor.github-workflows", ".github/workflows/ci.yml"),
        ("custom.github-workflows-require-timeout", ".github/workflows/ci.yml"),
        ("vendor.dependabot", ".github/dependabot.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/problem.yml"),
    ],
)
def test_a_file_for_github_is_valid_by_its_published_schema(schema, path):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, path]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_action_is_pinned_by_its_commit_with_its_version_beside():
    lines = re.findall(r"uses: (.*)", (ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert len(lines) == len([step for step in STEPS if "uses" in step])
    assert [line for line in lines if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


def test_the_workflow_may_only_read():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert [name for name, job in WORKFLOW["jobs"].items() if "permissions" in job] == []


def test_each_command_of_the_workflow_exists():
    assert {".ci/run check", ".ci/run test", "make wheel", "make docs"} == set(COMMANDS)
    for command in COMMANDS:
        assert os.access(ROOT / ".ci" / "run", os.X_OK)
        target = command.split()[-1]
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_the_tests_run_on_each_python_of_the_classifiers():
    assert WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS
    (setup,) = [step for step in WORKFLOW["jobs"]["wheel"]["steps"] if "setup-python" in step.get("uses", "")]
    assert sorted(setup["with"]["python-version"].split()) == PYTHONS


def test_a_commit_runs_the_commands_of_make_check():
    (recipe,) = re.findall(r"^check: setup\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    assert [hook["entry"] for repository in HOOKS for hook in repository["hooks"]] == commands
