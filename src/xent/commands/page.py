"""Text with tables, which knows where its tables are, so that a terminal can show them as such."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .._printable import columns, one_line, printable

if TYPE_CHECKING:
    from rich.console import Console

WIDEST = 48  # characters of a cell of a table
STYLES = {"yes": "green", "no": "dim", ".": "dim"}  # of cells, on a terminal


class Table(NamedTuple):
    """Rows of cells; the first row is a head, or each first cell is the name of the second."""

    rows: list[list[str]]
    head: bool

    def __str__(self) -> str:
        widths = [max(map(columns, column)) for column in zip(*self.rows, strict=True)]
        return "\n".join("  ".join(map(_padded, row, widths)).rstrip() for row in self.rows)

    def for_terminal(self) -> Any:
        """Return a table of rich, whose cells wrap where the terminal is narrow."""
        from rich import box, table
        from rich.text import Text

        made = table.Table(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=self.head
        )
        for k, cell in enumerate(self.rows[0]):
            style = None if k or self.head else "cyan"
            made.add_column(Text(cell), overflow="fold", style=style)
        for row in self.rows[self.head :]:
            title = "bold" if row[0] and not any(row[1:]) else None
            made.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row), style=title)
        return made


class Page(str):
    """A text with tables; ``+`` appends text or another page.

    Attributes:
        parts: texts and tables in their order.
    """

    parts: tuple[str | Table, ...]

    def __new__(cls, *parts: str | Table) -> Page:
        """Join parts; those of a page are taken over."""
        flat = [one for part in parts for one in (part.parts if isinstance(part, Page) else [part])]
        page = super().__new__(cls, "".join(map(str, flat)))
        page.parts = tuple(flat)
        return page

    def __add__(self, other: str) -> Page:
        return Page(self, other)

    def __radd__(self, other: str) -> Page:
        return Page(other, self)

    def on(self, console: Console) -> str:
        """Return the page with the escape sequences of a terminal, and of nothing else."""
        from rich.text import Text

        shown = ""
        for part in self.parts:
            with console.capture() as captured:
                if isinstance(part, Table):
                    console.print(part.for_terminal())
                else:
                    console.print(Text(printable(part)), soft_wrap=True)
            shown += captured.get().removesuffix("\n")
        return shown


def table(rows: Sequence[Sequence[str]], head: bool = True) -> Page:
    """Align rows of cells as lines; only the last cell of a line may be long.

    Args:
        rows: of the table.
        head: whether the first row names the columns.
    """
    cells = [[*(one_line(cell, WIDEST) for cell in row[:-1]), one_line(row[-1])] for row in rows]
    return Page(Table(cells, head))


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - columns(cell))
