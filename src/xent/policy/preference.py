"""Learning from preferences: losses of the log-probabilities of whole answers, in pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .._check import is_tensor, one_of, scalar
from ..engines.modes import widened
from ..extremes import logit_of_exp, product
from ..frames.reduction import Reduction, RowValues
from ..frames.token_loss import Tokens, check_log_probs, read_reduction_of_tokens
from ..hyperparameters import Range
from ..overrides import overridable

Kind = Literal["sigmoid", "hinge", "ipo", "exo", "nca", "bco", "apo_zero", "apo_down"]


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
    kind: Kind = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float | None = None,
    margin: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Direct preference optimisation: the better of two answers, against a reference policy.

    .. math:: \ell = -\log \sigma(\beta h - m), \qquad
        h = \log \frac{p(\text{chosen})}{r(\text{chosen})}
        - \log \frac{p(\text{rejected})}{r(\text{rejected})}

    Related losses: with ``label_smoothing`` conservative DPO; with a negative one,
    :math:`-\epsilon / (1 - 2 \epsilon)`, robust DPO for preferences of which the share
    :math:`\epsilon` below 1/2 is the wrong way round (the identity of backward correction: see
    :func:`xent.losses.backward_corrected_symmetric_noise_loss`); without a reference, on
    log-probabilities that are means (``sequence_log_prob(..., mean=True)``) and with a ``margin``,
    SimPO. Other kinds are, with the log-ratios ``c`` and ``r`` of the chosen and the rejected
    answer, times ``beta``, and :math:`\beta h = c - r`:

    .. math::
        \text{hinge (SLiC):}\; & \max(0,\ 1 - \beta h) \qquad
        \text{ipo:}\; \Bigl(h - \frac1{2 \beta}\Bigr)^2 \\
        \text{exo:}\; & D\bigl(\sigma(\beta h) \,\|\, 1 - \epsilon\bigr) \\
        \text{nca:}\; & -\log \sigma(c) - \tfrac12 \log \sigma(-c) - \tfrac12 \log \sigma(-r) \\
        \text{bco:}\; & -\log \sigma(c - m) - \log \sigma(m - r) \\
        \text{apo\_zero:}\; & \sigma(-c) + \sigma(r) \qquad
        \text{apo\_down:}\; \sigma(c) + \sigma(r - c)

    ``D`` is the divergence of two answers, without a difference of entropies. The last four kinds
    look at each answer alone, so they need a reference.

    Use:
        For pairs of a better and a worse answer, without a reward model; not for answers judged one
        by one, which are for :func:`~xent.policy.kto_loss`.

    Args:
        chosen: log-probabilities of the better answers, ``(B,)``, float32 or float64; see
            :func:`xent.policy.sequence_log_prob`.
        rejected: log-probabilities of the worse answers, in the same shape.
        reference_chosen: log-probabilities of the better answers under the reference policy; a
            constant. None for no reference, as if both answers were equally probable under it.
        reference_rejected: log-probabilities of the worse answers under the reference policy.
        kind: the loss of a pair.
        beta: how strongly the reference holds, positive.
        label_smoothing: how probable it is that a preference is the wrong way round, at most 0.5;
            by default 0. Below 0 the loss has no lower bound. Also :math:`\epsilon` of
            ``kind="exo"``, where it is above 0, by default 1e-3; other kinds have none.
        margin: ``m``, by how much the better answer has to lead; or for ``kind="bco"`` the point
            that rewards are compared with, such as the running mean of ``c`` and ``r``.
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
        Zhao et al., *SLiC-HF*, 2023. Meng et al., *SimPO*, NeurIPS 2024. Chowdhury et al.,
        *Provably robust DPO*, ICML 2024. Ji et al., *Towards efficient exact optimization of
        language model alignment*, ICML 2024 (EXO). Chen et al., *Noise contrastive alignment of
        language models with explicit rewards*, NeurIPS 2024 (NCA). Jung et al., *Binary classifier
        optimization*, 2024 (BCO). D'Oosterlinck et al., *Anchored preference optimization*, 2024.
    """
    one_of("kind", kind, ("sigmoid", "hinge", "ipo", "exo", *_ALONE))
    beta = Range(0, open=True).check("beta", beta, None)
    smoothing = _read_smoothing(kind, label_smoothing)
    margin = Range().check("margin", margin, None)
    if margin and kind not in ("sigmoid", "bco"):
        raise ValueError(f'`margin` is for kind="sigmoid" and kind="bco", not {kind!r}')
    c, r = _pair("", chosen, rejected, chosen)
    h = c - r
    if reference_chosen is not None or reference_rejected is not None:
        if reference_chosen is None or reference_rejected is None:
            raise ValueError("pass both of `reference_chosen` and `reference_rejected`, or neither")
        of_c, of_r = _pair("reference_", reference_chosen, reference_rejected, chosen)
        h = h - (of_c - of_r).detach()
        c, r = c - of_c.detach(), r - of_r.detach()
    elif kind in _ALONE:
        raise ValueError(
            f"kind={kind!r} compares each answer with the reference: pass `reference_chosen` and "
            f"`reference_rejected`"
        )
    if kind in _ALONE:
        values = _ALONE[kind](beta * c, beta * r, margin)
    elif kind == "hinge":
        values = torch.relu(1 - beta * h)
    elif kind == "ipo":
        values = (h - 1 / (2 * beta)).square()
    elif kind == "exo":
        values = _divergence_of_odds(beta * h, math.log1p(-smoothing) - math.log(smoothing))
    else:
        x = beta * h - margin
        values = -(1 - smoothing) * logsigmoid(x)
        if smoothing:
            values = values - smoothing * logsigmoid(-x)
    return _reduced(values, reduction, normalizer, empty).to(chosen.dtype)


