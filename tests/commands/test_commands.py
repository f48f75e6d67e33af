"""Behaviour of all commands: lost output is an error; foreign text, typos, signals."""

import ast
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xent import _start
from xent._files import write_whole
from xent._printable import one_line, printable
from xent.cli import COMMANDS, main
from xent.commands import console, info, run_folder
from xent.commands.console import UserError, as_options, note, say, say_json
from xent.commands.page import table
from xent.commands.run_folder import RunFolder

PLACES = Path(console.__file__).parent


def code_of(*words: object) -> int:
    """Return the exit code, from the parser or from the command."""
    try:
        return main([str(word) for word in words])
    except SystemExit as stopped:
        return int(stopped.code or 0)


# --- text of others


def test_what_acts_on_a_terminal_is_shown():
    assert printable("\x1b]0;title\x07\r\x00\x9b\u202e\u2028") == (
        "\\x1b]0;title\\x07\\r\\x00\\x9b\\u202e\\u2028"
    )
    assert printable("größe 猫 🐕‍🦺 می‌خواهم\n\ta") == "größe 猫 🐕‍🦺 می‌خواهم\n\ta"
    assert one_line("a\nb\tc") == "a\\nb\\tc"
    assert table([["x\ny", "b"], ["c", "d"]]).splitlines() == ["x\\ny  b", "c     d"]
    assert table([["猫é", "b"], ["c", "d"]]).splitlines() == ["猫é  b", "c    d"]
    assert table([["x" * 99, "b" * 99]]) == "x" * 24 + "…" + "x" * 24 + "  " + "b" * 99


def test_all_output_goes_through_the_console():
    """Only `console` decides what can be shown, and what happens if output cannot be written."""
    for file in [*PLACES.glob("*.py"), PLACES.parent / "cli.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if file.name != "console.py":
                assert name not in ("print", "sys.stdout.write", "sys.stderr.write"), file
                assert not name.endswith(".savefig"), file


@pytest.mark.parametrize(
    "words",
    [
        ["\x1b[31m"], ["fit", "\x1b[31m.csv"], ["fit", "--\x1b[31m", "x"], ["losses", "a\x1b[31m"],
        ["plot", "a\x1b[31m"], ["eval", "\x1b[31m"], ["train", "\x1b[31m"], ["mi", "\x1b[31m"],
        ["search", "\x1b[31m"], ["cem", "--env", "\x1b[31m"], ["reinforce", "--env", "\x1b[31m"],
        ["bench", "\x1b[31m"], ["info", "\x1b[31m"], ["mi", "x", "--classifier", "\x1b[31m"],
        ["train", "--resume", "--out", "\x1b[31m"], ["train", "--head", "\x1b[31m"],
    ],
)  # fmt: skip
def test_messages_are_printable(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert code_of(*words) == 2
    out, err = capsys.readouterr()
    assert "\\x1b[31m" in err
    assert "\x1b" not in out + err


def test_what_the_encoding_lacks_is_an_escape_sequence(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="\n")
    monkeypatch.setattr(sys, "stdout", stream)
    say("größe \udcff")
    say_json({"ö": "\x7f"})
    written = stream.buffer.getvalue().decode()  # pyright: ignore[reportAttributeAccessIssue]
    first, rest = written.split("\n", 1)
    assert first == "gr\\xf6\\xdfe \\udcff"
    assert json.loads(rest) == {"ö": "\x7f"}
    assert "\x7f" not in rest


def test_messages_of_the_library_speak_of_options():
    message = "`l1_ratio` must be below np.inf; resume=True, max_iter=3 and xmax_iter=3 for C"
    told = "--l1-ratio must be below inf; --resume, --max-iter=3 and xmax_iter=3 for --C"
    assert as_options(message, ("l1_ratio", "max_iter", "C", "resume")) == told


def test_warnings_are_one_line_without_the_place(monkeypatch, capsys):
    def run(args):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("odd\x1b", stacklevel=1)
        return 0

    monkeypatch.setattr(info, "run", run)
    assert main(["info"]) == 0
    assert capsys.readouterr().err == "xent info: warning: odd\\x1b\n"


# --- typos


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["fti"], "did you mean fit"),
        (["--verison"], "there is no option --verison; did you mean --version?"),
        (["fit", "--tabel", "x"], "--tabel"),
        (["fit", "x.csv", "--targt", "y"], "did you mean --target?"),
        (["train", "--bacth=3"], "there is no option --bacth; did you mean --batch?"),
        (["train", "--head", "leen"], "'leen'; did you mean lean"),
        (["plot", "focal_loss", "--gama", "2"], "did you mean --gamma"),
        (["losses", "--jsno"], "did you mean --json?"),
        (["search", "--generatoins", "2"], "did you mean --generations?"),
        (["reinforce", "--episods", "2"], "did you mean --episodes?"),
        (["cem", "--itertions", "2"], "did you mean --iterations?"),
        (["mi", "--clasifier", "x"], "did you mean --classifier?"),
        (["mi", "t.csv", "--classifier", "tree"], "did you mean trees"),
        (["bench", "linaer"], "did you mean linear?"),
        (["bench", "linear", "--quik"], "did you mean --quick?"),
        (["info", "--frobnicate"], "xent info --help lists them"),
        (["info", "a", "b"], "there is no use for 'a' 'b'"),
    ],
)
def test_typos_get_a_suggestion(words, meant, capsys):
    assert code_of(*words) == 2
    assert meant in capsys.readouterr().err


