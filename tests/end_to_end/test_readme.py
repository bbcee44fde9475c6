"""Runs every command of the README, in order, and compares every response that it shows."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.patience import DEADLINE_S
from tests.ports import free_port
from training.checkpoint import load_checkpoint
from training.recipes import load_recipe
from tureen.commands.demo import demo_fingerprint

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("benchmarks", "http-api", "support"))]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(params=["digits_run", pytest.param("published_digits_run", marks=pytest.mark.slow)])
def trained_run(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def workplace(trained_run, tmp_path):
    """A directory that has a finished training run of the demo, and nothing else."""
    shutil.copytree(trained_run, tmp_path / "tureen-demo" / f"run-{demo_fingerprint()}")
    return tmp_path


def environment():
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def start_server(command, directory, port):
    server = subprocess.Popen(
        [*command.split(), "--port", port], cwd=directory, env=environment(), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 4 * DEADLINE_S  # `tureen demo` first exports the bundle
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").close()
            assert server.poll() is None, command  # otherwise another process has responded
            return server
        except OSError:
            assert server.poll() is None, command
            assert time.monotonic() < deadline
            time.sleep(0.1)


def same_answer(shown, found, *, is_published):
    """Asserts that two responses are equal, except for the version, and the last digits of strength and probability.

    Training on another CPU changes these. A run other than the published one gives the same labels, with probabilities
    above a half.
    """
    for prediction, expected in zip(found["predictions"], shown["predictions"], strict=True):
        probability, published = prediction.pop("probability"), expected.pop("probability")
        assert probability == pytest.approx(published, abs=0.1) if is_published else 0.5 < probability <= 1
    strength, published = found.pop("strength"), shown.pop("strength")
    assert strength == pytest.approx(published, abs=0.1) if is_published else 0 < strength < 1
    assert re.fullmatch(r"[0-9a-f]{12}", found.pop("version"))
    shown.pop("version")
    assert found == shown


def test_every_command_runs_with_the_printed_output(workplace, trained_run, run_command):
    is_published = load_checkpoint(trained_run).recipe == load_recipe("digits")
    port = str(free_port())
    server, answer, ran = None, "", []
    try:
        for language, block in BLOCKS:
            if language == "json":
                same_answer(json.loads(block), json.loads(answer), is_published=is_published)
            if language == "python":
                subprocess.run([sys.executable, "-c", block], check=True, cwd=workplace, env=environment())
            if language != "sh":
                continue
            for line in block.splitlines():
                command = line.partition("  #")[0].strip()
                ran.append(command)
                if command.startswith("make"):
                    shown = subprocess.check_output([*command.split(), "--dry-run"], cwd=ROOT, text=True)
                    assert shown
                    if command != "make demo":
                        continue
                    assert "tureen demo" in shown
                    command = "tureen demo"
                if command.startswith(("tureen demo", "tureen serve")):
                    if server is not None:
                        server.send_signal(signal.SIGTERM)
                        assert server.wait(DEADLINE_S) == 0
                    server = start_server(command, workplace, port)
                    continue
                if command.startswith("tureen train"):
                    # The training itself made `trained_run`; here the command as written, cut short.
                    command += " --set epochs=1 --set evaluation_steps=1 --set model.depth=1 --set model.width=16"
                if command.startswith("tureen export") and not is_published:
                    command += " --images 60"  # the demo exports with all images
                # The measurement of the speed as written, cut short.
                command = command.replace("--seconds 10", "--seconds 1").replace(":8000", f":{port}")
                result = run_command(command, workplace)
                assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
                answer = result.stdout
                if command.startswith("tureen train"):
                    out = workplace / re.search(r"--out (\S+)", command)[1]
                    shutil.rmtree(out)
                    shutil.copytree(trained_run, out)
    finally:
        if server is not None:
            server.terminate()
            assert server.wait(DEADLINE_S) == 0
    assert {"make demo", "make test"} <= set(ran)
    assert any(command.startswith("curl") for command in ran)


def test_a_newcomer_sees_all_that_counts_in_the_first_30_lines():
    head = "\n".join(README.splitlines()[:30])
    assert "make demo" in head
    assert "curl" in head
    assert '"predictions"' in head


def test_no_word_promises_more_than_robustness():
    for page in PAGES:
        for word in ("secure", "immune", "certified", "guarantees"):
            assert not re.search(rf"\b{word}\b", page.read_text().lower()), page
