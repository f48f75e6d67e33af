"""Output on a terminal: tables, errors and help of rich; plain text everywhere else."""

import io
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

from xent.cli import COMMANDS, main
from xent.commands.console import note, say
from xent.commands.page import table

pytest.importorskip("rich")
CODES = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@contextmanager
def terminal(width: int = 80, **environment: str):
    """Make stdout and stderr one terminal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", Terminal())
        patch.setattr(sys, "stderr", sys.stdout)
        patch.delenv("NO_COLOR", raising=False)
        for name, value in (
            {"TERM": "xterm-256color", "COLUMNS": str(width)} | environment
        ).items():
            patch.setenv(name, value)
        yield sys.stdout


def code_of(*words: str) -> int:
    try:
        return main(words)
    except SystemExit as stopped:
        return int(stopped.code or 0)


ROWS = [["class", "right"], ["[b]\x1b[1mcat", "yes"], ["猫", "."]]
PLAIN = """\
before
class          right
[b]\\x1b[1mcat  yes
猫             .
after"""


def page():
    return "before\n" + table(ROWS) + "\nafter"


def test_a_page_is_its_plain_text():
    assert page() == PLAIN
    assert f"{page()}!" == f"{PLAIN}!"


def test_a_terminal_shows_tables_and_nothing_of_foreign_text():
    with terminal() as stream:
        say(page())
    shown = stream.getvalue()
    assert "\x1b[32myes" in shown
    assert "[b]\\x1b[1mcat" in shown
    assert "─────" in shown
    lines = [line.split() for line in CODES.sub("", shown).splitlines()]
    assert lines[:2] == [["before"], ["class", "right"]]
    assert lines[3:] == [["[b]\\x1b[1mcat", "yes"], ["猫", "."], ["after"]]


def test_a_narrow_terminal_loses_no_letter():
    with terminal(width=20) as stream:
        say(table([["a", "b"], ["abcdefghijklmnop", "qrstuvwxyz0123456789"]]))
    lines = CODES.sub("", stream.getvalue()).splitlines()
    assert max(map(len, lines)) <= 20
    assert set("abcdefghijklmnopqrstuvwxyz0123456789") <= set("".join(lines))


@pytest.mark.parametrize("why", ["NO_COLOR", "dumb", "a pipe", "no rich"])
def test_elsewhere_text_is_plain(why, monkeypatch):
    environment = {"NO_COLOR": {"NO_COLOR": "1"}, "dumb": {"TERM": "dumb"}}.get(why, {})
    if why == "a pipe":
        monkeypatch.setattr(Terminal, "isatty", lambda self: False)
    if why == "no rich":
        monkeypatch.setitem(sys.modules, "rich.console", None)
    with terminal(**environment) as stream:
        say(page())
        note("xent: wrong", "bold red")
        assert code_of("--help") == 0
    assert stream.getvalue().startswith(f"{PLAIN}\nxent: wrong\nusage: xent [-h]")
    assert "\x1b" not in stream.getvalue()


def test_errors_name_the_command_in_colour():
    with terminal() as stream:
        assert code_of("losses", "n\x1b[31mope") == 2
        assert code_of("losses", "--jsno") == 2
    shown = stream.getvalue()
    assert "\x1b[1;31mxent losses\x1b[0m: there is no loss" in shown
    assert "\x1b[1;31mxent losses\x1b[0m: error: there is no option --jsno" in shown
    assert "\x1b[31m" not in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_help_in_colour_has_the_words_of_the_plain_help(command):
    pytest.importorskip("rich_argparse")
    with terminal() as coloured:
        assert code_of(command, "--help") == 0
    with terminal(NO_COLOR="1") as plain:
        assert code_of(command, "--help") == 0
    assert CODES.search(coloured.getvalue())
    words = CODES.sub("", coloured.getvalue()).split()  # rich breaks no line after a hyphen
    assert "".join(words) == "".join(plain.getvalue().split())


# ---- completion ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """Return the script for bash, in a file."""
    pytest.importorskip("shtab")
    path = tmp_path_factory.mktemp("completion") / "xent.bash"
    with path.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        assert main(["--print-completion", "bash"]) == 0
    return path


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("xent fi", "fit"),
        ("xent losses foc", "focal_loss"),
        ("xent plot brier", "brier_loss"),
        ("xent fit a.csv --loss see", "seesaw_loss"),
        ("xent train --hea", "--head"),
        ("xent train --head l", "lean"),
    ],
)
@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes(line, completed, script):
    words = line.split()
    code = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_xent"
    done = subprocess.run(
        ["bash", "-c", f'{code}; echo "${{COMPREPLY[@]}}"'], capture_output=True, text=True
    )
    assert done.stdout.split() == [completed], done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_other_shells_have_a_script(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["--print-completion", shell]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in (*COMMANDS, "focal_loss", "class-weight"))


def test_without_shtab_the_message_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert "shtab is not installed (pip install 'crossentropy[cli]')" in capsys.readouterr().err
