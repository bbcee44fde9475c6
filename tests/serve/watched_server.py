"""Runs a server in a new network namespace, and prints which host names it looks up.

test_quiet.py starts it as `unshare --user --map-root-user --net --mount python watched_server.py RESOLV_CONF IMAGE
COMMAND…`. COMMAND… is a server on port 8000. It gets one request, and then SIGTERM.
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
CONTROL = "control.example"  # looked up last, to prove that look-ups are detected


def raise_loopback():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        _, flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def queried_name(query):
    """Return the name in a DNS query (RFC 1035, section 4.1.2)."""
    labels, offset = [], 12
    while query[offset]:
        labels.append(query[offset + 1 : offset + 1 + query[offset]].decode())
        offset += 1 + query[offset]
    return ".".join(labels)


def resolve(server, names):
    """Reply NXDOMAIN to every query, and record the name."""
    while True:
        query, client = server.recvfrom(4096)
        names.append(queried_name(query))
        server.sendto(query[:2] + b"\x81\x83" + query[4:6] + bytes(6) + query[12:], client)


def request_status(method, path, body=None):
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
            if request_status("GET", "/readyz") == 200:
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
            status = request_status("POST", "/classify", file.read())
        process.send_signal(signal.SIGTERM)
        exit_status = process.wait(DEADLINE_S)
    finally:
        process.kill()
    with contextlib.suppress(socket.gaierror):
        socket.getaddrinfo(CONTROL, 80)
    print(json.dumps({"status": status, "exit_status": exit_status, "names": sorted(set(names))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
