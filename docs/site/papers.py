"""The papers behind functions: those that docstrings name, and their entries in references.bib."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from xent.frames.docstrings import sections

BIBLIOGRAPHY = Path(__file__).parents[1] / "references.bib"
ENTRY = re.compile(r"^@\w+\{([^,\s]+),.*?^\}", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r"^  title = \{\{(.*)\}\},$", re.MULTILINE)


@cache
def entries() -> dict[str, str]:
    """The entries of the bibliography as BibTeX, by their keys."""
    text = BIBLIOGRAPHY.read_text(encoding="utf-8")
    return {found[1]: found[0] for found in ENTRY.finditer(text)}


def titles(docstring: str) -> list[str]:
    """The titles in the section of references."""
    told = " ".join(sections(inspect.cleandoc(docstring)).get("References", "").split())
    return re.findall(r"\*([^*]+)\*", told)


def key_of(title: str) -> str | None:
    """The key of the entry with a title, which may be a first part of the whole title."""
    asked = _letters(title)
    return next((key for key, whole in _whole_titles().items() if whole.startswith(asked)), None)


def keys_of(function: Callable[..., Any]) -> list[str]:
    """The keys of the papers that the docstring of a function names."""
    found = map(key_of, titles(function.__doc__ or ""))
    return [key for key in found if key is not None]


@cache
def _whole_titles() -> dict[str, str]:
    found = {key: TITLE.search(entry) for key, entry in entries().items()}
    return {key: _letters(title[1]) for key, title in found.items() if title}


def _letters(title: str) -> str:
    return re.sub(r"[\W_]+", "", title).casefold()
