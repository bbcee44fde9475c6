"""`tureen demo --train digits`, from a trained run on: export, samples, server, and the two commands that it prints."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.patience import DEADLINE_S
from tests.ports import free_port
from tureen.commands.demo import demo_fingerprint

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "tureen.cli", "demo", "--train", "digits"]


@pytest.fixture(scope="module")
def demo_directory(digits_run, tmp_path_factory):
    """Where the demo finds its training done already, by the same command and recipe."""
    directory = tmp_path_factory.mktemp("demo") / "tureen-demo"
    shutil.copytree(digits_run, directory / f"run-{demo_fingerprint()}")
    return directory


def start(directory):
    port = free_port()
    command = [*DEMO, "--dir", str(directory), "--port", str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_until(stream, end):
    lines = []
    for line in stream:
        lines.append(line)
        if end in line:
            return "".join(lines)
    raise AssertionError(f"ended without {end!r}: {''.join(lines)}")


def stop(demo):
    demo.send_signal(signal.SIGTERM)
    _, error = demo.communicate(timeout=DEADLINE_S)
    assert demo.returncode == 0, error


def test_the_demo_serves_the_printed_command_and_a_second_run_does_not_train(demo_directory):
    demo = start(demo_directory)
    try:
        shown = read_until(demo.stdout, "Ctrl-C stops")
        assert "APGD-5" in shown
        assert re.search(r"1\.00 +\d\d\.\d \(", shown)
        commands = re.findall(r"^  (curl .*)$", shown, re.MULTILINE)
        assert len(commands) == 2
        # Training and export ran in a process that is gone: what serves is as small as any server.
        assert "libtorch" not in Path(f"/proc/{demo.pid}/maps").read_text()
        answers = [json.loads(subprocess.check_output(["sh", "-c", command])) for command in commands]
    finally:
        stop(demo)
    assert [answer["beta"] for answer in answers] == [0, 1]
    assert "\nConsole: http://127.0.0.1:" in shown
    fooled, right = (answer["predictions"][0]["label"] for answer in answers)
    assert fooled != right

    again = start(demo_directory)
    try:
        shown = read_until(again.stdout, "Ctrl-C stops")
        assert shown.startswith("reusing ")
        assert "training" not in shown
        repeated = [
            json.loads(subprocess.check_output(["sh", "-c", command]))
            for command in re.findall(r"^  (curl .*)$", shown, re.MULTILINE)
        ]
    finally:
        stop(again)
    assert [a["predictions"][0]["label"] for a in repeated] == [fooled, right]


@pytest.mark.slow
def test_a_damaged_bundle_is_rebuilt(demo_directory):
    command = [*DEMO, "--dir", str(demo_directory), "--no-serve"]
    with (demo_directory / "bundle" / "backbone.onnx").open("ab") as graph:
        graph.write(b"x")
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "making the bundle again" in again.stdout
    assert "training" not in again.stdout
    assert "reusing" in subprocess.run(command, capture_output=True, text=True).stdout


def test_the_samples_are_held_out_digits_as_png(demo_directory, checkpoint, soup):
    samples = demo_directory / "samples"
    files = sorted(file.name for file in samples.iterdir())
    assert files == ["attacked.png", *[f"digit-{label}.png" for label in range(10)], "digits.png", "pair.png"]
    for label in range(10):
        with Image.open(samples / f"digit-{label}.png") as image:
            assert image.size == (8, 8)
        (answer,) = soup.classify([samples / f"digit-{label}.png"], beta="clean")
        assert answer.predictions[0].label == str(label)


def test_a_taken_port_fails_before_two_minutes_of_training(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [*DEMO, "--dir", str(tmp_path / "new"), "--port", port]
        demo = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert demo.returncode == 1
    assert "Address already in use" in demo.stderr
    assert not (tmp_path / "new").exists()


def make_commands(*arguments):
    """Lists the commands that `make` would run, without its comments.

    `make test` may run this test: its variables would have `make` name the directories that it enters.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    shown = subprocess.check_output(["make", "--dry-run", *arguments], cwd=ROOT, env=environment, text=True)
    return [line for line in shown.splitlines() if line[:1] != "#"]


def test_make_train_demo_runs_that_command_on_the_given_port():
    assert make_commands("train-demo", "PORT=8123")[-1].endswith("tureen demo --train digits --port 8123")


def test_make_demo_installs_what_serving_needs_and_no_torch_and_make_test_adds_to_the_same_environment():
    """The commands of make, for a checkout without .venv and for one in which the demo ran."""
    made, installed, stamped, served = make_commands("--always-make", "demo", "PORT=8123")
    assert made.endswith("-m venv .venv")
    assert installed.endswith('-e ".[serve,openvino]"')
    assert (stamped, served) == ("touch .venv/serving", ".venv/bin/tureen demo --port 8123")
    rest = make_commands("--always-make", "--old-file=.venv/bin/pip", "test")  # the environment of the demo exists
    assert [line for line in rest if "-m venv" in line] == []
    assert any(line.endswith('-e ".[dev]"') for line in rest)
    assert "touch .venv/serving .venv/training .venv/installed" in rest  # so that the demo installs nothing again
