"""Refuses what a loss of rows cannot take, with the way out."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..heads.logits import LinearLogits
from ..heads.stand_in import Lean
from ..targets import are_alike


def refuse_probabilities(name: str, input: Any, target: Any) -> None:
    """Raise for a soft target."""
    logits = isinstance(input, (Tensor, Lean)) and isinstance(target, Tensor)
    if logits and target.is_floating_point() and are_alike(target, input):
        raise ValueError(
            f"{name} takes one class per row, but `target` has the shape of `input`, which makes "
            f"it probabilities. Pass class indices, the argmax of `target` over the classes"
        )


def refuse_shared_logits(input: Tensor | LinearLogits) -> None:
    """Raise for logits that ``inplace_backward`` must not write over: others read them."""
    if isinstance(input, Lean):
        raise ValueError("inplace_backward=True is for logits; behind a linear head it is the rule")
    if not input.requires_grad:
        return
    owner = input if input._base is None else input._base
    if owner.is_leaf:
        raise ValueError(
            "inplace_backward=True writes the gradient over `input`, but its memory is that of a "
            "leaf: it is yours, not an intermediate result. Leave inplace_backward off"
        )
    reach = 0  # of the axes with smaller steps, in elements
    for step, n in sorted(zip(input.stride(), input.shape, strict=True)):
        if n > 1 and step <= reach:
            raise ValueError(
                "inplace_backward=True needs logits of their own memory; `input` overlaps itself"
            )
        reach += step * (n - 1)
