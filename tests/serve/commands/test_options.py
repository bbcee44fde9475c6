"""The options of the commands that are clients of the operators' listener."""

from serve.commands.options import DEFAULT_URL, listener_options


def test_the_url_is_the_option_else_the_variable_else_loopback(monkeypatch):
    monkeypatch.delenv("TUREEN_ADMIN_URL", raising=False)
    assert listener_options().parse_args([]).url == DEFAULT_URL
    monkeypatch.setenv("TUREEN_ADMIN_URL", "http://127.0.0.1:9")
    assert listener_options().parse_args([]).url == "http://127.0.0.1:9"
    assert listener_options().parse_args(["--url", "http://127.0.0.1:8"]).url == "http://127.0.0.1:8"
