"""Statistics of rows, for logits in a tensor and for logits behind a linear head."""

from __future__ import annotations

from ..engines import rows
from ..engines.choice import Explanation, kernels_for, where_kernels_run, why_reference
from ..engines.modes import compiling, plain_operations
from ..engines.rows.problem import Problem
from ..row_statistics import RowStatistics
from . import chunks, gradients, products
from .problem import HeadProblem


def choose(problem: Problem, engine: str = "auto") -> Explanation:
    """Decide which engine computes a problem; raise if a named engine cannot."""
    if not isinstance(problem, HeadProblem):
        return rows.choose(problem, engine)
    source, kernels = problem.source, kernels_for(problem.device, engine)
    tensors = (*source.parts, *problem.others)
    reason = why_reference(
        engine, kernels, problem.dtype, lambda: rows.obstacle_of(problem, tensors, kernels)
    )
    gradient, how = how_logits_come(problem)
    if reason is not None:
        return Explanation("reference", reason, gradient, how)
    where = where_kernels_run(kernels, problem.device, problem.dtype)
    return Explanation(kernels, where, gradient, how)


def taken(problem: Problem, engine: str = "auto") -> str:
    """Return the engine that :func:`choose` decides for; without a head it makes no words."""
    if isinstance(problem, HeadProblem):
        return choose(problem, engine).engine
    return rows.taken(problem, engine)


def how_logits_come(problem: HeadProblem) -> tuple[str, str]:
    """Tell how the gradient behind a head is found, and the type of its products, in words."""
    if comes_by_chunks(problem):
        return chunks.describe(problem.source), products.describe(problem.source)
    return "autograd, all logits at once", ""


def measure(
    problem: Problem, engine: str = "auto", inplace_backward: bool = False
) -> RowStatistics:
    """The row statistics of a problem, differentiable with respect to its tensors."""
    if not isinstance(problem, HeadProblem):
        return rows.measure(problem, engine, inplace_backward)
    if _is_compiled(problem, engine):
        from .operators import table_op  # registers the operators; only compilers need them

        table = table_op(problem, choose(problem, engine).engine, inplace_backward)
        return rows.named(problem, table.unbind(0))
    if not comes_by_chunks(problem):
        return rows.measure(with_all_logits(problem), engine, inplace_backward)
    module = rows.MODULES[choose(problem, engine).engine]
    *values, complete = gradients.measure_fields(problem, module)
    return rows.named(problem, values, complete)


def _is_compiled(problem: HeadProblem, engine: str) -> bool:
    """True if a compiler is to see an operator that computes the statistics by chunks."""
    if not compiling() or plain_operations() or problem.differentiable_beyond_logits():
        return False
    return choose(problem, engine).engine != "reference"


def comes_by_chunks(problem: Problem) -> bool:
    """True if logits behind a head may come by chunks, False if all must be there at once."""
    return not gradients.needs_all(problem.others)


def with_all_logits(problem: Problem) -> Problem:
    """Return the problem with its logits as a tensor, also if they lie behind a head."""
    if not isinstance(problem, HeadProblem):
        return problem
    return problem.with_logits(gradients.all_logits(problem.source))
