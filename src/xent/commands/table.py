"""Tables of features and classes: CSV and Parquet, read with pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def features_and_target(
    columns: dict[str, np.ndarray], target: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A table as what a classifier learns from.

    Args:
        columns: the columns by name.
        target: the name of the one that is to be predicted.

    Returns:
        ``(X, y, names)``: the features ``(N, F)`` in float64, the target ``(N,)`` as it is, and
        what each feature is called. Numbers are taken as they are. Of text and booleans each value
        is a feature ``NAME=VALUE``, 1 where it occurs.

    Raises:
        UserError: if there is no such column or no other, a value is missing or infinite, or a
            column holds something else.
    """
    if target not in columns:
        raise UserError(f"there is no column {target!r}; there are {', '.join(columns)}")
    if len(columns) < 2:
        raise UserError(f"{target!r} is the only column; are the cells separated by commas?")
    for name, column in columns.items():
        _refuse_missing(name, column)
    features, names = [], []
    for name in (name for name in columns if name != target):
        column = columns[name]
        if column.dtype.kind in "iuf":
            features.append(column[:, None])
            names.append(name)
        else:
            categories = _categories(name, column)
            features.append(column[:, None] == categories)
            names += [f"{name}={category}" for category in categories]
    return np.hstack([part.astype(np.float64) for part in features]), columns[target], names


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


def _categories(name: str, column: np.ndarray) -> np.ndarray:
    """The different values of a column of text or booleans, sorted."""
    if column.dtype.kind != "b" and not all(isinstance(value, str) for value in column):
        kind = type(column[0]).__name__ if column.dtype.kind == "O" else column.dtype
        raise UserError(
            f"column {name!r} holds {kind}, not numbers, text or booleans; leave it out"
        )
    categories = np.unique(column)
    if len(categories) > MOST_CATEGORIES:
        raise UserError(
            f"column {name!r} is text with {len(categories)} different values, at most "
            f"{MOST_CATEGORIES} make sense as features; leave it out, or group them"
        )
    return categories
