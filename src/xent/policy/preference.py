"""Learning from preferences: losses of the log-probabilities of whole answers, in pairs."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .._check import one_of
from ..engines.modes import widened
from ..frames.reduction import Reduction, RowValues
from ..frames.token_loss import Tokens, check_log_probs, read_reduction_of_tokens
from ..hyperparameters import Range
from ..overrides import overridable


@overridable
def sequence_log_prob(
    log_prob: Tensor, mask: Tensor | None = None, *, mean: bool = False
) -> Tensor:
    """Log-probability of each sequence: the sum over its tokens.

    Args:
        log_prob: of tokens, ``(..., T)``, float32 or float64, as :func:`xent.token_log_probs` gives
            them. Ignored tokens are 0 there, and need no mask for the sum.
        mask: bool, in the shape of ``log_prob``: which tokens count.
        mean: divide by the number of tokens that count (all of them without ``mask``), as SimPO
            does; NaN for a sequence without such tokens.

    Returns:
        In nats, ``(...)``, in the dtype of ``log_prob``.

    Raises:
        ValueError: for shapes that do not fit, or a mask that is not bool.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> log_prob = torch.tensor([[-1.0, -2.0, -9.0]])
        >>> xent.policy.sequence_log_prob(log_prob, torch.tensor([[True, True, False]]))
        tensor([-3.])
    """
    tokens = Tokens(log_prob, mask)
    if log_prob.ndim == 0:
        raise ValueError("`log_prob` must have an axis of tokens, (..., T); got a single number")
    total = tokens.log_prob.sum(-1)
    total = total / tokens.lengths()[..., 0] if mean else total
    return total.to(log_prob.dtype)


@overridable
def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor | None = None,
    reference_rejected: Tensor | None = None,
    *,
    kind: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    margin: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Direct preference optimisation: the better of two answers, against a reference policy.

    .. math:: \ell = -\log \sigma(\beta h - m), \qquad
        h = \log \frac{p(\text{chosen})}{r(\text{chosen})}
        - \log \frac{p(\text{rejected})}{r(\text{rejected})}

    Related losses: with ``label_smoothing`` conservative DPO; without a reference, on
    log-probabilities that are means (``sequence_log_prob(..., mean=True)``) and with a ``margin``,
    SimPO;
    ``kind="hinge"`` is :math:`\max(0, 1 - \beta h)` (SLiC), ``kind="ipo"``
    :math:`(h - 1 / (2 \beta))^2` (IPO).

    Args:
        chosen: log-probabilities of the better answers, ``(B,)``, float32 or float64; see
            :func:`xent.policy.sequence_log_prob`.
        rejected: log-probabilities of the worse answers, in the same shape.
        reference_chosen: log-probabilities of the better answers under the reference policy; a
            constant. None for no reference, as if both answers were equally probable under it.
        reference_rejected: log-probabilities of the worse answers under the reference policy.
        kind: the loss of ``h``.
        beta: how strongly the reference holds, positive.
        label_smoothing: how probable it is that a preference is the wrong way round, at most 0.5;
            only with ``kind="sigmoid"``.
        margin: ``m``, by how much the better answer has to lead; only with ``kind="sigmoid"``.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of pairs.
        normalizer: another divisor of the mean: a number or 0-d tensor.
        empty: ``"nan"``, or ``"zero"``: the mean of no pairs.

    Returns:
        A scalar, or ``(B,)`` for ``reduction="none"``, in the dtype of ``chosen``.

    Raises:
        ValueError: for shapes that do not fit, half a reference, or a value an option cannot take.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> chosen, rejected = torch.tensor([-10.0]), torch.tensor([-12.0])
        >>> f"{xent.policy.dpo_loss(chosen, rejected, chosen - 1, rejected + 1).item():.4f}"
        '0.5981'
        >>> f"{xent.policy.dpo_loss(chosen / 5, rejected / 4, beta=2.0, margin=1.0).item():.4f}"
        '0.3133'

    References:
        Rafailov et al., *Direct preference optimization*, NeurIPS 2023. Azar et al., *A general
        theoretical paradigm to understand learning from human preferences*, AISTATS 2024 (IPO).
        Zhao et al., *SLiC-HF*, 2023. Meng et al., *SimPO*, NeurIPS 2024.
    """
    one_of("kind", kind, ("sigmoid", "hinge", "ipo"))
    beta = Range(0, open=True).check("beta", beta, None)
    label_smoothing = Range(0, 0.5).check("label_smoothing", label_smoothing, None)
    margin = Range().check("margin", margin, None)
    if kind != "sigmoid" and (label_smoothing or margin):
        raise ValueError(f'`label_smoothing` and `margin` are for kind="sigmoid", not {kind!r}')
    h = _lead("", chosen, rejected, chosen)
    reduce = read_reduction_of_tokens(reduction, normalizer, empty, h)
    if reference_chosen is not None or reference_rejected is not None:
        if reference_chosen is None or reference_rejected is None:
            raise ValueError("pass both of `reference_chosen` and `reference_rejected`, or neither")
        h = h - _lead("reference_", reference_chosen, reference_rejected, chosen).detach()
    if kind == "hinge":
        values = torch.relu(1 - beta * h)
    elif kind == "ipo":
        values = (h - 1 / (2 * beta)).square()
    else:
        x = beta * h - margin
        values = -(1 - label_smoothing) * F.logsigmoid(x)
        if label_smoothing:
            values = values - label_smoothing * F.logsigmoid(-x)
    return reduce.of(RowValues(values, None, torch.ones_like(values))).to(chosen.dtype)


def _lead(prefix: str, chosen: Tensor, rejected: Tensor, like: Tensor) -> Tensor:
    """Return the log-ratio of chosen over rejected answers, in a wide dtype."""
    check_log_probs(f"{prefix}chosen", chosen, ("chosen", like))
    check_log_probs(f"{prefix}rejected", rejected, ("chosen", like))
    return widened(chosen) - widened(rejected)
