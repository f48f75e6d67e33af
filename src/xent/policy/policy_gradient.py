"""Policy gradients: losses of the log-probabilities that a policy gives to its samples.

:func:`xent.token_log_probs` makes the log-probabilities, ``(B, T)`` for tokens of sequences or
``(N,)`` for single actions. Advantages may be negative, so the divisor of a mean never contains
them: ``average`` and ``normalizer`` set the divisor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .._check import finite_number, one_of
from .._series import exp_beyond_line
from ..frames.reduction import Reduction
from ..frames.token_loss import Average, Tokens, explained
from ..hyperparameters import Range
from ..overrides import overridable

Estimator = Literal["k1", "k2", "k3"]
Kind = Literal["clip", "cispo", "sapo"]

# ---- divergences from samples -------------------------------------------------------------------


@overridable
def kl_estimate(
    log_prob: Tensor,
    reference: Tensor,
    *,
    estimator: Estimator = "k3",
    max_log_ratio: float | None = None,
) -> Tensor:
    r"""Estimates of a Kullback-Leibler divergence from samples, token by token.

    .. math:: k_1 = \log \frac{p}{r}, \qquad k_2 = \frac12 \log^2 \frac{p}{r}, \qquad
        k_3 = \frac{r}{p} - 1 - \log \frac{r}{p}

    for tokens drawn from the policy ``p``, and :math:`\mathrm{KL}(p \,\|\, r)`. The means of k1 and
    k3 are the divergence; that of k2 only nearly, for policies that are close. k2 and k3 are never
    negative, and keep their digits however close the policies are.

    As a *loss*, on tokens of the policy itself, only k2 has the gradient of
    :math:`\mathrm{KL}(p \,\|\, r)`. That of k3 is the gradient of :math:`\mathrm{KL}(r \,\|\, p)`,
    the other way round, and that of k1 is 0 on average. In a *reward* it is k1 that is right.

    The exponential of k3 has no bound: float32 overflows at 89 nats, and long before that a single
    token decides where a step goes. So above ``max_log_ratio`` k3 goes on along its tangent. It
    still grows, and its gradient, which still draws the policies together, grows no further. To
    clamp the log-ratio or the estimate, as other libraries do at 10 or 20 nats, would leave the
    tokens that are farthest away without any gradient.

    Args:
        log_prob: log-probabilities of the tokens, any shape, float32 or float64.
        reference: log-probabilities of the same tokens under the other policy.
        estimator: ``"k1"``, ``"k2"`` or ``"k3"``.
        max_log_ratio: the largest :math:`\log \frac{r}{p}`, in nats, up to which k3 is exact;
            k1 and k2 have no bound. By default 40 for float32 and 350 for float64: squares of
            gradients, and sums of thousands of squares, are finite there.

    Returns:
        In nats, in the shape and dtype of ``log_prob``; differentiable in both.

    Raises:
        ValueError: for shapes that differ, or an unknown estimator.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> log_prob = torch.tensor([-1.0, -1.0], dtype=torch.float64)
        >>> reference = log_prob + torch.tensor([1e-9, 1.0], dtype=torch.float64)
        >>> [f"{k:.4e}" for k in xent.policy.kl_estimate(log_prob, reference).tolist()]
        ['5.0000e-19', '7.1828e-01']
        >>> apart = torch.tensor([-120.0], requires_grad=True), torch.tensor([-10.0])
        >>> estimate = xent.policy.kl_estimate(*apart, max_log_ratio=20.0)
        >>> estimate.isfinite().item(), f"{torch.autograd.grad(estimate, apart[0])[0].item():.4e}"
        (True, '-4.8517e+08')

    References:
        Schulman, *Approximating KL divergence*, 2020.
    """
    tokens = Tokens(log_prob)
    log_ratio = tokens.log_prob - tokens.read("reference", reference)
    bound = _bound("max_log_ratio", max_log_ratio, log_prob.dtype)
    return _estimate(log_ratio, estimator, bound).to(log_prob.dtype)


def _estimate(log_ratio: Tensor, estimator: str, bound: float, name: str = "estimator") -> Tensor:
    one_of(name, estimator, ("k1", "k2", "k3"))
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    log_ratio, beyond = _split(-log_ratio, bound)
    near = log_ratio.abs() < 1
    close = exp_beyond_line(torch.where(near, -log_ratio, 0.0))
    far = torch.where(near, 1.0, log_ratio)
    return torch.where(near, close, torch.expm1(far) - far) + torch.expm1(log_ratio) * beyond


def _split(log_ratio: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Return log-ratios up to a bound, and how far each is above it."""
    return log_ratio.clamp(max=bound), (log_ratio - bound).relu()


