"""Features from the columns of a table, by rules learnt from one table and used for others."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any, NamedTuple

import numpy as np

from .columns import BOOLEANS, NOTHING, NUMBERS, TEXT, kind_of, listed
from .console import UserError
from .table import Table, column_of, keep_it, quoted
from .written_numbers import compute

VAST = 1e150  # the squares of larger numbers overflow
MOST_CATEGORIES = 256  # of a text column; with more, the texts are names or sentences
MISSING = ("fill", "drop", "refuse")  # what to do about gaps
KINDS = (NUMBERS, TEXT, BOOLEANS)


class Column(NamedTuple):
    """Rule by which one column becomes features: a number as it is, each category 0 or 1.

    Attributes:
        kind: numbers, text or booleans.
        values: the categories, sorted; [] for numbers.
        gaps: whether a further feature marks missing values.
        means: of the features over the rows that were learnt from. A mean replaces a number that is
            missing, and a category that was never seen.
    """

    kind: str
    values: list[Any]
    gaps: bool
    means: list[float]

    @classmethod
    def of(cls, column: Any, gaps: bool) -> Column:
        """Learn from the values of a column, of one of the three kinds and not empty."""
        kind = kind_of(column)
        values = [] if kind == NUMBERS else sorted(column.drop_null().unique().to_pylist())
        new = cls(kind, values, gaps, [0.0] * (max(1, len(values)) + gaps))
        features = np.empty((len(column), len(new.means)))
        new.fill(column, features)
        means = features.mean(0)
        if kind == NUMBERS:
            means[0] *= len(column) / (len(column) - column.null_count)  # nulls were 0
        return new._replace(means=means.tolist())

    def names(self, name: str) -> list[str]:
        """Names of the features, given the name of the column."""
        found = [f"{name}={value}" for value in self.values] or [name]
        return [*found, f"{name} is missing"] if self.gaps else found

    def fill(self, column: Any, out: np.ndarray) -> np.ndarray:
        """Write the features of a column into ``out``, ``(N, F)``.

        Returns:
            ``(N,)``: True for a value that is there but was not among those learnt from.
        """
        missing = column.is_null().to_numpy()
        if self.kind == NUMBERS:
            numbers = column.cast("float64", safe=False).to_numpy()
            strange = np.isinf(numbers)
            out[:, 0] = np.where(missing | strange, self.means[0], numbers)
        else:
            import pyarrow

            codes = compute().index_in(column, pyarrow.array(self.values)).fill_null(-1).to_numpy()
            strange = (codes < 0) & ~missing
            out[:, : len(self.values)] = codes[:, None] == np.arange(len(self.values))
            out[strange if self.gaps else codes < 0] = self.means
        if self.gaps:
            out[:, -1] = np.where(strange, self.means[-1], missing)
        return strange


class Features(NamedTuple):
    """Features of a table, and remarks about its values.

    Attributes:
        x: ``(N, F)``.
        missing: a line for each column with missing values.
        unseen: a line for each column with values that were not among those learnt from.
    """

    x: np.ndarray
    missing: list[str]
    unseen: list[str]


class Encoding(NamedTuple):
    """Rules by which columns become features: learnt from one table, used for others.

    Attributes:
        columns: by name.
    """

    columns: dict[str, Column]

    @classmethod
    def of(cls, table: Table, marked: Container[str] = ()) -> Encoding:
        """Learn from all columns but the target.

        Args:
            table: a table of :func:`prepared`.
            marked: columns that get a feature for gaps even if they have no gaps here.

        Raises:
            UserError: if a column holds nothing.
        """
        columns = {}
        for name in table.features:
            column = table.columns[name]
            if column.null_count == len(column):
                raise UserError(
                    f"column {name!r} holds nothing in the rows to learn from; leave it out by "
                    f"--drop {quoted(name)}"
                )
            columns[name] = Column.of(column, name in marked or column.null_count > 0)
        return cls(columns)

    @classmethod
    def read(cls, saved: Any) -> Encoding:
        """Return the encoding that :meth:`plain` wrote.

        Raises:
            ValueError: if ``saved`` is something else.
        """
        columns = {name: Column(**column) for name, column in dict(saved).items()}
        for name, (kind, values, gaps, means) in columns.items():
            types = {NUMBERS: (), TEXT: (str,), BOOLEANS: (bool,)}[kind]
            good = isinstance(values, list) and isinstance(gaps, bool) and isinstance(means, list)
            good = good and all(type(value) in types for value in values)
            good = good and (bool(values) or kind == NUMBERS)
            good = good and len(means) == max(1, len(values)) + gaps
            if not good or not all(type(m) is float and math.isfinite(m) for m in means):
                raise ValueError(f"column {name!r} cannot be read")
        return cls(columns)

    def plain(self) -> dict[str, Any]:
        """Return the encoding as plain types, for JSON."""
        return {name: column._asdict() for name, column in self.columns.items()}

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of each column."""
        return {name: column.kind for name, column in self.columns.items()}

    @property
    def names(self) -> list[str]:
        """Names of the features; no two alike."""
        wanted = [one for name, column in self.columns.items() for one in column.names(name)]
        names = set(wanted)
        if len(names) == len(wanted):
            return wanted
        found, used = [], set()
        for one in wanted:
            name, number = one, 2
            while name in used or (name != one and name in names):
                name, number = f"{one} ({number})", number + 1
            used.add(name)
            found.append(name)
        return found

    def features(self, table: Table) -> Features:
        """The features of a table; columns that are not known are left out.

        Raises:
            UserError: if a column is not there.
        """
        x = np.empty((len(table), sum(len(column.means) for column in self.columns.values())))
        missing, unseen, start = [], [], 0
        for name, column in self.columns.items():
            values = column_of(table, name)
            stop = start + len(column.means)
            strange = column.fill(values, x[:, start:stop])
            if values.null_count:
                missing.append(f"{_gaps(table, name)}; {_filled(name, column.kind, column.gaps)}")
            if strange.any():
                unseen.append(_unseen(table, name, strange))
            start = stop
        return Features(x, missing, unseen)

    def part(self, name: str) -> slice:
        """Slice of the features that belong to a column."""
        widths = [len(column.means) for column in self.columns.values()]
        k = list(self.columns).index(name)
        return slice(sum(widths[:k]), sum(widths[: k + 1]))


