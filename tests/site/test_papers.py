"""The bibliography and the papers that docstrings name."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

import xent
from tests.site.sources import DOCS

import papers  # isort: skip

HOUSE = Path(xent.__file__).parent


def docstrings():
    """Yield the docstrings of the library that name papers, with their places."""
    for file in sorted(HOUSE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                doc = ast.get_docstring(node) or ""
                if "References:" in doc:
                    yield f"{file.stem}.{getattr(node, 'name', '')}", doc


NAMED = [(place, title) for place, doc in docstrings() for title in papers.titles(doc)]


@pytest.mark.parametrize(("place", "title"), NAMED, ids=lambda x: x[:40])
def test_a_paper_of_a_docstring_has_an_entry(place, title):
    assert papers.key_of(title), f"docs/references.bib lacks {title!r}, named in {place}"


def test_an_entry_is_used():
    pages = "".join(file.read_text(encoding="utf-8") for file in DOCS.rglob("*.md"))
    cited = {
        key.strip()
        for keys in re.findall(r"\{cite[^}]*\}`([^`]*)`", pages)
        for key in keys.split(",")
    }
    used = {papers.key_of(title) for _, title in NAMED} | cited
    assert not set(papers.entries()) - used


def test_a_key_is_author_year_word():
    for key, entry in papers.entries().items():
        year = re.search(r"^  year = \{(\d{4})\},$", entry, re.MULTILINE)
        assert year, key
        assert re.fullmatch(rf"[a-z]+{year[1]}\w+", key), key
        assert re.search(r"^  author = \{\S", entry, re.MULTILINE), key


def test_no_entry_is_there_twice():
    text = papers.BIBLIOGRAPHY.read_text(encoding="utf-8")
    keys = Counter(re.findall(r"^@\w+\{([^,]+),", text, re.MULTILINE))
    assert max(keys.values()) == 1
    assert len(keys) == len(papers.entries())
    titles = Counter(re.findall(r"^  title = (.*)$", text, re.MULTILINE))
    assert max(titles.values()) == 1