def test_what_is_no_option_is_left_to_argparse(capsys):
    """Values that look like options, words after `--`, and abbreviated options."""
    assert code_of("losses", "--js") == 0
    capsys.readouterr()
    assert code_of("losses", "--", "--focal") == 2
    assert "there is no loss '--focal'" in capsys.readouterr().err


# --- what is written


def test_what_is_not_saved_is_an_error_in_the_end(tmp_path, monkeypatch, capsys):
    def full(path: Path, data: bytes) -> None:
        if path.name == "b":
            raise OSError(28, "No space left on device")
        write_whole(path, data)

    monkeypatch.setattr(run_folder, "write_whole", full)

    def work(fails: bool) -> None:
        with RunFolder(tmp_path) as folder:
            assert folder.save("a.png", b"1") is None
            assert "No space left" in str(folder.save("b", b"2"))
            folder.save_json("record.json", {"c": 3})
            folder.say("done")
            if fails:
                raise KeyError

    with pytest.raises(UserError, match=r"cannot save .*b: No space left"):
        work(fails=False)
    told = f"done\n\npicture: {tmp_path}/a.png\nrecord: {tmp_path}/record.json\n"
    assert capsys.readouterr().out == told
    with pytest.raises(KeyError):  # the error of the work itself is reported
        work(fails=True)


def test_a_run_begins_without_what_another_one_left(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save("a", b"old")
    (tmp_path / "b").mkdir()
    folder.begin("a", "nothing")
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match=r"b cannot be replaced: "):
        folder.begin("b")


@pytest.mark.parametrize(
    "words",
    [
        ["losses"], ["losses", "--json"], ["losses", "focal"], ["info"], ["--help"], ["fit", "-h"],
        ["--version"],
    ],
)  # fmt: skip
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_a_full_disk_behind_stdout(words, monkeypatch, capsys):
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert code_of(*words) == 2
    assert "cannot be written to stdout: No space left on device" in capsys.readouterr().err


def test_without_stdout_and_stderr(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["losses"]) == 2
    assert "stdout is closed" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stderr", None)
    note("nobody is there")
    assert main(["losses"]) == 2


def test_a_device_is_written_to_and_a_link_followed(tmp_path):
    write_whole(Path(os.devnull), b"x")
    assert not Path(os.devnull).is_file()
    (tmp_path / "file").write_bytes(b"before")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_whole(tmp_path / "link", b"after")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"after"