# ---- what is left out, and what is missing ------------------------------------------------------


def prepared(table: Table, missing: str, keep: Container[str] | None = None) -> Table:
    """Return the part of a table that can be used, with a remark for each part left out.

    Args:
        table: the table as it was read.
        missing: what to do about gaps in features, one of :data:`MISSING`. Rows without a target
            are left out, if they are not refused.
        keep: columns of text that are no names, whatever they look like. None for a table that is
            not learnt from: all columns stay, and the encoding makes the remarks about gaps.

    Raises:
        UserError: if nothing is left, a column cannot be used, or gaps are refused.
    """
    if keep is not None:
        table = _without_names(table, keep)
    if not table.features:
        raise UserError(
            f"{table.target!r} is the only column that can be used; what separates the cells can "
            "be said by --separator"
        )
    for name in table.columns:
        _check(table, name)
    table = _with_target(table, missing)
    if missing != "fill":
        return _without_gaps(table, missing)
    if keep is not None:
        kinds = {name: kind_of(table.columns[name]) for name in table.with_gaps}
        table.say_each(
            [f"{_gaps(table, name)}; {_filled(name, kinds[name], True)}" for name in kinds]
        )
    return table


def classes_of(table: Table) -> np.ndarray:
    """Return the target, ``(N,)``, text as objects; a prepared target has no gaps."""
    return column_of(table, table.target).to_numpy()


