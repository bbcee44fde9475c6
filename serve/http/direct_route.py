"""Defines routes whose endpoints parse the request themselves, and adds a HEAD route for every GET route."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute


class DirectRoute(APIRoute):
    """A route that calls its endpoint with the Request as the only argument.

    The endpoint parses parameters and body itself, because parsing by FastAPI takes more time.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return cast(Callable[[Request], Coroutine[Any, Any, Response]], self.endpoint)


def add_head_routes(router: APIRouter) -> None:
    """Adds a HEAD route for every GET route of the router, for load balancers and uptime checks.

    uvicorn drops the body of the response. Must be called before the router is included in an application, because
    FastAPI does not list the routes of an included router.
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
