"""Sigmoid losses of pairs of images and texts."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .._check import is_tensor, scalar
from ..engines.rows.problem import Index
from ..frames.element_head import reduce_values
from ..frames.reduction import Reduction, read_reduction
from ..heads.logits import LinearLogits, are_logits
from ..logits import scaled
from .catalog import member
from .multilabel import multilabel_cross_entropy


@member("other", proper=True, convex=True)
def siglip_loss(
    similarity: Tensor | LinearLogits,
    target: Tensor | None = None,
    *,
    scale: float | Tensor = 10.0,
    bias: float | Tensor = -10.0,
    row_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | Literal["count", "weight"] | None = None,
    empty: Literal["nan", "zero"] = "nan",
    engine: str = "auto",
) -> Tensor:
    r"""Sigmoid loss for pairs of images and texts: every pair is a binary decision of its own.

    .. math:: \ell_n = -\sum_m \log \sigma\bigl(y_{nm} (s \, x_n \cdot y_m + b)\bigr), \qquad
        y_{nm} = 2 t_{nm} - 1

    The mean divides by the number of rows, as in the paper, not by the number of pairs.

    Use:
        For pairs of images and texts without a softmax over the batch; not for bounds on mutual
        information, which are for :func:`~xent.losses.info_nce_loss`.

    Args:
        similarity: scalar products of the normalised embeddings, ``(N, M)``; or
            ``LinearLogits(image, text)``, so that a chunk of pairs is in memory at a time.
        target: which pairs belong together, 0 or 1, in the shape of ``similarity``; None for row n
            and column n.
        scale: the inverse temperature, a number or a 0-d tensor to be learned.
        bias: added after the scale, likewise a number; outweighs the many negatives at the start.
        row_weight: factor on each row, ``(N,)``; the mean divides by its sum.
        reduction: ``"none"``, ``"sum"`` or ``"mean"`` over the rows.
        normalizer: another divisor of the mean: the rows of all machines, say.
        empty: ``"nan"`` as PyTorch, or ``"zero"``: the mean of no rows.
        engine: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``.

    Returns:
        A scalar, or ``(N,)`` for ``reduction="none"``, in the dtype of ``similarity`` (float32
        under autocast).

    Raises:
        ValueError: for shapes that do not fit, targets outside [0, 1] (on the CPU), or an option.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> similarity = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> round(xent.losses.siglip_loss(similarity).item(), 4)
        1.7203

    References:
        Zhai et al., *Sigmoid loss for language image pre-training*, ICCV 2023.
    """
    are_logits("similarity", similarity)
    if similarity.ndim != 2:
        raise ValueError(f"`similarity` must have shape (N, M), got {tuple(similarity.shape)}")
    if not similarity.is_floating_point():
        raise TypeError(f"`similarity` must be floating point, got {similarity.dtype}")
    if target is not None:
        is_tensor("target", target)
        if target.shape != similarity.shape or target.device != similarity.device:
            raise ValueError(
                f"`target` must have the shape of `similarity`, {tuple(similarity.shape)}, on "
                f"{similarity.device}; got {tuple(target.shape)} on {target.device}"
            )
    scale, bias = (
        value.reshape(()) if isinstance(value, Tensor) and value.numel() == 1 else value
        for value in (scale, bias)
    )
    device = similarity.device
    scale, bias = scalar("scale", scale, device), scalar("bias", bias, device)
    if not isinstance(similarity, Tensor):
        return _siglip_by_chunks(
            similarity, target, scale, bias, engine, reduction=reduction, normalizer=normalizer,
            row_weight=row_weight, empty=empty,
        )  # fmt: skip
    if target is None:
        target = torch.eye(*similarity.shape, dtype=similarity.dtype, device=similarity.device)
    # Logits of half the digits would be off by more than the similarities are.
    wide = similarity.to(torch.promote_types(similarity.dtype, torch.float32))
    value = multilabel_cross_entropy(
        scaled(wide, scale) + bias, target, row_weight=row_weight, reduction=reduction,
        normalizer=normalizer, empty=empty, engine=engine,
    )  # fmt: skip
    return value.to(similarity.dtype)


def _siglip_by_chunks(
    similarity: LinearLogits,
    target: Tensor | None,
    scale: float | Tensor,
    bias: float | Tensor,
    engine: str,
    *,
    row_weight: Tensor | None,
    **reduction: Any,
) -> Tensor:
    """Compute the loss with the pairs of some rows at a time; scale and bias join the head."""
    own, cap = similarity.recorded()
    if cap is not None:
        raise ValueError("siglip_loss takes similarities without a softcap")
    rows, columns = similarity.shape
    scale = _as_tensor(scale, similarity)
    bias = _as_tensor(bias, similarity).expand(columns)
    source: Any = similarity.without_recorded().absorb(scale if own is None else scale * own, bias)
    if target is not None:
        return multilabel_cross_entropy(
            source, target, row_weight=row_weight, engine=engine, **reduction
        )
    row, column = (torch.arange(n, device=source.device) for n in (rows, columns))

    def values_of(z: Tensor, index: Index) -> Tensor:
        match = (row[index].unsqueeze(-1) == column).to(z.dtype)
        return multilabel_cross_entropy(z, match, reduction="none", engine=engine)

    reduce = read_reduction(
        row_weight=row_weight, rows=similarity.shape[:1], device=similarity.device, **reduction
    )
    return reduce_values(source, values_of, None, (), reduce).to(similarity.dtype)


def _as_tensor(x: float | Tensor, like: LinearLogits) -> Tensor:
    """Make a 0-d tensor; a number becomes float64, whatever torch's default dtype is."""
    dtype = None if isinstance(x, Tensor) else torch.float64
    return torch.as_tensor(x, dtype=dtype, device=like.device).reshape(())
