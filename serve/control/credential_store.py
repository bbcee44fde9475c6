"""Stores the operators' credentials: name, role and SHA-256 of the bearer token. Does not store the token itself."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from serve.control.revision_store import RevisionStore
from serve.control.settings_state import POLICY_NAME, format_time
from serve.errors import InvalidChangeError

Role = Literal["read", "operate"]
ROLES: tuple[Role, ...] = get_args(Role)
PREFIX = "tureen_"  # identifies a secret that leaked into a log or a repository

_METADATA = sa.MetaData()
_CREDENTIALS = sa.Table(
    "tureen_credentials",
    _METADATA,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("made_at", sa.String(32), nullable=False),
)
_REVOKED = sa.Table(
    "tureen_revoked_credentials",
    _METADATA,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("at", sa.String(32), nullable=False),
)


@dataclass(frozen=True)
class Credential:
    """An operator's credential. sha256: of the bearer token, hexadecimal. made_at: UTC, ISO 8601."""

    name: str
    role: Role
    sha256: str
    made_at: str

    @property
    def may_operate(self) -> bool:
        return self.role == "operate"


def digest(secret: str) -> str:
    """Returns the SHA-256 of a secret, hexadecimal.

    Uses no salt and no slow hash, because a secret of 256 random bits cannot be guessed.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def make_secret(prefix: str = PREFIX) -> str:
    """Returns a new secret: the prefix, then 256 random bits in URL-safe base64."""
    return prefix + secrets.token_urlsafe(32)


class Credentials:
    """The operators' credentials in a store. Methods block, so async code calls them on threads.

    Methods raise ControlStoreError if the database cannot be reached or fails.
    """

    def __init__(self, store: RevisionStore) -> None:
        self._store = store

    def make(self, name: str, role: Role, secret: str | None = None) -> str:
        """Stores a credential and returns its secret, the bearer token. secret: None for a new random one.

        Stores only the SHA-256 of the secret. Raises InvalidChangeError if the name is taken, or is not 1 to 63
        characters of a-z, 0-9, - and _.
        """
        if re.fullmatch(POLICY_NAME, name) is None:
            raise InvalidChangeError(f"{name!r} is not a valid name: give 1 to 63 of a-z, 0-9, - and _")
        secret = secret or make_secret()
        row = {"name": name, "role": role, "sha256": digest(secret), "made_at": format_time(datetime.now(UTC))}
        with self._store.writing() as connection:
            try:
                connection.execute(_CREDENTIALS.insert().values(**row))
            except IntegrityError:
                raise InvalidChangeError(f"the credential {name} exists already: revoke it first") from None
        return secret

    def revoke(self, name: str) -> None:
        """Revokes the credential of this name, from the next request on.

        Raises InvalidChangeError if no credential has the name.
        """
        with self._store.writing() as connection:
            has_name = _CREDENTIALS.c.name == name
            found = connection.execute(sa.select(_CREDENTIALS.c.sha256).where(has_name)).one_or_none()
            if found is None:
                raise InvalidChangeError(f"there is no credential {name}")
            connection.execute(_CREDENTIALS.delete().where(has_name))
            connection.execute(_REVOKED.insert().values(sha256=found.sha256, at=format_time(datetime.now(UTC))))

    def is_revoked(self, secret: str) -> bool:
        """Returns whether `revoke` has removed the credential of this secret."""
        with self._store.reading() as connection:
            found = connection.execute(_REVOKED.select().where(_REVOKED.c.sha256 == digest(secret)))
            return found.one_or_none() is not None

    def all(self) -> list[Credential]:
        """Returns every credential, sorted by name."""
        with self._store.reading() as connection:
            return [Credential(**row._mapping) for row in connection.execute(_CREDENTIALS.select().order_by("name"))]

    def of(self, secret: str) -> Credential | None:
        """Returns the credential to which the secret belongs, or None if there is none."""
        return self.find(self.all(), secret)

    @staticmethod
    def find(credentials: Sequence[Credential], secret: str) -> Credential | None:
        """Returns the credential in `credentials` to which the secret belongs, or None if there is none.

        Takes the same time for a known and an unknown secret, so that the time reveals nothing.
        """
        sha256 = digest(secret)
        found = None
        for credential in credentials:
            if hmac.compare_digest(credential.sha256, sha256):
                found = credential
        return found
