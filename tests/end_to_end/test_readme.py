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
from decimal import Decimal
from pathlib import Path

from tests.patience import DEADLINE_S
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("benchmarks", "http-api", "support"))]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def environment():
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def start_server(command, directory, port):
    server = subprocess.Popen(
        [*command.split(), "--port", port], cwd=directory, env=environment(), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").close()
            assert server.poll() is None, command  # otherwise another process has responded
            return server
        except OSError:
            assert server.poll() is None, command
            assert time.monotonic() < deadline
            time.sleep(0.1)


def differences(shown, found, place="response"):
    """Yields what the README shows and the response does not have. The README shows a part of the response.

    A number may differ by a hundredth, beside its rounding to the digits that are shown: engines differ so much.
    """
    if isinstance(shown, dict):
        for key, value in shown.items():
            if key not in found:
                yield f"{place} has no {key}"
            else:
                yield from differences(value, found[key], f"{place}.{key}")
    elif isinstance(shown, list):
        if len(shown) != len(found):
            yield f"{place} has {len(found)} items, not {len(shown)}"
        for number, (one, other) in enumerate(zip(shown, found, strict=False)):
            yield from differences(one, other, f"{place}[{number}]")
    elif isinstance(shown, Decimal):
        rounding = 0.5 * 10.0 ** shown.as_tuple().exponent
        if abs(float(shown) - found) > rounding + 0.01:
            yield f"{place} is {found}, not {shown}"
    elif shown != found:
        yield f"{place} is {found!r}, not {shown!r}"


def test_a_shown_response_is_compared_in_every_part_that_is_shown():
    found = {"answers": ["a", "b"], "curves": [{"label": "a", "probabilities": [0.7312, 0.001]}], "revision": 0}

    def of(text):
        return list(differences(json.loads(text, parse_float=Decimal), found))

    assert of('{"answers": ["a", "b"], "curves": [{"label": "a", "probabilities": [0.73, 0.00]}]}') == []
    assert of('{"answers": ["a", "c"]}') == ["response.answers[1] is 'b', not 'c'"]
    assert of('{"answers": ["a"]}') == ["response.answers has 2 items, not 1"]
    assert of('{"curves": [{"probabilities": [0.75, 0.00]}]}') == [
        "response.curves[0].probabilities[0] is 0.7312, not 0.75"
    ]
    assert of('{"betas": []}') == ["response has no betas"]


def test_every_command_runs_with_the_printed_output(tmp_path, digits_run, run_command):
    port = str(free_port())
    server, answer, ran = None, "", []
    try:
        for language, block in BLOCKS:
            if language == "json":
                shown = json.loads(block, parse_float=Decimal)
                assert list(differences(shown, json.loads(answer))) == []
            if language == "python":
                subprocess.run([sys.executable, "-c", block], check=True, cwd=tmp_path, env=environment())
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
                    server = start_server(command, tmp_path, port)
                    continue
                if command.startswith("tureen train"):
                    # The training itself made `digits_run`; here the command as written, cut short.
                    command += " --set epochs=1 --set evaluation_steps=1 --set model.depth=1 --set model.width=16"
                if command.startswith("tureen export"):
                    command += " --images 60"  # strength and temperatures as written, from fewer images
                # The measurement of the speed as written, cut short.
                command = command.replace("--seconds 10", "--seconds 1").replace(":8000", f":{port}")
                result = run_command(command, tmp_path)
                assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
                answer = result.stdout
                if command.startswith("tureen train"):
                    out = tmp_path / re.search(r"--out (\S+)", command)[1]
                    shutil.rmtree(out)
                    shutil.copytree(digits_run, out)
    finally:
        if server is not None:
            server.terminate()
            assert server.wait(DEADLINE_S) == 0
    assert {"make demo", "make train-demo", "make test test-end-to-end"} <= set(ran)
    assert any(command.startswith("curl") for command in ran)


def test_a_newcomer_sees_all_that_counts_in_the_first_30_lines():
    head = "\n".join(README.splitlines()[:30])
    assert "make demo" in head
    assert "curl" in head
    assert '"answers"' in head


def test_no_word_promises_more_than_robustness():
    for page in PAGES:
        for word in ("secure", "immune", "certified", "guarantees"):
            assert not re.search(rf"\b{word}\b", page.read_text().lower()), page
