"""Listening sockets: shared out evenly, taken by one server only, closed without losing a connection."""

import logging
import resource
import socket
import sys
import time

import pytest

from serve.connection.sockets import OTHER_FILES, accept_waiting, allow_open_files, bind, refuse_more

linux = pytest.mark.skipif(sys.platform != "linux", reason="what Linux alone can do")


def close(sockets):
    for each in sockets:
        each.close()


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_are_spread_over_the_listeners_of_a_port(host):
    listeners = bind(host, 0, 4)
    address = listeners[0].getsockname()[:2]
    clients = [socket.create_connection(address) for _ in range(200)]
    accepted = [accept_waiting(listener) for listener in listeners]
    assert sum(map(len, accepted)) == len(clients)
    # Each expects 50 with a standard deviation of 6; five of these are left to chance.
    assert all(20 < len(connections) < 80 for connections in accepted)
    close([*clients, *listeners, *(connection for each in accepted for connection in each)])


def test_a_port_belongs_to_one_server():
    listeners = bind("127.0.0.1", 0, 2)
    port = listeners[0].getsockname()[1]
    for count in (1, 2):
        with pytest.raises(OSError, match="in use"):
            bind("127.0.0.1", port, count)
    close(listeners)


def test_no_response_waits_for_the_acknowledgement_of_its_first_part():
    listener, *_ = bind("127.0.0.1", 0)
    with listener, socket.create_connection(listener.getsockname()):
        (accepted,) = accept_waiting(listener)
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@linux
def test_connections_opened_before_the_shutdown_are_accepted_and_none_after_it():
    (listener,) = bind("127.0.0.1", 0)
    address = listener.getsockname()
    clients = [socket.create_connection(address) for _ in range(10)]
    refuse_more(listener)
    late = socket.socket()
    late.settimeout(0.2)
    with pytest.raises(TimeoutError):
        late.connect(address)
    for number, client in enumerate(clients):  # the kernel receives data on connections in the backlog
        client.sendall(bytes([number]))
    accepted = accept_waiting(listener)
    time.sleep(0.05)
    assert sorted(connection.recv(1)[0] for connection in accepted) == list(range(10))
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    close([late, *clients, *accepted])


def test_the_open_files_limit_allows_all_connections_or_a_warning_is_logged(caplog):
    soft, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = (soft - OTHER_FILES) // 2 - 100
    lower = 2 * connections + OTHER_FILES - 50
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lower, hard))
        with caplog.at_level(logging.WARNING):
            allow_open_files(connections)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (2 * connections + OTHER_FILES, hard)
            assert not caplog.records
            if hard != resource.RLIM_INFINITY:
                allow_open_files(hard)
                assert "--max-connections" in caplog.text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
