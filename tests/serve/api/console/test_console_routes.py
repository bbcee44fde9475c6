"""The routes of the console, without a browser."""

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from serve.api.console.console_routes import add_console
from serve.control.beta_choice import ActiveSettings
from serve.control.settings_state import SettingsState
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES
from tureen.bundle.gallery import BundleGallery, GalleryPicture

MANIFEST = load_bundle(EXAMPLES / "cifar10").manifest
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"


def client(settings, *, is_operators=False):
    app = FastAPI(docs_url=None, openapi_url=None)
    add_console(app, lambda: (MANIFEST, settings), is_operators=is_operators)
    return TestClient(app)


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/ui", "text/html"),
        ("/ui/static/console.js", "text/javascript"),
        ("/ui/static/console.css", "text/css"),
        ("/ui/model", "application/json"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_every_file_has_its_media_type_and_may_load_nothing_from_elsewhere(method, path, media_type):
    response = client(ActiveSettings(0.0, "bundle")).request(method, path)
    assert response.status_code == 200
    assert response.headers["content-type"].partition(";")[0] == media_type
    assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("is_operators", [False, True])
def test_the_root_redirects_to_the_console_also_under_a_path_of_a_proxy(method, is_operators):
    response = client(ActiveSettings(0.0, "bundle"), is_operators=is_operators).request(
        method, "/", follow_redirects=False
    )
    assert response.status_code == 307
    assert response.headers["location"] == "ui"  # relative: the browser resolves it against the address it requested
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["nothing.js", "..%2fconsole_routes.py", "index.html"])
def test_no_other_file_is_served(name):
    assert client(ActiveSettings(0.0, "bundle")).get(f"/ui/static/{name}").status_code == 404


@pytest.mark.parametrize("is_operators", [False, True])
def test_the_model_has_its_accuracy_by_ascending_beta_and_the_active_settings(is_operators):
    state = SettingsState(default_beta=0.5, beta_min=0.2, beta_max=0.9, clients_may_choose=False)
    model = client(ActiveSettings(0.0, "bundle", 3, state), is_operators=is_operators).get("/ui/model").json()
    accuracy = model.pop("accuracy")
    assert [row["beta"] for row in accuracy] == sorted(row.beta for row in MANIFEST.accuracy)
    assert all(row["failed_checks"] == [] for row in accuracy)
    assert model == {
        "name": MANIFEST.name,
        "version": MANIFEST.version,
        "has_two_tokens": True,
        "has_numbered_labels": False,
        "default_beta": 0.5,
        "strength": MANIFEST.strength.model_dump(),
        "beta_min": 0.2,
        "beta_max": 0.9,
        "clients_may_choose": False,
        "has_gallery": False,
        "is_operators": is_operators,
    }


def test_the_gallery_is_that_of_the_served_bundle_and_404_without_one():
    picture = GalleryPicture(title="a ship", label="ship", drawn=PNG, clean=PNG, both=PNG)
    shown = BundleGallery(
        attack="APGD",
        epsilon_255=4,
        difference_factor=31,
        signs=1,
        drawings_tried=1,
        clean_attacks=1,
        clean_attacks_failed=0,
        both_attacks_failed=0,
        clean_wrong_robust_right=1,
        pictures=[picture],
    )
    served = [None, shown]
    app = FastAPI(docs_url=None, openapi_url=None)
    settings = ActiveSettings(0.0, "bundle")
    add_console(app, lambda: (MANIFEST, settings), gallery=lambda: served[-1], is_operators=False)
    response = TestClient(app).get("/ui/gallery")
    assert BundleGallery.model_validate(response.json()) == shown
    assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert TestClient(app).get("/ui/model").json()["has_gallery"]
    served.pop()  # the bundle was replaced
    assert TestClient(app).get("/ui/gallery").status_code == 404
    assert not TestClient(app).get("/ui/model").json()["has_gallery"]
