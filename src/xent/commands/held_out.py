"""Rows to fit a classifier on, and others to test it on."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .console import UserError
from .table import kind_of, listed


class Rows(NamedTuple):
    """Features ``(N, F)`` and classes ``(N,)``."""

    x: np.ndarray
    y: np.ndarray


def check_classes(target: str, y: np.ndarray) -> None:
    """Raise :class:`UserError` unless a column, the one named target, can be a class."""
    kind_of(target, y)
    values = np.unique(y)
    if len(values) == 1:
        raise UserError(
            f"column {target!r} has one class only, {values.tolist()[0]!r}; it takes two"
        )
    if 2 * len(values) > len(y):
        raise UserError(
            f"column {target!r} has {len(values)} different values in {len(y)} rows: an identifier "
            "or a quantity rather than a class; name another --target, or group the values"
        )
    if y.dtype.kind == "f" and (values % 1).any():
        fraction = values[values % 1 != 0][0]
        raise UserError(
            f"column {target!r} holds numbers such as {fraction}: a quantity rather than a class; "
            "name another --target, or group the values"
        )


def split(whole: Rows, share: float, seed: int, target: str) -> tuple[Rows, Rows]:
    """Rows to fit on and a share to test on, the classes as frequent in both.

    Raises:
        UserError: if that cannot be.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < share < 1:
        raise UserError(
            f"--test must be above 0 and below 1, got {share}; to fit on all rows, test on "
            "others by --test-data"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed must be at least 0 and below 2^32, got {seed}")
    classes, counts = np.unique(whole.y, return_counts=True)
    if counts.min() == 1:
        name = classes.tolist()[counts.argmin()]
        raise UserError(
            f"class {name!r} of column {target!r} has a single row, which cannot be fitted "
            "and tested on; leave it out, or give --test-data"
        )
    tested = math.ceil(share * len(whole.y))
    if min(tested, len(whole.y) - tested) < len(classes):
        raise UserError(
            f"--test {share} of {len(whole.y)} rows are {tested}: too few to test on or too "
            f"few left for {len(classes)} classes; choose another share, or give --test-data"
        )
    chosen = train_test_split(
        np.arange(len(whole.y)), test_size=share, random_state=seed, stratify=whole.y
    )
    train, test = (Rows(whole.x[rows], whole.y[rows]) for rows in chosen)
    lost = np.setdiff1d(whole.y, train.y).tolist()
    if lost:
        raise UserError(f"--test {share} leaves no row of class {lost[0]!r} to fit on")
    return train, test


def indices(target: str, y: np.ndarray, classes: np.ndarray) -> list[int]:
    """The classes of rows to test on, as indices of those of the model.

    Raises:
        UserError: if one is not among them.
    """
    index = {name: k for k, name in enumerate(classes.tolist())}
    for row, name in enumerate(y.tolist()):
        if name not in index:
            raise UserError(
                f"column {target!r}, row {row + 1} to test on: {name!r} is none of the classes "
                f"that the model knows: {listed(index)}"
            )
    return [index[name] for name in y.tolist()]
