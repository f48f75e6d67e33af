"""The engines with kernels as torch operators, so that compilers see one opaque call each way.

`torch.compile(fullgraph=True)` and `torch.export` put these into their graphs. Eager code does not
come here: an operator registered from Python costs three times a plain autograd.Function.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...logits import LogitTransform
from ...targets import Target
from . import native, triton
from .problem import Problem

REQUEST_SEPARATOR = ","
_MODULES = {"native": native, "triton": triton}
TENSORS = 8  # how many Problem.tensors() has; the operators take them first


def table_op(problem: Problem, engine: str, inplace_backward: bool) -> Tensor:
    """The table of statistics through the operator; differentiable."""
    if inplace_backward:
        raise ValueError(
            "inplace_backward=True cannot be compiled; leave the memory to the compiler"
        )
    return row_statistics(*_flatten(problem), engine)


def _flatten(p: Problem) -> tuple:
    t = p.target
    return (
        *p.tensors(),
        t.soft, t.ignore_index, t.first_class, t.sharded,
        p.transform.softcap, REQUEST_SEPARATOR.join(p.requests),
    )  # fmt: skip


def _problem(
    tensors: tuple[Tensor | None, ...],
    soft: bool,
    ignore_index: int,
    first_class: int,
    sharded: bool,
    softcap: float,
    requests: str,
) -> Problem:
    logits, target, scale, bias, weight, class_scale, mean_weight, table = tensors
    assert logits is not None
    assert target is not None
    return Problem(
        logits,
        Target(target, soft, ignore_index, first_class, sharded, table),
        LogitTransform(scale, softcap, bias, class_scale),
        weight,
        tuple(r for r in requests.split(REQUEST_SEPARATOR) if r),
        mean_weight,
    )


@torch.library.custom_op("xent::row_statistics", mutates_args=())
def row_statistics(
    logits: Tensor,
    target: Tensor,
    scale: Tensor | None,
    class_bias: Tensor | None,
    class_weight: Tensor | None,
    class_scale: Tensor | None,
    mean_weight: Tensor | None,
    table: Tensor | None,
    soft: bool,
    ignore_index: int,
    first_class: int,
    sharded: bool,
    softcap: float,
    requests: str,
    engine: str,
) -> Tensor:
    """The table of statistics, (fields, N...) in float64."""
    tensors = (logits, target, scale, class_bias, class_weight, class_scale, mean_weight, table)
    problem = _problem(tensors, soft, ignore_index, first_class, sharded, softcap, requests)
    return _MODULES[engine].row_statistics(problem)[0]


@row_statistics.register_fake
def _(
    logits, target, scale, class_bias, class_weight, class_scale, mean_weight, table, *settings
) -> Tensor:
    tensors = (logits, target, scale, class_bias, class_weight, class_scale, mean_weight, table)
    *question, _ = settings
    shape = _problem(tensors, *question).table_shape
    return logits.new_empty(shape, dtype=torch.float64)


@torch.library.custom_op("xent::row_gradient", mutates_args=())
def row_gradient(
    statistics: Tensor,
    partials: Tensor,
    logits: Tensor,
    target: Tensor,
    scale: Tensor | None,
    class_bias: Tensor | None,
    class_weight: Tensor | None,
    class_scale: Tensor | None,
    mean_weight: Tensor | None,
    table: Tensor | None,
    soft: bool,
    ignore_index: int,
    first_class: int,
    sharded: bool,
    softcap: float,
    requests: str,
    engine: str,
) -> Tensor:
    """The gradient of the logits."""
    tensors = (logits, target, scale, class_bias, class_weight, class_scale, mean_weight, table)
    problem = _problem(tensors, soft, ignore_index, first_class, sharded, softcap, requests)
    return _MODULES[engine].row_gradient(problem, statistics, partials.unbind(0))


@row_gradient.register_fake
def _(statistics, partials, logits, *rest) -> Tensor:
    return torch.empty_like(logits)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:TENSORS], output)
    ctx.settings = inputs[TENSORS:]


def _backward(ctx, partials: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, table = ctx.saved_tensors
    gradient = row_gradient(table, partials, *tensors, *ctx.settings)
    return (gradient,) + (None,) * (TENSORS - 1 + len(ctx.settings))


row_statistics.register_autograd(_backward, setup_context=_setup_context)
