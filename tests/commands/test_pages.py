"""The pages about the command line show what the commands print, and every command."""

import re
from pathlib import Path

import pytest

from xent.cli import COMMANDS, _parser

from .test_commands import code_of

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("name", "count"), [("commands", 17), ("command-line", 7)])
def test_the_page_shows_what_is_said(name, count, tmp_path, monkeypatch, capsys):
    """Each line on the page is printed, in this order, and each exit code is right."""
    for package in ("sklearn", "pyarrow", "matplotlib"):
        pytest.importorskip(package)
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    meals = (f"{'soup' if k % 3 else 'fish'},{'$' if 7 * k % 5 < 2 else '$$'}\n" for k in range(60))
    Path("prices.csv").write_text("meal,price\n" + "".join(meals))
    Path("title.csv").write_bytes(b"a,b\n\x1b]0;title\x07,x\n")
    weather = "今天天气很好。明天会下雨,后天是晴天。\n"
    Path("weather.txt").write_text(300 * weather, encoding="utf-8")
    blocks = "".join(re.findall(r"```console\n(.*?)```", page, re.DOTALL))
    calls = re.findall(r"^\$ xent (.*?)\n(.*?)\[(\d+)\]$", blocks, re.DOTALL | re.MULTILINE)
    assert len(calls) == blocks.count("$ xent ") == count
    for words, shown, code in calls:
        assert code_of(*words.split()) == int(code), words
        told = capsys.readouterr()
        said = iter((told.err + told.out).splitlines())
        for line in shown.splitlines():
            start = line.removesuffix("...")
            assert any(one == line or (start != line and one.startswith(start)) for one in said), (
                line
            )


def test_the_page_has_every_command():
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    titled = re.findall(r"^## xent (\w+)$", page, re.MULTILINE)
    assert sorted(titled) == sorted(COMMANDS)
    assert sorted(re.findall(r"^options\(\"(\w+)\"\)$", page, re.MULTILINE)) == sorted(
        COMMANDS.keys() - {"bench"}
    )


def test_the_calls_on_the_page_can_be_read():
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    lines = [line for line in blocks.splitlines() if "xent bench" not in line]
    calls = [re.sub(r"^torchrun .* -m (?=xent )", "", line).split()[1:] for line in lines]
    assert len(calls) > 20
    parser = _parser(COMMANDS.keys() - {"bench"})
    for words in calls:
        parser.parse_args(words)  # or it ends the process
