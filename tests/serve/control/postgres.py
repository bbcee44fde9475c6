"""Runs a PostgreSQL server for tests, from the Debian packages; it can be stopped and restarted."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.patience import DEADLINE_S
from tests.ports import free_port

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


class Postgres:
    """A PostgreSQL server with its data in `directory`, on a loopback port."""

    def __init__(self, directory):
        if not PROGRAMS or (os.geteuid() == 0 and shutil.which("setpriv") is None):
            pytest.skip("PostgreSQL is not installed: install the Debian package postgresql")
        self.directory = directory
        self.port = free_port()
        directory.mkdir(parents=True)
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            for path in (directory, *directory.parents):
                if path.owner() == "root" and path.stat().st_mode & 0o055 == 0:
                    path.chmod(path.stat().st_mode | 0o011)
            shutil.chown(directory, "postgres", "postgres")
        self._run("initdb", "--auth=trust", "--username=tureen", "--no-sync", "-D", directory / "data")
        self.start()

    @property
    def url(self):
        return f"postgresql+psycopg://tureen@127.0.0.1:{self.port}/postgres"

    def start(self):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run(
            "pg_ctl", "start", "--wait", "-D", self.directory / "data", "-o", options, "-l", self.directory / "log"
        )

    def stop(self):
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate", "-D", self.directory / "data")

    def _run(self, program, *arguments):
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        subprocess.run(
            [*as_user, PROGRAMS[-1] / program, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.directory,
            timeout=DEADLINE_S,
        )
