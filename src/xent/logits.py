"""Transforms of logits before a loss sees them: scales, softcap, class bias."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._check import at_hand, finite_number, scalar, vector_of_classes
from .engines.modes import refuse_where


class LogitTransform(NamedTuple):
    """``z = softcap * tanh(scale * x / softcap) * class_scale + class_bias``; None: no such part.

    A masked class stays masked: ``-inf`` passes through the cap.
    """

    scale: Tensor | None = None  # float64, 0-d or one per row
    softcap: float = 0.0
    class_bias: Tensor | None = None  # (V,)
    class_scale: Tensor | None = None  # (V,)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors among the settings, which may require gradients of their own."""
        return tuple(t for t in (self.scale, self.class_bias, self.class_scale) if t is not None)

    def without_scale_of(self, rows: Tensor) -> LogitTransform:
        """Return the transform with scale 1 for masked rows, so that NaN there has no gradient."""
        if self.scale is None or not self.scale.ndim:
            return self
        return self._replace(scale=torch.where(rows, 1.0, self.scale))

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to logits whose classes are on the last axis."""
        z = x
        if self.scale is not None:
            z = scaled(z, self.scale.to(x.dtype).unsqueeze(-1))
        if self.softcap:
            masked = z == -torch.inf
            capped = self.softcap * torch.tanh(z.masked_fill(masked, 0) / self.softcap)
            z = torch.where(masked, z, capped)
        if self.class_scale is not None:
            z = scaled(z, self.class_scale.to(x.dtype))
        if self.class_bias is not None:
            z = z + self.class_bias.to(x.dtype)
        return z


def scaled(x: Tensor, factor: float | Tensor) -> Tensor:
    """Product of scores and a factor; a masked score, -inf, adds nothing to the factor's gradient.

    Its share would be 0 times infinity, NaN.
    """
    if not isinstance(factor, Tensor):
        return x * factor
    return x * torch.where(x == -torch.inf, factor.detach(), factor)


def make_transform(
    logit_scale: float | Tensor | None,
    softcap: float | None,
    class_bias: Tensor | None,
    rows: torch.Size,
    classes: int,
    device: torch.device,
    class_scale: Tensor | None = None,
) -> LogitTransform:
    """Check the settings and bring them into the form the engines take."""
    scale = None
    if isinstance(logit_scale, Tensor):
        if logit_scale.ndim and logit_scale.shape != rows:
            raise ValueError(
                f"`logit_scale` must be a number, a 0-d tensor or one number per row, shape "
                f"{tuple(rows)}; got shape {tuple(logit_scale.shape)}"
            )
        if logit_scale.ndim == 0:
            scalar("logit_scale", logit_scale, device)
        scale = at_hand("logit_scale", logit_scale, device).to(torch.float64)
    elif logit_scale is not None:
        number = finite_number("logit_scale", logit_scale)
        if number != 1.0:
            scale = torch.full((), number, dtype=torch.float64, device=device)
    cap = 0.0
    if softcap is not None:
        cap = finite_number("softcap", softcap)
        if cap < 1e-30:  # float32 cannot hold the inverse of a smaller number
            raise ValueError(
                f"`softcap` must be positive, 1e-30 or more, or None for no cap; got {softcap}"
            )
    if class_bias is not None:
        vector_of_classes("class_bias", class_bias, classes, device)
    if class_scale is not None:
        vector_of_classes("class_scale", class_scale, classes, device)
        _refuse_unless_positive(class_scale)
    return LogitTransform(scale, cap, class_bias, class_scale)


def _refuse_unless_positive(class_scale: Tensor) -> None:
    """Raise for a factor of 0 or less, which would unmask a class at -inf.

    The values are read only where that costs no wait for a device.
    """
    message = "`class_scale` must be positive; to reverse logits, negate them before the loss"
    refuse_where(~(class_scale > 0), lambda: ValueError(message), message)
