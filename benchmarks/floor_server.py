"""Responds to each POST with the same bytes, and does nothing else. `profile_request` starts it.

    python -m benchmarks.floor_server fastapi --port 9000 --body response.json

`asgi` is a bare ASGI function, `fastapi` a bare FastAPI route without parameters. Both read the whole body of the
request, and run on the same uvicorn, parser and event loop as Tureen. So they are the least that a request costs there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send


def asgi_floor(body: bytes) -> ASGIApp:
    """Returns an ASGI function that reads each request, and responds with `body` as JSON."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return respond


def fastapi_floor(body: bytes) -> ASGIApp:
    """Returns a FastAPI application whose only route reads each request, and responds with `body` as JSON."""
    app = FastAPI()

    @app.post("/classify")
    async def classify(request: Request) -> Response:
        await request.body()
        return Response(body, media_type="application/json")

    return app


FLOORS: dict[str, Callable[[bytes], ASGIApp]] = {"asgi": asgi_floor, "fastapi": fastapi_floor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("floor", choices=FLOORS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--body", type=Path, required=True, help="file with the body of the response")
    options = parser.parse_args()
    app = FLOORS[options.floor](options.body.read_bytes())
    uvicorn.run(
        app, port=options.port, loop="uvloop", http="httptools", ws="none", lifespan="off", access_log=False,
        log_level="warning",
    )  # fmt: skip


if __name__ == "__main__":
    main()
