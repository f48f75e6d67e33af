"""The element-wise kernel as torch operators, so that compilers see one opaque call each way."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import native, triton
from .problem import TENSORS, ElementProblem, Form

_MODULES = {"native": native, "triton": triton}


def total_op(problem: ElementProblem, engine: str) -> Tensor:
    """The sum over all elements through the operator, 0-d, float64; differentiable."""
    return element_total(*_flatten(problem), engine)


def values_op(problem: ElementProblem, engine: str) -> Tensor:
    """One value per element through the operator; differentiable."""
    return element_values(*_flatten(problem), engine)


def _flatten(p: ElementProblem) -> tuple:
    assert p.form is not None
    ignored = math.nan if p.ignore_value is None else float(p.ignore_value)
    return (*p.tensors, [float(x) for x in p.form], ignored, p.bounded, p.dtype)


def _problem(
    tensors: tuple[Tensor | None, ...],
    form: list[float],
    ignored: float,
    bounded: bool,
    dtype: torch.dtype,
) -> ElementProblem:
    input, target, weight, pos_weight = tensors
    assert input is not None
    assert target is not None
    return ElementProblem(
        input, target, weight, pos_weight, _no_body, Form(*form),
        None if math.isnan(ignored) else ignored, bounded, dtype,
    )  # fmt: skip


def _no_body(*_: Tensor | None) -> Tensor:
    raise AssertionError("a compiled loss is computed by its kernel")


@torch.library.custom_op("xent::element_total", mutates_args=())
def element_total(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    form: list[float],
    ignored: float,
    bounded: bool,
    dtype: torch.dtype,
    engine: str,
) -> Tensor:
    """The sum over all elements, 0-d, float64."""
    problem = _problem((input, target, weight, pos_weight), form, ignored, bounded, dtype)
    return _MODULES[engine].loss(problem._replace(dtype=torch.float64), 1.0, ahead=False)[0]


@element_total.register_fake
def _(input, *_rest) -> Tensor:
    return input.new_empty((), dtype=torch.float64)


@torch.library.custom_op("xent::element_values", mutates_args=())
def element_values(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    form: list[float],
    ignored: float,
    bounded: bool,
    dtype: torch.dtype,
    engine: str,
) -> Tensor:
    """One value per element."""
    problem = _problem((input, target, weight, pos_weight), form, ignored, bounded, dtype)
    return _MODULES[engine].values(problem)


@element_values.register_fake
def _(input, target, weight, pos_weight, form, ignored, bounded, dtype, engine):
    return torch.empty_like(input, dtype=dtype)


@torch.library.custom_op("xent::element_gradient", mutates_args=())
def element_gradient(
    upstream: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    form: list[float],
    ignored: float,
    bounded: bool,
    dtype: torch.dtype,
    engine: str,
) -> Tensor:
    """The gradient of the input for slopes ``upstream``, one number or one per element."""
    problem = _problem((input, target, weight, pos_weight), form, ignored, bounded, dtype)
    return _MODULES[engine].gradient(problem, upstream, 1.0)


@element_gradient.register_fake
def _(upstream, input, *_rest) -> Tensor:
    return torch.empty_like(input)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:TENSORS])
    ctx.settings = inputs[TENSORS:]


def _backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
    gradient = element_gradient(upstream, *ctx.saved_tensors, *ctx.settings)
    return (gradient,) + (None,) * (TENSORS - 1 + len(ctx.settings))


element_total.register_autograd(_backward, setup_context=_setup_context)
element_values.register_autograd(_backward, setup_context=_setup_context)