def test_the_picture_that_cannot_be_written(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["plot", "focal", "--out", str(tmp_path / "no" / "a.png")]) == 2
    assert main(["plot", "focal", "--out", str(tmp_path / "a.nothing")]) == 2
    (tmp_path / "b.png").mkdir()
    assert main(["plot", "focal", "--out", str(tmp_path / "b.png")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("xent plot: --out ") for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"]


def test_a_picture_without_out_leaves_earlier_ones(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Path("plot.png").write_bytes(b"mine")
    for _ in range(2):
        assert main(["plot", "focal"]) == 0
    assert capsys.readouterr().out.split() == ["plot-2.png", "plot-3.png"]
    assert Path("plot.png").read_bytes() == b"mine"
    assert main(["plot", "focal", "--out", "plot.png"]) == 0  # named, so meant
    assert Path("plot.png").read_bytes()[1:4] == b"PNG"


# --- signals


def test_sigterm_is_as_ctrl_c(monkeypatch, capsys):
    def run(args):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(info, "run", run)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "xent info: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_while_starting_is_one_line():
    """The package is imported before any code of the command runs."""
    code = (
        "import os, signal, sys; sys.argv[0] = '-m'\n"
        "class Loading:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Loading())\n"
        "import xent\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "xent: interrupted\n"


@pytest.mark.parametrize(
    ("name", "is_it"),
    [("-m", True), ("/usr/bin/xent", True), ("xent.exe", True), ("train.py", False), ("", False)],
)
def test_only_the_command_takes_ctrl_c(name, is_it, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name])
    assert _start.is_command() is is_it


def test_every_command_explains_itself(capsys):
    for name in COMMANDS:
        assert code_of(name, "--help") == 0
        assert f"usage: xent {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "a/b"), "a/b: No space left on device"),
        (OSError(5, "Input/output error"), "[Errno 5] Input/output error"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_what_the_system_refuses_is_one_line(error, told, monkeypatch, capsys):
    def run(args):
        raise error

    monkeypatch.setattr(info, "run", run)
    assert main(["info"]) == 2
    assert capsys.readouterr().err == f"xent info: {told}\n"


@pytest.mark.parametrize("command", ["fit", "mi", "train", "cem", "reinforce", "search", "plot"])
def test_every_command_reports_a_full_disk(command, tmp_path, monkeypatch, capsys):
    """On a full disk no file with content can be written; an empty file can."""
    for package in ("gymnasium", "sklearn", "pyarrow", "cma", "matplotlib"):
        pytest.importorskip(package)
    table, text, out = tmp_path / "t.csv", tmp_path / "t.txt", tmp_path / "out"
    table.write_text("x,y\n" + "".join(f"{k % 7},{'uv'[k % 2]}\n" for k in range(80)))
    text.write_text("hello world, this is it.\n" * 500)
    words = {
        "fit": [table], "mi": [table, "--classifier", "linear", "--bootstrap", 20],
        "train": [text, "--steps", 2, "--dim", 8, "--batch", 2, "--length", 4],
        "cem": ["--iterations", 1, "--population", 4, "--elite", 0.5],
        "reinforce": ["--episodes", 10],
        "search": [table, "--generations", 1, "--population", 4, "--steps", 3, "--hidden", 4],
        "plot": ["focal"],
    }[command]  # fmt: skip
    sync = os.fsync

    def full(file: int) -> None:
        if os.fstat(file).st_size:
            raise OSError(28, "No space left on device")
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    where = tmp_path / "plot.png" if command == "plot" else out
    quiet = [] if command == "plot" else ["--quiet"]
    assert code_of(command, *words, *quiet, "--out", where) == 2
    told, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith(f"xent {command}: ")
    assert "No space left on device" in err.splitlines()[-1]
    assert str(where) in err.splitlines()[-1]
    assert str(where) not in told
    assert not list(out.glob("*"))
