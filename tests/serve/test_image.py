"""The Dockerfile's own commands, taken from it and run here: its requirements, its health check, its user."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
FINAL = TEXT[TEXT.rindex("\nFROM ") :]
ENV = dict(pair.split("=", 1) for pair in shlex.split(re.search(r"^ENV (.*)$", FINAL, re.MULTILINE)[1]))
EXTRAS = re.search(r"^ARG EXTRAS=(.*)$", FINAL, re.MULTILINE)[1]


def instructions():
    """Keyword and argument of each instruction of the last stage, in order."""
    lines = [line for line in FINAL.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def test_the_dependencies_are_a_layer_before_the_sources():
    steps = [argument for keyword, argument in instructions() if keyword in ("COPY", "RUN")]
    (dependencies,) = (i for i, step in enumerate(steps) if "-r requirements.txt" in step)
    sources = next(i for i, step in enumerate(steps) if "--from=build" in step)
    assert dependencies < sources
    copied = [step for step in steps[:dependencies] if step.startswith(("pyproject.toml", "--from"))]
    assert copied == ["pyproject.toml constraints.txt ./"]


def test_that_layer_has_the_requirements_of_the_wheel():
    run = next(step for keyword, step in instructions() if keyword == "RUN" and "requirements.txt" in step)
    command = shlex.split(run.partition(" > ")[0].replace("$EXTRAS", EXTRAS))
    assert command[0] == "python"
    printed = subprocess.check_output([sys.executable, *command[1:]], cwd=ROOT, text=True).splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for extra in EXTRAS.split(",") for line in project["optional-dependencies"][extra]]
    needed = [*project["dependencies"], *extras]
    assert {str(Requirement(line)) for line in printed} == {str(Requirement(line)) for line in needed}
    assert not any(Requirement(line).name == "tureen" for line in printed)


def test_the_base_is_one_argument_for_both_stages():
    assert re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE) == ["${BASE}", "${BASE}"]
    assert re.search(r"^ARG BASE=python:3\.11", TEXT, re.MULTILINE)


def test_every_directory_that_is_written_belongs_to_group_0():
    made = re.search(r"install --directory --owner 10001 --group 0 --mode 0770 (.*)$", FINAL, re.MULTILINE)[1].split()
    assert {ENV["HOME"], ENV["TUREEN_CACHE_DIR"], ENV["TUREEN_STATE_DIR"]} == set(made)
    assert dict(instructions())["USER"] == "10001:0"


def test_the_image_serves_as_an_arbitrary_user_and_its_health_check_follows_the_port(start_server, tmp_path):
    """The user has no passwd entry and no capability, and HOME is the image's."""
    written = {
        name: tmp_path / Path(ENV[name]).name / name for name in ("HOME", "TUREEN_CACHE_DIR", "TUREEN_STATE_DIR")
    }
    for directory in written.values():
        directory.mkdir(parents=True)
    user = ["unshare", "--user", "--map-user=12345", "--map-group=0"]
    user += ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    image = {name: value for name, value in ENV.items() if name not in ("TUREEN_BUNDLE", "TUREEN_PORT")}
    environment = {"PATH": os.environ["PATH"], **image, **{name: str(path) for name, path in written.items()}}
    server = start_server(before=user, env={**environment, "TUREEN_ADMIN_PORT": "0"})
    server.wait_for(lambda: server.ask("GET", "/readyz")[0] == 200, "ready")
    line = next(argument for keyword, argument in instructions() if keyword == "HEALTHCHECK")
    program = json.loads(line[line.index("[") :])
    assert program[0] == "python"
    for port, status in ((server.port, 0), (1, 1)):
        check = [sys.executable, *program[1:]]
        assert subprocess.run(check, env={"TUREEN_PORT": str(port)}, capture_output=True).returncode == status
    assert server.end() == 0
