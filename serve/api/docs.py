"""The routes of Swagger UI, the interactive documentation of the HTTP API, under /docs.

This server sends all files of Swagger UI, so a browser needs no other server. `docs_static/README.md` names the source
of the files.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException

STATIC = Path(__file__).parent / "docs_static"
MEDIA_TYPES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
STATIC_HEADERS = {"Cache-Control": "max-age=86400"}


def add_docs_routes(app: FastAPI) -> None:
    """Registers GET /docs, which shows the application's /openapi.json, and GET /docs/static/{name}."""
    # Files are read once and sent from memory, so no path of a request reaches the file system. Ranges are unsupported.
    contents = {name: (STATIC / name).read_bytes() for name in MEDIA_TYPES}

    @app.get("/docs/static/{name}", include_in_schema=False)
    async def static_file(name: str) -> Response:
        if name not in contents:
            raise HTTPException(404)
        return Response(contents[name], media_type=MEDIA_TYPES[name], headers=STATIC_HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=f"{app.title}: HTTP API",
            swagger_js_url="docs/static/swagger-ui-bundle.js",
            swagger_css_url="docs/static/swagger-ui.css",
            swagger_favicon_url="docs/static/favicon-32x32.png",
        )
