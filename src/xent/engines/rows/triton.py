"""The Triton engine for losses of rows: launches the kernels of ``engines/triton/``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..modes import settled
from . import reference
from .autograd import Total
from .labels import check_labels_of
from .problem import Problem, Tensors

READS_TENSORS = True  # the divisor may be a number on the device

if TYPE_CHECKING:
    from ..triton.launch_sums import Notes, SumLaunch


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
        _fill(problem, gradient, lambda launch: launch.differentiate(table, partials))
    return gradient


def takes(problem: Problem, row_weight: Tensor | None) -> bool:
    """Return True; False for weights of rows without a label that says which are left out."""
    return problem.labelled or row_weight is None


def total(
    tensors: Tensors, row_weight: Tensor | None, sum: Total, gradient: Tensor | None
) -> Tensor:
    """Return the sum over all rows by its divisor; write its gradient by the logits."""
    return _total(tensors, row_weight, sum, gradient, False)[0]


def total_ahead(
    tensors: Tensors, row_weight: Tensor | None, sum: Total, gradient: Tensor
) -> tuple[Tensor, Total]:
    """Return the sum, and the order with notes; the gradient is that for the slope in the notes.

    Where the loss has a scale, or the gradients of several batches are added up, the slope is never
    1, but it stays the same. So the gradient is computed for the slope of the last backward pass.
    """
    result, notes = _total(tensors, row_weight, sum, gradient, True)
    return result, sum._replace(notes=notes)


def _total(
    tensors: Tensors, row_weight: Tensor | None, sum: Total, gradient: Tensor | None, guess: bool
) -> tuple[Tensor, Notes]:
    """Return the sum and the notes of a launch; ``guess`` says how to find the slope."""
    problem, row_weight = Problem(tensors, sum.settings), _numbers(row_weight)
    check_labels_of(problem)
    result = torch.empty((), dtype=sum.dtype, device=problem.device)

    def compute(launch: SumLaunch) -> Notes:
        notes = _note(launch, row_weight, sum, guess)
        return launch.total(sum.program, row_weight, notes, result)

    return result, _fill(problem, gradient, compute)


def _numbers(row_weight: Tensor | None) -> Tensor | None:
    """Return row weights as the kernels read them."""
    return None if row_weight is None else settled(row_weight.double()).contiguous()


def _note(launch: SumLaunch, row_weight: Tensor | None, sum: Total, guess: bool) -> Notes:
    """Let the device note the divisor, and the slope: a guess, or 1."""
    number, by = sum.divisor, "number"
    if isinstance(number, str):
        number, by = None, number
    elif isinstance(number, Tensor):
        number = settled(number)
    elif number is not None:
        number = torch.full((), number, dtype=torch.float64, device=launch.problem.device)
    return launch.note(row_weight, by, number, sum.empty == "zero", guess)


def fits(slope: Tensor, gradient: Tensor) -> bool:
    """Return False: only the device knows the slope, and :func:`follow` lets the device compare."""
    return False


def follow(
    tensors: Tensors, row_weight: Tensor | None, sum: Total, slope: Tensor,
    gradient: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return the gradient for any slope, a 0-d tensor on the device, without waiting for it.

    ``gradient`` holds the gradient for the slope that was noted, or for 1, and is overwritten for
    any other slope.
    """
    ready = gradient is not None
    gradient = gradient if ready else torch.empty_like(tensors.logits)
    row_weight = _numbers(row_weight)

    def write(launch: SumLaunch) -> None:
        notes = _note(launch, row_weight, sum, False) if sum.notes is None else sum.notes
        launch.follow(sum.program, row_weight, notes, slope, ready)

    _fill(Problem(tensors, sum.settings), gradient, write)
    return gradient


def _fill(problem: Problem, gradient: Tensor | None, write: Callable[[SumLaunch], Any]) -> Any:
    """Let ``write`` write a gradient, by way of a copy if the rows do not step evenly."""
    from ..triton.launch_sums import SumLaunch
    from ..triton.layout import even

    written = None if gradient is None else even(gradient)
    result = write(SumLaunch(problem, written))
    if gradient is not None and written is not None and written is not gradient:
        gradient.copy_(written)
    return result
