"""Listening sockets: bound once, shared out among processes, and closed without losing a connection.

Knows nothing about HTTP or about who accepts.
"""

from __future__ import annotations

import ctypes
import logging
import resource
import socket
import struct
import sys

BACKLOG = 2048
OTHER_FILES = 256  # the process' own: models, threads, pipes
_SO_ATTACH_FILTER = 26  # include/uapi/asm-generic/socket.h; Python has no name for it
# Classic BPF over a TCP header: drop a segment whose SYN flag (bit 1 of byte 13) is set, take every other.
_DROP_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))

logger = logging.getLogger("tureen.serve")


def bind(host: str, port: int, count: int = 1) -> list[socket.socket]:
    """That many listening sockets on one address, each to be accepted from by a process of its own; raises OSError.

    On Linux the kernel spreads connections evenly over them. With one socket for all, whichever process is awake
    takes nearly all of a burst.
    """
    first = _bound(host, port)  # without SO_REUSEPORT: it fails where another server has the port
    sockets = [first]
    if sys.platform == "linux":
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sockets += [_bound(host, first.getsockname()[1], socket.SO_REUSEPORT) for _ in range(count - 1)]
    else:
        sockets += [first.dup() for _ in range(count - 1)]
    for listener in sockets:
        # Accepted connections inherit it; asyncio sets it on none of these, and an answer of two writes waits 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    return sockets


def refuse_more(listener: socket.socket) -> None:
    """Let no further connection begin, on Linux; those begun can be completed and accepted.

    A client that comes now tries again a second later, and finds the port closed or the next server.
    """
    if sys.platform == "linux":
        program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in _DROP_SYN))
        listener.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(_DROP_SYN), ctypes.addressof(program))
        )


def accept_waiting(listener: socket.socket) -> list[socket.socket]:
    """Every connection that waits to be accepted; closing the listener would reset them."""
    accepted: list[socket.socket] = []
    while True:
        try:
            connection, _ = listener.accept()
        except ConnectionAbortedError:  # its client has given up meanwhile
            continue
        except OSError:  # none waits, or no descriptor is left for one that does
            return accepted
        connection.setblocking(False)
        accepted.append(connection)


def _bound(host: str, port: int, *options: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        for option in (socket.SO_REUSEADDR, *options):
            listener.setsockopt(socket.SOL_SOCKET, option, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def allow_open_files(max_connections: int) -> None:
    """Raise the process' limit of open files, as far as it may, to what so many connections and their refusals need.

    At that limit the kernel's refusal is a reset, where ours is an answer.
    """
    needed = 2 * max_connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        logger.warning(
            "%d connections need %d open files and the limit is %d: raise it (ulimit -n) or lower --max-connections",
            max_connections, needed, allowed,
        )  # fmt: skip
