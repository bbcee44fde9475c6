"""Starts a worker process. First starts a thread that ends the process when the supervisor ends.

Runs as `python -m serve.processes.worker_start DESCRIPTOR`. The argument is the file descriptor of the socket to the
supervisor. Imports nothing large before the thread runs. Imports take seconds, and a worker without a supervisor would
hold the ports that the next server needs.
"""

from __future__ import annotations

import os
import select
import sys
import threading

EXIT_WITHOUT_SUPERVISOR = 3


def watch_supervisor(descriptor: int) -> None:
    """Starts a thread that ends this process with EXIT_WITHOUT_SUPERVISOR when the supervisor has ended.

    The thread waits until the supervisor's end of the socket is closed. A living supervisor closes its end only after
    this process has ended. The thread works even if every other thread is busy. descriptor: of this end of the socket.
    """
    end = os.dup(descriptor)  # stays open until the process ends, also if the channel closes the original

    def wait() -> None:
        poll = select.poll()
        poll.register(end, select.POLLHUP)  # not POLLIN: the channel reads the messages
        poll.poll()
        os.write(sys.stderr.fileno(), b"the supervisor ended: its worker ends too\n")
        os._exit(EXIT_WITHOUT_SUPERVISOR)

    threading.Thread(target=wait, name="supervisor watch", daemon=True).start()


if __name__ == "__main__":
    watch_supervisor(int(sys.argv[1]))

    from serve.processes.worker import main

    sys.exit(main(int(sys.argv[1])))
