"""docs/architecture.md names every folder, and no file, folder or link of a page is missing."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def test_the_tree_has_a_line_for_every_folder():
    for folder in ("tureen", "training", "export", "serve", "tests", "benchmarks", "docs", "deploy"):
        assert re.search(rf"^ *{folder}/ +\S", ARCHITECTURE, re.MULTILINE), folder


def test_every_room_of_serve_is_in_the_table():
    rooms = {f"serve/{path.parent.name}/" for path in (ROOT / "serve").glob("*/__init__.py")}
    modules = {f"serve/{path.name}" for path in (ROOT / "serve").glob("*.py")} - {"serve/__init__.py"}
    assert set(re.findall(r"^\| `(serve/[\w.]+/?)` \|", ARCHITECTURE, re.MULTILINE)) == rooms | modules


def test_every_file_that_the_page_names_exists():
    named = set(re.findall(r"`((?:tureen|training|export|serve)/[\w./]+)`", ARCHITECTURE))
    assert len(named) >= 50
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", page.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_heading_leads_to_one(page):
    for file, heading in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text()):
        if "://" in file:
            continue
        text = ((page.parent / file) if file else page).read_text()
        headings = {
            re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)
        }
        assert heading in headings, f"{file}#{heading}"
