"""Statistics of rows: the engines that find them, the choice among these, and the front door.

``measure`` chooses an engine, computes, and makes the result differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...row_statistics import RowStatistics
from .. import core
from ..choice import KERNELS, Explanation, kernels_for, where_kernels_run, why_reference
from ..modes import PLAIN_TENSORS, compiling, deferred, in_cpu_memory
from . import native, reference, triton
from .autograd import Total, differentiable_fields, total_ahead
from .problem import Problem, Tensors
from .programs import Program

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
    """Return why the kernels of an engine cannot take these tensors, or None if they can."""
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


def total(tensors: Tensors, row_weight: Tensor | None, sum: Total, arguments: Any = None) -> Tensor:
    """A sum over rows, 0-d, differentiable with respect to the logits, in one sweep.

    ``arguments`` are the tensors as the engine takes them, if the caller knows.
    """
    if tensors.logits.requires_grad and torch.is_grad_enabled():
        return total_ahead(tensors.logits, (tensors, row_weight, sum, arguments))
    return sum.engine.total(tensors, row_weight, sum, arguments, False)[0]


def takes_one_sweep(problem: Problem, program: Program, engine: str) -> bool:
    """Whether an engine finds the sum over rows of a program, and its gradient, in one sweep."""
    if problem.settings.sharded or problem.rows.numel() * problem.classes == 0:
        return False
    if engine == "triton":
        wanted = problem.logits.requires_grad and torch.is_grad_enabled()
        return program in triton.CROSS_ENTROPY and not problem.settings.soft and wanted
    return engine == "native"


def plain_memory(
    input: Tensor, target: Tensor, weight: Tensor | None, row_weight: Tensor | None
) -> bool:
    """True if the native engine can read the tensors of a call as they are.

    That is (N, C) logits and (N,) int64 classes on the CPU, with weights of plain memory, if any:
    what most calls are. Every check here is part of what small batches cost.
    """
    return (
        type(input) in PLAIN_TENSORS
        and type(target) is Tensor
        and target.dtype is torch.int64
        and input.dtype in core.TYPES
        and input.ndim == 2
        and target.shape == input.shape[:1]
        and input.is_contiguous()
        and target.is_contiguous()
        and not deferred()
        and (weight is None or _plain_vector(weight, input.dtype, input.shape[1]))
        and (row_weight is None or _plain_vector(row_weight, torch.float64, input.shape[0]))
        and in_cpu_memory(input)
        and in_cpu_memory(target)
        and core.fast
        and not torch.is_autocast_enabled("cpu")
    )


def _plain_vector(x: Tensor, dtype: torch.dtype, count: int) -> bool:
    return (
        type(x) is Tensor
        and x.dtype is dtype
        and x.shape == (count,)
        and not x.requires_grad
        and x.is_contiguous()
        and in_cpu_memory(x)
    )
