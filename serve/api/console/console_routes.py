"""The console's routes, the same page for everybody and for operators; what it may do, the API behind it decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve.control.beta_choice import ActiveSettings
from serve.http.direct_route import add_head_routes
from tureen.bundle.manifest import Manifest

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {"console.css": "text/css; charset=utf-8", "console.js": "text/javascript; charset=utf-8"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_console(app: FastAPI, shown: Callable[[], tuple[Manifest, ActiveSettings]], *, is_operators: bool) -> None:
    """GET /ui and what it needs. shown: the model and the settings as of now. is_operators: on their listener."""
    # From memory, by name: no path of a request's reaches the file system.
    page = (STATIC / "index.html").read_bytes()
    contents = {name: (STATIC / name).read_bytes() for name in MEDIA_TYPES}
    router = APIRouter(include_in_schema=False)

    @router.get("/ui")
    async def console() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=HEADERS)

    @router.get("/ui/static/{name}")
    async def static(name: str) -> Response:
        if name not in contents:
            raise HTTPException(404)
        return Response(contents[name], media_type=MEDIA_TYPES[name], headers=HEADERS)

    @router.get("/ui/model")
    async def model() -> JSONResponse:
        manifest, in_force = shown()
        state = in_force.state
        content = {
            "name": manifest.name,
            "version": manifest.version,
            "has_two_tokens": manifest.has_two_tokens,
            "accuracy": [row.model_dump() for row in sorted(manifest.accuracy, key=lambda row: row.beta)],
            "default_beta": in_force.default.beta,
            "beta_min": state.beta_min,
            "beta_max": state.beta_max,
            "clients_may_choose": state.clients_may_choose,
            "is_operators": is_operators,
        }
        return JSONResponse(content, headers=HEADERS)

    add_head_routes(router)
    app.include_router(router)
