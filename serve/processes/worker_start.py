"""Starts a worker process: first the watch over its supervisor, then everything else.

Started as `python -m serve.processes.worker_start DESCRIPTOR`, where the descriptor is this end of the line to the
supervisor.
Imports nothing large before the watch has begun: imports take seconds, and the next server needs the ports.
"""

from __future__ import annotations

import os
import select
import sys
import threading

EXIT_WITHOUT_SUPERVISOR = 3


def watch_supervisor(descriptor: int) -> None:
    """End this process as soon as the other end of the line is closed, whatever any other thread does.

    The supervisor closes its end when this process has ended, so that it closes it before only by dying.
    """
    end = os.dup(descriptor)  # stays open to the process' last moment, whatever the line does with the original

    def wait() -> None:
        poll = select.poll()
        poll.register(end, select.POLLHUP)  # and no POLLIN: the line reads what comes
        poll.poll()
        os.write(sys.stderr.fileno(), b"the supervisor ended: its worker ends too\n")
        os._exit(EXIT_WITHOUT_SUPERVISOR)

    threading.Thread(target=wait, name="supervisor watch", daemon=True).start()


if __name__ == "__main__":
    watch_supervisor(int(sys.argv[1]))

    from serve.processes.worker import main

    sys.exit(main(int(sys.argv[1])))
