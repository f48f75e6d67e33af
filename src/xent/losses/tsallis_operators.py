"""The searches of :mod:`xent.losses.tsallis` as torch operators, which compilers do not look into.

The length of a search depends on its numbers, which no graph can hold. And derivatives in closed
form keep digits that derivatives of the single steps would lose. This module is imported by
compiled code only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import tsallis


@torch.library.custom_op("xent::log_softmax_t", mutates_args=())
def log_softmax_t(z: Tensor, t: float) -> Tensor:
    """``z - lambda`` along the last axis."""
    return tsallis.shifted(z, t)


@log_softmax_t.register_fake
def _(z: Tensor, t: float) -> Tensor:
    return torch.empty_like(z)


def _keep_result(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.t = inputs[1]
    ctx.save_for_backward(output)


def _log_softmax_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    return tsallis.shifted_gradient(x, ctx.t, grad), None


log_softmax_t.register_autograd(_log_softmax_gradient, setup_context=_keep_result)


@torch.library.custom_op("xent::divergence_at_target", mutates_args=())
def divergence_at_target(q: Tensor, log_p: Tensor, y: Tensor, beta: float) -> Tensor:
    """The divergence of each class with a target ``q`` above 0."""
    return tsallis.divergence_at_target(q, log_p, y, beta)


@divergence_at_target.register_fake
def _(q: Tensor, log_p: Tensor, y: Tensor, beta: float) -> Tensor:
    return torch.empty_like(y)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.beta = inputs
    ctx.save_for_backward(*tensors)


def _divergence_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
    q, log_p, y = ctx.saved_tensors
    by_q = tsallis.by_target(q, log_p, y, ctx.beta) if ctx.needs_input_grad[0] else None
    by_log_p = grad * tsallis.by_log_p(q, log_p, y, ctx.beta)
    return None if by_q is None else grad * by_q, by_log_p, None, None


divergence_at_target.register_autograd(_divergence_gradient, setup_context=_keep_inputs)
