"""Defines routes whose endpoints parse the request themselves, and adds a HEAD route for every GET route."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.http.error_handlers import tureen_error_response
from tureen.errors import TureenError


class DirectRoute(APIRoute):
    """A route that calls its endpoint with the Request as the only argument.

    The endpoint parses parameters and body itself, because parsing by FastAPI takes more time.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return cast(Callable[[Request], Coroutine[Any, Any, Response]], self.endpoint)


class DirectRouteMiddleware:
    """ASGI middleware that calls the endpoints of direct routes, and leaves all other requests to the application.

    The routing and the exception handling of FastAPI would cost such a request several times what its endpoint costs.
    """

    def __init__(self, app: ASGIApp, routers: Sequence[APIRouter]) -> None:
        """routers: those that the application includes. The middleware calls their routes of the class DirectRoute."""
        self._app = app
        self._routes = [route for router in routers for route in router.routes if isinstance(route, DirectRoute)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for route in self._routes:
                match = route.path_regex.match(scope["path"])
                if match is not None and scope["method"] in (route.methods or ()):
                    scope["route"], scope["path_params"] = route, match.groupdict()
                    await _respond(route, scope, receive, send)
                    return
        await self._app(scope, receive, send)


async def _respond(route: DirectRoute, scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive, send)
    try:
        response: Response = await route.endpoint(request)
    except TureenError as error:
        response = await tureen_error_response(request, error)
    await response(scope, receive, send)


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