# The kinds that look at each answer alone, from beta times the log-ratios of both.
_ALONE: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "nca": lambda c, r, m: -logsigmoid(c) - (logsigmoid(-c) + logsigmoid(-r)) / 2,
    "bco": lambda c, r, m: -logsigmoid(c - m) - logsigmoid(m - r),
    "apo_zero": lambda c, r, m: _probability(-c) + _probability(r),
    "apo_down": lambda c, r, m: _probability(c) + _probability(r - c),
}


def _probability(x: Tensor) -> Tensor:
    return logsigmoid(x).exp()  # torch.sigmoid's derivative has a rounded 1 - p


def _read_smoothing(kind: str, smoothing: float | None) -> float:
    """The smoothing of the labels; raise if this kind has none."""
    smoothing = Range(high=0.5).check("label_smoothing", smoothing, None)
    if kind == "exo":
        smoothing = 1e-3 if smoothing is None else smoothing
        if smoothing <= 0:
            raise ValueError(f'`label_smoothing` must be above 0 for kind="exo", got {smoothing}')
    elif kind != "sigmoid" and smoothing:
        raise ValueError(
            f'`label_smoothing` is for kind="sigmoid" and kind="exo", not {kind!r}; leave it out'
        )
    return smoothing or 0.0


def _divergence_of_odds(x: Tensor, true: float) -> Tensor:
    """The divergence of ``sigmoid(x)`` from the probability with these log-odds, of two answers."""
    gap = true - x
    near = gap.abs() < 1
    # Of both answers the one of lower probability: of the other one little would be left.
    small = torch.where(near, torch.where(x > 0, -gap, gap), 0.0)
    p = _probability(torch.where(x > 0, -x, x))
    close = torch.log1p(p * torch.expm1(small)) - p * small
    odds = gap.new_tensor(true)
    far = product(_probability(x), logsigmoid(x) - logsigmoid(odds))
    far = far + product(_probability(-x), logsigmoid(-x) - logsigmoid(-odds))
    return torch.where(near, close, far)


def _reduced(
    values: Tensor, reduction: str, normalizer: float | Tensor | None, empty: str
) -> Tensor:
    """The reduction of one value for each answer, or for each pair of answers."""
    reduce = read_reduction_of_tokens(reduction, normalizer, empty, values)
    return reduce.of(RowValues(values, None, torch.ones_like(values)))


