"""Listening sockets: bound once, shared out among processes, and closed without losing a connection.

Knows nothing about HTTP or about who accepts.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import socket
import sys

BACKLOG = 2048
OTHER_FILES = 256  # the process' own: models, threads, pipes
HIGHEST_TTL = 255
# include/uapi/linux/in.h and in6.h; Python has no names for them.
_LEAST_TTL = ((socket.IPPROTO_IP, 21), (socket.IPPROTO_IPV6, 73))

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
        with contextlib.suppress(OSError):
            # Accepted connections inherit it. asyncio does not set it, and a response of two writes then waits 40 ms.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    return sockets


def hold_port(host: str, port: int) -> socket.socket:
    """A socket that has the port, does not listen, and lets sockets with SO_REUSEPORT listen there; raises OSError."""
    holder = _bound(host, port)  # without SO_REUSEPORT: it fails where another server has the port
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return holder


def refuse_more(listener: socket.socket) -> None:
    """Let no further connection begin, on Linux; those begun can be completed and accepted.

    A client that comes now tries again a second later, and finds the port closed or the next server. Best effort: the
    kernel drops segments below the highest TTL, which systems do not send unless told to. A socket filter would drop
    every SYN, and Linux may refuse one to a process without capabilities.
    """
    _set_least_ttl(listener, HIGHEST_TTL)


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
        _set_least_ttl(connection, 0)  # inherited where the connection was completed after `refuse_more`
        accepted.append(connection)


def close_accepting(listener: socket.socket) -> list[socket.socket]:
    """Accept what waits and close the listener, for every process that has it; returns the connections.

    Nothing runs between the two, so that a connection is lost only where it was completed in that moment.
    """
    accepted = accept_waiting(listener)
    with contextlib.suppress(OSError):  # other systems shut no listener down
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    return accepted


def _set_least_ttl(sock: socket.socket, ttl: int) -> None:
    """Have the kernel drop what comes with a lower TTL, where the kernel can and allows it."""
    if sys.platform == "linux":
        for protocol, option in _LEAST_TTL:
            with contextlib.suppress(OSError):  # such as IPv6's option on an IPv4 socket
                sock.setsockopt(protocol, option, ttl)


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
        with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
    if soft != resource.RLIM_INFINITY and soft < needed:
        logger.warning(
            "%d connections need %d open files and the limit is %d: raise it (ulimit -n) or lower --max-connections",
            max_connections, needed, soft,
        )  # fmt: skip
