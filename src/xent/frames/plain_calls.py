"""Reads the calls that most programs make, of tensors in plain memory, in few steps.

Every check here adds to the cost of a small batch, some 30 us in all. Calls that are not plain, or
are wrong, are read by :func:`xent.heads.problem.make_problem`, which has the error messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._check import INT64
from ..engines import core, triton
from ..engines.modes import PLAIN_TENSORS, deferred, in_cpu_memory, in_memory_of
from ..engines.rows.problem import Problem, Settings, Tensors
from ..heads import chunks, products
from ..heads.logits import LinearLogits
from .reduction import Reduce, refuse_signed_mean


def read_plain(
    given: tuple[Any, ...],
    reduction: tuple[Any, ...],
    requests: tuple[str, ...],
    weighted: bool,
    soft: bool,
) -> tuple[Problem, Reduce, str] | None:
    """The problem, the reduction and the engine of a plain call; None for any other.

    Args:
        given: logits, targets, class weights, ``ignore_index``, scale, softcap and class bias.
        reduction: ``reduction``, ``normalizer``, ``row_weight`` and ``empty``.
        requests: the statistics asked for.
        weighted: True if class weights are those of the mean logit, too.
        soft: True if probabilities may be targets.
    """
    input, target, weight, ignore_index, scale, softcap, bias = given
    how, normalizer, row_weight, empty = reduction
    if not (
        type(input) in PLAIN_TENSORS
        and input.ndim == 2
        and type(ignore_index) is int
        and ignore_index in INT64
        and _is_plain_reduction(how, normalizer, empty)
        and not deferred()
        and input.layout is torch.strided
        and input.is_contiguous()
    ):
        return None
    if in_cpu_memory(input):
        fast = input.dtype in core.fast and not torch.is_autocast_enabled("cpu")
        engine, is_there = "native" if fast else None, in_cpu_memory
    else:
        engine, is_there = _kernels_of_device(input)
    if engine is None:
        return None
    rows, classes = input.shape
    probabilities = _is_plain_target(target, input, soft and ignore_index < 0, is_there)
    if (
        probabilities is None
        or not (weight is None or _is_vector(weight, input.dtype, classes, is_there))
        or not (bias is None or _is_vector(bias, input.dtype, classes, is_there))
        or not (scale is None or (type(scale) is float and math.isfinite(scale)))
        or not (softcap is None or (type(softcap) is float and 1e-30 <= softcap < math.inf))
    ):
        return None
    if row_weight is not None:
        if not _are_row_weights(row_weight, rows, is_there):
            return None
        row_weight = row_weight.double()
        if how == "mean" and normalizer is None:
            refuse_signed_mean(row_weight)
    if scale is not None:
        scale = torch.full((), scale, dtype=torch.float64, device=input.device)
    mean_weight = weight if weighted and "mean" in requests else None
    tensors = Tensors(input, target, scale, bias, weight, None, mean_weight)
    settings = Settings(probabilities, ignore_index, 0, False, softcap or 0.0, requests)
    return Problem(tensors, settings), Reduce(how, normalizer, row_weight, empty), engine


IsThere = Callable[[Tensor], bool]


def _kernels_of_device(input: Tensor) -> tuple[str | None, IsThere]:
    """The engine whose kernels take logits of a device, or None; and what lies beside them."""
    device = input.device
    kind = device.type
    known = kind in triton.DEVICES and triton.INSTALLED and input.dtype in triton.TYPES
    if not known or not input.numel() or torch.is_autocast_enabled(kind):
        return None, in_cpu_memory

    def is_there(x: Tensor) -> bool:
        return x.device == device and in_memory_of(kind, x)

    return "triton" if is_there(input) else None, is_there


def positive(row_weight: Any) -> Tensor | None:
    """Row weights in float64; None unless all are above 0, because other code reads such calls."""
    plain = type(row_weight) is Tensor and row_weight.dtype in core.TYPES and row_weight.is_cpu
    if not plain or row_weight.requires_grad or deferred():
        return None
    return row_weight.double() if bool((row_weight > 0).all()) else None


def is_plain_memory(input: Any, target: Any, weight: Any, row_weight: Any) -> bool:
    """True for contiguous (N, C) logits and (N,) classes of the CPU, with such weights or none.

    Row weights are float64, as :func:`positive` gives them.
    """
    return (
        type(input) in PLAIN_TENSORS
        and type(target) is Tensor
        and target.dtype is torch.int64
        and input.dtype in core.fast
        and input.ndim == 2
        and target.shape == input.shape[:1]
        and target.is_cpu
        and input.layout is target.layout is torch.strided
        and input.is_contiguous()
        and target.is_contiguous()
        and not deferred()
        and in_cpu_memory(input)
        # Class weights of 16 bits must be widened for the kernels; this way does not do that.
        and (weight is None or input.itemsize > 2)
        and (weight is None or _is_vector(weight, input.dtype, input.shape[1]))
        and (row_weight is None or _is_vector(row_weight, torch.float64, input.shape[0]))
        and not torch.is_autocast_enabled("cpu")
    )


def is_plain_on_device(input: Any, target: Any, weight: Any, row_weight: Any) -> bool:
    """True for (N, C) logits and (N,) classes on a device with kernels, with such weights or none.

    Row weights may be of any floating type.
    """
    if not (
        type(input) in PLAIN_TENSORS
        and type(target) is Tensor
        and target.dtype is torch.int64
        and input.ndim == 2
        and target.shape == input.shape[:1]
        and not deferred()
    ):
        return False
    engine, is_there = _kernels_of_device(input)
    return (
        engine == "triton"
        and is_there(target)
        and (weight is None or _is_vector(weight, input.dtype, input.shape[1], is_there))
        and (row_weight is None or _are_row_weights(row_weight, len(input), is_there))
    )


def is_plain_head(
    input: LinearLogits, target: Any, weight: Any, row_weight: Any, ignore_index: int
) -> bool:
    """True for a head of plain memory whose rows fit into one chunk, with no row ignored."""
    input.unchanged()
    hidden, head, bias = input.hidden, input.weight, input.bias
    return (
        not deferred()  # asked first: lengths that are being traced must not be read
        and hidden.ndim == 2
        and input.dtype is hidden.dtype
        and input.dtype in core.fast
        and input.softcap is None
        and type(input.scale) is float
        and input.scale == 1.0
        and len(hidden) <= _rows_of_one_chunk(input)
        and len(hidden) * len(head) * hidden.itemsize <= input.max_workspace
        and type(target) is Tensor
        and target.dtype is torch.int64
        and target.shape == hidden.shape[:1]
        and target.layout is torch.strided
        and target.is_cpu
        and target.is_contiguous()
        and _is_plain_matrix(hidden)
        and _is_plain_matrix(head)
        and (bias is None or bias.dtype is hidden.dtype)
        and (bias is None or (type(bias) in PLAIN_TENSORS and in_cpu_memory(bias)))
        and (weight is None or hidden.itemsize > 2)
        and (weight is None or _is_vector(weight, hidden.dtype, len(head)))
        and (row_weight is None or _is_vector(row_weight, torch.float64, len(hidden)))
        and not torch.is_autocast_enabled("cpu")
        and bool((target != ignore_index).all())
    )


def _rows_of_one_chunk(input: LinearLogits) -> int:
    """The most rows of a chunk; 0 if the products, or the gradient of a mean, need another type."""
    if input.dtype in (torch.float32, torch.float64):
        return chunks.MAX_ROWS
    return chunks.most_rows(input) if products.type_of(input) == torch.bfloat16 else 0


def _is_plain_matrix(x: Tensor) -> bool:
    return type(x) in PLAIN_TENSORS and x.layout is torch.strided and in_cpu_memory(x)


def _is_plain_reduction(reduction: Any, normalizer: Any, empty: Any) -> bool:
    if empty != "nan" and empty != "zero":
        return False
    if normalizer is None:
        return reduction == "mean" or reduction == "sum" or reduction == "none"
    if type(normalizer) is float or type(normalizer) is int:
        return reduction == "mean" and math.isfinite(normalizer)
    return reduction == "mean" and (normalizer == "count" or normalizer == "weight")


def _is_plain_target(target: Any, input: Tensor, soft: bool, is_there: IsThere) -> bool | None:
    """True for probabilities, False for classes, None for what is no plain target."""
    if type(target) is not Tensor or target.layout is not torch.strided:
        return None
    if not target.is_contiguous() or not is_there(target):
        return None
    if target.dtype is torch.int64:
        return False if target.shape == input.shape[:1] else None
    if not soft or target.requires_grad or target.dtype is not input.dtype:
        return None
    return True if target.shape == input.shape and input.shape[1] else None


def _are_row_weights(x: Any, count: int, is_there: IsThere) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype in core.TYPES and _is_vector(x, dtype, count, is_there)


def _is_vector(
    x: Any, dtype: torch.dtype | None, count: int, is_there: IsThere = in_cpu_memory
) -> bool:
    return (
        type(x) is Tensor
        and x.layout is torch.strided
        and x.dtype is dtype
        and x.shape == (count,)
        and not x.requires_grad
        and x.is_contiguous()
        and is_there(x)
    )
