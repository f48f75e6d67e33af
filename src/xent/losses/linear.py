"""Cross-entropy behind a linear head, with the name and the arguments of PyTorch's function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._check import class_indices, is_tensor, one_of, whole_number
from ..engines.modes import is_dtensor
from ..frames.reduction import Reduction, mass_of_labels
from ..heads.layouts import ClassesOnAxis1
from ..heads.log_probs import LinearLogProbs
from ..heads.logits import LinearLogits, Products, check_head, under_autocast
from ..overrides import overridable
from ..targets import moved_labels
from .classification import cross_entropy


@overridable
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    shift: int = 0,
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
    z_loss: float = 0.0,
    logit_scale: float | Tensor | None = None,
    softcap: float | None = None,
    max_workspace: int | None = None,
    products: Products | None = None,
) -> Tensor:
    r"""Cross-entropy of ``input @ linear_weight.T + linear_bias``, never with all logits in memory.

    A drop-in for :func:`torch.nn.functional.linear_cross_entropy`. It computes a chunk of logits at
    a time, and their gradient at once. Any other loss of the family works the same way on
    :class:`xent.LinearLogits`.

    Use:
        For a vocabulary whose logits do not fit in memory; not when the logits themselves are
        needed.

    Args:
        input: features, ``(D,)``, ``(N, D)`` or ``(..., D)``.
        linear_weight: ``(C, D)``; or ``(C, d1, ..., D)`` with ``input`` ``(N, D)``: a head of its
            own for each of ``d1, ...``.
        target: class indices in the shape of the rows, ``()``, ``(N,)`` or ``(N, d1, ...)``; or
            probabilities with the classes on axis 1, or on the last one for ``(..., D)``.
        linear_bias: ``(C,)``, or ``(C, d1, ...)``.
        weight: class weights, ``(C,)``.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides as :func:`cross_entropy` does.
        ignore_index: class index that marks rows to leave out; -100 unless given.
        label_smoothing: how much of each target is spread evenly over the classes.
        options: PyTorch's :class:`torch.nn.LinearCrossEntropyOptions`; accepted without effect:
            all logits are never in memory, and ``products`` says how exact they are.
        shift: how many places the targets are ahead: row ``t`` of ``(..., T, D)`` predicts target
            ``t + shift`` (1 in a causal model whose targets are its own input). Labels and
            ``row_weight``, which are ``(..., T)``, are moved rather than features. Instead, rows of
            several documents take :func:`xent.shift_labels` with ``documents``.
        normalizer: what ``"mean"`` divides by instead, as for :func:`cross_entropy`.
        row_weight: one number per row.
        z_loss: factor of the squared log-sum-exp.
        logit_scale: factor on the logits, a number or one per row.
        softcap: cap on the logits.
        max_workspace: bytes that a chunk of logits may take, as for :class:`xent.LinearLogits`.
        products: the type of the products with a weight of 16 bits, ``"float32"`` or ``"input"``,
            as for :class:`xent.LinearLogits`, which says what is taken unless given.

    Returns:
        In nats; a scalar, or the shape of the rows, with ``shift`` ``(..., T - shift)``; in the
        dtype of ``input``.

    Raises:
        ValueError: for shapes that do not fit, or a class index out of range.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> hidden = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]])
        >>> round(xent.linear_cross_entropy(hidden, weight, torch.tensor([0, 1])).item(), 4)
        0.5059

    References:
        Wijmans et al., *Cut your losses in large-vocabulary language models*, ICLR 2025.
    """
    for name, tensor in (("input", input), ("linear_weight", linear_weight), ("target", target)):
        if not is_dtensor(tensor):
            is_tensor(name, tensor)
    ignore_index = -100 if ignore_index is None else whole_number("ignore_index", ignore_index)
    shift = whole_number("shift", shift)
    if not (target.is_floating_point() or is_dtensor(target)):
        target = class_indices("target", target)
    if shift:
        target, row_weight = _ahead(linear_weight, target, row_weight, shift, ignore_index)
    common: dict[str, Any] = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "logit_scale": logit_scale,
        "softcap": softcap,
    }
    of_head: dict[str, Any] = {"max_workspace": max_workspace, "products": products}
    if linear_weight.ndim <= 2:
        hidden, head, bias = under_autocast(input, linear_weight, linear_bias)
        check_head(hidden, head, bias, ("input", "linear_weight", "linear_bias"))
        logits = LinearLogits(input, linear_weight, linear_bias, **of_head)
        result = cross_entropy(
            logits, target, weight, reduction=reduction, normalizer=normalizer,
            row_weight=row_weight, **common,
        )  # fmt: skip
        return result[..., :-shift] if shift and reduction == "none" else result
    heads = _heads(input, linear_weight, linear_bias, target, of_head)
    if row_weight is not None or normalizer is not None or isinstance(logit_scale, Tensor):
        raise ValueError(
            "with a weight (C, d1, ..., D) leave out `row_weight`, `normalizer` and a tensor for "
            "`logit_scale`; use reduction='none' and weigh the result"
        )
    one_of("reduction", reduction, ("none", "mean", "sum"))
    if reduction == "mean":
        rows, soft = len(heads) * len(input), target.is_floating_point()
        common["normalizer"] = rows if soft else _mass(target, weight, ignore_index)
    values: list[Any] = [
        cross_entropy(*head, weight, reduction=reduction, **common) for head in heads
    ]
    if reduction == "none":
        return torch.stack(values, -1).view(input.shape[0], *linear_weight.shape[1:-1])
    return torch.stack(values).double().sum().to(values[0].dtype)


def _mass(target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """Return the divisor of the mean over the rows of all heads."""
    return mass_of_labels(target, ignore_index, weight)[1].sum()


def _ahead(
    weight: Tensor, target: Tensor, row_weight: Tensor | None, shift: int, ignore_index: int
) -> tuple[Tensor, Tensor | None]:
    """Labels and row weights, moved to the rows that predict these labels."""
    if target.is_floating_point() or weight.ndim > 2:
        raise ValueError(
            "`shift` moves class indices of one head; soft targets and heads (C, d1, ..., D) "
            "take targets that are moved already"
        )
    target = moved_labels(("target", target), ("shift", shift), ignore_index)
    if row_weight is not None:
        row_weight = torch.nn.functional.pad(row_weight[..., shift:], (0, shift))
    return target, row_weight


def _heads(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, options: dict[str, Any]
) -> list[tuple[Any, Tensor]]:
    """Logits and targets of each head of a weight (C, d1, ..., D): (N, C) and (N,) or (N, C)."""
    inner = weight.shape[1:-1]
    if input.ndim != 2:
        raise ValueError(
            f"with a weight (C, d1, ..., D) `input` must be (N, D), got shape {tuple(input.shape)}"
        )
    soft = target.shape == (input.shape[0], weight.shape[0], *inner)
    if not soft and target.shape != (input.shape[0], *inner):
        raise ValueError(
            f"`target` must have shape {(input.shape[0], *inner)} to hold one class index for each "
            f"row and head, got {tuple(target.shape)}"
        )
    weights = weight.flatten(1, -2).unbind(1)
    biases = [None] * len(weights) if bias is None else bias.flatten(1).unbind(1)
    targets = target.flatten(2).unbind(2) if soft else target.flatten(1).unbind(1)
    return [
        (LinearLogits(input, w, b, **options), t)
        for w, b, t in zip(weights, biases, targets, strict=True)
    ]


def _of_torch(input: LinearLogits, target: Tensor, *arguments: Any, **options: Any) -> Any:
    """Answer PyTorch's function for LinearLogits; PyTorch has the classes on axis 1."""
    if input.ndim > 2:
        return NotImplemented
    return cross_entropy(input, target, *arguments, **options)


