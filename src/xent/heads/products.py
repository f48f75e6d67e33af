"""The type in which the matrices of a linear head are multiplied: that of its tensors, or float32.

Logits of 16 bits are rounded, and a processor without instructions for such products takes a
hundred times as long for them as for float32. So float32 is the rule on CPUs. Where the processor
multiplies 16 bits in hardware, five times as fast, a loss that is summed over the rows takes that:
of the rounding of single logits little is left in a sum. Numbers of single rows keep float32, and
so do sums that compare the logits of two predictions.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..engines import core
from ..engines.modes import on_accelerator
from .logits import LinearLogits

NARROW = (torch.bfloat16, torch.float16)
# Limits that a user can set for the library of the products, and that rule out 16 bits.
_BEFORE_BFLOAT16 = (
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
)  # fmt: skip
_TOO_LOW = {
    torch.bfloat16: _BEFORE_BFLOAT16,
    torch.float16: (*_BEFORE_BFLOAT16, "AVX512_CORE_BF16"),
}


def type_of(source: LinearLogits) -> torch.dtype:
    """The type of the products of a head."""
    own = source.weight.dtype
    if own not in NARROW:
        return own
    unless_named = "input" if on_accelerator(source) else "float32"
    return own if (source.products or unless_named) == "input" else torch.float32


def for_sum(source: LinearLogits) -> LinearLogits:
    """The head of a loss that is summed: with products in 16 bits where the processor has them."""
    if source.weight.dtype not in NARROW or source.products is not None:
        return source
    return source if why_float32(source) is not None else source._with(products="input")


def for_comparison(source: LinearLogits) -> LinearLogits:
    """The head of a loss that compares two predictions: on CPUs with products in float32.

    Of two that are nearly the same the rounding of 16 bits would leave no correct digit.
    """
    return source._with(products="float32") if type_of(source) is torch.float32 else source


def why_float32(source: LinearLogits) -> str | None:
    """Return why sums over the rows of a head take no products in 16 bits; None if they do."""
    own = source.weight.dtype
    if own not in NARROW or on_accelerator(source):
        return f"the weight is {own} on {source.device.type}"
    if own is torch.float16 and source.requires_grad and torch.is_grad_enabled():
        return "small gradients in float16 need the scale of the loss, which is not known yet"
    if any(x.dtype != own for x in source.parts):
        return "features, weight and bias differ in type"
    if own not in core.products:
        return f"no instructions for products in {own} were found in this processor"
    if not torch.backends.mkldnn.enabled or not torch.backends.mkldnn.is_available():
        return "PyTorch multiplies without oneDNN (torch.backends.mkldnn)"
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _TOO_LOW[own]:
        return f"ONEDNN_MAX_CPU_ISA keeps PyTorch from the instructions for {own}"
    return None


def type_of_sums(dtype: torch.dtype) -> torch.dtype:
    """The type in which products of a type are added up: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def add(total: Tensor, left: Tensor, right: Tensor, begun: bool) -> None:
    """Add ``left @ right`` to a total, or write it there if nothing has begun.

    Factors of 16 bits have products in the type of the total, which may be float32.
    """
    wide: tuple[torch.dtype, ...] = ()
    if total.dtype != left.dtype and left.is_cuda:  # other devices have no such product
        wide = (total.dtype,)
    elif total.dtype != left.dtype:
        left, right = left.to(total.dtype), right.to(total.dtype)
    if begun:  # FLOP counters do not see addmm_
        torch.addmm(total, left, right, *wide, out=total)
    else:
        torch.mm(left, right, *wide, out=total)


def describe(source: LinearLogits) -> str:
    """Say in which type a head is multiplied, and why."""
    own = source.weight.dtype
    if own not in NARROW or (source.products is None and on_accelerator(source)):
        return f"in {own}, the type of the weight"
    if source.products is not None:
        return f"in {type_of(source)}, as asked"
    reason = why_float32(source)
    if reason is not None:
        return f"in torch.float32: {reason}"
    return (
        f"in {own} for sums over the rows, as this processor multiplies it in hardware; in "
        f"torch.float32 for numbers of single rows and for distillation"
    )