def _pair(prefix: str, chosen: Tensor, rejected: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of chosen and rejected answers, in a wide dtype."""
    check_log_probs(f"{prefix}chosen", chosen, ("chosen", like))
    check_log_probs(f"{prefix}rejected", rejected, ("chosen", like))
    return widened(chosen), widened(rejected)


@overridable
def kto_loss(
    log_prob: Tensor,
    reference: Tensor,
    desirable: Tensor,
    *,
    reference_point: float | Tensor = 0.0,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Kahneman-Tversky optimisation: answers that are good or bad, without pairs.

    .. math:: \ell = \lambda \, \sigma\bigl(\mp \beta (\log \tfrac pr - z_0)\bigr)

    with the minus and the first weight for good answers, the plus and the second one for bad ones.
    The pull is largest where the log-ratio is at the reference point :math:`z_0`.

    Use:
        For answers that were judged good or bad one by one; not for pairs of one prompt, which
        :func:`~xent.policy.dpo_loss` compares.

    Args:
        log_prob: log-probabilities of the answers, ``(B,)``, float32 or float64; see
            :func:`xent.policy.sequence_log_prob`.
        reference: the same under the reference policy; a constant.
        desirable: bool, in the shape of ``log_prob``: which answers are good.
        reference_point: ``z_0``, a number or 0-d tensor, a constant: an estimate of the divergence
            of the policy from the reference, not below 0. The authors take the mean log-ratio of
            answers to other prompts of the batch, ``.mean().clamp(min=0)``.
        beta: how strongly the reference holds, positive.
        desirable_weight: factor on good answers.
        undesirable_weight: factor on bad answers.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of answers.
        normalizer: another divisor of the mean: a number or 0-d tensor.
        empty: ``"nan"``, or ``"zero"``: the mean of no answers.

    Returns:
        A scalar, or ``(B,)`` for ``reduction="none"``, in the dtype of ``log_prob``.

    Raises:
        ValueError: for shapes that do not fit, or a value an option cannot take.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> log_prob, reference = torch.tensor([-10.0, -10.0]), torch.tensor([-12.0, -12.0])
        >>> good = torch.tensor([True, False])
        >>> xent.policy.kto_loss(log_prob, reference, good, reduction="none")
        tensor([0.4502, 0.5498])

    References:
        Ethayarajh et al., *KTO: model alignment as prospect theoretic optimization*, ICML 2024.
    """
    check_log_probs("log_prob", log_prob)
    check_log_probs("reference", reference, ("log_prob", log_prob))
    is_tensor("desirable", desirable)
    if desirable.dtype != torch.bool or desirable.shape != log_prob.shape:
        raise ValueError(
            f"`desirable` must be bool, in the shape of `log_prob`, {tuple(log_prob.shape)}; got "
            f"{desirable.dtype} of shape {tuple(desirable.shape)}"
        )
    beta = Range(0, open=True).check("beta", beta, None)
    of_good = Range(0).check("desirable_weight", desirable_weight, None)
    of_bad = Range(0).check("undesirable_weight", undesirable_weight, None)
    point = scalar("reference_point", reference_point, log_prob.device)
    point = point.detach() if isinstance(point, Tensor) else point
    lead = beta * (widened(log_prob) - widened(reference).detach() - point)
    values = _probability(torch.where(desirable, -lead, lead))
    values = values * torch.full_like(values, of_bad).masked_fill(desirable, of_good)
    return _reduced(values, reduction, normalizer, empty).to(log_prob.dtype)


@overridable
def orpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float = 0.1,
    nll_weight: float = 1.0,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Odds-ratio preference optimisation: likelihood and preference at once, without a reference.

    .. math:: \ell = -w \log p(\text{chosen}) - \beta \log \sigma\bigl(
        \mathrm{logit}\, p(\text{chosen}) - \mathrm{logit}\, p(\text{rejected})\bigr)

    The logit of a probability near 1 has all digits that its logarithm has. At a log-probability of
    0 the logit is that of the next smaller probability, so that no difference of infinities arises:
    such a rejected answer costs some 708 times ``beta``, and has no gradient.

    Use:
        For pairs of answers without a reference model, while fine-tuning; not when a reference
        should hold the policy near, as in :func:`~xent.policy.dpo_loss`.

    Args:
        chosen: mean log-probabilities of the tokens of the better answers, ``(B,)``, float32 or
            float64, none above 0: ``sequence_log_prob(..., mean=True)``.
        rejected: those of the worse answers, in the same shape.
        beta: weight of the odds ratio, called lambda in the paper.
        nll_weight: ``w``, weight of the likelihood; 0 leaves the odds ratio alone.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of pairs.
        normalizer: another divisor of the mean: a number or 0-d tensor.
        empty: ``"nan"``, or ``"zero"``: the mean of no pairs.

    Returns:
        A scalar, or ``(B,)`` for ``reduction="none"``, in the dtype of ``chosen``.

    Raises:
        ValueError: for shapes that do not fit, or a value an option cannot take.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> chosen, rejected = torch.tensor([-0.5, -1e-8]), torch.tensor([-2.0, -2.0])
        >>> xent.policy.orpo_loss(chosen, rejected, reduction="none")
        tensor([5.0967e-01, 1.0157e-08])

    References:
        Hong, Lee & Thorne, *ORPO: monolithic preference optimization without reference model*,
        EMNLP 2024.
    """
    beta = Range(0).check("beta", beta, None)
    nll_weight = Range(0).check("nll_weight", nll_weight, None)
    c, r = _pair("", chosen, rejected, chosen)
    odds = [logit_of_exp(x.clamp(max=-torch.finfo(x.dtype).tiny)) for x in (c, r)]
    values = -nll_weight * c - beta * logsigmoid(odds[0] - odds[1])
    return _reduced(values, reduction, normalizer, empty).to(chosen.dtype)
