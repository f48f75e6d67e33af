"""The errors of one cell: every way to compute a loss against many digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..harness.internals import runs_here
from .losses import Subject
from .others import IN_AN_INTERPRETER, Both, differentiated
from .rows import FEW, MARGINS, Cell, Rows, make_elements, make_rows
from .truth import Numbers, Truth, truth_of

ORDINARY = 80.0  # the largest size of a logit whose exponential is a normal number of float32
NOT_FINITE = 1e99  # the error of a result that is not finite where the truth is


def rows_of(subject: Subject, cell: Cell) -> Rows:
    """Return the rows, or elements, of a cell."""
    return make_elements(cell) if subject.of_elements else make_rows(cell, subject.unit)


def contestants(subject: Subject, cell: Cell, libraries: dict[str, dict[str, Both]]) -> Iterator:
    """Yield the names of those who compute this loss here, and how."""
    for engine in subject.engines:
        if not runs_here(engine):
            continue
        if engine == "triton" and (cell.dtype == "float64" or cell.classes > FEW):
            continue
        yield engine, ours(subject, engine)
    for library, losses in libraries.items():
        slow = library in IN_AN_INTERPRETER and cell.classes > FEW
        if subject.name in losses and not slow:
            yield library, losses[subject.name]


def ours(subject: Subject, engine: str) -> Both:
    """Return this library's loss on an engine; "xent" stands for a loss without a choice."""
    chosen = {} if engine == "xent" else {"engine": engine}

    def call(z: Tensor, y: Tensor, **arguments: Any) -> Tensor:
        return subject.call(z, y, **arguments, **chosen)

    return differentiated(_by_kind(call) if subject.of_elements else call)


def _by_kind(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a loss that computes labels with ordinary logits apart from all other elements.

    The kernel of losses with a margin computes a block of such elements in float32, and any other
    block in float64.
    """

    def apart(z: Tensor, y: Tensor, **arguments: Any) -> Tensor:
        usual = ((y == 0) | (y == 1)) & (z.abs() < ORDINARY)
        one, other = (
            call(torch.where(kept, z, 0), torch.where(kept, y, 0), **arguments)
            for kept in (usual, ~usual)
        )
        return torch.where(usual, one, other)

    return apart


def errors_of(
    subject: Subject, rows: Rows, truth: Truth, both: Both, theirs: bool = False
) -> dict[str, list[float | None]]:
    """Return the errors of a contestant on some rows, a number for each margin.

    The functions of other libraries have the hyperparameters in them.
    """
    z, arguments, group = subject.prepare(rows.distinct), subject.arguments(rows), None
    if rows.times is not None:
        group = rows.group
        z = rows.spread(z)
        arguments = {
            key: rows.spread(x) if isinstance(x, Tensor) and x.is_floating_point() else x
            for key, x in arguments.items()
        }
    if theirs:
        arguments = {key: x for key, x in arguments.items() if key in ("teacher", "shares")}
    values, gradient = both(z, rows.target, **arguments)
    found = _summary("value", truth.value, values, None, rows)
    return {**found, **_summary("gradient", truth.gradient, gradient, group, rows)}


def _summary(
    name: str, truth: Numbers, actual: Tensor, group: Tensor | None, rows: Rows
) -> dict[str, list[float | None]]:
    """Return worst and mean error, worst part of what is allowed, for each margin."""
    error, part = (x.reshape(len(rows.margin), -1) for x in truth.ulps(actual, group))
    worst, mean, most = [], [], []
    for k in range(len(MARGINS)):
        here = rows.margin == k
        known = error[here][~error[here].isnan()]
        worst.append(_short(known.max().item() if known.numel() else math.nan))
        mean.append(_short(known.mean().item() if known.numel() else math.nan))
        parts = part[here].nan_to_num(nan=0.0)
        most.append(_short(parts.max().item() if parts.numel() else math.nan))
    return {name: worst, f"{name}, mean": mean, f"{name}, of allowed": most}


def _short(x: float) -> float | None:
    """Return three digits; None where nothing was measured."""
    return None if math.isnan(x) else float(f"{min(x, NOT_FINITE):.3g}")


def measure(
    subject: Subject,
    cell: Cell,
    libraries: dict[str, dict[str, Both]],
    engines: Sequence[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield a record of each contestant of a cell; ``engines`` names those that take part."""
    rows = rows_of(subject, cell)
    truth = truth_of(subject, rows)
    for who, both in contestants(subject, cell, libraries):
        if engines and who not in engines and who != "xent":
            continue
        record: dict[str, Any] = {**cell._asdict(), "by": who}
        try:
            record.update(errors_of(subject, rows, truth, both, who in libraries))
        except Exception as error:  # of a library, too: a type it does not take
            record["failed"] = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        yield record
