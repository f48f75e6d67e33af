"""The engines, each two functions, and the choice among them.

``row_statistics(problem) -> table, complete`` (whether no row was found to be ignored) and
``row_gradient(problem, table, partials) -> gradient``:

* ``reference`` is plain PyTorch: any device, any dtype, every transform. It is the specification.
* ``native`` is C++ for CPU tensors.
* ``triton`` is for GPUs; in Triton's interpreter, which is for tests, it takes CPU tensors.

``measure`` is the front door: it chooses, computes, and makes the result differentiable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._check import INT64, one_of
from ..linear_logits import LinearLogits
from ..modes import PLAIN_TENSORS, compiling, deferred, in_cpu_memory, plain_operations, settled
from ..row_statistics import RowStatistics
from . import heads, linear, native, reference, triton
from .autograd import apply_plain, cross_entropy_ahead, differentiable_fields
from .problem import Problem

ENGINES = ("auto", "native", "triton", "reference")
MODULES = {"native": native, "triton": triton, "reference": reference}


class Explanation(NamedTuple):
    """Which engine a call takes, and why.

    Attributes:
        engine: ``"native"``, ``"triton"`` or ``"reference"``.
        reason: one sentence.
        gradient: how the gradient is found.
    """

    engine: str
    reason: str
    gradient: str

    def __str__(self) -> str:
        return f"engine: {self.engine} ({self.reason})\ngradient: {self.gradient}"


def choose(problem: Problem, engine: str = "auto") -> Explanation:
    """Decide which engine computes a problem; raise if a named engine cannot."""
    kernels = kernels_for(problem.logits.device, engine)
    reason = why_reference(engine, kernels, lambda: _obstacle(problem, kernels))
    head = None
    if isinstance(problem.logits, LinearLogits):
        chunked = by_chunks(problem)
        head = heads.describe(problem.logits) if chunked else "autograd, all logits at once"
    if reason is not None:
        return Explanation("reference", reason, head or "autograd on plain tensor operations")
    return Explanation(
        kernels,
        where_kernels_run(kernels, problem.logits),
        head or "recomputed from the logits in backward: one more sweep, nothing of N x V is kept",
    )


def _obstacle(problem: Problem, kernels: str) -> str | None:
    """Why the kernels of an engine cannot take a problem, or None if they can."""
    module, logits, soft = MODULES[kernels], problem.logits.dtype, problem.target.probabilities
    foreign = module.obstacle_of(problem.parts)
    if foreign is not None:
        return foreign
    if logits not in module.TYPES:
        return f"logits of {logits}"
    if soft is not None and soft.dtype not in native.TYPES:
        return f"targets of {soft.dtype}"
    wide = soft is not None and soft.dtype == torch.float64 and logits != torch.float64
    if wide and problem.target.table is None:
        return "float64 targets beside narrower logits ask for float64 arithmetic"
    if problem.differentiable_beyond_logits():
        return "a target, scale, bias or weight requires a gradient, which only the reference gives"
    return None


def kernels_for(device: torch.device, engine: str) -> str:
    """The engine whose kernels are to take tensors on a device, unless they cannot."""
    one_of("engine", engine, ENGINES)
    if engine in ("native", "triton"):
        return engine
    return "triton" if device.type in triton.DEVICES else "native"


def where_kernels_run(kernels: str, logits: Tensor) -> str:
    """The reason to give where kernels do the work."""
    if kernels == "native":
        return f"CPU logits, {logits.dtype}; {native.isa} kernels on PyTorch's threads"
    interpreted = " in Triton's interpreter" if logits.device.type == "cpu" else ""
    return f"logits on {logits.device.type}, {logits.dtype}; Triton kernels{interpreted}"


def why_reference(engine: str, kernels: str, find_obstacle: Callable[[], str | None]) -> str | None:
    """Why the reference computes what is asked of ``engine``, or None where ``kernels`` do.

    ``find_obstacle`` says what about the problem keeps the kernels from it. Raises where only they
    will do.
    """
    if engine == "reference":
        return "as asked"
    reason = find_obstacle()
    if reason is None and plain_operations():
        reason = "a transform or tracer of PyTorch is active, which needs plain tensor operations"
    if engine == "auto" and kernels == "native" and reason is None and not native.fast:
        reason = "this processor lacks fused multiply-add, and the kernels would emulate it"
    if engine == kernels and reason is not None:
        raise ValueError(
            f'engine="{engine}" cannot do this: {reason}. engine="auto" takes the reference engine'
        )
    return reason


def measure(
    problem: Problem, engine: str = "auto", inplace_backward: bool = False
) -> RowStatistics:
    """The row statistics of a problem, differentiable with respect to its tensors."""
    if isinstance(problem.logits, LinearLogits) and not by_chunks(problem):
        problem = with_all_logits(problem)
    plan = choose(problem, engine)
    complete = False
    by_operations = plan.engine == "reference" and (
        deferred() or problem.differentiable_beyond_logits()
    )
    if plan.engine != "reference" and compiling():
        from .ops import table_op  # registers the operators; only compilers need them

        values = table_op(problem, plan.engine, inplace_backward).unbind(0)
    elif by_operations:  # which transforms and compilers know how to take apart
        if inplace_backward:
            raise ValueError(
                "inplace_backward=True works for a plain backward pass to the logits only; "
                "torch.func, forward-mode AD, compilation and gradients of targets, scales or "
                "weights need the logits intact"
            )
        values = reference.row_statistics(problem)[0].unbind(0)
    else:
        module = MODULES[plan.engine]
        if isinstance(problem.logits, LinearLogits):
            *values, complete = linear.measure_fields(problem, module)
        else:
            *values, complete = differentiable_fields(
                problem.logits, problem, module, inplace_backward
            )
    return RowStatistics.from_fields(
        values,
        problem.fields,
        problem.target.soft,
        problem.target.first_class,
        constant_masses=not by_operations,
        label=problem.target.labels(),
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
    if not ahead or problem.target.soft or problem.target.sharded or x.numel() == 0:
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


def by_chunks(problem: Problem) -> bool:
    """Whether logits behind a head may come by chunks, or all must be there at once."""
    return not linear.needs_all(problem.beside())


def with_all_logits(problem: Problem) -> Problem:
    """The same problem with the logits behind a head as a tensor."""
    assert isinstance(problem.logits, LinearLogits)
    return problem._replace(logits=linear.all_logits(problem.logits))


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
        or input.dtype not in native.TYPES
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
        or not native.fast
    ):
        return None
    mean = reduction == "mean"
    if input.requires_grad and torch.is_grad_enabled():
        return apply_plain(input, target, ignore_index, mean)
    return native.plain_loss(input, target, ignore_index, mean)[0]
