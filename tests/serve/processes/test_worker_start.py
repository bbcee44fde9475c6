"""A worker process ends with its supervisor."""

import socket
import subprocess
import sys

import pytest

from serve.processes.worker_start import EXIT_WITHOUT_SUPERVISOR
from tests.patience import DEADLINE_S


def test_a_worker_whose_threads_are_all_busy_ends_with_its_supervisor():
    """As in a call of the engine, or while a slow engine is compiled."""
    ours, theirs = socket.socketpair()
    program = (
        "import sys, time; from serve.processes.worker_start import watch_supervisor; "
        "watch_supervisor(int(sys.argv[1])); print(flush=True); time.sleep(3600)"
    )
    with ours, theirs:
        descriptor = theirs.fileno()
        command = [sys.executable, "-c", program, str(descriptor)]
        with subprocess.Popen(command, pass_fds=[descriptor], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
            theirs.close()
            try:
                worker.stdout.readline()
                ours.sendall(b"a message that nobody reads")
                with pytest.raises(subprocess.TimeoutExpired):
                    worker.wait(0.2)
                ours.close()
                assert worker.wait(DEADLINE_S) == EXIT_WITHOUT_SUPERVISOR
                assert b"the supervisor ended" in worker.stderr.read()
            finally:
                worker.kill()
