"""The language of the code and the pages: words that hide who does what, and the length of sentences."""

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tureen", "training", "export", "serve", "benchmarks")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "_pb2" not in path.name)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
README = ROOT / "README.md"
LOG = ROOT / "docs" / "LOG.md"  # experiments as they were noted on their day

# A reader of English as a second language reads each sentence once. These words make them read it twice: they hide who
# does what, or are a second name for a thing that has one. Each has what to write in its place.
RULED_OUT = {
    r"told|tells?": "name the sender, the message and the receiver; code returns, logs, sends or raises",
    r"wanted": "requested, required, or the name of the thing",
    r"whoever|nobody|somebody|anybody|everybody": "the caller, client, operator, worker or process that does it",
    r"whatever comes|what comes of": "the name of the result",
    r"of (?:its|their|his|our|your|one's) own": "its own X, or a separate X",
    r"is no more|are no more": "has ended, was removed",
    r"go(?:es)? on with": "continues",
    r"lets? \w+ be": "ignores, keeps, does not change",
    r"mend(?:s|ed|ing)?": "repair, correct",
    r"save that": "except that",
    r"as [^.;:,]{1,40} has it": "as X defines it",
    r"by now": "leave it out",
    r"(?<!all )(?<!β )at once": "immediately, or at the same time",
    r"stated": "given, documented, measured",
    r"has it looked at|is looked at|looked at again": "re-checks it",
    r"is made of it": "the name of the operation",
    r"journeys?|wak(?:ing|en)|desks?|riddles?": "the term of the field",
}
PATTERN = re.compile("|".join(rf"\b(?:{words})\b" for words in RULED_OUT), re.IGNORECASE)
TITLE = re.compile(r"(?:What (?:is|comes of|becomes of)|Whatever|Whoever)\b")  # a title names the thing
MAX_WORDS = 30
SQL = re.compile(r"\s*(?:CREATE|ALTER|SELECT|INSERT|UPDATE|DELETE)\b")  # its names are those of the tables
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
CODE = re.compile(r"``[^`]*``|`[^`\n]*`")


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each comment of a module; code in backticks is left out."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], CODE.sub("", token.string)


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring of a module; code in backticks is left out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)) is not None:
            yield node.body[0].lineno, CODE.sub("", text)


def names(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each function and class of a module, with spaces for underscores."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.lineno, node.name.replace("_", " ")


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring, comment and message of a module; code in backticks is left out."""
    yield from comments(source)
    for node in ast.walk(ast.parse(source)):
        # A name or a key has no space; a message has one.
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip()
        if is_text and not SQL.match(node.value):
            yield node.lineno, CODE.sub("", node.value)


def prose(page: str) -> Iterator[tuple[int, str]]:
    """Line and text of each line of a page, without code."""
    is_code = False
    for number, line in enumerate(page.splitlines(), 1):
        if line.startswith("```"):
            is_code = not is_code
        elif not is_code and not line.startswith("    "):
            yield number, re.sub(r"\]\([^)]*\)", "]", CODE.sub("", line))


def sentences(page: str) -> Iterator[str]:
    """The sentences of a page: paragraphs and list items, without headings, tables, pictures and code."""
    blocks: list[str] = [""]
    is_code = False
    for line in page.splitlines():
        if line.startswith("```"):
            is_code = not is_code
        is_apart = is_code or not line.strip() or line.startswith(("```", "    ", "#", "|", "!["))
        if is_apart or re.match(r" *(?:[-*]|\d+\.) ", line):
            blocks.append("")
        if not is_apart:
            blocks[-1] += f" {line.strip()}"
    for block in blocks:
        text = re.sub(r"\]\([^)]*\)", "]", CODE.sub("CODE", block))
        yield from (sentence.strip() for sentence in re.split(r"(?<=[.!?])\s+(?=[^a-z])", text) if sentence.strip())


def words(sentence: str) -> int:
    return sum(any(character.isalnum() for character in word) for word in sentence.split())


def found_in(lines: Iterable[tuple[int, str]]) -> list[str]:
    return [f"line {number}: {match[0]!r}" for number, text in lines for match in PATTERN.finditer(text)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_comment_or_message_has_a_word_that_is_ruled_out(path):
    assert found_in(texts(path.read_text())) == []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_comment_or_name_of_the_tests_has_a_word_that_is_ruled_out(path):
    source = path.read_text()  # not its strings: they are test data, and texts that the server must return
    assert found_in(chain(comments(source), docstrings(source), names(source))) == []


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_begins_with_a_question_word(path):
    assert [text for _, text in docstrings(path.read_text()) if TITLE.match(text)] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_page_has_a_word_that_is_ruled_out(path):
    assert found_in(prose(path.read_text())) == []


@pytest.mark.parametrize("path", [page for page in PAGES if page != LOG], ids=lambda path: path.name)
def test_no_sentence_of_a_page_is_too_long(path):
    assert [one for one in sentences(path.read_text()) if words(one) > MAX_WORDS] == []


def test_the_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 110
    assert len(text.split()) <= 900


def test_the_words_are_found_in_text_and_not_in_names():
    source = '"""Whoever asks."""\nwanted = {"told": 1}  # nobody knows\nraise ValueError(f"{wanted} is wanted")\n'
    found = [re.search("'(.*)'", one)[1] for one in found_in(texts(source))]
    assert sorted(found) == ["Whoever", "nobody", "wanted"]
    assert found_in(prose("It is told.\n```\ntold\n```\n`told` [x](told.md)\n")) == ["line 1: 'told'"]


def test_the_words_are_found_in_docstrings_comments_and_names_of_a_test():
    source = 'def test_it_is_told():\n    """Tells `told`."""\n    assert run("nobody") == "wanted"  # at once\n'
    assert found_in(names(source)) == ["line 1: 'told'"]
    assert found_in(docstrings(source)) == ["line 2: 'Tells'"]
    assert found_in(comments(source)) == ["line 3: 'at once'"]


def test_sentences_are_measured_without_tables_and_code():
    page = "# A b\n\nOne `two three`. Five\nsix.\n\n| a | b |\n\n- seven\n- eight [nine](x.md) ten\n\n```\ncode\n```\n"
    assert [words(one) for one in sentences(page)] == [2, 2, 1, 3]
