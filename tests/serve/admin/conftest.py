"""Fixtures that run a server with an admin listener, and a client for that listener."""

import json
import re

import pytest

from tests.patience import DEADLINE_S


class Operator:
    """A client of the admin listener, with the token from the state directory of the server."""

    def __init__(self, server, state_dir):
        self.server = server
        (line,) = [line for line in server.log() if line["message"].startswith("listening for operators")]
        self.port = int(re.search(r":(\d+)$", line["message"])[1])
        self.token = (state_dir / "admin-token").read_text().strip()
        self.url = f"http://127.0.0.1:{self.port}"

    def ask(self, method, path, body=None, *, revision=None, token=None, **headers):
        """Send a request; return status, headers and JSON body."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers["Authorization"] = f"Bearer {token or self.token}"
        if revision is not None:
            headers["If-Match"] = f'"{revision}"'
        data = json.dumps(body) if isinstance(body, dict) else body
        status, head, content = type(self.server)(None, self.port, None).ask(method, path, data, headers)
        return status, head, json.loads(content)

    def change(self, **change):
        """Change the active settings; return the new state."""
        revision = self.ask("GET", "/admin/beta")[2]["revision"]
        status, _, state = self.ask("PUT", "/admin/beta", {"reason": "a test", **change}, revision=revision)
        assert status == 200, state
        return state


@pytest.fixture
def start_operated(start_server, tmp_path):
    """A function that starts a server with settings at revision 0; returns it when ready, with its Operator."""

    def start(*flags, processes=1, **options):
        server = start_server("--state-dir", tmp_path / "state", *flags, **options)
        server.wait_until_ready(processes)
        return server, Operator(server, tmp_path / "state")

    return start


@pytest.fixture
def run_tureen(forked_tureen):
    """A function that runs `tureen` as a process without a terminal."""
    return lambda *arguments: forked_tureen.run(arguments, timeout=DEADLINE_S)
