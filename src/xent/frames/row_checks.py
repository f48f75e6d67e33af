"""Refuses what a loss of rows cannot take, with the way out."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..heads.logits import LinearLogits
from ..heads.stand_in import Lean
from ..shards import own_logits
from ..targets import any_class, are_alike


def refuse_probabilities(name: str, input: Any, target: Any) -> None:
    """Raise for a soft target."""
    input = own_logits(input)  # probabilities come as those of this rank's classes
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


def needs_no_target(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Make a loss in which the class of a target has no say count all rows if there is none."""

    @functools.wraps(loss)
    def entry(input: Any, target: Tensor | None = None, *args: Any, **options: Any) -> Any:
        if target is None and isinstance(input, (Tensor, Lean)) and input.ndim:
            target = any_class(input)
        return loss(input, target, *args, **options)

    signature = inspect.signature(loss, follow_wrapped=False)
    parameters = dict(signature.parameters)
    parameters["target"] = parameters["target"].replace(default=None, annotation="Tensor | None")
    entry.__signature__ = signature.replace(parameters=list(parameters.values()))  # pyright: ignore
    return entry
