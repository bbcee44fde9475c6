"""Operators' credentials in a store."""

import pytest
import sqlalchemy as sa

from serve.control.credential_store import PREFIX, Credentials, digest, make_secret
from serve.errors import InvalidChangeError


def test_a_credential_identifies_a_name_and_its_secret_is_stored_nowhere(store):
    credentials = Credentials(store)
    secret = credentials.make("ada", "operate")
    reader = credentials.make("dashboard", "read")
    assert credentials.of(secret).may_operate
    assert not credentials.of(reader).may_operate
    for wrong in ("", secret[:-1], secret + "x", "tureen_"):
        assert credentials.of(wrong) is None
    with store.reading() as connection:
        assert secret not in str(connection.execute(sa.text("SELECT * FROM tureen_credentials")).all())
    with pytest.raises(InvalidChangeError):
        credentials.make("ada", "read")
    credentials.revoke("ada")
    assert credentials.of(secret) is None


@pytest.mark.parametrize("name", ["", "a b", "Ada", "-a", "a/b", "two\nlines", "x" * 64, "ä"])
def test_a_name_is_of_lower_case_letters_digits_and_dashes(store, name):
    with pytest.raises(InvalidChangeError, match="is not a valid name"):
        Credentials(store).make(name, "read")
    assert Credentials(store).all() == []


def test_a_revoked_secret_stays_revoked_and_its_name_can_be_given_again(store):
    credentials = Credentials(store)
    secret = credentials.make("ada", "operate")
    assert not credentials.is_revoked(secret)
    credentials.revoke("ada")
    assert credentials.is_revoked(secret)
    with pytest.raises(InvalidChangeError, match="no credential"):
        credentials.revoke("ada")
    another = credentials.make("ada", "read")
    assert credentials.of(secret) is None
    assert credentials.of(another).role == "read"


def test_credentials_are_listed_by_name_without_their_secrets(store):
    credentials = Credentials(store)
    secrets = {name: credentials.make(name, "read") for name in ("b", "a")}
    assert [(one.name, one.sha256) for one in credentials.all()] == [(name, digest(secrets[name])) for name in "ab"]


def test_a_secret_is_random_and_has_a_recognisable_prefix():
    secrets = {make_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(secret.startswith(PREFIX) and len(secret) > 40 for secret in secrets)
