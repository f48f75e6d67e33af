"""Statistics of rows: the engines that find them, the choice among these, and the front door.

``measure`` chooses an engine, computes, and makes the result differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..._check import INT64
from ...row_statistics import RowStatistics
from .. import core
from ..choice import KERNELS, Explanation, kernels_for, where_kernels_run, why_reference
from ..modes import PLAIN_TENSORS, compiling, deferred, in_cpu_memory, settled
from . import native, reference, triton
from .autograd import apply_plain, cross_entropy_ahead, differentiable_fields
from .problem import Problem

MODULES = {"native": native, "triton": triton, "reference": reference}


def choose(problem: Problem, engine: str = "auto") -> Explanation:
    """Decide which engine computes a problem; raise if a named engine cannot."""
    kernels = kernels_for(problem.device, engine)
    reason = why_reference(engine, kernels, lambda: obstacle_of(problem, problem.tensors, kernels))
    if reason is not None:
        return Explanation("reference", reason, "autograd on plain tensor operations")
    return Explanation(
        kernels,
        where_kernels_run(kernels, problem.device, problem.dtype),
        "recomputed from the logits in backward: one more sweep, nothing of N x V is kept",
    )


def obstacle_of(problem: Problem, tensors: Sequence[Tensor | None], kernels: str) -> str | None:
    """Why the kernels of an engine cannot take a problem made of ``tensors``; None if they can."""
    there, logits, soft = KERNELS[kernels], problem.dtype, problem.probabilities
    foreign = there.obstacle_of(tensors)
    if foreign is not None:
        return foreign
    if logits not in there.TYPES:
        return f"logits of {logits}"
    if soft is not None and soft.dtype not in core.TYPES:
        return f"targets of {soft.dtype}"
    wide = soft is not None and soft.dtype == torch.float64 and logits != torch.float64
    if wide and problem.tensors.target_table is None:
        return "float64 targets beside narrower logits ask for float64 arithmetic"
    if problem.differentiable_beyond_logits():
        return "a target, scale, bias or weight requires a gradient, which only the reference gives"
    return None


def measure(
    problem: Problem, engine: str = "auto", inplace_backward: bool = False
) -> RowStatistics:
    """The row statistics of a problem, differentiable with respect to its tensors."""
    taken = choose(problem, engine).engine
    if taken != "reference" and compiling():
        from .operators import table_op  # registers the operators; only compilers need them

        return named(problem, table_op(problem, taken, inplace_backward).unbind(0))
    if taken == "reference" and (deferred() or problem.differentiable_beyond_logits()):
        # Plain operations, which transforms and compilers know how to take apart.
        if inplace_backward:
            raise ValueError(
                "inplace_backward=True works for a plain backward pass to the logits only; "
                "torch.func, forward-mode AD, compilation and gradients of targets, scales or "
                "weights need the logits intact"
            )
        values = reference.row_statistics(problem)[0].unbind(0)
        return named(problem, values, constant_masses=False)
    *values, complete = differentiable_fields(
        problem.logits, problem, MODULES[taken], inplace_backward
    )
    return named(problem, values, complete)


def named(
    problem: Problem,
    values: Sequence[Tensor],
    complete: bool = False,
    constant_masses: bool = True,
) -> RowStatistics:
    """The statistics that the fields of a table are."""
    return RowStatistics.from_fields(
        values,
        problem.fields,
        problem.settings.soft,
        problem.settings.first_class,
        constant_masses=constant_masses,
        label=problem.labels(),
        classes=problem.classes,
        complete=complete,
    )


def sum_of_nll(
    problem: Problem,
    row_weight: Tensor | None,
    find_divisor: Callable[[], Tensor | None],
    engine: str = "auto",
) -> Tensor | None:
    """The sum of ``-log_prob * mass * row_weight`` by a divisor, its gradient found along with it.

    None where no engine does it in one sweep: then :func:`measure`.
    """
    x = problem.logits
    ahead = (
        isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled() and not compiling()
    )
    if not ahead or problem.settings.soft or problem.settings.sharded or x.numel() == 0:
        return None
    if row_weight is not None and row_weight.requires_grad:
        return None
    if kernels_for(x.device, engine) != "triton" or choose(problem, engine).engine != "triton":
        return None
    divisor = find_divisor()
    if divisor is not None and divisor.requires_grad:
        return None
    if row_weight is not None:
        row_weight = settled(row_weight).contiguous()
    divisor = None if divisor is None else settled(divisor)
    return cross_entropy_ahead(x, problem, row_weight, divisor, triton)


def plain_cross_entropy(
    input: Tensor, target: Tensor, ignore_index: int, reduction: str
) -> Tensor | None:
    """Cross-entropy of the plainest call in the fewest steps, or None if the call is not plain.

    Plain are contiguous (N, C) logits on the CPU and (N,) int64 targets, reduced to one
    number. Every check here is part of what small batches cost.
    """
    if (
        type(input) not in PLAIN_TENSORS
        or type(target) is not Tensor
        or target.dtype is not torch.int64
        or input.dtype not in core.TYPES
        or input.ndim != 2
        or target.ndim != 1
        or input.shape[0] != target.shape[0]
        or not input.is_contiguous()
        or not target.is_contiguous()
        or reduction not in ("mean", "sum")
        or type(ignore_index) is not int
        or ignore_index not in INT64
        or deferred()
        or not (in_cpu_memory(input) and in_cpu_memory(target))
        or torch.is_autocast_enabled("cpu")
        or not core.fast
    ):
        return None
    mean = reduction == "mean"
    if input.requires_grad and torch.is_grad_enabled():
        return apply_plain(input, target, ignore_index, mean)
    return native.plain_loss(input, target, ignore_index, mean)[0]
