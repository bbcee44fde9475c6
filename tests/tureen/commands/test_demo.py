"""The demo of an example. The demo that trains is in tests/end_to_end/test_demo.py."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.patience import DEADLINE_S
from tests.ports import free_port
from tureen.commands.demo import PortTakenError, demo
from tureen.errors import TureenError

COMMAND = [sys.executable, "-m", "tureen.cli", "demo"]


@contextmanager
def served(*arguments, **variables):
    """Yields what a demo of an example prints until it is ready, and its process."""
    environment = {**os.environ, **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*COMMAND, *map(str, arguments)], env=environment, **pipes) as process:
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if "Ctrl-C stops" in line:
                    break
            yield "".join(lines), process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0, process.stderr.read()


@pytest.mark.parametrize("arguments", [[], ["--bundle", "cifar10"], ["--train", "digits"]])
def test_a_port_in_use_is_an_error_before_anything_is_made(arguments, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(
            PortTakenError, match=f"on 127.0.0.1 port {port} .Address already in use.: .* --port {port + 10}"
        ):
            demo([*arguments, "--dir", str(tmp_path / "new"), "--port", str(port)])
    assert not (tmp_path / "new").exists()


def test_a_port_of_operators_in_use_is_an_error_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.delenv("TUREEN_ADMIN_PORT", raising=False)
    port = free_port()
    with socket.create_server(("127.0.0.1", port + 1)):
        words = f"port {port + 1}, the port of the operators' page, .Address already"
        with pytest.raises(PortTakenError, match=words):
            demo(["--dir", str(tmp_path / "new"), "--port", str(port)])
    assert not (tmp_path / "new").exists()


def test_a_demo_has_its_own_settings_and_names_the_operators_page_and_the_token(tmp_path):
    with served("--dir", tmp_path, "--port", free_port()) as (shown, _):
        page, token_file = re.search(
            r"^Operators: (\S+)/ui\. The token to sign in is in (\S+)\. ", shown, re.M
        ).groups()
        state, token = os.path.dirname(token_file), Path(token_file).read_text().strip()
        assert state != os.environ["TUREEN_STATE_DIR"]
        get = re.search(r"^  tureen (beta get .*)$", shown, re.M)[1].split()
        assert "revision 0" in subprocess.check_output([sys.executable, "-m", "tureen.cli", *get], text=True)
        change = json.dumps({"clients_may_choose": False, "reason": "not in this demo"}).encode()
        headers = {"Authorization": f"Bearer {token}", "If-Match": '"0"'}
        request = urllib.request.Request(f"{page}/admin/beta", change, headers, method="PUT")
        assert json.load(urllib.request.urlopen(request))["clients_may_choose"] is False
    assert not os.path.exists(state)
    with served("--dir", tmp_path, "--port", free_port()) as (shown, _):
        console = re.match("Console: (.*)", shown)[1]
        assert json.load(urllib.request.urlopen(f"{console}/model"))["clients_may_choose"] is True


def test_a_port_that_is_taken_after_the_first_check_is_named_in_a_plain_sentence(tmp_path):
    """As with two demos that start at the same time. The port of operators in the variable has no first check."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [*COMMAND, "--dir", str(tmp_path), "--port", str(free_port())]
        environment = {**os.environ, "TUREEN_ADMIN_PORT": str(port)}
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=DEADLINE_S)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"tureen demo: cannot listen on 127.0.0.1 port {port}, the port of the operators' page, (Address already in "
        "use): if another demo or server uses it, stop that one, or set TUREEN_ADMIN_PORT to another port\n"
    )


def test_on_all_addresses_the_demo_names_localhost_and_the_address_for_other_machines(tmp_path):
    port = free_port()
    with served("--dir", tmp_path, "--host", "0.0.0.0", "--port", port) as (shown, _):
        console, other = shown.splitlines()[:2]
        assert console == f"Console: http://localhost:{port}/ui"
        assert re.fullmatch(rf"From another machine: http://[^/:]+:{port}/ui", other)
        assert "0.0.0.0" not in shown
        assert urllib.request.urlopen(console.removeprefix("Console: ")).status == 200


def test_where_no_file_can_be_written_the_demo_serves_with_its_files_in_the_cache_directory(tmp_path):
    arguments = ("--dir", "/dev/null/demo", "--port", free_port())
    with served(*arguments, TUREEN_CACHE_DIR=str(tmp_path / "cache")) as (shown, process):
        attacked = re.search(r"--data-binary @(\S+)", shown)[1]
        assert attacked.startswith(f"{tmp_path}/cache/demo/samples/")
        assert os.path.exists(attacked)
        assert process.stderr.readline() == (
            f"/dev/null/demo cannot be written (Not a directory): the files of the demo are in {tmp_path}/cache/demo\n"
        )


def test_a_demo_that_can_write_no_file_at_all_says_what_to_do(monkeypatch):
    monkeypatch.setenv("TUREEN_CACHE_DIR", "/dev/null/cache")
    with pytest.raises(TureenError, match=r"neither /dev/null/demo nor /dev/null/cache/demo can be written .* --dir"):
        demo(["--dir", "/dev/null/demo", "--no-serve"])
