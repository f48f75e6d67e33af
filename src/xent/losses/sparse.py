r"""Sparsemax and entmax: predictions with exact zeros, and the losses that belong to them.

Each is the Fenchel-Young loss of an entropy: convex, with gradient ``p - q``, and exactly 0 from a
finite margin on, :math:`1 / (\alpha - 1)`.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ..engines.dense.problem import Form
from ..frames.dense_loss import dense_loss
from ..frames.dense_rows import DenseRows
from ..hyperparameters import Range
from ..overrides import overridable
from .catalog import member
from .tempered import tempered_softmax
from .tsallis import log_exp, log_softmax_t, row_divergence

Alpha = Annotated[float, Range(1)]


@overridable
def sparsemax(input: Tensor, dim: int = -1) -> Tensor:
    r"""The point of the probability simplex that is nearest to the logits.

    .. math:: p = \arg\min_{p \in \Delta} \|p - z\|^2 = [z - \tau]_+

    Args:
        input: logits, any shape. ``-inf`` masks a class.
        dim: the axis of the classes.

    Returns:
        Probabilities, many of them 0, in the shape and dtype of ``input``.

    Raises:
        TypeError: if ``input`` is not floating point.
        ValueError: if ``dim`` is not one of its axes.

    Example:
        >>> import torch, xent
        >>> xent.sparsemax(torch.tensor([1.0, 0.5, -1.0]))
        tensor([0.7500, 0.2500, 0.0000])

    References:
        Martins & Astudillo, *From softmax to sparsemax*, ICML 2016.
    """
    return entmax(input, 2.0, dim)


@overridable
def entmax(input: Tensor, alpha: float = 1.5, dim: int = -1) -> Tensor:
    r"""Probabilities between those of softmax (``alpha = 1``) and sparsemax (2), and beyond.

    .. math:: p_j = \bigl[(\alpha - 1) z_j - \tau\bigr]_+^{1 / (\alpha - 1)}

    maximises :math:`z^\top p + \frac{1}{\alpha (\alpha - 1)} \sum_j (p_j - p_j^\alpha)`. The
    threshold is searched in float64 until it stops changing. ``xent.tempered_softmax`` with
    ``t = 2 - alpha`` is the same. Above 2 the probability of a class rises from 0 with an infinite
    derivative; with ``alpha`` of 10 and more the rounding of its logit shows.

    Args:
        input: logits, any shape. ``-inf`` masks a class.
        alpha: at least 1; the higher, the more zeros.
        dim: the axis of the classes.

    Returns:
        Probabilities in the shape and dtype of ``input``.

    Raises:
        TypeError: if ``input`` is not floating point.
        ValueError: if ``dim`` is not one of its axes, or ``alpha`` out of range.

    Example:
        >>> import torch, xent
        >>> xent.entmax(torch.tensor([1.0, 0.5, -1.0]))
        tensor([0.6740, 0.3260, 0.0000])

    References:
        Peters, Niculae & Martins, *Sparse sequence-to-sequence models*, ACL 2019.
    """
    alpha = Range(1).check("alpha", alpha, None)
    return tempered_softmax(input, 2 - alpha, dim)


def _form(alpha: float = 2.0) -> Form:
    return Form("fenchel_young", (2 - alpha, 2 - alpha))


@member(proper=True, convex=True, in_nats=False)
@dense_loss(form=_form)
def sparsemax_loss(rows: DenseRows) -> Tensor:
    r"""The convex loss whose gradient is sparsemax minus the target.

    .. math:: \ell = \tfrac12 \|q - z\|^2 - \tfrac12 \|p - z\|^2, \qquad p = \mathrm{sparsemax}(z)

    The loss is exactly 0 once the logit of the target is 1 above all others; from then on the row
    has no gradient. Its expectation is least where ``p`` (not softmax) is the true distribution.
    On the CPU class indices have a kernel; other targets and devices take float64 tensors of the
    size of the logits.

    Use:
        When most classes should have probability 0 exactly; not when an unlikely class needs a
        logarithm of its probability, as for perplexity.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.0, 3.0]])
        >>> xent.losses.sparsemax_loss(logits, torch.tensor([0, 0, 0]), reduction="none")
        tensor([0.0000, 0.0625, 3.0000])

    References:
        Martins & Astudillo, *From softmax to sparsemax*, ICML 2016.
    """
    return _fenchel_young(rows, 2.0)


@member(proper=True, convex=True, in_nats=False)
@dense_loss(form=_form)
def entmax_loss(rows: DenseRows, alpha: Alpha = 1.5) -> Tensor:
    r"""The convex loss whose gradient is entmax minus the target.

    .. math:: \ell = (p - q)^\top z + \frac{1}{\alpha (\alpha - 1)}
        \sum_j \bigl(q_j^\alpha - p_j^\alpha\bigr), \qquad p = \mathrm{entmax}_\alpha(z)

    ``alpha = 1`` is cross-entropy minus the entropy of the target, 2 is
    :func:`xent.losses.sparsemax_loss`. The loss is exactly 0 once the logit of the target is
    :math:`1 / (\alpha - 1)` above all others. Its expectation is least where ``p`` (not softmax) is
    the true distribution. On the CPU class indices have a kernel, which is fastest for ``alpha`` of
    1.5 and 2; other targets and devices take float64 tensors of the size of the logits.

    Use:
        For sparse probabilities, with a dial from softmax to sparsemax; not when an unlikely class
        needs a logarithm of its probability, as for perplexity.

    Args:
        alpha: at least 1; the higher, the sparser the prediction.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.5, 0.0], [0.0, 3.0]])
        >>> xent.losses.entmax_loss(logits, torch.tensor([0, 0, 0]), reduction="none")
        tensor([0.0000, 0.1844, 3.0000])

    References:
        Peters, Niculae & Martins, *Sparse sequence-to-sequence models*, ACL 2019.
        Blondel, Martins & Niculae, *Learning with Fenchel-Young losses*, JMLR 2020.
    """
    return _fenchel_young(rows, alpha)


def _fenchel_young(rows: DenseRows, alpha: float) -> Tensor:
    """The divergence of the prediction from the target, plus a penalty for impossible classes.

    The terms of the sum are not negative, unlike those of the textbook's difference.
    """
    t = 2 - alpha
    x = log_softmax_t(rows.logits, t)
    loss = row_divergence(rows.soft, rows.label, log_exp(x, t), alpha)
    if alpha > 1:
        # A class of probability 0 becomes possible if its logit rises by this much.
        beyond = (-1 / (alpha - 1) - x).clamp(min=0)
        if rows.soft is not None:  # 0 times infinity is 0
            beyond = torch.where((rows.soft == 0) & (x == -torch.inf), 0, beyond)
        loss = loss + rows.expected(beyond)
    return loss
