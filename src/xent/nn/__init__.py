"""Module twins of the functions: ``focal_loss`` is ``FocalLoss``, and so on for every loss.

All but two are made from their functions when they are asked for. Those that PyTorch has too are
subclasses of its modules.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..frames.reduction import Reduction
from ..losses import cross_entropy
from ..losses.lookup import near
from .linear import LinearCrossEntropyLoss  # noqa: F401
from .twins import Loss, class_name, make_module, modules


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """Module twin of :func:`xent.cross_entropy`; also a ``torch.nn.CrossEntropyLoss``.

    Args:
        weight: class weights, ``(C,)``; a buffer, saved with the module as PyTorch saves it.
        size_average: deprecated in PyTorch; use ``reduction``.
        ignore_index: as for the function.
        reduce: deprecated in PyTorch; use ``reduction``.
        reduction: as for the function.
        label_smoothing: as for the function.
        z_loss: as for the function.
        logit_scale: as for the function, a number.
        softcap: as for the function.
        class_bias: as for the function; a buffer, not saved.
        inplace_backward: as for the function.
        empty: as for the function.
        engine: as for the function.

    Shape:
        As for the function; ``forward`` takes ``normalizer``, ``row_weight``, ``return_stats`` too.

    Example:
        >>> import torch, xent
        >>> loss = xent.nn.CrossEntropyLoss(label_smoothing=0.1)
        >>> round(loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).item(), 4)
        0.2269
    """

    class_bias: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        logit_scale: float | None = None,
        softcap: float | None = None,
        class_bias: Tensor | None = None,
        inplace_backward: bool = False,
        empty: Literal["nan", "zero"] = "nan",
        engine: str = "auto",
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.register_buffer("class_bias", class_bias, persistent=False)
        self.options: dict[str, Any] = {
            "z_loss": z_loss,
            "logit_scale": logit_scale,
            "softcap": softcap,
            "inplace_backward": inplace_backward,
            "empty": empty,
            "engine": engine,
        }

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        normalizer: float | Tensor | str | None = None,
        row_weight: Tensor | None = None,
        return_stats: bool = False,
    ) -> Any:
        """The loss; with ``return_stats`` also the row statistics."""
        return cross_entropy(
            input, target, self.weight, ignore_index=self.ignore_index,
            reduction=self.reduction,  # pyright: ignore[reportArgumentType]
            label_smoothing=self.label_smoothing, normalizer=normalizer, row_weight=row_weight,
            class_bias=self.class_bias, return_stats=return_stats, **self.options,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The settings that are not the default ones."""
        shown = {
            "ignore_index": (self.ignore_index, -100),
            "reduction": (self.reduction, "mean"),
            "label_smoothing": (self.label_smoothing, 0.0),
            "z_loss": (self.options["z_loss"], 0.0),
            "logit_scale": (self.options["logit_scale"], None),
            "softcap": (self.options["softcap"], None),
            "inplace_backward": (self.options["inplace_backward"], False),
            "empty": (self.options["empty"], "nan"),
            "engine": (self.options["engine"], "auto"),
        }
        return ", ".join(f"{k}={v!r}" for k, (v, default) in shown.items() if v != default)


def __getattr__(name: str) -> type[Loss]:
    """The module of a name, made once, so that copies and pickles find the same class."""
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


_WRITTEN = ("CrossEntropyLoss", "LinearCrossEntropyLoss")
__all__ = sorted({*_WRITTEN, *modules()})  # pyright: ignore[reportUnsupportedDunderAll]
