from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.testclient import TestClient

from serve.errors import NotReadyError
from serve.http.direct_route import DirectRoute, DirectRouteMiddleware, add_head_routes


def client():
    router = APIRouter(route_class=DirectRoute, prefix="/api")

    @router.get("/query")
    async def query(request: Request) -> Response:
        return Response(str(request.query_params))

    @router.post("/query")
    async def body(request: Request) -> Response:
        return Response(await request.body())

    add_head_routes(router)
    app = FastAPI()
    app.include_router(router)
    return TestClient(app)


def test_the_endpoint_gets_the_request_unparsed():
    assert client().get("/api/query?a=1&a=2").text == "a=1&a=2"
    assert client().post("/api/query", content=b"{no json").content == b"{no json"


def test_every_get_route_has_a_head_route_outside_the_schema():
    assert client().head("/api/query?a=1").status_code == 200
    assert "head" not in client().get("/openapi.json").json()["paths"]["/api/query"]


async def unreachable(scope, receive, send):
    raise AssertionError("the application got the request")


def test_the_middleware_calls_a_direct_route_with_the_parameters_in_its_path():
    router = APIRouter(route_class=DirectRoute, prefix="/api")

    @router.post("/models/{name}")
    async def model(request: Request) -> Response:
        return Response(f"{request.path_params['name']} {request.scope['route'].path}")

    client = TestClient(DirectRouteMiddleware(unreachable, [router]))
    assert client.post("/api/models/digits").text == "digits /api/models/{name}"


def test_the_middleware_turns_an_error_of_an_endpoint_into_its_problem():
    router = APIRouter(route_class=DirectRoute)

    @router.post("/fails")
    async def fails(request: Request) -> Response:
        raise NotReadyError

    response = TestClient(DirectRouteMiddleware(unreachable, [router])).post("/fails")
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")


def test_the_middleware_leaves_other_paths_methods_and_routes_to_the_application():
    router = APIRouter(prefix="/api")

    async def endpoint(request: Request) -> Response:
        raise AssertionError("the middleware called the endpoint")

    router.add_api_route("/direct", endpoint, methods=["POST"], route_class_override=DirectRoute)
    router.add_api_route("/other", endpoint, methods=["POST"])

    async def app(scope, receive, send):
        await Response("application")(scope, receive, send)

    client = TestClient(DirectRouteMiddleware(app, [router]))
    assert [
        client.request(method, path).text
        for method, path in (("GET", "/api/direct"), ("POST", "/api/direct/x"), ("POST", "/api/other"))
    ] == ["application"] * 3
