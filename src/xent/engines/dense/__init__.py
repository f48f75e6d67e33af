"""Dense losses, of all logits of a row: the choice of an engine, and derivatives.

The ``body`` of such a loss, plain operations in float64, is the specification; its ``form`` tells
the kernels how to compute the same. Other rooms call ``loss`` and ``values``. Triton has no kernels
for these losses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import core
from ..choice import Explanation, kernels_for, where_kernels_run, why_reference
from ..contract import DenseEngine
from ..modes import compiling
from . import autograd, native, reference
from .autograd import DenseTotal
from .problem import DenseProblem

MODULES: dict[str, DenseEngine] = {"native": native}


def choose(problem: DenseProblem, engine: str = "auto") -> Explanation:
    """Decide which engine computes a problem; raise if a named engine cannot."""
    kernels = kernels_for(problem.logits.device, engine)
    wide = torch.float64  # where a row is solved for a number of its own
    reason = why_reference(engine, kernels, wide, lambda: _obstacle(problem, kernels))
    if reason is not None:
        return Explanation("reference", reason, "autograd on plain tensor operations")
    reason = where_kernels_run(kernels, problem.logits.device, problem.logits.dtype)
    return Explanation(kernels, reason, "in the same sweep as the loss, where that is one number")


def _obstacle(problem: DenseProblem, kernels: str) -> str | None:
    """Return why the kernels of an engine cannot take a problem, or None if they can."""
    if kernels not in MODULES:
        return f"losses of all logits of a row have no kernels in {kernels}"
    foreign = core.obstacle_of(problem.tensors)
    if foreign is not None:
        return foreign
    if problem.form is None:
        return "this loss has no kernel for these targets, options or types"
    for side in problem.sides:
        if side is not None and side.dtype not in core.TYPES:
            return f"logits of {side.dtype}"
    if not problem.classes:
        return "there are no classes"
    if problem.differentiable_beyond_logits():
        return "a row weight requires a gradient, which only the reference gives"
    return None


def loss(
    problem: DenseProblem,
    divisor: Callable[[], float | str | None],
    never_zero: bool,
    reduce: Callable[[Tensor], Tensor],
    engine: str = "auto",
) -> Tensor:
    """The sum over all rows by a divisor, 0-d, differentiable.

    ``reduce`` does the same in plain operations, from the weighted values of the rows or their sum.
    """
    taken = choose(problem, engine).engine
    if taken == "reference":
        return reduce(reference.plain_values(problem)).to(problem.dtype)
    if compiling():
        from .operators import total_op  # registers the operators; only compilers need them

        return reduce(total_op(problem, taken)).to(problem.dtype)
    return autograd.total(problem, DenseTotal(MODULES[taken], divisor(), never_zero, reduce))


def values(problem: DenseProblem, engine: str = "auto") -> Tensor:
    """The weighted value of each row, differentiable."""
    taken = choose(problem, engine).engine
    if taken == "reference":
        return reference.plain_values(problem).to(problem.dtype)
    if compiling():
        from .operators import values_op  # registers the operators; only compilers need them

        return values_op(problem, taken)
    return autograd.values(problem, MODULES[taken])
