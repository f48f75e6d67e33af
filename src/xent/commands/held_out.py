"""Rows to fit a classifier on, and others to test it on."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .columns import listed
from .console import UserError
from .features import distinct
from .table import Table

MOST_CLASSES, MOST_LOOKED_AT = 20, 500  # limits of the search for other targets


class Samples(NamedTuple):
    """Features ``(N, F)`` and classes ``(N,)``."""

    x: np.ndarray
    y: np.ndarray


def say_target(table: Table, y: np.ndarray, named: str | None, quiet: bool) -> None:
    """Print which target will be predicted.

    Args:
        table: the table.
        y: its target.
        named: the target that the user named; None if it was guessed.
        quiet: keep the line for the record only.

    Raises:
        UserError: if the target cannot be a class.
    """
    values, counts, _ = distinct(y)
    _check_classes(table, y, values)
    order = np.argsort(-counts, kind="stable")
    words = [f"{values.tolist()[k]!r} ({counts[k]:,} rows)" for k in order]
    guess = "" if named else ", the last column (--target names another)"
    line = f"the target is {table.target!r}{guess}: {len(values)} classes, {listed(words, 4)}"
    (table.said.append if quiet else table.say)(line)


def _check_classes(table: Table, y: np.ndarray, values: np.ndarray) -> None:
    """Raise :class:`UserError` unless the target can be a class."""
    target = table.target
    if len(values) == 1:
        raise UserError(
            f"column {target!r} has one class only, {values.tolist()[0]!r}; it takes two"
        )
    way = "name another --target, or group the values" + _others(table)
    if 2 * len(values) > len(y):
        raise UserError(
            f"column {target!r} has {len(values)} different values in {len(y)} rows: an identifier "
            f"or a quantity rather than a class; {way}"
        )
    if y.dtype.kind == "f" and (values % 1).any():
        fraction = values[values % 1 != 0][0]
        raise UserError(
            f"column {target!r} holds numbers such as {fraction}: a quantity rather than a class; "
            f"{way}"
        )


def _others(table: Table) -> str:
    """Return words about the columns with few values, one of which may be meant as target."""
    few = []
    for name in table.features[:MOST_LOOKED_AT]:
        values = table.columns[name].unique().drop_null()
        if 2 <= len(values) <= MOST_CLASSES and 2 * len(values) <= len(table):
            few.append(repr(name))
    return f" (columns with few values: {listed(few)})" if few else ""


def split(y: np.ndarray, share: float, seed: int, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers of rows to fit and to test on, with equal frequencies of the classes.

    Args:
        y: the classes of all rows.
        share: of the rows to test on.
        seed: of the choice.
        target: the name of the classes.

    Raises:
        UserError: if the rows cannot be split in this way.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < share < 1:
        raise UserError(
            f"--test must be above 0 and below 1, got {share}; to fit on all rows, test on "
            "others by --test-data"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed must be at least 0 and below 2^32, got {seed}")
    classes, counts, codes = distinct(y)
    if counts.min() == 1:
        name = classes.tolist()[counts.argmin()]
        raise UserError(
            f"class {name!r} of column {target!r} has a single row, which cannot be fitted "
            "and tested on; leave it out, or give --test-data"
        )
    tested = math.ceil(share * len(y))
    if min(tested, len(y) - tested) < len(classes):
        raise UserError(
            f"--test {share} of {len(y)} rows are {tested}: too few to test on or too "
            f"few left for {len(classes)} classes; choose another share, or give --test-data"
        )
    parts = train_test_split(np.arange(len(y)), test_size=share, random_state=seed, stratify=codes)
    train, test = map(np.asarray, parts)
    lost = classes[np.bincount(codes[train], minlength=len(classes)) == 0].tolist()
    if lost:
        raise UserError(f"--test {share} leaves no row of class {lost[0]!r} to fit on")
    return train, test


def indices(target: str, y: np.ndarray, classes: np.ndarray) -> list[int]:
    """The classes of rows to test on, as indices of the classes of the model.

    Raises:
        UserError: if a class is unknown to the model.
    """
    index = {name: k for k, name in enumerate(classes.tolist())}
    for row, name in enumerate(y.tolist()):
        if name not in index:
            raise UserError(
                f"column {target!r}, row {row + 1} to test on: {name!r} is none of the classes "
                f"that the model knows: {listed(index)}"
            )
    return [index[name] for name in y.tolist()]
