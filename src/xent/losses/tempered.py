r"""Logistic loss and softmax with two temperatures, in the sense of Tsallis' statistics.

``log_t`` with ``t < 1`` is bounded, so no row pulls without limit. ``exp_t`` with ``t > 1`` has
tails that fall as a power, so a wrong label moves a decision boundary less.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .._check import finite_number, one_of
from ..engines.dense.problem import Form
from ..engines.modes import wide_dtype
from ..frames.dense_loss import dense_loss
from ..frames.dense_rows import DenseRows
from ..hyperparameters import Fraction, NonNegative
from ..overrides import overridable
from ..softmax import check_logits
from .catalog import member
from .tsallis import log_exp, log_softmax_t, row_divergence, softmax_t

MOST_T2 = 32  # of the kernel: its search takes few steps, and the normaliser grows as C^t2


@overridable
def tempered_softmax(input: Tensor, t: float = 1.2, dim: int = -1) -> Tensor:
    r"""Probabilities whose tails fall off as a power, or that reach zero.

    .. math:: p_j = \bigl[1 + (1 - t) (z_j - \lambda)\bigr]_+^{1 / (1 - t)}, \qquad
        \lambda \text{ such that } \sum_j p_j = 1

    ``t = 1`` is softmax. Above 1 the tails are heavy: ``p`` falls as :math:`|z|^{-1/(t-1)}`. Below
    1 improbable classes get probability 0, as from ``xent.entmax`` with ``alpha = 2 - t``.

    The normaliser is searched in float64 until it stops changing, not for a fixed number of steps.
    Its derivative has a closed form, so the gradient needs no search.

    Args:
        input: logits, any shape. ``-inf`` masks a class.
        t: the temperature, a number.
        dim: the axis of the classes.

    Returns:
        Probabilities in the shape and dtype of ``input``. A row that is all ``-inf`` or holds NaN
        or ``+inf`` gives NaN.

    Raises:
        TypeError: if ``input`` is not floating point.
        ValueError: if ``dim`` is not one of its axes, or ``t`` no finite number.

    Example:
        >>> import torch, xent
        >>> xent.tempered_softmax(torch.tensor([-0.5, 0.1, 2.0]), t=4.0)
        tensor([0.3205, 0.3271, 0.3523])

    References:
        Amid et al., *Robust bi-tempered logistic loss based on Bregman divergences*, NeurIPS 2019.
    """
    check_logits(input, dim)
    t = finite_number("t", t)
    z = torch.atleast_1d(input).to(wide_dtype(input)).movedim(dim, -1)
    return softmax_t(z, t).movedim(-1, dim).reshape(input.shape).to(input.dtype)


def _form(
    t1: float, t2: float, label_smoothing: float, smoothed_over: Literal["all", "others"]
) -> Form | None:
    one_of("smoothed_over", smoothed_over, ("all", "others"))
    return None if label_smoothing or t2 > MOST_T2 else Form("bi_tempered", (t1, t2))


@member(proper=True, bounded=True, convex=False, in_nats=False)
@dense_loss(form=_form)
def bi_tempered_loss(
    rows: DenseRows,
    t1: Fraction = 0.8,
    t2: NonNegative = 1.2,
    label_smoothing: Fraction = 0.0,
    smoothed_over: Literal["all", "others"] = "all",
) -> Tensor:
    r"""Bi-tempered logistic loss: bounded, and with a softmax of heavy tails.

    .. math:: \ell = \sum_j q_j \bigl(\log_{t_1} q_j - \log_{t_1} p_j\bigr)
        - \frac{q_j^{2 - t_1} - p_j^{2 - t_1}}{2 - t_1}, \qquad
        \log_t p = \frac{p^{1 - t} - 1}{1 - t}

    with :math:`p` the :func:`xent.tempered_softmax` of temperature :math:`t_2`. The loss is a
    Bregman divergence: 0 where prediction and target agree, for smoothed targets, too. Its
    expectation is least where ``p`` (not ordinary softmax) is the true distribution. With an index
    target it is at most :math:`1 / (1 - t_1)`. At ``t1 = t2 = 1`` it is cross-entropy minus the
    entropy of the target.

    The normaliser is iterated to convergence. On the CPU class indices without smoothing have a
    kernel for ``t2`` of at most 32, which is fastest for the default temperatures and
    ``t1=0.5, t2=1.5``; all else takes float64 tensors of the size of the logits.

    Use:
        For wrong labels, near the boundary and far from it; not when the model must predict by
        ordinary softmax, since its softmax is a tempered one.

    Args:
        t1: temperature of the logarithm, in [0, 1]; the lower, the lower the bound.
        t2: temperature of the softmax; above 1 for heavy tails.
        label_smoothing: how much of the target is spread evenly, in [0, 1]. Classes masked by
            ``-inf`` take no part.
        smoothed_over: classes that take the spread part: ``"all"`` of them, as in
            :func:`xent.cross_entropy`, or the ``"others"``, so that a one-hot target keeps exactly
            ``1 - label_smoothing``, as in the authors' code.

    Example:
        >>> import torch, xent
        >>> logits, target = torch.tensor([[2.0, 0.0], [0.0, 200.0]]), torch.tensor([0, 0])
        >>> xent.losses.bi_tempered_loss(logits, target, reduction="none")
        tensor([0.1096, 4.8780])

    References:
        Amid et al., *Robust bi-tempered logistic loss based on Bregman divergences*, NeurIPS 2019.
    """
    one_of("smoothed_over", smoothed_over, ("all", "others"))
    q, label = rows.soft, rows.label
    if label_smoothing:
        unmasked = (rows.logits > -torch.inf).to(rows.logits.dtype)
        count = unmasked.sum(-1, keepdim=True)
        shared = label_smoothing
        if smoothed_over == "others":  # the target keeps the part that would be spread to it
            shared = label_smoothing * count / (count - 1).clamp(min=1)
        q, label = (1 - shared) * rows.target + shared / count * unmasked, None
    log_p = log_exp(log_softmax_t(rows.logits, t2), t2)
    return row_divergence(q, label, log_p, 2 - t1)
