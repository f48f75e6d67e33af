"""Losses of single elements: the choice of an engine, and derivatives.

Such a loss is a function of one logit and its target, in [0, 1], for every element of a tensor. The
``body`` of the loss, plain operations in float64, is the specification; its ``form`` tells the
kernels how to compute the same. Other rooms call ``loss`` and ``values``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import core
from ..choice import KERNELS, Explanation, kernels_for, where_kernels_run, why_reference
from ..contract import ElementEngine
from ..modes import PLAIN_TENSORS, compiling, deferred, in_cpu_memory, only_differentiable
from . import native, reference, triton
from .problem import TENSORS, ElementProblem, Form
from .reference import check_targets

MODULES: dict[str, ElementEngine] = {
    "native": native, "triton": triton, "reference": reference,
}  # fmt: skip


def choose(problem: ElementProblem, engine: str) -> Explanation:
    """Decide which engine computes a problem; raise if a named engine cannot."""
    kernels = kernels_for(problem.input.device, engine)
    reason = why_reference(
        engine, kernels, _arithmetic(problem), lambda: _obstacle(problem, kernels)
    )
    if reason is not None:
        return Explanation("reference", reason, _REFERENCE_GRADIENT)
    reason = where_kernels_run(kernels, problem.input.device, problem.input.dtype)
    return Explanation(kernels, reason, "in the same sweep as the loss, where that is one number")


def _arithmetic(problem: ElementProblem) -> torch.dtype:
    """The type that the native kernels may compute in: float64 for most modulators."""
    types = problem.input.dtype, problem.target.dtype
    return types[0] if problem.form == Form() and torch.float64 not in types else torch.float64


def _obstacle(problem: ElementProblem, kernels: str) -> str | None:
    """Return why the kernel of an engine cannot take a problem, or None if it can."""
    there = KERNELS[kernels]
    foreign = there.obstacle_of(problem.tensors)
    if foreign is not None:
        return foreign
    if problem.form is None:
        return "this loss has no kernel"
    for tensor in problem.tensors:
        if tensor is not None and tensor.dtype not in there.TYPES:
            return f"a tensor of {tensor.dtype}"
    if problem.differentiable_beyond_input():
        return "a target or weight requires a gradient, which only the reference gives"
    return None


_REFERENCE_GRADIENT = "autograd on plain tensor operations, piece by piece"


def loss(problem: ElementProblem, divisor: float | Tensor, engine: str) -> Tensor:
    """Return the sum over all elements by ``divisor``, 0-d, differentiable."""
    taken = _engine(problem, engine)
    if taken is None or (isinstance(divisor, Tensor) and _tracked(divisor)):
        return reference.plain_loss(problem, divisor)
    if compiling():
        from .operators import total_op  # registers the operators; only compilers need them

        return (total_op(problem, taken) / divisor).to(problem.dtype)
    if not isinstance(divisor, Tensor) or divisor.is_cpu:
        divisor = float(divisor)
    return reduce(problem, MODULES[taken], divisor)


def values(problem: ElementProblem, engine: str) -> Tensor:
    """Return one value per element, differentiable."""
    taken = _engine(problem, engine)
    if taken is None:
        return reference.plain_values(problem).to(problem.dtype)
    if compiling():
        from .operators import values_op

        return values_op(problem, taken)
    return map_values(problem, MODULES[taken])


def map_values(problem: ElementProblem, module: ElementEngine) -> Tensor:
    """Return one value per element from an engine, differentiable with respect to the input."""
    if not _tracked(problem.input):
        return module.values(problem)
    result = _apply_values(problem.input, (problem, module))
    return result


def reduce(problem: ElementProblem, module: ElementEngine, divisor: float | Tensor) -> Tensor:
    """Return the sum by ``divisor`` from an engine, differentiable with respect to the input."""
    if not _tracked(problem.input):
        return module.loss(problem, divisor, False)[0]
    result = _apply_reduction(problem.input, (problem, module, divisor))
    return result


def plain(
    input: Any,
    target: Any,
    weight: Any,
    pos_weight: Any,
    reduction: str,
    body: Callable[..., Tensor],
    form: Form,
) -> Tensor | None:
    """Return the result of a plain call in the fewest steps, or None if the call is not plain.

    A call is plain if logits, targets and weights have one dtype and are on the CPU, and no weight
    is 0. For small batches every check here takes a noticeable part of the time.
    """
    if (
        type(input) not in PLAIN_TENSORS
        or type(target) is not Tensor
        or input.dtype not in core.fast
        or target.dtype is not input.dtype
        or input.shape != target.shape
        or target.requires_grad
        or reduction not in ("mean", "sum", "none")
        or deferred()
        or not (in_cpu_memory(input) and in_cpu_memory(target))
        or not (weight is None or _is_plain_weight(weight, input))
        or not (pos_weight is None or _is_plain_weight(pos_weight, input))
        or torch.is_autocast_enabled("cpu")
        or (form != Form() and torch.float64 not in core.fast)
    ):
        return None
    problem = ElementProblem(input, target, weight, pos_weight, body, form, None, True, input.dtype)
    if reduction == "none":
        return map_values(problem, native)
    return reduce(problem, native, float(input.numel()) if reduction == "mean" else 1.0)


def _is_plain_weight(x: Any, input: Tensor) -> bool:
    """Return True for a tensor in CPU memory without zeros that broadcasts along the first axes."""
    return (
        type(x) is Tensor
        and x.dtype is input.dtype
        and x.ndim <= input.ndim
        and x.shape == input.shape[input.ndim - x.ndim :]
        and not x.requires_grad
        and in_cpu_memory(x)
        and bool((x != 0).all())
    )


def _engine(problem: ElementProblem, engine: str) -> str | None:
    """Return the engine that computes a problem; None if plain operations must compute it."""
    taken = choose(problem, engine).engine
    if taken != "reference":
        return taken
    if deferred() or problem.differentiable_beyond_input() or reference.is_small(problem):
        check_targets(problem)
        return None
    return taken


def _tracked(tensor: Tensor) -> bool:
    return tensor.requires_grad and torch.is_grad_enabled()


class ElementReduction(torch.autograd.Function):
    """The sum of all values by a divisor.

    A loss that is one number is nearly always differentiated with slope 1. So the gradient is
    computed ahead, in the sweep of the forward pass, which reads and writes three fifths of what
    two sweeps would. For any other slope, and for a second backward pass, there is a second sweep.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, question: tuple[ElementProblem, ElementEngine, float | Tensor]
    ) -> Tensor:
        """Return the loss, 0-d. The question is one argument, because each argument takes time."""
        problem, ctx.module, ctx.divisor = question
        loss, ctx.gradient = ctx.module.loss(problem, ctx.divisor, True)
        ctx.save_for_backward(*problem.tensors)
        ctx.settings = problem[TENSORS:]
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the input."""
        (grad,) = grads
        # The context keeps no reference, so that the leaf may take the memory as its own.
        ahead, ctx.gradient = ctx.gradient, None
        differentiable = only_differentiable(grad)
        if ahead is not None and not differentiable and ctx.module.fits(grad):
            return ahead, None
        problem = ElementProblem(*ctx.saved_tensors, *ctx.settings)
        ahead = core.still_fitting(ahead, problem.input)
        if differentiable:
            plain = lambda: reference.plain_loss(problem, ctx.divisor)  # noqa: E731
            return _plain_gradient(plain, problem.input, grad), None
        return ctx.module.gradient(problem, grad, ctx.divisor, ahead), None


class ElementValues(torch.autograd.Function):
    """Values of a loss, one per element; the gradient is computed when the slopes are known."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, question: tuple[ElementProblem, ElementEngine]) -> Tensor:
        """Return the values."""
        problem, ctx.module = question
        ctx.save_for_backward(*problem.tensors)
        ctx.settings = problem[TENSORS:]
        return ctx.module.values(problem)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the input."""
        (grad,) = grads
        problem = ElementProblem(*ctx.saved_tensors, *ctx.settings)
        if only_differentiable(grad):
            plain = lambda: reference.plain_values(problem).to(problem.dtype)  # noqa: E731
            return _plain_gradient(plain, problem.input, grad), None
        return ctx.module.gradient(problem, grad, 1.0), None


# torch.autograd.Function.apply without its check for torch.func, which has been done: saves 2.5 us.
_apply_reduction = super(torch.autograd.Function, ElementReduction).apply  # pyright: ignore
_apply_values = super(torch.autograd.Function, ElementValues).apply  # pyright: ignore


def _plain_gradient(function: Callable[[], Tensor], input: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of plain operations; it can be differentiated again."""
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        result = function()
    (gradient,) = torch.autograd.grad(result, input, grad, create_graph=record)
    return gradient
