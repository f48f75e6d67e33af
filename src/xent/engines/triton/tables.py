"""Tables of numbers of rows: a column for each row, and a line for each name, or name and tile."""

# pyright: reportArgumentType=false
# Type checkers do not know which numbers are constants of a kernel.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Columns(NamedTuple):
    """Columns of a table, which has a column per row and a line per name, or per name and tile."""

    at: Any  # address of the table
    columns: Any  # number of columns of the table
    n: Any  # numbers of the columns that are read or written
    mask: Any  # True if the column exists
    tiles: Any  # number of lines of each name
    tile: Any  # number of the line of a name that is read or written


# The names of the lines of a table are one string, with spaces between the names.


@triton.constexpr_function
def has(names, name):
    """Return True if a table has a line of this name."""
    return name in names.split()


@triton.constexpr_function
def line_of(names, name):
    """Return the number of the line of this name."""
    return names.split().index(name)


@triton.constexpr_function
def name_at(names, k):
    """Return the name of line ``k``."""
    return names.split()[k]


@triton.jit
def address_in(table, name: tl.constexpr, NAMES: tl.constexpr):
    """Return the addresses of one line."""
    line = line_of(NAMES, name) * table.tiles + table.tile
    return table.at + tl.full([1], line, tl.int64) * table.columns + table.n


@triton.jit
def get(table, name: tl.constexpr, NAMES: tl.constexpr):
    """Load one line in float64; 0 if the table lacks the line."""
    value = tl.zeros(table.n.shape, tl.float64)
    if has(NAMES, name):
        value = tl.load(address_in(table, name, NAMES), mask=table.mask, other=0.0).to(tl.float64)
    return value


@triton.jit
def put(table, name: tl.constexpr, value, NAMES: tl.constexpr):
    """Store one line, if the table has the line."""
    if has(NAMES, name):
        at = address_in(table, name, NAMES)
        tl.store(at, value.to(table.at.dtype.element_ty), mask=table.mask)


@triton.jit
def put_all(table, values, ALL: tl.constexpr, COUNT: tl.constexpr, NAMES: tl.constexpr):
    """Store those of COUNT values, whose names are ALL, for which the table has a line."""
    for k in tl.static_range(COUNT):  # pyright: ignore
        put(table, name_at(ALL, k), values[k], NAMES)
