"""Statistics of rows: the engines that compute them, and the choice of an engine.

``measure`` chooses an engine, computes, and makes the result differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...row_statistics import RowStatistics
from .. import core
from ..choice import KERNELS, Explanation, kernels_for, where_kernels_run, why_reference
from ..contract import RowEngine, TotalEngine
from ..modes import compiling, deferred
from . import native, reference, triton
from .autograd import all_and_some, differentiable_fields
from .problem import Problem

MODULES: dict[str, RowEngine] = {"native": native, "triton": triton, "reference": reference}
TOTALS: dict[str, TotalEngine] = {"native": native, "triton": triton}
PLAIN = "native"  # the engine that reads plain memory of the CPU

_GRADIENT = {
    "native": "in the same sweep as the loss, where that is one number of a body that is a program "
    "(most are); else recomputed from the logits in backward: one more sweep",
    "triton": "in the same call as the loss, where that is one number of a body that is a program "
    "(most are), by a second look at the logits, in the cache where a few rows fit; else "
    "recomputed from the logits in backward: one more sweep",
}


def choose(problem: Problem, engine: str = "auto") -> Explanation:
    """Decide which engine computes a problem; raise if a named engine cannot."""
    kernels, reason = _choose(problem, engine)
    if reason is not None:
        return Explanation("reference", reason, "autograd on plain tensor operations")
    return Explanation(
        kernels,
        where_kernels_run(kernels, problem.device, problem.dtype),
        _GRADIENT[kernels],
    )


def taken(problem: Problem, engine: str = "auto") -> str:
    """Return the engine that :func:`choose` decides for, without the words."""
    kernels, reason = _choose(problem, engine)
    return kernels if reason is None else "reference"


def _choose(problem: Problem, engine: str) -> tuple[str, str | None]:
    """Return the kernels for a problem, and why the reference computes instead, or None."""
    kernels = kernels_for(problem.device, engine)
    return kernels, why_reference(
        engine, kernels, problem.dtype, lambda: obstacle_of(problem, problem.tensors, kernels)
    )


def obstacle_of(problem: Problem, tensors: Sequence[Tensor | None], kernels: str) -> str | None:
    """Return why the kernels of an engine cannot take these tensors, or None if they can."""
    there, logits, soft = KERNELS[kernels], problem.dtype, problem.probabilities
    if problem.settings.shard is not None and problem.tensors.target_table is not None:
        return "a table of targets whose classes are split over ranks"
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
    engine = taken(problem, engine)
    if engine != "reference" and compiling():
        from .operators import table_op  # registers the operators; only compilers need them

        return named(problem, table_op(problem, engine, inplace_backward).unbind(0))
    if engine == "reference" and (deferred() or problem.differentiable_beyond_logits()):
        # Plain operations, which transforms and compilers know how to take apart.
        if inplace_backward:
            raise ValueError(
                "inplace_backward=True works for a plain backward pass to the logits only; "
                "torch.func, forward-mode AD, compilation and gradients of targets, scales or "
                "weights need the logits intact"
            )
        values = reference.row_statistics(problem)[0].unbind(0)
        return named(problem, values, constant_masses=False)
    return _measure_by(problem, MODULES[engine], inplace_backward)


def with_logits_of(problem: Problem, classes: Tensor, engine: str) -> tuple[Problem, Tensor]:
    """The problem to measure, and its logits of some classes, ``(N..., K)``.

    Args:
        problem: the problem.
        classes: indices, ``(N..., K)``.
        engine: the engine that will measure the problem.
    """
    places, z = classes.movedim(-1, problem.axis), problem.logits
    recorded = z.requires_grad and torch.is_grad_enabled() and not deferred()
    if recorded and taken(problem, engine) != "reference":
        z, few = all_and_some(z, places, problem.axis)
        problem = problem.replace(logits=z)
    else:
        few = z.gather(problem.axis, places)
    return problem, few.movedim(problem.axis, -1)


def measure_plain(
    problem: Problem, engine: str = PLAIN, inplace_backward: bool = False
) -> RowStatistics:
    """The row statistics of a problem that :data:`PLAIN` is known to read."""
    return _measure_by(problem, MODULES[engine], inplace_backward)


def _measure_by(problem: Problem, engine: RowEngine, inplace_backward: bool) -> RowStatistics:
    *values, complete = differentiable_fields(problem.logits, problem, engine, inplace_backward)
    return named(problem, values, complete)


def named(
    problem: Problem,
    values: Sequence[Tensor],
    complete: bool = False,
    constant_masses: bool = True,
) -> RowStatistics:
    """The fields of a table as row statistics, which are merged where ranks share the classes."""
    shard = problem.settings.shard
    stats = RowStatistics.from_fields(
        values,
        problem.fields,
        problem.settings.soft,
        problem.settings.first_class if shard is None else shard.start,
        constant_masses=constant_masses,
        label=problem.labels(),
        classes=problem.classes,
        complete=complete,
    )
    return stats if shard is None else shard.merged(stats)


def takes_sums(problem: Problem, engine: str, row_weight: Tensor | None) -> bool:
    """Tell whether an engine sums programs over rows, with the gradient, in one call."""
    if problem.settings.sharded or problem.rows.numel() * problem.classes == 0:
        return False
    return engine in TOTALS and TOTALS[engine].takes(problem, row_weight)
