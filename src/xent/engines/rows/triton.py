"""The Triton engine for losses of rows: launches the kernels of ``engines/triton/``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import reference
from .problem import Problem
from .reference import check_labels

if TYPE_CHECKING:
    from ..triton.launch import Launch


def row_statistics(problem: Problem) -> tuple[Tensor, bool]:
    """The table of statistics, (fields, N...) in float64.

    And whether it is known that no row was ignored: never, as looking would mean to wait.
    """
    from ..triton.launch import Launch

    if problem.logits.numel() == 0:
        return reference.row_statistics(problem)
    check_labels(problem)
    return Launch(problem).find(), False


def row_gradient(
    problem: Problem,
    table: Tensor,
    partials: Sequence[Tensor | None],
    out: Tensor | None = None,
) -> Tensor:
    """The gradient with respect to the logits of the sum of every field times its partial.

    ``out`` receives it; it may be the logits themselves.
    """
    gradient = torch.empty_like(problem.logits) if out is None else out
    if gradient.numel():
        _fill(problem, gradient, lambda launch, to: launch.differentiate(table, partials, to))
    return gradient


def cross_entropy(
    problem: Problem, row_weight: Tensor | None, divisor: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What :func:`row_statistics` says of ``-log p`` of index targets, and its gradient.

    Returns log-probabilities and masses, (2, N...), float64; and the gradient of the sum of
    ``-log_prob * mass * row_weight`` by ``divisor``, a 0-d tensor.
    """
    check_labels(problem)
    gradient = torch.empty_like(problem.logits)
    table = _fill(
        problem, gradient, lambda launch, to: launch.cross_entropy(row_weight, divisor, to)
    )
    return table, gradient


def follow(
    problem: Problem,
    row_weight: Tensor | None,
    divisor: Tensor | None,
    slope: Tensor,
    gradient: Tensor | None,
) -> Tensor:
    """That gradient times ``slope``, a 0-d tensor that nobody waits for.

    ``gradient`` is the one for slope 1, and is written over; without it there will be a new one.
    """
    ready = gradient is not None
    gradient = gradient if ready else torch.empty_like(problem.logits)
    _fill(
        problem, gradient,
        lambda launch, to: launch.follow(row_weight, divisor, slope, to, ready),
    )  # fmt: skip
    return gradient


def _fill(problem: Problem, gradient: Tensor, write: Callable[[Launch, Tensor], Any]) -> Any:
    """Have a launch write a gradient, by way of a copy where its rows do not step evenly."""
    from ..triton.launch import Launch, even

    written = even(gradient)
    result = write(Launch(problem, written), written)
    if written is not gradient:
        gradient.copy_(written)
    return result
