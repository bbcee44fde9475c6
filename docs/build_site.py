"""Builds the site of the documentation: `python docs/build_site.py site`. Without a directory it only checks the pages.

The pages are README.md, the other pages at the root, docs/, and each file to which one of them links. They are written
into a temporary directory, with links between the pages of the site. Zensical builds them by mkdocs.yml. The build
fails if a link leads to no file or no heading.
"""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:)[^)#\s]+")
LANGUAGES = {"tureen.toml": "toml", "Dockerfile": "dockerfile"}


def target_of(link: str, source: Path) -> Path:
    """The file or folder to which a link of a page leads. Paths are relative to the root."""
    path = Path(os.path.normpath(source.parent / link))
    if not (ROOT / path).exists():
        sys.exit(f"{source}: the link {link} leads to no file")
    return path


def page_of(path: Path) -> Path:
    """The file that the site has for a file or folder of the repository."""
    if path.name == "README.md":
        return path.with_name("index.md")
    if (ROOT / path).is_dir():
        return path / "index.md"
    if path.suffix == ".ipynb":
        return path.with_suffix(".md")
    if path.suffix not in (".md", ".png"):
        return path.with_name(f"{path.name}.md")
    return path.relative_to("docs") if path.is_relative_to("docs") else path


def markdown_of(path: Path) -> str:
    """The page of a file or folder, with links as in the repository."""
    file = ROOT / path
    if path.suffix == ".md":
        return file.read_text()
    if file.is_dir():
        names = {item.relative_to(file.parent): item.stem.replace("_", " ").capitalize() for item in file.iterdir()}
        return "\n".join([f"# {path.name.capitalize()}\n", *(f"- [{names[item]}]({item})" for item in sorted(names))])
    if path.suffix == ".ipynb":
        cells = nbformat.read(file, as_version=4).cells
        return "\n\n".join(
            cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```" for cell in cells
        )
    return f"# {path.name}\n\n````{LANGUAGES.get(path.name, 'text')}\n{file.read_text()}````\n"


def link_of_site(source: Path, match: re.Match[str]) -> str:
    """The link between two pages of the site, for a link between their files."""
    return os.path.relpath(page_of(target_of(match[0], source)), page_of(source).parent)


def write_pages(directory: Path) -> None:
    """Writes all pages and their pictures."""
    waiting = [path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]
    written = set()
    while waiting:
        if (source := waiting.pop()) in written:
            continue
        written.add(source)
        page = directory / page_of(source)
        page.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".png":
            shutil.copy(ROOT / source, page)
            continue
        text = markdown_of(source)
        page.write_text(LINK.sub(partial(link_of_site, source), text))
        waiting += [target_of(link, source) for link in LINK.findall(text)]


def main(out: str | None = None) -> int:
    """Builds the site, and copies it to the directory `out`, which must not exist yet. Returns the exit status."""
    with TemporaryDirectory() as name:
        write_pages(Path(name, "pages"))
        shutil.copy(ROOT / "mkdocs.yml", name)
        status = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=name).returncode
        if out and status == 0:
            shutil.copytree(Path(name, "site"), out)
        return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
