"""The Triton engine for losses of rows: launches the kernels of ``engines/triton/``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import reference
from .autograd import Total
from .labels import check_labels_of
from .problem import Problem, Tensors
from .programs import LOG_LOSS, NLL, Program

COUNTS = False  # the divisor is a tensor on the device
IN_PLACE = False  # the target's logit is read again after the gradient is written
CROSS_ENTROPY = (NLL, LOG_LOSS)  # the programs whose loss and gradient take one sweep

if TYPE_CHECKING:
    from ..triton.launch import Launch


def row_statistics(problem: Problem) -> tuple[Tensor, bool]:
    """Return the table of statistics, (fields, N...), in float64.

    The second value, True if no row is known to be ignored, is always False here, because a look at
    the labels would wait for the device.
    """
    from ..triton.launch import Launch

    if problem.logits.numel() == 0:
        return reference.row_statistics(problem)
    check_labels_of(problem)
    return Launch(problem).find(), False


def row_gradient(
    problem: Problem,
    table: Tensor,
    partials: Sequence[Tensor | None],
    out: Tensor | None = None,
) -> Tensor:
    """Return the gradient by the logits of the sum of every field times its partial derivative.

    ``out``, if given, receives the gradient, and may be the logits themselves.
    """
    gradient = torch.empty_like(problem.logits) if out is None else out
    if gradient.numel():
        _fill(problem, gradient, lambda launch, to: launch.differentiate(table, partials, to))
    return gradient


def takes(problem: Problem, program: Program) -> bool:
    """Return True for a cross-entropy of classes whose logits want a gradient."""
    return program in CROSS_ENTROPY and not problem.settings.soft and problem.wants_gradient()


def total(
    tensors: Tensors, row_weight: Tensor | None, sum: Total, gradient: Tensor | None
) -> Tensor:
    """Return the sum of ``-log p`` over all rows by its divisor; write its gradient by the logits.

    The divisor is a 0-d tensor or None, and the program is one of :data:`CROSS_ENTROPY`.
    """
    problem, by = Problem(tensors, sum.settings), _divisor(sum)
    check_labels_of(problem)
    gradient = torch.empty_like(problem.logits) if gradient is None else gradient
    log_prob, mass = _fill(
        problem, gradient, lambda launch, to: launch.cross_entropy(row_weight, by, to)
    )
    values = -log_prob * mass
    loss = (values if row_weight is None else values * row_weight).sum()
    return (loss if by is None else loss / by).to(sum.dtype)


def _divisor(sum: Total) -> Tensor | None:
    """Return the divisor, which the frame has computed on the device."""
    assert not isinstance(sum.divisor, (str, float, int))
    return sum.divisor


def fits(slope: Tensor, gradient: Tensor) -> bool:
    """Return False: only the device knows the slope, and :func:`follow` lets the device compare."""
    return False


def follow(
    tensors: Tensors, row_weight: Tensor | None, sum: Total, slope: Tensor,
    gradient: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return the gradient for any slope, a 0-d tensor on the device, without waiting for it.

    ``gradient`` holds the gradient for slope 1, and is overwritten for any other slope.
    """
    ready = gradient is not None
    gradient = gradient if ready else torch.empty_like(tensors.logits)
    _fill(
        Problem(tensors, sum.settings), gradient,
        lambda launch, to: launch.follow(row_weight, _divisor(sum), slope, to, ready),
    )  # fmt: skip
    return gradient


def _fill(problem: Problem, gradient: Tensor, write: Callable[[Launch, Tensor], Any]) -> Any:
    """Let ``write`` write a gradient, by way of a copy if the rows do not step evenly."""
    from ..triton.launch import Launch, even

    written = even(gradient)
    result = write(Launch(problem, written), written)
    if written is not gradient:
        gradient.copy_(written)
    return result
