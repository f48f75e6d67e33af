"""Softmax, its logarithm and its Jacobian."""

from __future__ import annotations

import torch
from torch import Tensor

from ._check import is_tensor, whole_number
from .overrides import overridable


def check_logits(input: Tensor, dim: int) -> None:
    """Raise unless ``input`` holds floating-point numbers along an axis ``dim``."""
    is_tensor("input", input)
    if not input.is_floating_point():
        raise TypeError(
            f"`input` must hold floating-point logits, got {input.dtype}; call input.float()"
        )
    dim = whole_number("dim", dim)
    if not -max(input.ndim, 1) <= dim < max(input.ndim, 1):
        raise ValueError(f"`dim` must name one of the {input.ndim} axes of `input`, got {dim}")


@overridable
def softmax(input: Tensor, dim: int = -1, *, dtype: torch.dtype | None = None) -> Tensor:
    r"""Probabilities from logits, :math:`p_j = e^{z_j} / \sum_k e^{z_k}`, without overflow.

    Args:
        input: logits, any shape. ``-inf`` masks a class.
        dim: the axis of the classes.
        dtype: convert the logits to this first.

    Returns:
        Probabilities in the shape of ``input``. A row that is all ``-inf`` or holds NaN or
        ``+inf`` gives NaN.

    Raises:
        TypeError: if ``input`` is not floating point.
        ValueError: if ``dim`` is not one of its axes.

    Example:
        >>> import torch, xent
        >>> xent.softmax(torch.tensor([1000.0, 1000.0, -torch.inf]))
        tensor([0.5000, 0.5000, 0.0000])
    """
    check_logits(input, dim)
    return torch.softmax(input, dim, dtype=dtype)


@overridable
def log_softmax(input: Tensor, dim: int = -1, *, dtype: torch.dtype | None = None) -> Tensor:
    r"""Log-probabilities from logits, with all digits also where a probability is near 1.

    .. math:: \log p_j = (z_j - z_k) - \log\Bigl(1 + \sum_{i \ne k} e^{z_i - z_k}\Bigr),
        \qquad k = \arg\max z

    Nothing cancels: both terms have the same sign. Subtracting the log-sum-exp instead gives 0
    for the largest class from about 17 nats of margin on, in float32. The error that remains is the
    rounding of differences of logits, for the largest class half a unit in the last place per nat
    of its lead; :func:`xent.cross_entropy` is without that error.

    Args:
        input: logits, any shape. ``-inf`` masks a class, whose log-probability is ``-inf``.
        dim: the axis of the classes.
        dtype: convert the logits to this first.

    Returns:
        Log-probabilities in nats, in the shape of ``input``.

    Raises:
        TypeError: if ``input`` is not floating point.
        ValueError: if ``dim`` is not one of its axes.

    Example:
        >>> import torch, xent
        >>> f"{xent.log_softmax(torch.tensor([30.0, 0.0]))[0].item():.4e}"
        '-9.3576e-14'
        >>> torch.log_softmax(torch.tensor([30.0, 0.0]), -1)[0].item()
        0.0
    """
    check_logits(input, dim)
    x = input if dtype is None else input.to(dtype)
    z = x if x.dtype in (torch.float32, torch.float64) else x.float()
    gap, rest = _below_top(z, dim)
    return (gap - torch.log1p(rest)).to(x.dtype)


@overridable
def softmax_jacobian(input: Tensor, dim: int = -1) -> Tensor:
    r"""Jacobian of softmax, :math:`\partial p_i / \partial z_j = p_i (\delta_{ij} - p_j)`.

    Also the Hessian of cross-entropy in the logits. The diagonal keeps its digits for p near 1.

    Args:
        input: logits, any shape.
        dim: the axis of the classes, which moves to the end of the result.

    Returns:
        ``(..., C, C)``, symmetric, rows summing to 0.

    Raises:
        TypeError: if ``input`` is not floating point.
        ValueError: if ``dim`` is not one of its axes.

    Example:
        >>> import torch, xent
        >>> xent.softmax_jacobian(torch.tensor([0.0, 0.0]))
        tensor([[ 0.2500, -0.2500],
                [-0.2500,  0.2500]])
    """
    check_logits(input, dim)
    z = input if input.dtype in (torch.float32, torch.float64) else input.float()
    z = torch.atleast_1d(z).movedim(dim, -1)
    gap, rest = _below_top(z, -1)
    log_total = torch.log1p(rest)
    p = torch.exp(gap - log_total)
    # For the largest class 1 - p is the sum of the others; for a smaller one nothing cancels.
    others = torch.where(gap == 0, rest * torch.exp(-log_total), 1 - p)
    diagonal = torch.diag_embed(p * others)
    off = -p.unsqueeze(-1) * p.unsqueeze(-2)
    on_diagonal = torch.eye(z.shape[-1], dtype=torch.bool, device=z.device)
    return torch.where(on_diagonal, diagonal, off).to(input.dtype)


def _below_top(z: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Logits relative to the largest one, and the sum of the other exponentials."""
    if z.numel() == 0:
        return z, z.sum(dim, keepdim=True)
    if z.ndim == 0:
        return z - z, z * 0
    top = z.argmax(dim, keepdim=True)
    classes = torch.arange(z.shape[dim], device=z.device)
    classes = classes.view([-1 if d == dim % z.ndim else 1 for d in range(z.ndim)])
    # The gap of the largest class to itself is the constant 0. As a difference it would have the
    # derivatives 1 and -1, beside which the small gradients of the other gaps are rounded away.
    largest = z.gather(dim, top)
    gap = torch.where(classes == top, 0, z - largest)
    rest = torch.where(classes == top, 0, gap.exp()).sum(dim, keepdim=True)
    rest = rest + (largest - largest).detach()  # NaN where the largest logit is infinite
    return gap, rest
