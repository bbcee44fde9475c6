"""Ports for the servers that tests start."""

import random
import socket

FIRST, PAST_LAST = 15_000, 32_768  # below the range from which Linux takes the ports of outgoing connections
_random = random.SystemRandom()


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that no process uses.

    A port that the system chose for port 0 may become the port of another test's connection before the server binds it.
    """
    while True:
        port = _random.randrange(FIRST, PAST_LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
