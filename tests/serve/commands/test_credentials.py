"""`tureen credentials` on a store, without a server."""

import json

import pytest

from serve.commands.credentials import credentials
from serve.errors import InvalidChangeError
from tureen.bundle.examples import EXAMPLES


@pytest.fixture
def run(tmp_path, capsys):
    def run(*arguments):
        assert credentials([str(EXAMPLES / "cifar10"), "--state-dir", str(tmp_path), *arguments]) == 0
        return capsys.readouterr().out

    return run


def test_a_credential_is_made_listed_and_revoked(run):
    assert run("list") == ""
    token = run("make", "ada", "--role", "operate").strip()
    run("make", "dashboard")
    listed = json.loads(run("list", "--json"))
    assert [(one["name"], one["role"]) for one in listed] == [("ada", "operate"), ("dashboard", "read")]
    text = run("list")
    assert text.startswith("ada  operate  since ")
    assert token not in text
    run("revoke", "ada")
    assert [one["name"] for one in json.loads(run("list", "--json"))] == ["dashboard"]
    with pytest.raises(InvalidChangeError, match="no credential ada"):
        run("revoke", "ada")


def test_the_store_is_named_without_its_password(capsys):
    url = "postgresql+psycopg://ada:secret@127.0.0.1:1/none"
    with pytest.raises(Exception, match="store of the operator's settings") as caught:
        credentials([str(EXAMPLES / "cifar10"), "--store", url, "list"])
    assert "secret" not in capsys.readouterr().err + str(caught.value)