LinearLogits.lean[torch.nn.functional.cross_entropy] = _of_torch


def _nll_of_log_probs(
    input: LinearLogProbs, target: Tensor, *arguments: Any, **options: Any
) -> Any:
    """Answer PyTorch's function for log-probabilities by the cross-entropy of their logits."""
    if input.ndim > 2 or input.sign < 0:
        return NotImplemented
    return _of_torch(input.logits, target, *arguments, **options)


def _of_classes_on_axis_1(name: str) -> Callable[..., Any]:
    """The answer to a loss of PyTorch for logits whose classes were moved to axis 1."""

    def answer(input: ClassesOnAxis1, target: Tensor, *arguments: Any, **options: Any) -> Any:
        inner = input.logits
        if name == "nll_loss" and isinstance(inner, LinearLogProbs) and inner.sign > 0:
            inner = inner.logits
        if isinstance(inner, LinearLogits):
            return cross_entropy(inner, input.classes_last(target), *arguments, **options)
        return NotImplemented

    return answer


for _name in ("cross_entropy", "nll_loss"):
    ClassesOnAxis1.lean[getattr(torch.nn.functional, _name)] = _of_classes_on_axis_1(_name)

LinearLogProbs.lean[torch.nn.functional.nll_loss] = _nll_of_log_probs
