"""The kernels of dense losses as torch operators: for the sum, the values and the gradients.

Compilers put these operators into their graphs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import MODULES
from .problem import SIDES, TENSORS, DenseProblem, Form

_QUESTION = (
    "Tensor logits, Tensor? teacher, Tensor? target, Tensor? row_weight, str kind, "
    "float[] numbers, float scale, SymInt ignore_index, ScalarType dtype, str engine"
)


def total_op(problem: DenseProblem, engine: str) -> Tensor:
    """Return the sum over all rows, computed by the operator, 0-d, float64; differentiable."""
    return dense_total(*_question(problem, engine))


def values_op(problem: DenseProblem, engine: str) -> Tensor:
    """Return the value of each row, computed by the operator; differentiable."""
    return dense_values(*_question(problem, engine))


def _question(p: DenseProblem, engine: str) -> tuple[Any, ...]:
    """Return a problem and its engine as arguments of an operator."""
    assert p.form is not None
    kind, numbers = p.form
    numbers = [float(x) for x in numbers]
    return (*p.tensors, kind, numbers, float(p.scale), p.ignore_index, p.dtype, engine)


def _read(given: tuple[Any, ...]) -> tuple[DenseProblem, Any]:
    """Return the problem and the engine from the arguments of an operator."""
    logits, teacher, target, row_weight, kind, numbers, scale, ignore_index, dtype, engine = given
    form = Form(kind, tuple(numbers))
    problem = DenseProblem(
        logits, teacher, target, row_weight, _no_body, form, scale, ignore_index, dtype
    )
    return problem, MODULES[engine]


def _no_body(*_: Tensor | None) -> Tensor:
    raise AssertionError("a compiled loss is computed by its kernel")


def _total(*given: Any) -> Tensor:
    """Return the sum over all rows, 0-d, float64."""
    problem, engine = _read(given)
    return engine.total(problem._replace(dtype=torch.float64), None, (False,) * SIDES)[0]


dense_total = torch.library.custom_op(
    "xent::dense_total", _total, mutates_args=(), schema=f"({_QUESTION}) -> Tensor"
)


@dense_total.register_fake
def _(logits: Tensor, *_rest: Any) -> Tensor:
    return logits.new_empty((), dtype=torch.float64)


def _values(*given: Any) -> Tensor:
    """Return the value of each row."""
    problem, engine = _read(given)
    return engine.values(problem)


dense_values = torch.library.custom_op(
    "xent::dense_values", _values, mutates_args=(), schema=f"({_QUESTION}) -> Tensor"
)


@dense_values.register_fake
def _(*given: Any) -> Tensor:
    problem, _ = _read(given)
    return problem.logits.new_empty(problem.rows, dtype=problem.dtype)


def _gradients(upstream: Tensor, needed: list[bool], *given: Any) -> list[Tensor]:
    """Return the gradients that are needed, for slopes ``upstream``, one number or one per row."""
    problem, engine = _read(given)
    found = engine.gradients(problem, upstream, None, needed)
    return [x for x in found if x is not None]


dense_gradients = torch.library.custom_op(
    "xent::dense_gradients",
    _gradients,
    mutates_args=(),
    schema=f"(Tensor upstream, bool[] needed, {_QUESTION}) -> Tensor[]",
)


@dense_gradients.register_fake
def _(upstream: Tensor, needed: list[bool], *given: Any) -> list[Tensor]:
    problem, _ = _read(given)
    return [torch.empty_like(x) for x, n in zip(problem.sides, needed, strict=True) if n]  # pyright: ignore


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:TENSORS])
    ctx.settings = inputs[TENSORS:]


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[:SIDES])
    found = iter(dense_gradients(upstream, needed, *ctx.saved_tensors, *ctx.settings))
    sides = tuple(next(found) if n else None for n in needed)
    return sides + (None,) * (TENSORS - SIDES + len(ctx.settings))


dense_total.register_autograd(_backward, setup_context=_setup_context)
dense_values.register_autograd(_backward, setup_context=_setup_context)
