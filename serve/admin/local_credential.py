"""Creates the local credential: the first credential of a service, whose token is in a file of the state directory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from serve.control.credential_store import Credential, Credentials, make_secret
from serve.control.state_directory import TOKEN_FILE, locked, make_state_directory
from serve.errors import AdminListenerError, ControlStoreError, InvalidChangeError
from serve.limits import is_loopback
from serve.settings import Settings
from tureen.atomic_file import write_atomically

LOCAL = "local"  # the name of the credential whose token is in the state directory

logger = logging.getLogger("tureen.admin")


def refuse_open_listener(credentials: Sequence[Credential], settings: Settings) -> None:
    """Raises AdminListenerError if other machines can reach the listener, but no credential exists for them.

    The local credential does not count, because its token is for this machine alone.
    """
    if not is_loopback(settings.admin_host) and all(credential.name == LOCAL for credential in credentials):
        raise AdminListenerError(
            f"--admin-host {settings.admin_host} is reachable from other machines, and no credential was made: run "
            "`tureen credentials BUNDLE make NAME` first, or keep --admin-host at 127.0.0.1"
        )


def prepare_credentials(credentials: Credentials, settings: Settings) -> None:
    """Creates the local credential if the store has no credential, and writes the token to the state directory.

    If several servers start with an empty store, only one creates the credential, and only that server has the token in
    its directory. If the token in the directory was revoked, logs a warning and creates nothing.
    Raises ControlStoreError if the store is unreachable or the token cannot be written. Raises AdminListenerError if
    other machines can reach the listener, but no credential exists for them.
    """
    make_state_directory(settings.state_dir)
    known = credentials.all()
    refuse_open_listener(known, settings)
    if known:
        return
    file = settings.state_dir / TOKEN_FILE
    try:
        secret, is_new = _read_or_make_token(file)
    except OSError as error:
        raise ControlStoreError(f"the operator's token cannot be stored in {file}: {error.strerror}") from None
    if credentials.is_revoked(secret):
        logger.warning(
            "the store has no credential, and the token in %s was revoked: run `tureen credentials BUNDLE make NAME`",
            file,
        )
        return
    try:
        credentials.make(LOCAL, "operate", secret)
    except InvalidChangeError:  # another server created it first
        if credentials.of(secret) is None:
            if is_new:
                file.unlink(missing_ok=True)
            logger.info("the operator's token is in the state directory of the server that started first")
            return
    logger.info("the operator's token is in %s", file)


def _read_or_make_token(file: Path) -> tuple[str, bool]:
    """Returns the token in the file, and whether this call created the file with a new token.

    Raises OSError if the file cannot be read or written, and ControlStoreError if its directory cannot be locked.
    """
    with locked(file.parent):  # otherwise another process could read a file that is not written yet
        is_new = not file.exists()
        if is_new:
            write_atomically(file, f"{make_secret()}\n".encode(), mode=0o600)
        return file.read_text("utf-8-sig").strip(), is_new
