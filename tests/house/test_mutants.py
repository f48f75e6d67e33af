"""The tool behind ``make mutants``: its changes, and that tests run the changed module."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import xent
from tests.mutants.changes import changes
from tests.mutants.judges import Finder, Touching

SOURCE = '''
"""A module."""
SIZE = 4 * 2  # runs on import

@decorated(1)
def f(x: "int | None", n: int = 3) -> int:
    """Add 1."""
    if x < n and not n:
        raise ValueError(f"{n + 1}")
    return -x.detach()
'''


def found(source, tmp_path):
    file = tmp_path / "module.py"
    file.write_text(source)
    return changes(file)


def test_the_changes_of_a_function(tmp_path):
    assert [(change.lines.start, str(change)) for change in found(SOURCE, tmp_path)] == [
        (8, "x < n and not n  ->  (not (x < n and (not n)))"),
        (8, "x < n and not n  ->  (x < n or not n)"),
        (8, "x < n and not n  ->  (not n)"),
        (8, "x < n and not n  ->  (x < n)"),
        (8, "x < n  ->  (x <= n)"),
        (8, "not n  ->  (n)"),
        (9, 'raise ValueError(f"{n + 1}")  ->  pass'),
        (10, "return -x.detach()  ->  return None"),
        (10, "-x.detach()  ->  (x.detach())"),
        (10, "x.detach()  ->  (x)"),
    ]


@pytest.mark.parametrize(
    ("line", "results"),
    [
        ("y = a * b // 2", ["a * b * 2", "a / b // 2", "a * b // 3", "a * b // 1"]),
        ("y = g(0.5, k=True)", ["g(0.5)", "g(1.5, k=True)", "g(-0.5, k=True)", "g(0.5, k=False)"]),
        ("y = torch.where(c, a, b)", ["torch.where(c, b, a)"]),
        ("y = a.amax() if c else b", ["a.amax() if not c else b", "a.amin() if c else b"]),
        ("y = [a for a in b if a is c]", ["[a for a in b if a is not c]"]),
        ("y = a[-1]", ["a[1]", "a[-2]", "a[-0]"]),
    ],
)
def test_the_changes_of_an_expression(line, results, tmp_path):
    source = f"def f():\n    {line}\n".encode()
    made = [change.applied(source) for change in found(source.decode(), tmp_path)]
    assert [ast.unparse(ast.parse(text).body[0].body[0].value) for text in made] == results


@pytest.mark.parametrize(
    ("line", "kept"), [("y += 1", 2), ("y = y.to(z)", 1), ("g(y)", 0), ("y = z", 0), ("'words'", 0)]
)
def test_statements_that_can_go(line, kept, tmp_path):
    made = [change.new for change in found(f"def f():\n    {line}\n", tmp_path)]
    assert ("pass" in made) == (line not in ("y = z", "'words'"))
    assert len(made) - ("pass" in made) == kept


def test_the_package_gives_changes_that_can_be_read():
    for file in (Path(xent.__file__).parent / "frames").glob("*.py"):
        source, tree = file.read_bytes(), ast.dump(ast.parse(file.read_bytes()))
        for change in changes(file)[::7]:
            assert ast.dump(ast.parse(change.applied(source))) != tree


def test_each_function_comes_before_its_variants():
    a, b = Path("a.py"), Path("b.py")
    seconds = {"t.py::f[1]": 3.0, "t.py::f[2]": 0.5, "t.py::f[3]": 1.0, "t.py::g": 2.0, "h": 0.1}
    tests = {(a, 1): {"t.py::f[1]", "t.py::f[2]", "t.py::g"}, (a, 2): {"t.py::f[3]"}, (b, 1): {"h"}}
    touching = Touching(tests, seconds)
    quickest = ["t.py::f[2]", "t.py::g", "t.py::f[3]", "t.py::f[1]"]
    assert touching.quickest(a, range(1, 3), 6.5) == quickest
    assert touching.quickest(a, range(1, 3), 4.0) == quickest[:3]
    assert touching.quickest(a, range(1, 2), 0.0) == quickest[:1]
    assert touching.quickest(a, range(7, 9), 9.0) == []


def test_a_module_is_loaded_from_the_changed_source(tmp_path, monkeypatch):
    file = tmp_path / "a_module_to_change.py"
    file.write_text("def f():\n    return 1 + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    (change,) = [change for change in changes(file) if change.new == "(1 - 1)"]
    source = change.applied(file.read_bytes())
    monkeypatch.setattr(sys, "meta_path", [Finder(file.stem, file, source), *sys.meta_path])
    assert importlib.import_module(file.stem).f() == 0
    monkeypatch.delitem(sys.modules, file.stem)
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[1:])
    assert importlib.import_module(file.stem).f() == 2


JOBS = """
import os, signal, time
from tests.mutants import processes

processes.PRELOADED, processes.PATIENCE = (), 1
jobs = [
    ("survives", lambda: 0, 9),
    ("is noticed", lambda: 1, 9),
    ("crashes", lambda: os.kill(os.getpid(), signal.SIGSEGV), 9),
    ("waits", lambda: time.sleep(60), 1),
]
assert dict(processes.each(jobs, 2)) == {
    "survives": 0, "is noticed": 1, "crashes": -signal.SIGSEGV, "waits": processes.LATE,
}
try:
    list(processes.each([("divides", lambda: 1 / 0, 9)], 2))
except RuntimeError as error:
    assert "divides could not be run" in str(error)
else:
    raise AssertionError("a job that raises passes for one that ends")
"""


def test_jobs_end_by_themselves_or_late():
    subprocess.run([sys.executable, "-c", JOBS], cwd=Path(__file__).parents[2], check=True)


def test_each_change_that_changes_nothing_is_of_a_statement_that_is_there():
    """A statement that was rewritten or moved must not excuse its old mutants for ever."""
    equivalent = Path(__file__).parents[1] / "mutants" / "equivalent.txt"
    package, gone = Path(xent.__file__).parent, []
    for line in equivalent.read_text().splitlines():
        if line.startswith("#"):
            continue
        file, change = line.split(": ", 1)
        text = " ".join((package / file).read_text().split())
        if change.split(" -> ")[0] not in text:
            gone.append(line)
    assert not gone
