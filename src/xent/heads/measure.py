"""Statistics of rows that may lie behind a linear head: the front door for both."""

from __future__ import annotations

from ..engines import rows
from ..engines.choice import Explanation, kernels_for, where_kernels_run, why_reference
from ..engines.rows.problem import Problem
from ..row_statistics import RowStatistics
from . import chunks, gradients
from .logits import LinearLogits


def choose(problem: Problem, engine: str = "auto") -> Explanation:
    """Decide which engine computes a problem; raise if a named engine cannot."""
    source = problem.logits
    if not isinstance(source, LinearLogits):
        return rows.choose(problem, engine)
    kernels = kernels_for(source.device, engine)
    tensors = (*source.parts, *problem.beside())
    reason = why_reference(engine, kernels, lambda: rows.obstacle_of(problem, tensors, kernels))
    gradient = "autograd, all logits at once"
    if by_chunks(problem):
        gradient = chunks.describe(source)
    if reason is not None:
        return Explanation("reference", reason, gradient)
    return Explanation(kernels, where_kernels_run(kernels, problem.logits), gradient)


def measure(
    problem: Problem, engine: str = "auto", inplace_backward: bool = False
) -> RowStatistics:
    """The row statistics of a problem, differentiable with respect to its tensors."""
    if not isinstance(problem.logits, LinearLogits):
        return rows.measure(problem, engine, inplace_backward)
    if not by_chunks(problem):
        return rows.measure(with_all_logits(problem), engine, inplace_backward)
    module = rows.MODULES[choose(problem, engine).engine]
    *values, complete = gradients.measure_fields(problem, module)
    return rows.named(problem, values, complete)


def by_chunks(problem: Problem) -> bool:
    """Whether logits behind a head may come by chunks, or all must be there at once."""
    return not gradients.needs_all(problem.beside())


def with_all_logits(problem: Problem) -> Problem:
    """The same problem with the logits behind a head as a tensor."""
    assert isinstance(problem.logits, LinearLogits)
    return problem._replace(logits=gradients.all_logits(problem.logits))
