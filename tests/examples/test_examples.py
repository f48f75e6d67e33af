"""Each example has a small form, claims and a kept output; their runner reports failures."""

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
RUNNER = runpy.run_path(str(PROJECT / "docs" / "experiments.py"))
EXAMPLES = RUNNER["EXAMPLES"]
OUT = RUNNER["OUT"]
GALLERY = PROJECT / "docs" / "gallery"
SHARED = runpy.run_path(str(PROJECT / "examples" / "_experiment.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_a_small_form_and_claims(name):
    text = EXAMPLES[name].read_text(encoding="utf-8")
    called = [
        node for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]  # fmt: skip
    (options,) = (call for call in called if call.func.id == "options")
    sizes = [ast.literal_eval(k.value) for k in options.keywords if k.arg != "picture"]
    smaller = any(small < default for default, small in sizes) or ".small" in text
    assert smaller or "With ``--small`` it is the same" in text
    assert any(call.func.id == "hold" for call in called)
    assert f"python examples/{name}.py [--small]" in text


def test_what_every_example_printed_and_drew_is_kept():
    kept = {path.name for path in OUT.iterdir()} - {"times.txt"}
    pictures = {f"{name}.png" for name in EXAMPLES if RUNNER["draws"](name)}
    assert kept == {f"{name}.txt" for name in EXAMPLES} | pictures
    for name in EXAMPLES:
        text = (OUT / f"{name}.txt").read_text(encoding="utf-8")
        assert "\nholds: " in text
        assert "DOES NOT HOLD" not in text


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_gallery_tells_what_an_example_printed(name):
    page = (GALLERY / f"{name}.md").read_text(encoding="utf-8")
    printed = (OUT / f"{name}.txt").read_text(encoding="utf-8")
    found = re.search(r"\*\*Found:\*\* (.*?)\n\n", page, re.DOTALL)
    assert found is not None
    numbers = set(re.findall(r"(?<![\w.])-?\d(?:[\d.,]*\d)?(?:e[-+]\d+)?x?(?![\w])", found[1]))
    assert numbers
    assert not {n for n in numbers if not re.search(rf"(?<![\d.]){re.escape(n)}(?!\.?\d)", printed)}
    for part in (f"experiments/{name}.txt", f"examples/{name}.py"):
        assert f"{{literalinclude}} ../{part}" in page.replace("../../", "../")
    options = r"(?::figclass: \w+\n)?:alt: .{20,}\n\n\w"
    drawn = re.search(rf"{{figure}} \.\./experiments/{name}\.png\n{options}", page)
    assert RUNNER["draws"](name) == (drawn is not None)


def test_the_gallery_has_a_card_for_every_example():
    index = (GALLERY / "index.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^:link: (\w+)$", index, re.MULTILINE)) == sorted(EXAMPLES)
    listed = index.partition(":hidden:")[2].removesuffix("```\n").split()
    assert sorted(listed) == sorted(EXAMPLES)
    assert {page.stem for page in GALLERY.iterdir()} == {*EXAMPLES, "index"}


def test_a_claim_that_does_not_hold_is_an_error(capsys):
    SHARED["hold"]({"one": True})
    assert capsys.readouterr().out == "holds: one\n"
    with pytest.raises(AssertionError, match=r"not borne out: \['two'\]"):
        SHARED["hold"]({"one": True, "two": False})
    assert "DOES NOT HOLD: two" in capsys.readouterr().out


def test_options_have_two_defaults(monkeypatch, capsys):
    def read(*given):
        monkeypatch.setattr(sys, "argv", ["x.py", *given])
        return SHARED["options"]("examples/x.py", "What x does.\n", seeds=(3, 1), steps=(500, 20))

    assert (read().seeds, read().steps, read().small) == (range(3), 500, False)
    assert (read("--small").seeds, read("--small").steps) == (range(1), 20)
    both = read("--small", "--steps", "7", "--seed", "4", "--picture", "y.png")
    assert (both.seeds, both.steps, both.picture) == (range(4, 5), 7, Path("y.png"))
    assert read().picture == Path("runs/x.png")
    with pytest.raises(SystemExit):
        read("--seeds", "0")
    assert "--seeds must be at least 1, got 0" in capsys.readouterr().err


SCRIPTS = {
    "good": "print('holds: it')",
    "wrong": "print('DOES NOT HOLD: it'); raise AssertionError('not borne out')",
    "lacking": "import a_package_that_nobody_has",
    "asking": "raise ImportError('Tetris needs numba: pip install numba')",
}


def test_the_runner_goes_on_after_a_failure_and_reports_each_result(tmp_path, monkeypatch, capsys):
    for name, text in SCRIPTS.items():
        (tmp_path / f"{name}.py").write_text(f"# picture=False\n{text}\n")
    scripts = {name: tmp_path / f"{name}.py" for name in SCRIPTS}
    for name, value in {"EXAMPLES": scripts, "OUT": tmp_path / "kept"}.items():
        monkeypatch.setitem(RUNNER["main"].__globals__, name, value)
    monkeypatch.setattr(sys, "argv", ["experiments.py", "--small"])
    assert RUNNER["main"]() == 1
    table = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()[-5:]]
    assert [(line[0], line[3]) for line in table] == [
        ("good", "passed"),
        ("wrong", "failed"),
        ("lacking", "skipped: no a_package_that_nobody_has"),
        ("asking", "skipped: no numba"),
        ("all", "1 of 4 passed"),
    ]
    assert not (tmp_path / "kept").exists()
    monkeypatch.setattr(sys, "argv", ["experiments.py", "good", "lacking"])
    assert RUNNER["main"]() == 0
    assert (tmp_path / "kept" / "good.txt").read_text() == "holds: it\n"
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"good.txt"}
