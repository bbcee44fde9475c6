"""Opens listening sockets, one per process, and closes them without losing a connection.

Knows nothing about HTTP or about the processes that accept connections.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import socket
import sys

BACKLOG = 2048
OTHER_FILES = 256  # open files of a process besides connections: models, threads, pipes
HIGHEST_TTL = 255
# include/uapi/linux/in.h and in6.h; Python has no names for them.
_LEAST_TTL = ((socket.IPPROTO_IP, 21), (socket.IPPROTO_IPV6, 73))

logger = logging.getLogger("tureen.serve")


def bind(host: str, port: int, count: int = 1) -> list[socket.socket]:
    """Returns `count` listening sockets on one address, one for each process.

    port: 0 selects a free port. On Linux the kernel distributes connections evenly over the sockets. If all processes
    shared one socket, a running process would take nearly all connections of a burst. Raises OSError if the address
    cannot be used, or if another process listens on the port.
    """
    first = _bound(host, port)  # without SO_REUSEPORT, so that it fails if another server has the port
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
    """Returns a socket that does not listen, but reserves the port for sockets with SO_REUSEPORT.

    Raises OSError if the address cannot be used, or if another process listens on the port.
    """
    holder = _bound(host, port)  # without SO_REUSEPORT, so that it fails if another server has the port
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return holder


def refuse_more(listener: socket.socket) -> None:
    """Makes Linux drop new connections to a listener before they are established. Started handshakes can complete.

    A new client retries after a second. By then, the port is closed or belongs to the next server. The function makes
    the kernel drop segments whose TTL is below the highest possible one. A client that sends the highest TTL can still
    connect, but systems send a lower TTL by default. A socket filter would drop every SYN, but Linux may refuse it to a
    process without capabilities. Does nothing on other systems.
    """
    _set_least_ttl(listener, HIGHEST_TTL)


def accept_waiting(listener: socket.socket) -> list[socket.socket]:
    """Accepts every connection in the backlog of the listener, and returns them as sockets.

    Closing the listener would reset these connections.
    """
    accepted: list[socket.socket] = []
    while True:
        try:
            connection, _ = listener.accept()
        except ConnectionAbortedError:  # the client has closed it
            continue
        except OSError:  # the backlog is empty, or no file descriptor is left
            return accepted
        connection.setblocking(False)
        _set_least_ttl(connection, 0)  # inherited if the connection completed after `refuse_more`
        accepted.append(connection)


def close_accepting(listener: socket.socket) -> list[socket.socket]:
    """Accepts and returns the connections in the backlog, then closes the listener for all processes that share it.

    No other code runs between the two steps. So only a connection that is established between them is lost.
    """
    accepted = accept_waiting(listener)
    with contextlib.suppress(OSError):  # systems other than Linux do not shut down a listener
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    return accepted


def _set_least_ttl(sock: socket.socket, ttl: int) -> None:
    """Makes the kernel drop received segments with a lower TTL than `ttl`, if the kernel supports and permits it."""
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
    """Raises the soft limit on open files to 2 × max_connections + OTHER_FILES, or to the hard limit if that is lower.

    The factor 2 is for connections that the server refuses, which need descriptors too. Without a free descriptor, a
    connection is reset, and its client receives no response. Logs a warning if the limit stays too low.
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