def distinct(y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different values in order, how often each occurs, and the index of each row's value.

    Values are found by hashing, because sorting millions of words takes seconds.
    """
    import pyarrow

    coded = pyarrow.array(y).dictionary_encode()
    values = coded.dictionary.to_numpy(zero_copy_only=False)
    order = np.argsort(values, kind="stable")
    places = np.empty(len(order), np.intp)
    places[order] = np.arange(len(order))
    codes = places[coded.indices.to_numpy()]
    return values[order], np.bincount(codes, minlength=len(order)), codes


def _check(table: Table, name: str) -> None:
    column, kind = table.columns[name], kind_of(table.columns[name])
    if column.null_count == len(column):
        kind = NOTHING
    if kind not in KINDS:
        way = f"leave it out by --drop {quoted(name)}"
        if name == table.target:
            way = "name another --target"
        raise UserError(f"column {name!r} holds {kind}, not numbers, text or booleans; {way}")
    if str(column.type) in ("double", "float"):
        values = column.to_numpy()
        infinite, vast = np.isinf(values), np.abs(values) > VAST
        if infinite.any():
            raise UserError(
                f"column {name!r}: row {table.rows[infinite.argmax()]} is infinite; --na-values "
                "inf takes that for missing"
            )
        if vast.any():
            row = vast.argmax()
            raise UserError(
                f"column {name!r}: row {table.rows[row]} holds {values[row]:g}, too large to be "
                f"squared; --na-values {values[row]:g} takes that for missing"
            )


def _without_names(table: Table, keep: Container[str]) -> Table:
    """The table without columns of text that have nearly as many values as rows."""
    left_out, said = [], []
    for name in (name for name in table.features if name not in keep):
        column = table.columns[name]
        if kind_of(column) != TEXT:
            continue
        counts = column.drop_null().value_counts().field("counts").to_numpy()
        if 2 * (counts == 1).sum() > counts.sum() or len(counts) > MOST_CATEGORIES:
            left_out.append(name)
            said.append(
                f"column {name!r} has {len(counts):,} different texts in {counts.sum():,} rows, as "
                f"names have; it is left out{keep_it(name)}"
            )
    table.say_each(said)
    return table.without(left_out)


def _with_target(table: Table, missing: str) -> Table:
    """The rows that have a target."""
    column = column_of(table, table.target)
    if not column.null_count:
        return table
    said = _gaps(table, table.target, ", the target")
    if missing == "refuse":
        raise UserError(f"{said}; --missing fill and --missing drop leave these rows out")
    table.say(f"{said}; these rows are left out")
    return table.take(column.is_valid().to_numpy())


def _without_gaps(table: Table, missing: str) -> Table:
    """Return the rows without a gap in a feature, or raise an error about the first gap."""
    names = table.with_gaps
    if not names:
        return table
    if missing == "refuse":
        raise UserError(
            f"{_gaps(table, names[0])}; --missing fill puts the mean there, --missing drop leaves "
            f"out the rows, --drop {quoted(names[0])} the column"
        )
    whole = np.logical_and.reduce([table.columns[name].is_valid().to_numpy() for name in names])
    where = f"in {'column' if len(names) == 1 else 'columns'} {listed(map(repr, names))}"
    if not whole.any():
        raise UserError(f"no row is without a gap {where}; --drop some columns")
    table.say(f"{(~whole).sum():,} of {len(table):,} rows have gaps {where}; they are left out")
    return table.take(whole)


def _gaps(table: Table, name: str, role: str = "") -> str:
    """Return a sentence about the missing values of a column: how many, and the first row."""
    missing = table.columns[name].is_null().to_numpy()
    return (
        f"column {name!r}{role}: {missing.sum()} of {len(missing)} values are missing, the first "
        f"in row {table.rows[missing.argmax()]}"
    )


def _filled(name: str, kind: str, marked: bool) -> str:
    """Return a sentence about the value that replaces a gap."""
    if not marked:
        return "the average of what was learnt from stands there"
    if kind == NUMBERS:
        return f"the mean stands there, and the feature '{name} is missing' marks it"
    return f"the category '{name} is missing' stands there"


def _unseen(table: Table, name: str, strange: np.ndarray) -> str:
    """Return a sentence about values that the model has not seen."""
    rows = np.flatnonzero(strange)
    values = table.columns[name].take(rows).value_counts().to_pylist()
    values.sort(key=lambda one: -one["counts"])
    words = listed([f"{one['values']!r} ({one['counts']:,})" for one in values], 5)
    return (
        f"column {name!r}: not there to learn from: {words}, in {len(rows):,} of {len(strange):,} "
        f"rows, the first row {table.rows[rows[0]]}; the average of what was learnt from stands "
        "there"
    )
