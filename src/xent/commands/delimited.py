"""Delimited text (CSV and the like) as an Arrow table, and guesses about the format of a file."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .columns import QUOTED_AFTER_BLANK, listed
from .console import UserError, progress_bar

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", " ": "blanks"}
USUAL = tuple(SEPARATORS)[:-1]  # all but blanks, of which text has many
BLOCK = 1 << 24  # bytes parsed at a time; with 1 MB wide tables take three times as long
SAMPLE_BYTES, SAMPLE_LINES, SAMPLE_CELLS = 1 << 22, 100, 100_000  # guesses use the first ones
FEWEST_LINES = 5  # lines that guesses use, however many cells they have
THOUSANDS = re.compile(r"[+-]?[1-9]\d?\d?[.,]\d{3}")  # or a decimal fraction
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?%?")
CONTROL = re.compile("[\0-\x08\x0e-\x1f\x7f]")
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n')  # some programs write such a line for Excel
MARKS = {  # byte order marks, and what they stand for; the longer ones first
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
OTHER_FILES = {
    b"PK\x03\x04": "a zip archive or an Excel file", b"\xd0\xcf\x11\xe0": "an Excel file",
    b"ARROW1": "a Feather file", b"\x89HDF": "an HDF5 file", b"%PDF": "a PDF file",
    b"SQLite format 3": "an SQLite database", b"\xfd7zXZ": "a file compressed by xz",
}  # fmt: skip


class Format(NamedTuple):
    """Format of the cells of a text; None means a guess.

    Attributes:
        separator: what stands between two cells.
        decimal: the decimal mark, a point or a comma.
        encoding: the name that Python has for it.
        header: whether the first line has the names of the columns.
        doubt: the decimal mark to take where the numbers leave a doubt.
    """

    separator: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    header: bool | None = None
    doubt: str | None = None


class Delimited(NamedTuple):
    """Content of a file, as a table.

    Attributes:
        table: the cells, a table of Arrow.
        names: of the columns, without blanks around them; empty where the file has none.
        decimal: the decimal mark.
        said: the guesses, a line each.
    """

    table: Any
    names: list[str]
    decimal: str
    said: list[str]


def read_delimited(
    path: Path,
    form: Format,
    known: frozenset[str] = frozenset(),
    text: frozenset[str] = frozenset(),
    quiet: bool = True,
) -> Delimited:
    """Read a file, compressed or not.

    Args:
        path: the file.
        form: what is known about the format of the file.
        known: names of columns that a file with a header has.
        text: the names among these whose columns hold text, whatever their cells look like.
        quiet: no progress.

    Raises:
        UserError: if the file cannot be read as a table.
        OSError: if the file cannot be read at all.
    """
    encoding = form.encoding or _encoding(path)
    try:
        found = _read(path, form._replace(encoding=encoding), known, text, quiet)
    except UnicodeDecodeError as error:
        if form.encoding:
            raise UserError(f"{path} is not --encoding {encoding}: {error.reason}") from None
        encoding = "cp1252"
        try:
            found = _read(path, form._replace(encoding=encoding), known, text, quiet)
        except UnicodeDecodeError:
            raise UserError(f"{path} is neither UTF-8 nor cp1252; name its --encoding") from None
    except LookupError:
        raise UserError(f"--encoding: Python knows none called {encoding!r}") from None
    if not form.encoding and not encoding.startswith("utf-8"):
        found.said.insert(0, f"the text is read as {encoding}; --encoding names another")
    return found


# ---- bytes --------------------------------------------------------------------------------------


def _open(path: Path) -> tuple[BinaryIO, Any]:
    """Open a file; return it and its content, another stream if the file is compressed."""
    import pyarrow

    file = path.open("rb")
    compression = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
    kind = compression.get(path.suffix.lower())
    return file, pyarrow.CompressedInputStream(file, kind) if kind else file


def _encoding(path: Path) -> str:
    """Guess the encoding from the first bytes; UTF-8 if they show no other."""
    file, content = _open(path)
    with file:
        start = content.read(1000)
    for magic, kind in OTHER_FILES.items():
        if start.startswith(magic):
            raise UserError(f"{path} is {kind}, no table; save the table as CSV or Parquet")
    for mark, encoding in MARKS.items():
        if start.startswith(mark):
            return encoding
    odd, even = start[1::2].count(0), start[::2].count(0)
    if max(odd, even) > len(start) // 4:  # ASCII in two bytes each
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8"


class _Utf8(io.RawIOBase):
    """A file of any encoding, read as UTF-8, that moves a progress bar by its bytes."""

    def __init__(self, path: Path, encoding: str, bar: Any) -> None:
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.file, self.content = _open(path)
        self.bar = bar

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while True:
            raw = self.content.read(max(1, size // 4))  # a byte makes at most 3 bytes of UTF-8
            text = self.decoder.decode(raw, final=not raw)
            self.bar.update(self.file.tell() - self.bar.n)
            if text or not raw:
                return text.encode()

    def close(self) -> None:
        self.file.close()
        super().close()


# ---- guesses ------------------------------------------------------------------------------------


def _sample(path: Path, encoding: str) -> str:
    """Return the first whole lines."""
    file, content = _open(path)
    with file:
        raw = content.read(SAMPLE_BYTES)
    text = codecs.getincrementaldecoder(encoding)().decode(raw, final=len(raw) < SAMPLE_BYTES)
    if found := CONTROL.search(text):
        raise UserError(f"{path} is no table of text: it holds the control character {found[0]!r}")
    lines = text.splitlines(keepends=True)
    if len(raw) == SAMPLE_BYTES and len(lines) > 1:
        del lines[-1]  # the last line may be cut
    return "".join(lines[:SAMPLE_LINES])


def _rows(sample: str, separator: str) -> list[list[str]]:
    """Return the cells of each line that is not blank; [] if a line cannot be cut here."""
    try:
        found, cells = [], 0
        for row in csv.reader(io.StringIO(sample, newline=""), delimiter=separator):
            found += [row] if row else []
            cells += len(row)
            if cells > SAMPLE_CELLS and len(found) > FEWEST_LINES:
                break
        return found
    except csv.Error:  # a cell of more than 128 KB: not the separator
        return []


def _separator(sample: str) -> str:
    """Separator that cuts most lines into the same number of cells, and most cells into numbers."""

    def fit(separator: str) -> tuple[float, float, int]:
        rows = _rows(sample, separator)
        if not rows:
            return 0, 0, 0
        width, lines = Counter(map(len, rows)).most_common(1)[0]
        if width < 2:
            return 0, 0, 0
        cells = [cell.strip() for row in rows for cell in row]
        return lines / len(rows), sum(map(_is_number, cells)) / len(cells), width

    best = max(USUAL, key=fit)
    if fit(best)[0]:
        return best
    widths = {len(row) for row in _rows(sample, " ")[1:]}  # a line of names may be shorter
    return " " if len(widths) == 1 and widths != {1} else ","


def _stripped(row: list[str]) -> list[str]:
    """Strip blanks, and quotes after a blank, which readers of CSV take for text."""
    return [re.sub(QUOTED_AFTER_BLANK, r"\1", cell).strip() for cell in row]


def _is_number(cell: str) -> bool:
    return NUMBER.fullmatch(cell) is not None


def _decimal(rows: list[list[str]], separator: str, doubt: str | None = None) -> str:
    """Return the decimal mark of most numbers.

    Numbers that may have marks of thousands, such as 1,234, count only if there are no others.
    With commas between the cells, a comma is the decimal mark only if no number has a point.
    """
    cells = [cell for row in rows for cell in row]
    commas, points = (_numbers_with(mark, cells) for mark in (",", "."))
    sure_commas, sure_points = (
        len(found) - sum(THOUSANDS.fullmatch(cell) is not None for cell in found)
        for found in (commas, points)
    )
    if separator == ",":
        return "," if sure_commas and not sure_points else "."
    if sure_commas or sure_points:
        return "," if sure_commas > sure_points else "."
    return doubt or ("," if len(commas) > len(points) else ".")


def _numbers_with(mark: str, cells: Iterable[str]) -> list[str]:
    """Return the cells that are digits, a mark and digits."""
    pattern = re.compile(rf"[+-]?\d+{re.escape(mark)}\d+")
    return [cell for cell in cells if pattern.fullmatch(cell)]


def _has_header(first: list[str], body: list[list[str]]) -> bool:
    """True if the first line has names: if it does not look as the other lines do.

    Whole numbers in even steps, such as years, are names all the same.
    """
    columns = list(zip(*(row for row in body if len(row) == len(first)), strict=False))
    numeric = [k for k, cells in enumerate(columns) if all(map(_is_number, filter(None, cells)))]
    numeric = [k for k in numeric if any(columns[k])]
    above = [first[k] for k in numeric if first[k]]
    if not above:  # only words: values if all of them occur below in their columns
        found = [name in cells for name, cells in zip(first, columns, strict=False)]
        return not found or not all(found)
    if not all(map(_is_number, above)):
        return True
    if len(above) < 3 or not all(map(str.isdigit, above)):
        return False
    steps = {int(b) - int(a) for a, b in pairwise(above)}
    return len(steps) == 1 and steps != {0}


def _odd_names(sample: str, first: list[str], body: list[list[str]]) -> list[str]:
    """Return the names in a first line with another number of cells than the other lines, or []."""
    widths = {len(row) for row in body}
    if len(widths) != 1 or len(first) in widths:
        return []
    width = widths.pop()
    for separator in USUAL:  # names with another separator than the rows have
        names = _rows(sample, separator)[:1]
        if names and len(names[0]) == width:
            return _stripped(names[0])
    if len(first) != width - 1 or len(first) == 1:  # a single cell is a title
        return []
    if not any(row[-1] for row in body):  # each row ends with a separator
        return [*first, ""]
    # Row names, as R writes them.
    return ["", *first] if len({row[0] for row in body}) == len(body) else []


class _Guess(NamedTuple):
    """Properties of a text, guessed from its first lines.

    Attributes:
        separator: between cells.
        decimal: the decimal mark.
        header: whether there is a line with names.
        names: of the columns.
        raw: the cells of the first line as they are.
        called: the names that Arrow gives the columns; empty where Arrow reads them from the file.
        before: number of lines to skip at the start.
        said: the guesses, a line each.
    """

    separator: str
    decimal: str
    header: bool
    names: list[str]
    raw: list[str]
    called: list[str]
    before: int
    said: list[str]


def _guess(sample: str, form: Format, known: frozenset[str]) -> _Guess:
    """Guess from the first lines what is None in the format."""
    before, said = 0, []
    if found := SEPARATOR_LINE.match(sample):
        sample, before = sample[found.end() :], 1
        form = form._replace(separator=form.separator or found[1])
    separator = form.separator or _separator(sample)
    raw, *body = _rows(sample, separator) or [[]]
    first, body = _stripped(raw), [*map(_stripped, body)]
    decimal = form.decimal or _decimal(body, separator, form.doubt)
    header = form.header
    if header is None:
        header = bool(known & set(first)) or _has_header(first, body)
        if not header:
            why = "holds numbers" if any(map(_is_number, first)) else "has words of the others"
            said.append(
                f"the first line {why}, so it counts as a row, and the columns are called column1 "
                f"to column{len(first)}; --header takes it for names"
            )
        elif first and all(map(_is_number, first)):
            said.append("the names in the first line are numbers; --no-header takes it for a row")
    names = first if header else [f"column{k}" for k in range(1, len(first) + 1)]
    called = []
    if header and (others := _odd_names(sample, first, body)):
        names, called, before = others, [f"{k}" for k in range(len(others))], before + 1
    marks = []
    if not form.separator and separator != ",":
        marks.append(f"{SEPARATORS[separator]} between the cells (--separator names another mark)")
    if not form.decimal and decimal != ".":
        columns = zip(names, zip(*body, strict=False), strict=False)
        where = listed([repr(name) for name, cells in columns if _numbers_with(",", cells)], 5)
        marks.append(f"decimal commas in {where} (--decimal . for points)")
    if marks:
        said.insert(0, f"the table has {' and '.join(marks)}")
    return _Guess(separator, decimal, header, names, raw, called, before, said)


# ---- reading ------------------------------------------------------------------------------------


def _read(
    path: Path, form: Format, known: frozenset[str], text: frozenset[str], quiet: bool
) -> Delimited:
    import pyarrow
    from pyarrow import csv as arrow

    encoding = form.encoding or "utf-8"
    guess = _guess(_sample(path, encoding), form, known)
    options: dict[str, Any] = {"skip_rows": guess.before}
    if guess.called:
        options["column_names"] = guess.called
    else:
        options["autogenerate_column_names"] = not guess.header
    raw = guess.called or guess.raw
    strings = [there for there, name in zip(raw, guess.names, strict=False) if name in text]
    shown = {"total": path.stat().st_size, "unit": "B", "unit_scale": True, "desc": "reading"}
    with (
        progress_bar(quiet, leave=False, delay=1, **shown) as bar,
        _Utf8(path, encoding, bar) as file,
    ):
        table = arrow.read_csv(
            pyarrow.PythonFile(file, mode="r"),
            arrow.ReadOptions(block_size=BLOCK, **options),
            arrow.ParseOptions(delimiter=guess.separator, newlines_in_values=True),
            arrow.ConvertOptions(
                strings_can_be_null=True, quoted_strings_can_be_null=False,
                decimal_point=guess.decimal, column_types=dict.fromkeys(strings, pyarrow.string()),
            ),
        )  # fmt: skip
    return Delimited(table, guess.names, guess.decimal, guess.said)
