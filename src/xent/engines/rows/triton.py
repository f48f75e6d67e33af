"""The Triton engine for losses of rows: launches the kernels of ``engines/triton/``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import reference
from .autograd import Total
from .problem import Problem, Tensors
from .programs import LOG_LOSS, NLL
from .reference import check_labels

CROSS_ENTROPY = (NLL, LOG_LOSS)  # the programs whose loss and gradient take one sweep

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


def total(
    tensors: Tensors, row_weight: Tensor | None, total: Total, _: object
) -> tuple[Tensor, Tensor]:
    """The sum of ``-log p`` over all rows by its divisor, and the gradient of the logits.

    The divisor is a 0-d tensor or None, and the program one of :data:`CROSS_ENTROPY`.
    """
    problem, by = Problem(tensors, total.settings), total.divisor
    check_labels(problem)
    gradient = torch.empty_like(problem.logits)
    log_prob, mass = _fill(
        problem, gradient, lambda launch, to: launch.cross_entropy(row_weight, by, to)
    )
    values = -log_prob * mass
    loss = (values if row_weight is None else values * row_weight).sum()
    return (loss if by is None else loss / by).to(total.dtype), gradient


def fits(slope: Tensor, gradient: Tensor) -> bool:
    """False: only the device knows the slope, and :func:`follow` has the device look."""
    return False


def follow(
    tensors: Tensors, row_weight: Tensor | None, total: Total, slope: Tensor,
    gradient: Tensor | None,
) -> Tensor:  # fmt: skip
    """The gradient for any slope, a 0-d tensor that nobody waits for.

    ``gradient`` is the one for slope 1, and is written over unless that is the slope.
    """
    problem, ready = Problem(tensors, total.settings), gradient is not None
    gradient = gradient if ready else torch.empty_like(problem.logits)
    _fill(
        problem, gradient,
        lambda launch, to: launch.follow(row_weight, total.divisor, slope, to, ready),
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
