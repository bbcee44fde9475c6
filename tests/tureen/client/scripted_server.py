"""An HTTP server that responds as a test scripts it: with errors, in pieces, or not at all."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

CLASSIFICATION = {
    "model": "digits",
    "version": "0123",
    "revision": 0,
    "calibrated": False,
    "beta": 0.0,
    "strength": 0.0,
    "beta_source": "bundle",
    "predictions": [{"label": "7", "index": 7, "probability": 0.9}],
}


def response(status, body, **headers):
    """The bytes of a response with a JSON body. headers: with _ for -."""
    data = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(data)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


def problem(status, code, **headers):
    return response(status, {"status": status, "code": code, "title": "t", "detail": "the reason"}, **headers)


SUCCESS = response(200, CLASSIFICATION)


class ScriptedServer:
    """Takes the next item of `script` for each request: bytes to send before it closes, or a function of the handler.

    The last item stays. `queries` has the query of each request. `released` ends the functions that wait for it.
    """

    def __init__(self, *script):
        self.script = list(script)
        self.queries = []
        self.received = threading.Event()
        self.released = threading.Event()
        self.closed_by_client = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                outer.queries.append({k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()})
                item = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                outer.received.set()
                if callable(item):
                    item(outer, self)
                else:
                    self.wfile.write(item)
                self.close_connection = True

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def wait_for_release(server, handler):
    """Send nothing until the test ends."""
    server.released.wait()


def half_a_response(server, handler):
    """Send a head and half of the body, then close the connection."""
    handler.wfile.write(SUCCESS[:-40])


def a_byte_at_a_time(server, handler):
    """Send a body of which a byte follows another without an end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
    try:
        while not server.released.wait(0.01):
            handler.wfile.write(b" ")
            handler.wfile.flush()
    except OSError:
        server.closed_by_client.set()


def wait_for_the_client_to_leave(server, handler):
    """Send nothing, and note that the client has closed the connection."""
    if handler.connection.recv(1) == b"":
        server.closed_by_client.set()
