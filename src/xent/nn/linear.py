"""The module of a linear head with its loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..frames.reduction import Reduction
from ..heads.logits import Products
from ..losses import linear_cross_entropy


class LinearCrossEntropyLoss(torch.nn.Module):
    """Module twin of :func:`xent.linear_cross_entropy`; holds the head.

    The head, ``linear_weight`` and ``linear_bias`` of the function, is a :class:`torch.nn.Linear`
    named ``linear``: state dictionaries of PyTorch's module of the same name fit.

    Args:
        in_features: ``D``.
        num_classes: ``C``.
        out_features: ``(d1, ...)``: a separate head for each place.
        bias: whether the head has a bias.
        device: device of the head.
        dtype: dtype of the head.
        reduction: as for the function.
        weight: class weights, ``(C,)``; a buffer.
        ignore_index: as for the function.
        label_smoothing: as for the function.
        options: accepted, as for the function.
        shift: as for the function.
        z_loss: as for the function.
        logit_scale: as for the function, a number.
        softcap: as for the function.
        max_workspace: as for the function.
        products: as for the function.

    Shape:
        As for the function; ``forward`` takes ``normalizer`` and ``row_weight``, too.

    Raises:
        ValueError: for class weights of another shape.

    Example:
        >>> import torch, xent
        >>> loss = xent.nn.LinearCrossEntropyLoss(8, 100, label_smoothing=0.1)
        >>> loss(torch.randn(4, 8), torch.tensor([1, 2, 3, 4])).backward()
        >>> loss.linear.weight.grad.shape
        torch.Size([100, 8])
    """

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        reduction: Reduction = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: Any = None,
        shift: int = 0,
        z_loss: float = 0.0,
        logit_scale: float | None = None,
        softcap: float | None = None,
        max_workspace: int | None = None,
        products: Products | None = None,
    ) -> None:
        super().__init__()
        if weight is not None and weight.shape != (num_classes,):
            raise ValueError(
                f"`weight` must hold a number for each class, shape ({num_classes},); got shape "
                f"{tuple(weight.shape)}"
            )
        self.num_classes, self.out_features = num_classes, tuple(out_features)
        size = math.prod(out_features, start=num_classes)
        self.linear = torch.nn.Linear(in_features, size, bias=bias, device=device, dtype=dtype)
        self.register_buffer("weight", weight)
        self.reduction: Reduction = reduction
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing
        self.options = options
        self.more: dict[str, Any] = {
            "shift": shift,
            "z_loss": z_loss,
            "logit_scale": logit_scale,
            "softcap": softcap,
            "max_workspace": max_workspace,
            "products": products,
        }

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        normalizer: float | Tensor | str | None = None,
        row_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of features and targets."""
        shape, bias = (self.num_classes, *self.out_features), self.linear.bias
        return linear_cross_entropy(
            input, self.linear.weight.view(*shape, self.linear.in_features), target,
            linear_bias=None if bias is None else bias.view(shape), weight=self.weight,
            reduction=self.reduction, ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing, normalizer=normalizer, row_weight=row_weight,
            **self.more,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The settings of the loss, without those of the head."""
        return (
            f"num_classes={self.num_classes}, out_features={self.out_features}, "
            f"reduction={self.reduction!r}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}"
        )
