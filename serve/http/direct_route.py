"""Defines routes that call their endpoint with the request alone, and adds a HEAD route for every GET route."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute


class DirectRoute(APIRoute):
    """A route that calls its endpoint with the request alone.

    The endpoint parses parameters and bodies. Parsing by FastAPI would cost every request more time.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return cast(Callable[[Request], Coroutine[Any, Any, Response]], self.endpoint)


def add_head_routes(router: APIRouter) -> None:
    """Adds a HEAD route for every GET route, for load balancers and uptime checks. uvicorn drops the body.

    Call it before the router is included: FastAPI does not list the routes of an included router.
    """
    for route in list(router.routes):
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            router.add_api_route(
                route.path.removeprefix(router.prefix),
                route.endpoint,
                methods=["HEAD"],
                include_in_schema=False,
                response_class=route.response_class,
            )
