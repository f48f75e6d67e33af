"""The command line: subcommands, `xent info`, and the picture."""

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import xent
from xent.cli import main
from xent.commands import info
from xent.engines import core as native
from xent.plot import curves


def python(*words: str, stdin: str = "") -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, input=stdin)


def test_help_names_the_commands_and_imports_none_of_them():
    code = (
        "import sys, xent.cli\n"
        "try: xent.cli.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "lazy = ('info', 'train', 'bench')\n"
        "assert not [n for n in lazy if f'xent.commands.{n}' in sys.modules]\n"
        "assert not {'matplotlib', 'rich', 'rich_argparse', 'shtab'} & set(sys.modules)\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("info", "train", "bench"))


def test_python_dash_m_runs_the_same_command():
    done = python("-m", "xent", "--version")
    assert done.stdout.strip() == f"xent {xent.__version__}"


@pytest.mark.parametrize("words", [["nonsense"], ["info", "--nonsense"]])
def test_unknown_words_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "usage: xent" in capsys.readouterr().err


def test_the_command_alone_prints_its_help(capsys):
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: xent")
    assert not err


def test_info_as_json(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["xent"] == xent.__version__
    assert facts["core"]["available"] == native.available()
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    extras = project.partition("[project.optional-dependencies]\n")[2].partition("\n\n")[0]
    declared = set(re.findall(r"^(\w+) = ", extras, re.MULTILINE))
    assert set(facts["extras"]) == declared - {"gpu", "all"}
    for modules in facts["extras"].values():
        assert modules
        assert all(there == (find_spec(name) is not None) for name, there in modules.items())


def test_info_names_the_commit_of_a_checkout_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(info, "FOLDER", tmp_path)
    assert info.collect()["commit"] is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    if shutil.which("git") is None:
        pytest.skip("needs git")
    subprocess.run([*git, "init", "-q"], check=True)
    assert info.collect()["commit"] is None  # there is none yet
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = (tmp_path / ".git" / "HEAD").read_text().split()[-1]
    assert info.collect()["commit"] == (tmp_path / ".git" / head).read_text().strip()


def test_info_for_people(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out
    assert ("reinstall" in out) == (not native.available())


def test_info_without_the_core_says_what_to_do(monkeypatch):
    monkeypatch.setattr(native, "_core", None)
    text = info.describe(info.collect())
    assert "missing" in text
    assert "reference engine" in text
    assert "C++17 compiler" in text


def test_ctrl_c_leaves_no_traceback(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "run", interrupted)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "xent info: interrupted\n"


def test_a_reader_that_went_away_leaves_no_traceback():
    script = (
        "import os, sys, subprocess\n"
        "read, write = os.pipe(); os.close(read)\n"
        "done = subprocess.run([sys.executable, '-m', 'xent', 'info'], stdout=write,"
        " stderr=subprocess.PIPE, text=True)\n"
        "print(done.returncode, done.stderr)\n"
    )
    assert python("-c", script).stdout.strip() == "1"


# --- the picture


def record(head: str, loss: list[float]) -> dict:
    seconds = [0.5 * (i + 1) for i in range(len(loss))]
    checks = [{"step": len(loss), "seconds": seconds[-1], "nats": loss[-1]}] if loss else []
    history = {"loss": loss, "seconds": seconds, "validation": checks}
    return {"settings": {"head": head}, "history": history}


def test_curves_draw_training_and_validation():
    pytest.importorskip("matplotlib")
    ax = curves([record("xent", [3.0, 2.0, 1.0]), record("torch", [3.0, 2.0, 1.0])])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["xent: training", "xent: validation", "torch: training", "torch: validation"]
    assert list(ax.lines[0].get_xdata()) == [1, 2, 3]
    assert list(ax.lines[2].get_ydata()) == [1.0]


def test_curves_over_time_on_given_axes():
    pytest.importorskip("matplotlib")
    ax = curves(record("xent", [3.0, 2.0]))
    assert curves(record("xent", [3.0, 2.0]), ax, over="seconds") is ax
    assert ax.get_xlabel() == "seconds"
    assert list(ax.lines[3].get_xdata()) == [0.5, 1.0]


def test_curves_of_a_run_without_steps():
    pytest.importorskip("matplotlib")
    assert curves(record("xent", [])).get_ylabel() == "loss, nats per token"
