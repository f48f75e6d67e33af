"""Losses of one target per row."""

from __future__ import annotations

import functools
import warnings
from typing import Literal, overload

from torch import Tensor

from .._check import finite_number
from ..class_dim import NO_CONTAINERS
from ..frames.reduction import Reduction
from ..frames.row_loss import row_loss
from ..heads.logits import LinearLogits
from ..row_statistics import RowStatistics
from ..shards import takes_shards
from .catalog import member


@overload
def cross_entropy(
    input: Tensor | LinearLogits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    class_dim: int | None = None,
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
    z_loss: float = 0.0,
    logit_scale: float | Tensor | None = None,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    return_stats: Literal[False] = False,
    inplace_backward: bool = False,
    empty: Literal["nan", "zero"] = "nan",
    engine: str = "auto",
) -> Tensor: ...


@overload
def cross_entropy(
    input: Tensor | LinearLogits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    class_dim: int | None = None,
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
    z_loss: float = 0.0,
    logit_scale: float | Tensor | None = None,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    return_stats: Literal[True],
    inplace_backward: bool = False,
    empty: Literal["nan", "zero"] = "nan",
    engine: str = "auto",
) -> tuple[Tensor, RowStatistics]: ...


@member(proper=True, convex=True)
@takes_shards
def cross_entropy(
    input: Tensor | LinearLogits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    class_dim: int | None = None,
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
    z_loss: float = 0.0,
    logit_scale: float | Tensor | None = None,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    return_stats: bool = False,
    inplace_backward: bool = False,
    empty: Literal["nan", "zero"] = "nan",
    engine: str = "auto",
) -> Tensor | tuple[Tensor, RowStatistics]:
    r"""Softmax cross-entropy: minus the log-probability of the target. In nats.

    A drop-in for :func:`torch.nn.functional.cross_entropy` with all its digits: right to a few
    units in the last place however sure the prediction, where ``lse - z_y`` gives 0.

    .. math::
        \ell_n = -w_{y_n} \log p_{n, y_n} = w_{y_n} \log\bigl(1 + e^{-d_n}\bigr), \qquad
        d_n = z_{n, y_n} - \log \sum_{j \ne y_n} e^{z_{n, j}}

    Use:
        For one right class per row, and whenever you are unsure; not for rows with several labels
        at once, nor for labels of which many are wrong.

    Args:
        input: logits, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``. ``-inf`` masks a class:
            probability and gradient are 0.
        target: class indices of any integer type, in the shape of the rows, ``()``, ``(N,)`` or
            ``(N, d1, ...)``; or class probabilities in the shape of ``input``.
        weight: class weights, ``(C,)``, of any floating-point type.
        size_average: deprecated in PyTorch; use ``reduction``.
        ignore_index: class index that marks rows to leave out.
        reduce: deprecated in PyTorch; use ``reduction``.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``. The mean divides by the summed class weight
            of the rows that are kept; with probabilities by the number of rows.
        label_smoothing: in [0, 1]: how much of the target is spread evenly over the classes.
            Classes masked by ``-inf`` take no part (PyTorch returns ``inf`` there).
        class_dim: the axis of the classes, of ``input`` and of probabilities: -1 for logits of a
            language model, ``(B, T, C)``. By default axis 1 as in PyTorch, or the only one; the
            last one of :class:`xent.LinearLogits`, which have no other.
        normalizer: another divisor of the mean: a number or 0-d tensor (the global token
            count, say), ``"count"`` for the number of rows kept, ``"weight"`` for the rule above.
        row_weight: factor on each row, in the shape of the rows; 0 leaves a row out, whatever it
            holds. Without ``normalizer`` the mean divides by the sum of row weight times class
            weight, so that a row of weight 2 counts as two rows.
        z_loss: coefficient of :math:`\mathrm{lse}^2`, which keeps logits from drifting.
        logit_scale: factor on the logits (an inverse temperature), a number or one per row.
        softcap: replaces logits ``z`` by ``softcap * tanh(z / softcap)``, after the scale.
        class_bias: added to the logits after scale and softcap, ``(C,)``; log-priors give logit
            adjustment.
        return_stats: also return the :class:`xent.RowStatistics`.
        inplace_backward: write the gradient over ``input``, which must be an intermediate result
            that nobody reads any more. Saves one tensor of N x C.
        empty: ``"nan"`` as PyTorch, or ``"zero"``: the mean of no rows.
        engine: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``; see :func:`xent.explain`.

    Returns:
        A scalar, or the shape of the rows for ``reduction="none"``, in the dtype of ``input``
        (promoted with that of probabilities; float32 under autocast). With ``return_stats``, that
        and the statistics.

    Raises:
        ValueError: for shapes that do not fit, a class index out of range (also an IndexError), or
            a value an option cannot take.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[10.0, -10.0, -10.0]])
        >>> f"{xent.cross_entropy(logits, torch.tensor([0])).item():.6e}"
        '4.122307e-09'
        >>> torch.nn.functional.cross_entropy(logits, torch.tensor([0])).item()
        0.0

    References:
        Bridle, *Probabilistic interpretation of feedforward classification network outputs*, 1990.
        Label smoothing: Szegedy et al., *Rethinking the Inception architecture*, CVPR 2016.
        z-loss: Chowdhery et al., *PaLM*, JMLR 2023.
    """
    if size_average is not None or reduce is not None:
        reduction = _legacy_reduction(size_average, reduce)
    if type(z_loss) is not float or z_loss:
        z_loss = finite_number("z_loss", z_loss)
    if type(label_smoothing) is not float or label_smoothing:
        label_smoothing = finite_number("label_smoothing", label_smoothing)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"`label_smoothing` must be between 0.0 and 1.0, got {label_smoothing}")
    if class_dim is None and type(input) in NO_CONTAINERS:
        loss = _cross_entropy.of_tensors
    else:
        loss = functools.partial(_cross_entropy, class_dim=class_dim)
    return loss(
        input, target, weight, ignore_index=ignore_index, reduction=reduction,
        normalizer=normalizer, row_weight=row_weight, logit_scale=logit_scale, softcap=softcap,
        class_bias=class_bias, return_stats=return_stats, inplace_backward=inplace_backward,
        empty=empty, engine=engine, label_smoothing=label_smoothing, z_loss=z_loss,
    )  # fmt: skip


def _needs(label_smoothing: float, z_loss: float) -> tuple[str, ...]:
    return ("mean",) if label_smoothing else ()


@row_loss(needs=_needs, weighted=True, like_torch=True)
def _cross_entropy(s: RowStatistics, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Tensor:
    loss = s.nll
    if label_smoothing:
        uniform = s.mean_mass * s.lse - s.mean  # cross-entropy from the uniform distribution
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    if z_loss:
        loss = loss + z_loss * s.mass * s.lse.square()
    return loss


def _legacy_reduction(size_average: bool | None, reduce: bool | None) -> Reduction:
    """Return the reduction that PyTorch's old pair of flags means."""
    warnings.warn(
        "size_average and reduce are deprecated, please use reduction instead.", stacklevel=4
    )
    if reduce is False:
        return "none"
    return "sum" if size_average is False else "mean"
