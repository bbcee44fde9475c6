"""Runs the Tureen server with a leak of 1 KiB per request, to prove that the soak benchmark detects a leak.

python -m benchmarks.leaking_server BUNDLE --port 9000
"""

from __future__ import annotations

import os
import sys
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

import serve.api.app

LEAK_BYTES = 1024


class Leak:
    """ASGI middleware that allocates LEAK_BYTES for every request and never frees them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._kept: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._kept.append(os.urandom(LEAK_BYTES))
        await self._app(scope, receive, send)


def main() -> int:
    create_app = serve.api.app.create_app

    def create_leaking_app(*arguments: Any, **options: Any) -> Any:
        app = create_app(*arguments, **options)
        app.add_middleware(Leak)
        return app

    # Replaced before serve.server is imported, because that imports the function by name.
    serve.api.app.create_app = create_leaking_app
    from serve.server import serve as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
