"""Routes whose endpoint reads the request itself, and HEAD for every GET."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute


class DirectRoute(APIRoute):
    """Calls its endpoint with the request and nothing else.

    What FastAPI could do with parameters and bodies is done elsewhere here, and its way there costs every request.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return cast(Callable[[Request], Coroutine[Any, Any, Response]], self.endpoint)


def add_head_routes(router: APIRouter) -> None:
    """HEAD wherever GET is answered, as load balancers and uptime checks ask; uvicorn keeps the body back.

    To be called before the router is included: FastAPI does not list the routes of an included one.
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
