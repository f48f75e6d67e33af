"""Module twins of the functions: ``focal_loss`` is ``FocalLoss``, and so on for every loss.

A module is made from its function at its first use, all but :class:`LinearCrossEntropyLoss`.
Modules that PyTorch has too are subclasses of PyTorch's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .._suggestions import near
from ..frames.reduction import Reduction
from .linear import LinearCrossEntropyLoss  # noqa: F401
from .twins import Loss, class_name, make_module, modules

if TYPE_CHECKING:

    class CrossEntropyLoss(Loss, torch.nn.CrossEntropyLoss):
        """The twin of :func:`xent.cross_entropy` as editors see it; made like the others."""

        def __init__(
            self,
            weight: Tensor | None = None,
            size_average: bool | None = None,
            ignore_index: int = -100,
            reduce: bool | None = None,
            reduction: Reduction = "mean",
            label_smoothing: float = 0.0,
            *,
            class_dim: int | None = None,
            z_loss: float = 0.0,
            logit_scale: float | Tensor | None = None,
            softcap: float | None = None,
            class_bias: Tensor | None = None,
            inplace_backward: bool = False,
            empty: Literal["nan", "zero"] = "nan",
            engine: str = "auto",
        ) -> None: ...

        def forward(self, input: Tensor, target: Tensor, **options: Any) -> Any: ...


def __getattr__(name: str) -> type[Loss]:
    """Make the module of a name, once, so that copies and pickles find the same class."""
    function = modules().get(name)
    if function is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near(name, __all__)}")
    first = class_name(function.__name__)
    if name != first:  # a second name of a loss
        return globals().get(first) or __getattr__(first)
    globals()[name] = made = make_module(function)
    return made


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = sorted(modules())  # pyright: ignore[reportUnsupportedDunderAll]
