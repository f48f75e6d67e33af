"""Tables of features and classes: CSV and Parquet, read with pyarrow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .console import UserError

MOST_CATEGORIES = 256  # of a text column; more are names or sentences rather than categories


def read_table(path: str | Path) -> dict[str, np.ndarray]:
    """The columns of a table by name.

    Args:
        path: a Parquet file (``.parquet``, ``.pq``), or a CSV file whose first line has the names.
            In a CSV file an empty cell, ``NA``, ``nan`` or ``null`` is missing, unless quoted.

    Returns:
        For each name an array ``(N,)``: numbers and booleans as they are, text as objects. A
        missing number is NaN, other missing cells are None.

    Raises:
        UserError: if the file cannot be read, has no row or names a column twice.
    """
    try:
        import pyarrow
        from pyarrow import csv, parquet
    except ImportError:
        raise UserError("pyarrow is not installed (pip install 'xent[learn]')") from None
    path = Path(path)
    try:
        if path.suffix in (".parquet", ".pq"):
            table = parquet.read_table(path)
        else:
            missing = csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
            table = csv.read_csv(path, convert_options=missing)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise UserError(f"{path} has more than one column {twice[0]!r}")
    if not table.num_rows:
        raise UserError(f"{path} has no rows")
    return {name: _as_numpy(table.column(name)) for name in table.column_names}


class Encoding(NamedTuple):
    """How the columns of a table become features: learnt from one table, the same for others.

    Numbers are taken as they are. Of text and booleans each value is a feature ``NAME=VALUE``, 1
    where it occurs.

    Attributes:
        columns: by name the values of the column, sorted; None for a column of numbers.
    """

    columns: dict[str, list[Any] | None]

    @classmethod
    def of(cls, columns: dict[str, np.ndarray]) -> Encoding:
        """The encoding of these columns.

        Raises:
            UserError: if a value is missing or infinite, or a column holds something else.
        """
        return cls({name: _categories(name, column) for name, column in columns.items()})

    @property
    def names(self) -> list[str]:
        """What each feature is called."""
        return [
            feature
            for name, values in self.columns.items()
            for feature in ([name] if values is None else [f"{name}={value}" for value in values])
        ]

    def features(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """The features of a table, ``(N, F)`` in float64; columns that are not known are left out.

        Raises:
            UserError: if a column is not there or is of another kind, or a value is missing,
                infinite or unknown.
        """
        parts = [self._feature(name, columns) for name in self.columns]
        return np.hstack([part.astype(np.float64) for part in parts])

    def _feature(self, name: str, columns: dict[str, np.ndarray]) -> np.ndarray:
        column, values = column_of(columns, name), self.columns[name]
        kind = kind_of(name, column)
        known = "numbers" if values is None else kind_of(name, _array(values))
        if kind != known:
            raise UserError(f"column {name!r} holds {kind}; {known} are what was learnt from")
        if values is None:
            return column[:, None]
        found = column[:, None] == _array(values)
        unknown = ~found.any(1)
        if unknown.any():
            row = unknown.argmax()
            raise UserError(
                f"column {name!r}, row {row + 1}: {column[row]!r} was not there to learn from; "
                f"known are {listed(values)}"
            )
        return found


def features_and_target(
    columns: dict[str, np.ndarray], target: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A table as what a classifier learns from.

    Args:
        columns: the columns by name.
        target: the name of the one that is to be predicted.

    Returns:
        ``(X, y, names)``: the features ``(N, F)`` as by :class:`Encoding`, the target ``(N,)`` as
        it is, and what each feature is called.

    Raises:
        UserError: if there is no such column or no other, a value is missing or infinite, or a
            column holds something else.
    """
    others, y = split_target(columns, target)
    encoding = Encoding.of(others)
    return encoding.features(others), y, encoding.names


def split_target(
    columns: dict[str, np.ndarray], target: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The columns to learn from, and the one that is to be predicted.

    Raises:
        UserError: if there is no such column or no other, or one of its values is missing.
    """
    y = column_of(columns, target)
    if len(columns) < 2:
        raise UserError(f"{target!r} is the only column; are the cells separated by commas?")
    return {name: column for name, column in columns.items() if name != target}, y


def column_of(columns: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A column that is there, without missing values.

    Raises:
        UserError: if it is not.
    """
    if name not in columns:
        raise UserError(f"there is no column {name!r}; there are {listed(columns)}")
    _refuse_missing(name, columns[name])
    return columns[name]


def kind_of(name: str, column: np.ndarray) -> str:
    """Numbers, booleans or text; the name is for the message.

    Raises:
        UserError: if a column holds something else.
    """
    if column.dtype.kind in "iuf":
        return "numbers"
    if column.dtype.kind == "b":
        return "booleans"
    if all(isinstance(value, str) for value in column):
        return "text"
    kind = type(column[0]).__name__ if column.dtype.kind == "O" else column.dtype
    raise UserError(f"column {name!r} holds {kind}, not numbers, text or booleans; leave it out")


def listed(things: Iterable[Any], most: int = 12) -> str:
    """Things between commas; of many the first, and how many more."""
    words = [str(thing) for thing in things]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def _as_numpy(column: Any) -> np.ndarray:
    """An arrow column, decimals and dictionaries as what they stand for."""
    from pyarrow import float64, types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    elif types.is_decimal(column.type):
        column = column.cast(float64())
    return column.to_numpy()


def _refuse_missing(name: str, column: np.ndarray) -> None:
    if column.dtype.kind == "f":
        missing = np.isnan(column)
        if np.isinf(column).any():
            raise UserError(f"column {name!r}: row {np.isinf(column).argmax() + 1} is infinite")
    else:
        missing = np.array([value is None for value in column])
    if missing.any():
        raise UserError(
            f"column {name!r}: {missing.sum()} of {len(column)} values are missing, the first in "
            f"row {missing.argmax() + 1}; fill them, or leave out the rows or the column"
        )


def _categories(name: str, column: np.ndarray) -> list[Any] | None:
    """The different values of a column of text or booleans, sorted; None for numbers."""
    _refuse_missing(name, column)
    if kind_of(name, column) == "numbers":
        return None
    values = np.unique(column).tolist()
    if len(values) > MOST_CATEGORIES:
        raise UserError(
            f"column {name!r} is text with {len(values)} different values, at most "
            f"{MOST_CATEGORIES} make sense as features; leave it out, or group them"
        )
    return values


def _array(values: list[Any]) -> np.ndarray:
    return np.array(values, dtype=bool if isinstance(values[0], bool) else object)