def _bound(name: str, given: float | None, dtype: torch.dtype) -> float:
    """Return the largest log-ratio whose exponential is taken."""
    given = Range(0, open=True).check(name, given, None)
    return _MAX_LOG_RATIO[dtype] if given is None else given


# Squares overflow at 44.4 and 354.9 nats.
_MAX_LOG_RATIO = {torch.float32: 40.0, torch.float64: 350.0}


# ---- losses -------------------------------------------------------------------------------------


@explained
def reinforce_loss(
    log_prob: Tensor,
    advantage: Tensor,
    mask: Tensor | None = None,
    *,
    entropy: Tensor | None = None,
    entropy_weight: float = 0.0,
    average: Average = "token",
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Loss of REINFORCE, the policy gradient: cross-entropy weighted by advantages.

    .. math:: \ell = -A \log p

    The gradient in the logits is :math:`A (p - \text{onehot})`, divided as the mean is. Without
    entropy, the loss of tokens is ``xent.cross_entropy(logits, target, row_weight=advantage,
    normalizer="count")``, which behind a linear head saves a product of matrices. Where advantages
    are negative the loss has no lower bound; ``xent.losses.unlikelihood_loss``, a loss of logits,
    lowers the probability of tokens and is never below 0. ``xent.learn.reinforce`` trains a policy
    with this loss.

    Use:
        For rewards of actions that the policy itself has just drawn; not for samples of an older
        policy, which are for :func:`~xent.policy.ppo_loss`.

    Example:
        >>> import torch, xent
        >>> log_prob = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
        >>> mask = torch.tensor([[True, True], [True, False]])
        >>> xent.policy.reinforce_loss(log_prob, torch.tensor([1.0, -1.0]), mask)
        tensor(0.)
        >>> advantage = torch.tensor([1.0, -1.0])
        >>> xent.policy.reinforce_loss(log_prob, advantage, mask, average="sequence")
        tensor(-0.7500)

    References:
        Williams, *Simple statistical gradient-following algorithms for connectionist reinforcement
        learning*, Machine Learning, 1992.
    """
    tokens = Tokens(log_prob, mask)
    values = -tokens.advantage(advantage) * tokens.log_prob
    values = values - _bonus(tokens, entropy, entropy_weight)
    return tokens.reduce(values, average, reduction, normalizer, empty)


@explained
def ppo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor | None,
    advantage: Tensor,
    mask: Tensor | None = None,
    *,
    clip: float | tuple[float, float] = 0.2,
    dual_clip: float | None = None,
    max_log_ratio: float | None = None,
    entropy: Tensor | None = None,
    entropy_weight: float = 0.0,
    average: Average = "token",
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Proximal policy optimisation: the policy gradient with a clipped ratio of probabilities.

    .. math:: \ell = -\min\bigl(\rho A,\ \mathrm{clip}(\rho, 1 - c, 1 + c) A\bigr), \qquad
        \rho = \frac{p}{p_{\text{old}}}

    Clipped tokens have no gradient.

    Use:
        For several steps on the samples of one policy; not for a single step, where
        :func:`~xent.policy.reinforce_loss` has the same gradient.

    Args:
        clip: ``c``, or ``(low, high)`` for a range from ``1 - low`` to ``1 + high`` (DAPO's
            clip-higher: ``(0.2, 0.28)``).
        dual_clip: the largest ratio that counts where the advantage is negative, above 1.

    Example:
        >>> import torch, xent
        >>> old = torch.tensor([-1.0, -1.0, -1.0])
        >>> new = (old + torch.tensor([0.0, 0.5, 0.5])).requires_grad_()
        >>> loss = xent.policy.ppo_loss(new, old, torch.tensor([1.0, 1.0, -1.0]), reduction="none")
        >>> loss
        tensor([-1.0000, -1.2000,  1.6487], grad_fn=<ToCopyBackward0>)
        >>> torch.autograd.grad(loss.sum(), new)
        (tensor([-1.0000,  0.0000,  1.6487]),)

    References:
        Schulman et al., *Proximal policy optimization algorithms*, 2017. Dual clip: Ye et al.,
        *Mastering complex control in MOBA games*, AAAI 2020.
    """
    return grpo_loss(
        log_prob, old_log_prob, advantage, mask, clip=clip, dual_clip=dual_clip,
        max_log_ratio=max_log_ratio, entropy=entropy, entropy_weight=entropy_weight,
        average=average, reduction=reduction, normalizer=normalizer, empty=empty,
    )  # fmt: skip


@explained
def grpo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor | None,
    advantage: Tensor,
    mask: Tensor | None = None,
    *,
    kind: Kind = "clip",
    reference: Tensor | None = None,
    kl_weight: float = 0.0,
    kl_estimator: Estimator = "k3",
    clip: float | tuple[float, float] = 0.2,
    dual_clip: float | None = None,
    ratio: Literal["token", "sequence"] = "token",
    temperature: Sequence[float] = (1.0, 1.05),
    max_log_ratio: float | None = None,
    entropy: Tensor | None = None,
    entropy_weight: float = 0.0,
    average: Average = "sequence",
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Group relative policy optimisation: PPO's loss plus a divergence from a reference policy.

    .. math:: \ell = -\min\bigl(\rho A,\ \mathrm{clip}(\rho, 1 - c, 1 + c) A\bigr)
        + \beta\, k(p, p_{\text{ref}})

    Options give related losses: DAPO is ``average="token", clip=(0.2, 0.28)``; Dr. GRPO
    ``average=L``, with ``group_advantages(..., scale=False)``; GSPO ``ratio="sequence",
    clip=(3e-4, 4e-4)``. Two kinds have another first term, in which no token loses its gradient at
    a bound:

    .. math:: \text{cispo: } -\mathrm{const}\bigl(\mathrm{clip}(\rho, 1 - c, 1 + c)\bigr) A \log p,
        \qquad \text{sapo: } -\frac4\tau \sigma\bigl(\tau (\rho - 1)\bigr) A

    Use:
        For several answers to each prompt, compared within their group; not for one answer per
        prompt, whose advantage in its group is 0.

    Args:
        kind: ``"clip"`` for PPO's first term; ``"cispo"``: the policy gradient with a clipped ratio
            as a constant weight; ``"sapo"``: a soft gate, whose slope at a ratio of 1 is that of
            the policy gradient. It has no ``clip``.
        reference: log-probabilities under the reference policy, in the shape of ``log_prob``; a
            constant.
        kl_weight: ``beta``, the weight of the divergence from the reference.
        kl_estimator: as for :func:`xent.policy.kl_estimate`, which tells the gradient of each.
        clip: ``c``, or ``(low, high)`` for a range from ``1 - low`` to ``1 + high``.
        dual_clip: the largest ratio that counts where the advantage is negative, above 1.
        ratio: ``"token"``, or ``"sequence"``: the ratio of each token is replaced by the geometric
            mean over its sequence, before clipping.
        temperature: ``tau`` of ``kind="sapo"``, where the advantage is positive and elsewhere:
            the larger, the sooner tokens far from a ratio of 1 lose their gradient.

    Example:
        >>> import torch, xent
        >>> log_prob = torch.tensor([[-1.0, -2.0], [-3.0, -1.0]], requires_grad=True)
        >>> advantage = xent.policy.group_advantages(torch.tensor([1.0, 0.0]), 2, scale=False)
        >>> reference = torch.full((2, 2), -2.0)
        >>> options = {"reference": reference, "kl_weight": 0.1}
        >>> loss = xent.policy.grpo_loss(log_prob, None, advantage, **options)
        >>> f"{loss.item():.4f}"
        '0.0364'

    References:
        Shao et al., *DeepSeekMath*, 2024 (GRPO). Yu et al., *DAPO*, 2025. Liu et al.,
        *Understanding R1-Zero-like training*, 2025 (Dr. GRPO). Zheng et al., *Group sequence policy
        optimization*, 2025 (GSPO). MiniMax, *MiniMax-M1*, 2025 (CISPO). Gao et al., *Soft adaptive
        policy optimization*, 2025 (SAPO).
    """
    one_of("ratio", ratio, ("token", "sequence"))
    one_of("kind", kind, ("clip", "cispo", "sapo"))
    if kind != "clip" and dual_clip is not None:
        raise ValueError(f'`dual_clip` is for kind="clip", not {kind!r}')
    if kind == "sapo" and clip != 0.2:
        raise ValueError('`clip` is for the other kinds: with kind="sapo" no ratio is clipped')
    tokens = Tokens(log_prob, mask)
    p, a = tokens.log_prob, tokens.advantage(advantage)
    old = p if old_log_prob is None else tokens.read("old_log_prob", old_log_prob)
    log_ratio = p - old.detach()
    if ratio == "sequence":
        tokens.need_sequences("ratio")
        log_ratio = log_ratio.sum(-1, keepdim=True) / tokens.lengths().clamp(min=1)
    bound = _bound("max_log_ratio", max_log_ratio, log_prob.dtype)
    if kind == "clip":
        near, beyond = _split(_clipped(log_ratio, a, clip, dual_clip), bound)
        values = -a * near.exp() * (1 + beyond)
    elif kind == "cispo":
        values = -a * log_ratio.detach().clamp(*_range(clip)).clamp(max=bound).exp() * p
    else:
        values = -a * _gate(log_ratio.clamp(max=bound), a, temperature)
    kl_weight = finite_number("kl_weight", kl_weight)
    if kl_weight:
        if reference is None:
            raise ValueError("`kl_weight` needs `reference`, log-probabilities to stay near to")
        from_reference = p - tokens.read("reference", reference).detach()
        values = values + kl_weight * _estimate(from_reference, kl_estimator, bound, "kl_estimator")
    values = values - _bonus(tokens, entropy, entropy_weight)
    return tokens.reduce(values, average, reduction, normalizer, empty)


def _clipped(
    log_ratio: Tensor,
    advantage: Tensor,
    clip: float | tuple[float, float],
    dual_clip: float | None,
) -> Tensor:
    """Clip log-ratios: from above for positive advantages, from below for negative ones.

    Logarithms are clipped, not ratios, because a ratio that overflows would make the gradient NaN.
    """
    low, high = _range(clip)
    dual_clip = Range(1, open=True).check("dual_clip", dual_clip, None)
    good = advantage >= 0
    least = torch.full_like(advantage, low)
    most = torch.full_like(advantage, math.log(dual_clip or math.inf))
    least, most = least.masked_fill(good, -math.inf), most.masked_fill(good, high)
    return log_ratio.clamp(least, most)


def _range(clip: float | tuple[float, float]) -> tuple[float, float]:
    """The smallest and the largest log-ratio of a range."""
    pair: Any = clip if isinstance(clip, tuple) and len(clip) == 2 else (clip, clip)
    low, high = Range(0, 1).check("clip", pair[0], None), Range(0).check("clip", pair[1], None)
    return math.log1p(-low) if low < 1 else -math.inf, math.log1p(high)


def _gate(log_ratio: Tensor, advantage: Tensor, temperature: Sequence[float]) -> Tensor:
    """``4 / t`` times the sigmoid of ``t`` times the ratio less 1."""
    if not isinstance(temperature, Sequence) or len(temperature) != 2:
        raise ValueError(
            f"`temperature` must be a pair, for positive advantages and for others; got "
            f"{temperature!r}. Pass the same number twice for one temperature"
        )
    for_good, for_others = (Range(0, open=True).check("temperature", t, None) for t in temperature)
    t = torch.full_like(advantage, for_others).masked_fill(advantage > 0, for_good)
    return 4 / t * torch.sigmoid(t * torch.expm1(log_ratio))


def _bonus(tokens: Tokens, entropy: Tensor | None, weight: float) -> Tensor | float:
    weight = finite_number("entropy_weight", weight)
    if not weight:
        return 0.0
    if entropy is None:
        raise ValueError(
            "`entropy_weight` needs `entropy`, which xent.token_log_probs(..., entropy=True) gives"
        )
    return weight * tokens.read("entropy", entropy)
