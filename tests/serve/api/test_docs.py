"""/docs shows the OpenAPI with Swagger UI, and loads nothing from another server."""

import hashlib
import shutil

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serve.api.docs import MEDIA_TYPES, STATIC, add_docs_routes

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def client():
    app = FastAPI(title="Tureen", docs_url=None)
    add_docs_routes(app)
    return TestClient(app)


def test_the_page_names_no_other_server(client):
    page = client.get("/docs").text
    assert "http://" not in page
    assert "https://" not in page
    assert "Tureen: HTTP API" in page


def test_every_file_that_the_page_names_is_served_with_its_media_type(client):
    page = client.get("/docs").text
    for name, media_type in MEDIA_TYPES.items():
        assert f"docs/static/{name}" in page
        response = client.get(f"/docs/static/{name}")
        assert response.status_code == 200
        assert response.headers["content-type"].partition(";")[0] == media_type
        assert response.headers["cache-control"] == "max-age=86400"
        assert response.content == (STATIC / name).read_bytes()


@pytest.mark.parametrize("name", ["nothing.js", "LICENSE", "README.md", "..%2fdocs.py", "../docs.py"])
def test_no_other_file_is_served(client, name):
    assert client.get(f"/docs/static/{name}").status_code == 404


def test_the_files_are_unchanged_copies_with_their_licences():
    sums = dict(line.split("  ")[::-1] for line in (STATIC / "SHA256SUMS").read_text().splitlines())
    assert {*MEDIA_TYPES, "LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"} == sums.keys()
    for name, digest in sums.items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest, name
    (version,) = [line for line in (STATIC / "README.md").read_text().splitlines() if line.startswith("| version")]
    bundle = (STATIC / "swagger-ui-bundle.js").read_text()
    assert f'PACKAGE_VERSION:"{version.split("|")[2].strip()}"' in bundle


@pytest.mark.end_to_end
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing: install Debian's package chromium")
def test_a_browser_shows_every_route_and_requests_no_other_server(start_server):
    playwright_api = pytest.importorskip("playwright.sync_api")
    server = start_server()
    server.wait_until_ready()
    address = f"http://127.0.0.1:{server.port}"
    foreign, errors = [], []
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("request", lambda request: request.url.startswith((address, "data:")) or foreign.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}/docs")
        playwright_api.expect(page.locator(".opblock-summary-path", has_text="/sweep")).to_be_visible()
        playwright_api.expect(page.locator(".opblock-tag")).to_have_count(3)
        browser.close()
    assert (foreign, errors) == ([], [])
