"""The routes of the console, one page for clients and operators.

Every client may load the page. The other routes, which the page calls, check the rights of its user.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve.control.beta_choice import ActiveSettings
from serve.http.direct_route import add_head_routes
from tureen.bundle.gallery import BundleGallery
from tureen.bundle.manifest import Manifest, failed_checks

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {"console.css": "text/css; charset=utf-8", "console.js": "text/javascript; charset=utf-8"}
NUMBERED = re.compile(r"\d+[-_.]+.")  # such as 14-stop: the name of a folder, with the index of the class
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_console(
    app: FastAPI,
    current: Callable[[], tuple[Manifest, ActiveSettings]],
    *,
    gallery: Callable[[], BundleGallery | None] = lambda: None,
    is_operators: bool,
) -> None:
    """Registers the routes of the console: GET /ui and what the page loads, and GET /, a redirect to /ui.

    current: returns the manifest of the served model and the active settings. gallery: returns the gallery of the
    served model, or None; GET /ui/gallery then responds with 404. is_operators: whether the application is
    that of the operators' listener, where the page shows the sign-in.
    """
    # Files are read once and sent from memory, so the path of a request never reaches the file system.
    page = (STATIC / "index.html").read_bytes()
    contents = {name: (STATIC / name).read_bytes() for name in MEDIA_TYPES}
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def root() -> Response:
        # Relative, so that it also holds behind a proxy that serves this server under a path.
        return Response(status_code=307, headers={**HEADERS, "Location": "ui"})

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
        manifest, settings = current()
        state = settings.state
        content = {
            "name": manifest.name,
            "version": manifest.version,
            "has_two_tokens": manifest.has_two_tokens,
            "has_numbered_labels": all(map(NUMBERED.match, manifest.labels)),
            "accuracy": [
                {**row.model_dump(), "failed_checks": failed_checks(manifest.evaluation.checks, row.beta)}
                for row in sorted(manifest.accuracy, key=lambda row: row.beta)
            ],
            "default_beta": settings.default.beta,
            "strength": manifest.strength.model_dump(),
            "beta_min": state.beta_min,
            "beta_max": state.beta_max,
            "clients_may_choose": state.clients_may_choose,
            "has_gallery": gallery() is not None,
            "is_operators": is_operators,
        }
        return JSONResponse(content, headers=HEADERS)

    @router.get("/ui/gallery")
    async def pictures() -> Response:
        shown = gallery()
        if shown is None:
            raise HTTPException(404)
        return Response(shown.model_dump_json(), media_type="application/json", headers=HEADERS)

    add_head_routes(router)
    app.include_router(router)
