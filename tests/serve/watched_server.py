"""Runs a server in a network of its own, and prints which names were looked up while it ran.

Started as `unshare --user --map-root-user --net --mount python watched_server.py RESOLV_CONF COMMAND…`, by
test_quiet.py. The server answers one request and ends. COMMAND… listens on port 8000.
"""

import contextlib
import fcntl
import http.client
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

DEADLINE_S = 120
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
CONTROL = "control.example"  # looked up last, to show that a look-up would have been seen


def raise_loopback():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        _, flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def name_in(query):
    """The name that a DNS query asks for (RFC 1035, section 4.1.2)."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    return ".".join(labels)


def resolve(server, names):
    """Answer every query that there is no such name, and remember the name."""
    while True:
        query, client = server.recvfrom(4096)
        names.append(name_in(query))
        server.sendto(query[:2] + b"\x81\x83" + query[4:6] + bytes(6) + query[12:], client)


def ask(method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=DEADLINE_S)
    try:
        connection.request(method, path, body)
        return connection.getresponse().status
    finally:
        connection.close()


def wait_until_ready(process):
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if ask("GET", "/readyz") == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server did not become ready")


def main(resolv_conf, image, *command):
    raise_loopback()
    subprocess.run(["mount", "--bind", resolv_conf, "/etc/resolv.conf"], check=True)
    names = []
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind(("127.0.0.1", 53))
    threading.Thread(target=resolve, args=(resolver, names), daemon=True).start()
    process = subprocess.Popen(command)
    try:
        wait_until_ready(process)
        with open(image, "rb") as file:
            status = ask("POST", "/classify", file.read())
        process.send_signal(signal.SIGTERM)
        exit_status = process.wait(DEADLINE_S)
    finally:
        process.kill()
    with contextlib.suppress(socket.gaierror):
        socket.getaddrinfo(CONTROL, 80)
    print(json.dumps({"status": status, "exit_status": exit_status, "names": sorted(set(names))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
