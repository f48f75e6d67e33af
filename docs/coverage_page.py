"""Writes docs/coverage.md from docs/coverage.tsv: ``python docs/coverage_page.py``.

The table lists the public losses of other libraries, and what takes their place here. A test
compares the page on disk with what this script writes, and checks the table. (A script of the name
coverage.py would hide the package ``coverage``, which Numba imports, from the others here.)
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import xent

FOLDER = Path(__file__).parent
PAGE = FOLDER / "coverage.md"
VERDICTS = {
    "here": "a loss of xent, by name or by an option",
    "lines": "an expression of a few lines on losses of xent",
    "needs": "an idea that xent does not have yet",
    "out": "no likelihood of classes, so not a loss that xent sets out to have",
}


class Loss(NamedTuple):
    """A loss of another library."""

    peer: str
    version: str
    name: str
    verdict: str
    place: str  # the name here and how, an expression, or a reason

    @property
    def known_as(self) -> str:
        """Name of the loss here."""
        return self.place.partition(";")[0]


def losses() -> list[Loss]:
    """The rows of the table."""
    with (FOLDER / "coverage.tsv").open(newline="") as file:
        return [Loss(*row) for row in csv.reader(file, delimiter="\t")][1:]


def counts(table: list[Loss]) -> str:
    """The figures that README tells."""
    number = Counter(loss.verdict for loss in table)
    peers = len({loss.peer for loss in table})
    return (
        f"Of {len(table)} public losses of {peers} libraries {number['here']} are here by name or "
        f"option, {number['lines']} are a few lines of what is here, {number['needs']} need an "
        f"idea that is missing (sums over paths, as CTC, or over triples), and {number['out']} are "
        f"not likelihoods of classes"
    )


def page() -> str:
    """The page."""
    return "\n".join(_lines(losses())) + "\n"


def _lines(table: list[Loss]) -> Iterator[str]:
    yield "# The losses of other libraries, and what takes their place here"
    yield ""
    yield f"{counts(table)}."
    yield ""
    yield from (f"- **{name}**: {meaning}." for name, meaning in VERDICTS.items())
    yield ""
    yield "| library | version | " + " | ".join(VERDICTS) + " |"
    yield "|---|---|" + "---|" * len(VERDICTS)
    peers = [(key, list(rows)) for key, rows in groupby(table, lambda loss: loss[:2])]
    for (peer, version), rows in peers:
        number = Counter(loss.verdict for loss in rows)
        cells = " | ".join(str(number[name]) for name in VERDICTS)
        yield f"| [{peer}](#{_anchor(peer)}) | {version} | {cells} |"
    for (peer, _), rows in peers:
        yield from ("", f"## {peer}", "", "| loss there | | here |", "|---|---|---|")
        yield from (f"| `{loss.name}` | {loss.verdict} | {_cell(loss)} |" for loss in rows)


def _anchor(heading: str) -> str:
    return heading.lower().replace(".", "")


def _cell(loss: Loss) -> str:
    if loss.verdict == "here":
        name, _, how = loss.place.partition(";")
        return f"`{_full(name)}`{',' * bool(how)}{how}"
    return f"`{loss.place}`".replace("|", "\\|") if loss.verdict == "lines" else loss.place


def _full(name: str) -> str:
    """The name with its module; the site makes a link of it."""
    room = next(room for room in (xent, xent.losses, xent.policy) if name in room.__all__)
    return f"{room.__name__}.{name}"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
