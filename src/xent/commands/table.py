"""Tables of features and classes: CSV and the like, and Parquet, read with pyarrow.

Each guess about a table is printed, in a line of its own.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._package import not_installed
from .columns import NUMBERS, cast, listed, plain
from .console import UserError, note
from .delimited import Format, read_delimited
from .parquet_files import is_parquet, read_parquet
from .written_numbers import MOST_STRANGERS

UNNAMED = re.compile(r"|Unnamed: \d+|__index_level_\d+__")  # pandas writes the last two
FEWEST_COUNTED = 20  # rows that a column must count to be remarked
MOST_SAID = 12  # remarks of one kind that are printed; the record has all


class Reading(NamedTuple):
    """Instructions for reading a table.

    Attributes:
        form: the format of a text file, as far as it is known.
        gaps: values that stand for a missing one, besides the usual marks.
        drop: names of columns to leave out.
        keep: names of columns that are no index, whatever they look like.
        target: the name of the column to predict; by default the last one.
        quiet: no progress.
        about: the beginning of each remark about the table.
    """

    form: Format = Format()
    gaps: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    target: str | None = None
    quiet: bool = True
    about: str = ""


class Table:
    """Columns of numbers, text, booleans and whatever else a file may hold.

    Args:
        columns: by name, as chunked arrays of Arrow.
        target: the name of the column to predict.
        said: the remarks about the table so far.
        about: the beginning of each remark about the table.
        rows: the number of each row in the file, from 1; by default all rows in turn.
        unused: names of columns that the file has but the table has not.
        decimal: the decimal mark of the file.
    """

    def __init__(
        self, columns: dict[str, Any], target: str, said: list[str], about: str = "",
        rows: Any = None, unused: Iterable[str] = (), decimal: str = ".",
    ) -> None:  # fmt: skip
        self.columns, self.target, self.said, self.about = columns, target, said, about
        self.decimal = decimal
        self.rows = np.arange(1, len(self) + 1) if rows is None else rows
        self.unused = [*unused]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def features(self) -> list[str]:
        """The names of all columns but the target."""
        return [name for name in self.columns if name != self.target]

    def say(self, text: str) -> None:
        """Print one remark, and keep it for the record."""
        self.say_each([text])

    def say_each(self, lines: list[str]) -> None:
        """Print remarks of one kind; all are kept for the record, the first few are printed."""
        lines = [f"{self.about}{line}" for line in lines]
        for line in lines[:MOST_SAID]:
            note(line)
        if len(lines) > MOST_SAID:
            note(f"and likewise {len(lines) - MOST_SAID} more columns, each in the record")
        self.said += lines

    @property
    def with_gaps(self) -> list[str]:
        """The names of features that have missing values."""
        return [name for name in self.features if self.columns[name].null_count]

    def take(self, rows: np.ndarray) -> Table:
        """Return some rows, by number or by a mask, which share the remarks of all rows."""
        import pyarrow

        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        some = pyarrow.table(self.columns).take(pyarrow.array(rows))
        columns = dict(zip(self.columns, some.columns, strict=True))
        return self._with(columns, self.rows[rows])

    def without(self, names: Iterable[str]) -> Table:
        """The table without some columns."""
        names = set(names)
        kept = {name: column for name, column in self.columns.items() if name not in names}
        return self._with(kept, self.rows)

    def _with(self, columns: dict[str, Any], rows: np.ndarray) -> Table:
        return Table(columns, self.target, self.said, self.about, rows, self.unused, self.decimal)


def read_table(
    path: str | Path, reading: Reading | None = None, kinds: Mapping[str, str] | None = None
) -> Table:
    """Read a table from a file.

    Args:
        path: a Parquet file, a folder of such files, or delimited text: separator, decimal mark,
            encoding and header are guessed where they are not given.
        reading: what is known about the table.
        kinds: of the columns that a model knows, by name: ``"numbers"``, ``"text"`` or
            ``"booleans"``. With kinds, the columns are read as these, and none of them is left out.

    Returns:
        The table. A column of numbers with few other values is numbers; other values are missing.

    Raises:
        UserError: if the file cannot be read, has no row, names a column twice or lacks one.
    """
    reading, path = reading or Reading(), Path(path)
    names, columns, decimal, said = _content(path, reading, kinds or {})
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise UserError(f"{path} has more than one column {twice[0]!r}")
    if not columns or not len(columns[0]):
        raise UserError(f"{path} has no rows")
    called = [name or _free(f"column{k}", names) for k, name in enumerate(names, 1)]
    unnamed = {called[k]: k + 1 for k, name in enumerate(names) if UNNAMED.fullmatch(name)}
    columns = dict(zip(called, columns, strict=True))
    table = Table(columns, reading.target or "", [], reading.about, decimal=decimal)
    for text in said:
        table.say(text)
    if kinds:
        return _as_known(table, reading, kinds, decimal)
    return _guess(table, reading, unnamed, decimal)


def _free(name: str, names: list[str]) -> str:
    """Return a name that no column has, by underscores at the end of the given name."""
    while name in names:
        name += "_"
    return name


def _content(
    path: Path, reading: Reading, kinds: Mapping[str, str]
) -> tuple[list[str], list[Any], str, list[str]]:
    """Return names and columns of a file, its decimal mark, and remarks."""
    try:
        import pyarrow
    except ImportError:
        raise UserError(not_installed("pyarrow", "learn")) from None
    try:
        if is_parquet(path):
            table, said = read_parquet(path)
            return table.column_names, table.columns, ".", said
        text = frozenset(name for name, kind in kinds.items() if kind != NUMBERS)
        found = read_delimited(path, reading.form, frozenset(kinds), text, reading.quiet)
        return found.names, found.table.columns, found.decimal, found.said
    except (OSError, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if "CSV parse error: Expected" in reason:
            reason += "; is there a title above the names, or another --separator?"
        raise UserError(f"{path} cannot be read: {reason}") from None


def release() -> None:
    """Give back the memory of tables that are no longer used, before a fit that needs it."""
    import pyarrow

    pyarrow.default_memory_pool().release_unused()


# ---- a table to learn from ----------------------------------------------------------------------


def _guess(table: Table, reading: Reading, unnamed: dict[str, int], decimal: str) -> Table:
    """Find the target, text that is numbers, and columns that are no features and are left out."""
    dropped = _names(table, "--drop", reading.drop)
    kept = {*_names(table, "--keep", reading.keep), reading.target}
    table = table.without(dropped)
    for name, place in unnamed.items():
        if name in kept or name not in table.columns:
            continue
        column = table.columns[name]
        empty = column.null_count == len(column)
        if empty or len(column.unique()) == len(column):
            what = "holds nothing" if empty else "has another value in each row, as an index has"
            way = "" if empty else keep_it(name)
            table.say(f"column {place} has no name and {what}; it is left out{way}")
            table = table.without([name])
        else:
            table.say(f"column {place} has no name; it is called {name!r}")
    if not table.columns:
        raise UserError("no column is left")
    table.target = reading.target or next(reversed(table.columns))
    column_of(table, table.target)
    lines = []
    for name, column in table.columns.items():
        most = 0.0 if name == table.target else MOST_STRANGERS
        table.columns[name], said = plain(column, reading.gaps, decimal, most)
        lines += [f"column {name!r} {said}"] if said else []
    table.say_each(lines)
    table.say_each([
        f"column {name!r} counts the rows; if that is all it does, leave it out by --drop "
        f"{quoted(name)}"
        for name in table.features
        if name not in kept and _counts_rows(table.columns[name])
    ])  # fmt: skip
    return table


def keep_it(name: str) -> str:
    """Return words that tell how to keep a column that is left out."""
    return f" (--keep {quoted(name)} keeps it)"


def quoted(name: str) -> str:
    """Quote a name for a shell."""
    return shlex.quote(name)


def _names(table: Table, option: str, words: Iterable[str]) -> list[str]:
    """Return the columns that an option names; a word may hold several names between commas."""
    found = []
    for word in words:
        parts = [word] if word in table.columns else word.split(",")
        for part in parts:
            if part not in table.columns:
                there = listed(table.columns)
                raise UserError(f"{option}: there is no column {part!r}; there are {there}")
        found += parts
    return found


def _counts_rows(column: Any) -> bool:
    """True if a column is 1, 2, 3, ... or 0, 1, 2, ..."""
    from pyarrow import types

    if not types.is_integer(column.type) or column.null_count or len(column) < FEWEST_COUNTED:
        return False
    first, last = column[0].as_py(), column[-1].as_py()
    if first not in (0, 1) or last - first != len(column) - 1:
        return False
    return bool((np.diff(column.to_numpy()) == 1).all())


# ---- a table for a model ------------------------------------------------------------------------


def _as_known(table: Table, reading: Reading, kinds: Mapping[str, str], decimal: str) -> Table:
    """Return the columns that a model knows, cast to their kinds in the model."""
    table = table.without(_names(table, "--drop", reading.drop))
    unused = [name for name in table.columns if name not in kinds]
    table = table.without(unused)
    table.unused = unused
    lines = []
    for name, kind in kinds.items():
        if name == table.target and name not in table.columns:
            continue
        most = 1.0 if kind == NUMBERS else None
        column, strange = plain(column_of(table, name), reading.gaps, decimal, most)
        table.columns[name], other = cast(name, column, kind)
        lines += [f"column {name!r} {said}" for said in (strange, other) if said]
    table.say_each(lines)
    return table


# ---- columns -----------------------------------------------------------------------------------


def column_of(table: Table, name: str) -> Any:
    """Return a column by its name.

    Raises:
        UserError: if there is no column of this name.
    """
    if name not in table.columns:
        raise UserError(f"there is no column {name!r}; there are {listed(table.columns)}")
    return table.columns[name]
