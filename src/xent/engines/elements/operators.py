"""The element-wise kernel as torch operators: for the sum, the values and the gradient.

Compilers put these operators into their graphs. The schemas are made of the tensor fields of
:class:`ElementProblem`.
"""

from __future__ import annotations

import math
from typing import Any, get_type_hints

import torch
from torch import Tensor

from . import MODULES
from .problem import TENSORS, ElementProblem, Form

_KINDS = list(get_type_hints(ElementProblem).items())[:TENSORS]
_TENSORS = ", ".join(f"Tensor{'' if kind is Tensor else '?'} {name}" for name, kind in _KINDS)
_SETTINGS = "float[] form, float ignored, bool bounded, ScalarType dtype, float smoothing"
_QUESTION = f"{_TENSORS}, {_SETTINGS}, str engine"


def total_op(problem: ElementProblem, engine: str) -> Tensor:
    """Return the sum over all elements, computed by the operator, 0-d, float64; differentiable."""
    return element_total(*_question(problem, engine))


def values_op(problem: ElementProblem, engine: str) -> Tensor:
    """Return one value per element, computed by the operator; differentiable."""
    return element_values(*_question(problem, engine))


def _question(p: ElementProblem, engine: str) -> tuple[Any, ...]:
    """Return a problem and its engine as arguments of an operator."""
    assert p.form is not None
    ignored = math.nan if p.ignore_value is None else float(p.ignore_value)
    form = [float(x) for x in p.form]
    return (*p.tensors, form, ignored, p.bounded, p.dtype, p.smoothing, engine)


def _read(given: tuple[Any, ...]) -> tuple[ElementProblem, Any]:
    """Return the problem and the engine from the arguments of an operator."""
    *tensors, form, ignored, bounded, dtype, smoothing, engine = given
    problem = ElementProblem(
        *tensors, body=_no_body, form=Form(*form),
        ignore_value=None if math.isnan(ignored) else ignored, bounded=bounded, dtype=dtype,
        smoothing=smoothing,
    )  # fmt: skip
    return problem, MODULES[engine]


def _no_body(*_: Tensor | None) -> Tensor:
    raise AssertionError("a compiled loss is computed by its kernel")


def _total(*given: Any) -> Tensor:
    """Return the sum over all elements, 0-d, float64."""
    problem, engine = _read(given)
    return engine.loss(problem._replace(dtype=torch.float64), 1.0, ahead=False)[0]


element_total = torch.library.custom_op(
    "xent::element_total", _total, mutates_args=(), schema=f"({_QUESTION}) -> Tensor"
)


@element_total.register_fake
def _(input: Tensor, *_rest: Any) -> Tensor:
    return input.new_empty((), dtype=torch.float64)


def _values(*given: Any) -> Tensor:
    """Return one value per element."""
    problem, engine = _read(given)
    return engine.values(problem)


element_values = torch.library.custom_op(
    "xent::element_values", _values, mutates_args=(), schema=f"({_QUESTION}) -> Tensor"
)


@element_values.register_fake
def _(*given: Any) -> Tensor:
    problem, _ = _read(given)
    return torch.empty_like(problem.input, dtype=problem.dtype)


def _gradient(upstream: Tensor, *given: Any) -> Tensor:
    """Return the gradient of the input for slopes ``upstream``, one number or one per element."""
    problem, engine = _read(given)
    return engine.gradient(problem, upstream, 1.0)


element_gradient = torch.library.custom_op(
    "xent::element_gradient",
    _gradient,
    mutates_args=(),
    schema=f"(Tensor upstream, {_QUESTION}) -> Tensor",
)


@element_gradient.register_fake
def _(upstream: Tensor, input: Tensor, *_rest: Any) -> Tensor:
    return torch.empty_like(input)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:TENSORS])
    ctx.settings = inputs[TENSORS:]


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    gradient = element_gradient(upstream, *ctx.saved_tensors, *ctx.settings)
    return (gradient,) + (None,) * (TENSORS - 1 + len(ctx.settings))


element_total.register_autograd(_backward, setup_context=_setup_context)
element_values.register_autograd(_backward, setup_context=_setup_context)
