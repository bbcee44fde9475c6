"""The site of the documentation: each page is two clicks from the first, links lead somewhere, the search finds."""

import functools
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from playwright.sync_api import sync_playwright

from tests.patience import DEADLINE_S
from tests.serve.api.console.test_console import CHROMIUM, FLAGS, PHONE

ROOT = Path(__file__).parents[2]
DESKTOP = {"width": 1280, "height": 900}
ADDRESSES = {"a": "href", "img": "src", "link": "href", "script": "src"}


class Page(HTMLParser):
    """The addresses that a page of the site names, in its article and in all, and the ids of its elements."""

    def __init__(self, path):
        super().__init__()
        self.addresses, self.in_article, self.ids = [], [], set()
        self._is_article = False
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self._is_article = self._is_article or tag == "article"
        self.ids.add(attributes.get("id"))
        if address := attributes.get(ADDRESSES.get(tag)):
            self.addresses.append((tag, address))
            if self._is_article and tag == "a":
                self.in_article.append(address)

    def handle_endtag(self, tag):
        self._is_article = self._is_article and tag != "article"


def build(root, *out):
    return subprocess.run([sys.executable, root / "docs" / "build_site.py", *out], capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("docs") / "site"
    built = build(ROOT, out)
    assert built.returncode == 0, built.stdout + built.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    """The parsed pages by their path. 404.html is none: it is shown for a path that has no page."""
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def target_of(path, address):
    """The file to which an address of the page at `path` leads, and the id in it."""
    file, fragment = urldefrag(unquote(address))
    target = (path.parent / file).resolve() if file else path
    return target / "index.html" if target.is_dir() else target, fragment


def is_external(address):
    return "://" in address or address.startswith(("//", "data:", "mailto:"))


def test_each_page_of_the_repository_is_in_the_navigation(site, pages):
    expected = {"index.html", *(f"{path.stem}.html" for path in ROOT.glob("*.md") if path.name != "README.md")}
    expected |= {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    expected |= {f"examples/{path.stem}.html" for path in (ROOT / "examples").glob("*.ipynb")}
    built = {path.relative_to(site).as_posix() for path in pages}
    assert expected <= built
    home = site / "index.html"
    listed = {target_of(home, address)[0] for tag, address in pages[home].addresses if tag == "a"}
    assert {path.relative_to(site).as_posix() for path in pages.keys() - listed} == set()


def test_the_text_alone_leads_from_the_first_page_to_each_page_in_two_clicks(site, pages):
    seen = {site / "index.html"}
    for _ in range(2):
        links = {target_of(path, link)[0] for path in seen for link in pages[path].in_article if not is_external(link)}
        seen |= links & pages.keys()
    assert {path.relative_to(site).as_posix() for path in pages.keys() - seen} == set()


def test_each_link_picture_and_anchor_of_the_site_leads_somewhere(site, pages):
    checked = 0
    for path, page in pages.items():
        for tag, address in page.addresses:
            if is_external(address):
                continue
            target, fragment = target_of(path, address)
            assert target.is_file(), f"{path.relative_to(site)}: {address}"
            if tag == "a" and fragment and target in pages:
                assert fragment in pages[target].ids, f"{path.relative_to(site)}: {address}"
            checked += 1
    assert checked > 1000


def test_the_site_loads_nothing_from_another_host(pages):
    loaded = {address for page in pages.values() for tag, address in page.addresses if tag != "a"}
    assert {address for address in loaded if is_external(address)} == set()


@pytest.mark.parametrize("link", ["[x](nowhere.md)", "[x](hub.md#nothing)", "[x](../nothing.toml)"])
def test_a_link_that_leads_nowhere_fails_the_build(link, tmp_path):
    for name in ("docs", "examples", "deploy"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for path in [*ROOT.glob("*.md"), ROOT / "mkdocs.yml", ROOT / "Dockerfile", ROOT / "LICENSE"]:
        shutil.copy(path, tmp_path)
    with (tmp_path / "docs" / "client.md").open("a") as page:
        page.write(f"\n{link}\n")
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode != 0
    assert "client.md" in built.stdout + built.stderr
    assert not (tmp_path / "site").exists()


@pytest.fixture
def address(site):
    """The address of a server of the site's files, as a host of static pages serves them."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def browse(address):
    """Opens a browser of one size. The test fails for an error on the console and for a request to another host."""
    if CHROMIUM is None:
        pytest.skip("Chromium is missing: install Debian's package chromium")
    failures = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        def browse(size):
            page = browser.new_context(viewport=size).new_page()
            page.set_default_timeout(1000 * DEADLINE_S)
            page.on("console", lambda message: message.type != "error" or failures.append(message.text))
            page.on("pageerror", lambda error: failures.append(str(error)))
            page.on("request", lambda r: r.url.startswith((address, "data:", "blob:")) or failures.append(r.url))
            return page

        yield browse
        browser.close()
    assert failures == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_search_leads_to_a_heading(browse, address, size):
    page = browse(size)
    page.goto(f"{address}/index.html")
    page.keyboard.press("/")
    page.get_by_role("combobox", name="Search").fill("rollback")
    page.get_by_role("option", name="Restore the settings").click()
    page.wait_for_url("**/operating.html*#4-restore-the-settings")


def test_no_page_is_wider_than_a_phone(browse, address, site, pages):
    page = browse(PHONE)
    for path in pages:
        page.goto(f"{address}/{path.relative_to(site)}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path.name
