"""The notebooks in examples/ run, have no outputs in git, and are linked from a page. They take seconds each."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.end_to_end.conftest import environment
from tests.patience import DEADLINE_S
from tests.test_language import MAX_WORDS, found_in, prose, sentences, words

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
PRINTED = {
    "adapt_a_token": r"token fog: \d+ of 10 right\n",
    "attack_and_evaluate": r"β = 1\.0: \d+ of 20 right, \d+ under attack\n",
    "classify_and_sweep": r"01-speed-limit-30\n",
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_each_notebook_has_its_expected_output_here():
    assert [path.stem for path in NOTEBOOKS] == sorted(PRINTED)


@each_notebook
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    (work := tmp_path / "work").mkdir()
    resources = {"metadata": {"path": str(work)}}
    NotebookClient(notebook, kernel_name="python3", timeout=DEADLINE_S, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    assert re.search(PRINTED[path.stem], "".join(output.get("text", "") for output in outputs))
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert list(work.iterdir()) == []


@each_notebook
def test_a_notebook_has_no_output_in_git(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.source for cell in code if cell.outputs or cell.execution_count is not None] == []
    assert [cell.id for cell in notebook.cells if cell.metadata] == []
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}


@each_notebook
def test_a_notebook_keeps_the_rules_of_the_language(path):
    page = "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    assert found_in(prose(page)) == []
    assert [one for one in sentences(page) if words(one) > MAX_WORDS] == []


@each_notebook
def test_a_notebook_is_linked_from_a_page_and_its_links_lead_to_files(path):
    pages = [page for page in (ROOT / "docs").glob("*.md") if f"](../examples/{path.name})" in page.read_text()]
    assert len(pages) == 1
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []
