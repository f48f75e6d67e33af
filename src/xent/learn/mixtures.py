"""Several models in one prediction: mixtures of their probabilities, and of their logits.

The cross-entropy of both is convex in the weights. So the best weights are found, with a bound on
how much better other weights can be:

    fit = fit_mixture_weights(logits, target)  # (K, N, C) of K models, on rows none has learnt from
    log_q = mixture_log_prob(xent.log_softmax(new_logits, -1), fit.weights, dim=0)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.functional import hessian

from .. import statistics
from .._check import class_indices, is_tensor
from .._probabilities import log_probabilities, sums_to_1
from ..arrays import takes_arrays

__all__ = ["MixtureFit", "fit_logit_weights", "fit_mixture_weights", "mixture_log_prob"]

_STEPS, _ENOUGH = 500, 1e-9


class MixtureFit(NamedTuple):
    """Weights of a mixture.

    Attributes:
        weights: of the members, ``(K,)``, float64; at least 0, sum 1.
        cross_entropy: of the mixture with these weights, in nats per row.
        gap: how far ``cross_entropy`` is at most above the least possible one, in nats.
    """

    weights: Tensor
    cross_entropy: float
    gap: float


@takes_arrays
def mixture_log_prob(log_probs: Tensor, weights: Tensor, dim: int = -1) -> Tensor:
    r"""Log-probability under a mixture, from those under its members.

    .. math:: \log \sum_k w_k\, e^{\ell_k}

    Computed by logsumexp, so it is exact also where the probabilities of all members underflow. The
    cross-entropy of the mixture is at most the weighted mean of the cross-entropies of its members.

    Args:
        log_probs: log-probabilities under the members, any shape; ``-inf`` is allowed.
        weights: one for each member, ``(K,)``, at least 0; they sum to 1.
        dim: the axis of the members, which the result lacks.

    Returns:
        In the dtype of ``log_probs``; differentiable.

    Raises:
        ValueError: if ``weights`` do not fit the axis, are negative or do not sum to 1.
        TypeError: for other dtypes.

    Example:
        >>> import torch
        >>> from xent.learn import mixture_log_prob
        >>> mixture_log_prob(torch.tensor([-1000.0, -1000.0]), torch.tensor([0.5, 0.5]))
        tensor(-1000.)
    """
    _check_floating("log_probs", log_probs)
    _check_floating("weights", weights)
    members = log_probs.shape[dim] if log_probs.ndim else None
    if weights.shape != (members,):
        raise ValueError(
            f"`weights` must hold one number for each of the {members} members along `dim`; got "
            f"shape {tuple(weights.shape)}"
        )
    sums_to_1("weights", weights)
    log_probabilities("log_probs", log_probs)
    there = weights > 0
    log_weights = torch.where(there, torch.where(there, weights, 1.0).log(), -torch.inf)
    return torch.logsumexp(log_probs.movedim(dim, -1) + log_weights.to(log_probs.dtype), -1)


@takes_arrays
def fit_mixture_weights(members: Tensor, target: Tensor | None = None) -> MixtureFit:
    r"""The weights at which a mixture of models has the least cross-entropy.

    .. math:: \min_w -\frac{1}{N} \sum_n \log \sum_k w_k\, p_{nk}
        \qquad w_k \ge 0, \ \sum_k w_k = 1

    Members that add nothing get weight 0. No weights are better by more than the gap,
    :math:`\max_k \frac{1}{N} \sum_n p_{nk} / q_n - 1`, where q is the mixture.

    Args:
        members: log-probabilities of what came under each of the K members, ``(N, K)``; or, with a
            target, their logits, ``(K, N, C)``. No member may have learnt from these rows.
        target: class indices, ``(N,)``; -100 leaves a row out.

    Returns:
        A :class:`MixtureFit`; its gap is at most 1e-9 nats but for rounding.

    Raises:
        ValueError: for shapes that do not fit, NaN, no row, or a row that every member holds for
            impossible.
        TypeError: for other dtypes.

    Example:
        >>> import torch
        >>> from xent.learn import fit_mixture_weights
        >>> p = torch.tensor([[0.9, 0.5], [0.9, 0.5], [0.1, 0.5]]).double()
        >>> fit = fit_mixture_weights(p.log())
        >>> fit.weights, fit.gap < 1e-9
        (tensor([0.4167, 0.5833], dtype=torch.float64), True)

    References:
        Cover, *An algorithm for maximizing expected log investment return*, 1984.
    """
    log_probs = members if target is None else _log_probs_of(members, target)
    _check_floating("members", log_probs)
    if log_probs.ndim != 2 or 0 in log_probs.shape:
        raise ValueError(
            f"`members` must be log-probabilities of what came, (N, K), or logits (K, N, C) with a "
            f"target; got shape {tuple(members.shape)}"
        )
    log_probabilities("members", log_probs)
    log_probs = log_probs.detach().double()
    best = log_probs.amax(1, keepdim=True)  # (N, 1)
    if bool(log_probs.isnan().any() | best.isinf().any()):
        raise ValueError(
            "`members` hold NaN or inf, or a row that all of them hold for impossible (-inf): no "
            "mixture has a finite cross-entropy there"
        )
    relative = (log_probs - best).exp()  # keeps each row away from underflow

    def excess(weights: Tensor) -> Tensor:
        return -(relative @ weights).log().mean()

    weights, gap = _least_on_simplex(excess, log_probs.shape[1])
    return MixtureFit(weights, -mixture_log_prob(log_probs, weights).mean().item(), gap)


@takes_arrays
def fit_logit_weights(logits: Tensor, target: Tensor) -> MixtureFit:
    r"""The weights at which the mean of the logits of models has the least cross-entropy.

    .. math:: \min_w \frac{1}{N} \sum_n \mathrm{CE}\Bigl(\sum_k w_k z_{nk}, y_n\Bigr)
        \qquad w_k \ge 0, \ \sum_k w_k = 1

    The mean of logits gives the geometric mean of the members' probabilities, normalised. This
    mixture is sure where all members agree; its cross-entropy is at most the weighted mean of
    those of the members.

    Args:
        logits: of the K members, ``(K, N, C)``, on rows that none has learnt from.
        target: class indices, ``(N,)``; -100 leaves a row out.

    Returns:
        A :class:`MixtureFit`; the mixture is ``torch.tensordot(fit.weights, logits.double(), 1)``.

    Raises:
        ValueError: for shapes that do not fit, logits that are not finite, or no row.
        TypeError: for other dtypes.

    Example:
        >>> import torch
        >>> from xent.learn import fit_logit_weights
        >>> sure = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
        >>> unsure = torch.zeros(4, 2)
        >>> fit = fit_logit_weights(torch.stack([sure, unsure]), torch.tensor([0, 0, 0, 1]))
        >>> [round(w, 4) for w in fit.weights.tolist()]  # a logit of log 3 is right
        [0.2747, 0.7253]

    References:
        Genest & Zidek, *Combining probability distributions: a critique and an annotated
        bibliography*, 1986.
    """
    logits, target = _rows_with_target(logits, target)
    if not bool(logits.isfinite().all()):
        raise ValueError(
            "`logits` must be finite: a class with logit -inf under one member is impossible under "
            "every mean; fit_mixture_weights can take such members"
        )

    def loss(weights: Tensor) -> Tensor:
        return -statistics(torch.tensordot(weights, logits, 1), target).log_prob.mean()

    weights, gap = _least_on_simplex(loss, len(logits))
    return MixtureFit(weights, loss(weights).item(), gap)


def _least_on_simplex(loss: Callable[[Tensor], Tensor], members: int) -> tuple[Tensor, float]:
    """Minimise a convex function of weights; return the weights and how far they are off at most.

    Newton's method moves the weights that are not 0, and the weight with the least slope. If that
    would make a weight negative at once, the step goes towards the weight with the least slope.
    """
    weights = torch.full((members,), 1 / members, dtype=torch.float64, device="cpu")
    gap = torch.inf
    for _ in range(_STEPS):
        at = weights.clone().requires_grad_()
        value = loss(at)
        (slope,) = torch.autograd.grad(value, at)
        best = slope.argmin()
        gap = (weights @ slope - slope[best]).item()  # by convexity, since no slope is less
        if gap <= _ENOUGH:
            break
        free = weights > 0
        free[best] = True
        direction = _newton_direction(hessian(loss, weights), slope, free)
        step = min(1.0, _room(weights, direction))
        if step == 0 or slope @ direction >= 0:
            direction, step = torch.nn.functional.one_hot(best, members) - weights, 1.0
        weights = _line_search(loss, weights, direction, step, value.item(), slope)
    return weights, max(gap, 0.0)


def _line_search(
    loss: Callable[[Tensor], Tensor],
    weights: Tensor,
    direction: Tensor,
    step: float,
    value: float,
    slope: Tensor,
) -> Tensor:
    """Halve the step until it gains enough; return the weights after it."""
    while True:
        moved = weights + step * direction
        moved[moved < 1e-15] = 0.0  # a weight that has reached 0 stays there
        moved /= moved.sum()
        enough = value + 1e-4 * step * (slope @ direction).item() + 1e-15 * abs(value)
        if loss(moved).item() <= enough or step < 1e-18:
            return moved
        step /= 2


def _newton_direction(curvature: Tensor, slope: Tensor, free: Tensor) -> Tensor:
    """Return the Newton step of the free weights that keeps the sum of all weights."""
    n = int(free.sum())
    curvature = curvature[free][:, free]
    # Equal members make the matrix singular; the small ridge shares the weight between them.
    ridge = 1e-10 * curvature.trace() + 1e-12
    system = torch.ones(n + 1, n + 1, dtype=torch.float64, device=curvature.device)
    system[:n, :n], system[n, n] = (
        curvature + ridge * torch.eye(n, dtype=curvature.dtype, device=curvature.device),
        0.0,
    )
    direction = torch.zeros_like(slope)
    right = torch.cat([-slope[free], slope.new_zeros(1)])
    direction[free] = torch.linalg.solve(system, right)[:n]
    return direction


def _room(weights: Tensor, direction: Tensor) -> float:
    """Return how long a step in this direction may be before a weight is 0."""
    falling = direction < 0
    return (weights[falling] / -direction[falling]).min().item() if bool(falling.any()) else 1.0


def _log_probs_of(logits: Tensor, target: Tensor) -> Tensor:
    """Log-probabilities (N, K) of what came, from logits (K, N, C)."""
    logits, target = _rows_with_target(logits, target)
    return torch.stack([statistics(z, target).log_prob for z in logits], 1)


def _rows_with_target(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (K, N, C), float64, and class indices (N,) of the rows that count; checked."""
    _check_floating("logits", logits)
    is_tensor("target", target)
    if logits.ndim != 3 or target.shape != logits.shape[1:2]:
        raise ValueError(
            f"logits of K members must have shape (K, N, C), with a `target` of shape (N,); got "
            f"{tuple(logits.shape)} and {tuple(target.shape)}"
        )
    target = class_indices("target", target)
    kept = target != -100
    if not bool(kept.any()) or len(logits) == 0:
        raise ValueError("there must be a member, and a row with a target")
    return logits.detach().double()[:, kept], target[kept]


def _check_floating(name: str, value: Tensor) -> None:
    is_tensor(name, value)
    if not value.is_floating_point():
        raise TypeError(f"`{name}` must be floating point, got {value.dtype}")
