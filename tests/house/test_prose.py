"""The words of docstrings and pages: how docstrings begin, and files that pages name."""

import ast
import re
from pathlib import Path

import pytest

import xent

HOUSE = Path(xent.__file__).parent
PROJECT = Path(__file__).parents[2]

# A docstring that begins so has no noun: its subject stands on another line, or nowhere.
NO_NOUN = re.compile(
    r"(What|Where|How|Whether|Which|Why|When|Who|Whose|That of|Those|The same|Of|As|In|From|For|By"
    r"|Without|Another|Other|Their|Its|It|They|Such)\b"
)
ROOMS = sorted(p for p in HOUSE.iterdir() if p.suffix in ("", ".py"))


def docstrings(room):
    for file in sorted(room.rglob("*.py")) if room.is_dir() else [room]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                doc = ast.get_docstring(node)
                if doc:
                    yield f"{file.relative_to(HOUSE)}: {doc.splitlines()[0]}"


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_docstring_begins_with_a_verb_or_a_noun(room):
    without = [doc for doc in docstrings(room) if NO_NOUN.match(doc.partition(": ")[2])]
    assert not without, "\n".join(without)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_files_that_a_page_names_are_there(page):
    text = (PROJECT / page).read_text(encoding="utf-8")
    quoted = re.findall(r"`([\w./]+(?:\.(?:py|h|cpp|md|txt)|/))(?::[^`]*)?`", text)
    linked = re.findall(r"\]\(((?!http)[\w./-]+)[)#]", text)
    roots = (HOUSE, *(PROJECT / name for name in ("benchmarks", "csrc", "docs", "tests")))
    folders = [PROJECT, *roots, *(p for root in roots for p in root.rglob("*") if p.is_dir())]
    named = {*quoted, *linked}
    assert len(named) > 3
    assert not {name for name in named if not any((f / name).exists() for f in folders)}


def test_the_page_of_the_rooms_names_every_room():
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = {p.name + "/" * p.is_dir() for p in HOUSE.iterdir() if p.suffix in ("", ".py")}
    rooms -= {"__init__.py", "__main__.py", "__pycache__/"}
    assert len(rooms) > 20
    assert not {room for room in rooms if f"`{room}`" not in text}
