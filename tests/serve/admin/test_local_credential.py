"""The first credential of a service, and the file that keeps its token."""

import contextlib

import pytest

from serve.admin.local_credential import LOCAL, prepare_credentials, refuse_open_listener
from serve.control.credential_store import Credentials
from serve.control.revision_store import RevisionStore, open_store
from serve.control.state_directory import TOKEN_FILE
from serve.errors import AdminListenerError, ControlStoreError
from serve.settings import Settings
from tureen.bundle.examples import EXAMPLES


def settings_in(directory, **changes):
    return Settings(bundle=EXAMPLES / "cifar10", state_dir=directory, **changes)


@pytest.fixture
def credentials(tmp_path):
    with contextlib.closing(open_store(settings_in(tmp_path / "state"), "cifar10")) as store:
        yield Credentials(store)


def test_the_first_start_makes_a_credential_and_later_ones_keep_it(credentials, tmp_path):
    file = tmp_path / "state" / TOKEN_FILE
    prepare_credentials(credentials, settings_in(tmp_path / "state"))
    token = file.read_text().strip()
    assert credentials.of(token).name == LOCAL
    assert file.stat().st_mode & 0o777 == 0o600
    prepare_credentials(credentials, settings_in(tmp_path / "state"))
    assert file.read_text().strip() == token
    assert len(credentials.all()) == 1


def test_a_service_with_a_credential_gets_no_token_file(credentials, tmp_path):
    credentials.make("ada", "operate")
    prepare_credentials(credentials, settings_in(tmp_path / "state"))
    assert not (tmp_path / "state" / TOKEN_FILE).exists()


def test_a_revoked_token_is_not_used_again(credentials, tmp_path, caplog):
    prepare_credentials(credentials, settings_in(tmp_path / "state"))
    credentials.revoke(LOCAL)
    prepare_credentials(credentials, settings_in(tmp_path / "state"))
    assert credentials.all() == []
    assert "was revoked" in caplog.text


def test_of_two_servers_on_one_empty_store_the_second_keeps_no_token(credentials, tmp_path):
    prepare_credentials(credentials, settings_in(tmp_path / "state"))
    others = tmp_path / "other"

    class EmptyAtFirst(Credentials):
        """Sees the store before the other server has made its credential."""

        def all(self):
            self.all = super().all
            return []

    with contextlib.closing(RevisionStore(f"sqlite:///{tmp_path / 'state' / 'control.db'}")) as store:
        prepare_credentials(EmptyAtFirst(store), settings_in(others))
    assert not (others / TOKEN_FILE).exists()
    assert len(credentials.all()) == 1


def test_a_state_directory_that_cannot_be_made_is_an_error_of_the_operator(credentials, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ControlStoreError, match="cannot be created"):
        prepare_credentials(credentials, settings_in(tmp_path / "file" / "state"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_listener_that_other_machines_reach_needs_a_credential_that_was_made(credentials, tmp_path, host):
    settings = settings_in(tmp_path / "state", admin_host=host)
    for _ in range(2):  # without a credential, and with the local one
        with pytest.raises(AdminListenerError, match="no credential was made"):
            refuse_open_listener(credentials.all(), settings)
        prepare_credentials(credentials, settings_in(tmp_path / "state"))
    credentials.make("ada", "read")
    refuse_open_listener(credentials.all(), settings)


def test_a_listener_on_loopback_needs_none(credentials, tmp_path):
    refuse_open_listener([], settings_in(tmp_path / "state"))
