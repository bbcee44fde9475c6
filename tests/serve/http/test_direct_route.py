from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.testclient import TestClient

from serve.http.direct_route import DirectRoute, add_head_routes


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
