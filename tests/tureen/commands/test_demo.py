"""What the demo does before it trains; all of it is in tests/end_to_end/test_demo.py."""

import socket

import pytest

from tureen.commands.demo import PortTakenError, demo


@pytest.mark.parametrize("arguments", [[], ["--bundle", "cifar10"], ["--train", "digits"]])
def test_a_port_in_use_is_an_error_before_anything_is_made(arguments, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"127.0.0.1:{port} is in use or not available: choose another --port"):
            demo([*arguments, "--dir", str(tmp_path / "new"), "--port", str(port)])
    assert not (tmp_path / "new").exists()


def test_a_port_of_operators_in_use_is_an_error_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.delenv("TUREEN_ADMIN_PORT", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"127.0.0.1:{port} for operators is in use or not available"):
            demo(["--dir", str(tmp_path / "new"), "--port", str(port - 1)])
    assert not (tmp_path / "new").exists()
