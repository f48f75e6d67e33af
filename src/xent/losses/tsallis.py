r"""Tsallis' deformed exponentials, from which tempered losses, sparsemax and entmax are made.

.. math:: \log_t p = \frac{p^{1-t} - 1}{1 - t}, \qquad
    \exp_t x = \bigl[1 + (1 - t) x\bigr]_+^{1 / (1-t)}

are log and exp at ``t = 1``. From logits ``z`` come probabilities ``p_j = exp_t(x_j)`` with
``x_j = z_j - lambda``, where ``lambda`` makes the sum 1. At ``t = 1`` that is softmax. Above 1 the
tails fall as a power (tempered softmax), below 1 there are zeros (entmax of ``alpha = 2 - t``,
sparsemax at 0).

Classes are on the last axis, and everything can be differentiated any number of times. Compilers
see operators (:mod:`xent.losses.tsallis_operators`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..engines.modes import are_there, compiling
from ..softmax import log_softmax

# Steps of the search for `lambda`. It takes three to ten as a rule, and once took 25 for `t >= 0`;
# below 0, where the derivative is infinite at the edge of the support, up to a hundred.
MAX_STEPS, MAX_STEPS_BELOW_0 = 40, 100


def log_exp(x: Tensor, t: float) -> Tensor:
    """``log(exp_t(x))``, and ``-inf`` where ``exp_t`` is 0."""
    if t == 1:
        return x
    scaled = (1 - t) * x
    positive = ~(scaled <= -1)  # NaN stays NaN
    return torch.where(
        positive, torch.log1p(torch.where(positive, scaled, 0)) / (1 - t), -torch.inf
    )


def log_softmax_t(z: Tensor, t: float) -> Tensor:
    r"""``z - lambda``, whose ``exp_t`` are the probabilities; keeps the digits of those near 1.

    A class of probability 0 has a number that says how far the class is from being possible.
    """
    if compiling():
        from .tsallis_operators import log_softmax_t as operator

        return operator(z, float(t))
    result = _LogSoftmax.apply(z, t)
    return result


def softmax_t(z: Tensor, t: float) -> Tensor:
    """Probabilities of logits, ``exp_t(z - lambda)``."""
    return log_exp(log_softmax_t(z, t), t).exp()


def bregman(q: Tensor, log_p: Tensor, beta: float = 1.0, log_ratio: Tensor | None = None) -> Tensor:
    r"""Terms of the Bregman divergence of ``p`` from ``q``, one per class, without cancellation.

    .. math:: q \bigl(\log_t q - \log_t p\bigr) - \frac{q^\beta - p^\beta}{\beta}, \qquad
        \beta = 2 - t

    It is 0 at ``p = q`` and positive elsewhere. With ``beta = 1`` the sum over the classes is the
    Kullback-Leibler divergence.

    Args:
        q: the target, not negative.
        log_p: logarithm of the prediction.
        beta: at least 1.
        log_ratio: ``log(p / q)`` where ``q`` is not 0, if known with more digits than a difference.
    """
    listed = ~(q <= 0)  # NaN is listed, and stays NaN
    q_listed, log_p_listed = torch.where(listed, q, 1), torch.where(listed, log_p, 0)
    y = log_p_listed - q_listed.log() if log_ratio is None else torch.where(listed, log_ratio, 0)
    at_q = _divergence_at_target(q_listed, log_p_listed, y, beta)
    log_p = torch.where(listed, 0, log_p)
    unlisted = (beta * log_p).exp() / beta
    if beta > 1:  # 0, but gives the derivative by a learned target
        unlisted = unlisted - torch.where(listed, 0, q) * _power(log_p, beta - 1) / (beta - 1)
    return torch.where(listed, at_q, unlisted)


def row_divergence(
    q: Tensor | None, label: Tensor | None, log_p: Tensor, beta: float = 1.0
) -> Tensor:
    """The divergence of each row from its target, a distribution or a class."""
    if label is None:
        assert q is not None
        return bregman(q, log_p, beta).sum(-1)
    at_label = log_p.gather(-1, label.unsqueeze(-1))[..., 0]  # (...)
    classes = torch.arange(log_p.shape[-1], device=log_p.device)
    others = torch.where(classes == label.unsqueeze(-1), 0, _power(log_p, beta))
    return bregman(torch.ones_like(at_label), at_label, beta) + others.sum(-1) / beta


def shifted(z: Tensor, t: float) -> Tensor:
    """``z - lambda``, without a derivative."""
    top = z.amax(-1, keepdim=True)
    z = torch.where(top.isfinite(), z - top, torch.nan)
    return log_softmax(z) if t == 1 else _normalised(z, t)


def shifted_gradient(x: Tensor, t: float, grad: Tensor) -> Tensor:
    """The gradient of :func:`shifted` by ``z``, from its result ``x``."""
    escort = _escort(x, t)
    result = grad - escort * grad.sum(-1, keepdim=True)
    # The gradient adds up to 0, so the entry of the likeliest class is minus the sum of the others.
    # That keeps all digits where the class has more weight than the others together.
    top = _is_top(x)
    others = torch.where(top, 0, result).sum(-1, keepdim=True)
    return torch.where(top & (escort > 0.5), -others, result)


class _LogSoftmax(Function):
    @staticmethod
    def forward(z: Tensor, t: float) -> Tensor:
        return shifted(z, t)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.t = inputs[1]
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return shifted_gradient(x, ctx.t, grad), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (x,) = ctx.saved_tensors
        moved = tangent - torch.where(_is_top(x), tangent, 0).sum(-1, keepdim=True)
        return moved - (_escort(x, ctx.t) * moved).sum(-1, keepdim=True)

    @staticmethod
    def vmap(_: Any, in_dims: tuple[Any, ...], z: Tensor, t: float) -> tuple[Any, int]:
        return _LogSoftmax.apply(z.movedim(in_dims[0], 0), t), 0


def _is_top(x: Tensor) -> Tensor:
    """Mark the largest entry of each row, the first of several."""
    return torch.arange(x.shape[-1], device=x.device) == x.detach().argmax(-1, keepdim=True)


def _normalised(z: Tensor, t: float) -> Tensor:
    """``z - lambda`` for ``t`` other than 1; the largest ``z`` must be 0.

    The search for ``lambda``, here ``mu``, is Newton's method on
    ``log_t sum_j exp_t(z_j - lambda)``, which is convex for ``t >= 0`` and linear if all logits are
    equal. Bisection replaces a step that leaves the interval or shrinks too slowly.
    """
    _check_height(t, z)
    others = torch.where(_is_top(z), -torch.inf, z)
    eps = torch.finfo(z.dtype).eps
    low = torch.zeros_like(z[..., :1])
    # The largest probability is at least 1 / classes.
    high = low - (1 + 4 * eps) * math.expm1((t - 1) * math.log(z.shape[-1])) / (1 - t)
    mu, last = low, torch.full_like(low, torch.inf)
    done = torch.zeros_like(low, dtype=torch.bool)
    for _ in range(MAX_STEPS if t >= 0 else MAX_STEPS_BELOW_0):
        p, slope = (v.sum(-1, keepdim=True) for v in _exp_and_slope(others - mu, t))
        # Rounding of all x moves mu by about this much, so a smaller step has no meaning.
        noise = (p - slope) / (1 - t)  # the sum of slope times x
        slope = slope + _exp_and_slope(-mu, t)[1]
        # Excess of the sum over 1: the other probabilities, less the gap of the largest one to 1.
        excess = torch.expm1(log_exp(-mu, t)) + p
        low, high = torch.where(excess >= 0, mu, low), torch.where(excess <= 0, mu, high)
        rise = (1 + excess) * torch.expm1((t - 1) * torch.log1p(excess)) / (t - 1)
        step = rise / slope
        # A step of NaN counts as small: no further step would change that.
        small = ~(step.abs() > 4 * eps * (mu - noise / slope))
        target = mu + step
        astray = (target < low) | (target > high) | (2 * step.abs() > last)
        target = torch.where(astray & ~small, low + (high - low) / 2, target)
        last = (target - mu).abs()
        mu, done = torch.where(done, mu, target), done | small
        if are_there(done) and bool(done.all()):
            break
    return z - mu


def _check_height(t: float, z: Tensor) -> None:
    """Raise if the least slope of equal classes, ``C^-t``, is no normal number."""
    classes, least = z.shape[-1], math.log(torch.finfo(z.dtype).tiny)
    if -t * math.log(classes) < least:
        raise ValueError(
            f"the temperature of the softmax must be below {-least / math.log(classes):.4g} for "
            f"{classes} classes in {z.dtype}, got {t}; probabilities of so high a temperature are "
            f"equal, 1 / {classes}"
        )


def _exp_and_slope(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """``exp_t(x)`` and its derivative, which is its ``t``-th power."""
    if t in (0, 0.5):  # sparsemax and entmax of 1.5 need no exp and no log
        base = (1 + (1 - t) * x).clamp(min=0)
        return (base, (base > 0).to(base.dtype)) if t == 0 else (base.square(), base)
    p = log_exp(x, t).exp()
    return p, p / torch.where(p == 0, 1, 1 + (1 - t) * x)


def _escort(x: Tensor, t: float) -> Tensor:
    """The derivatives of ``exp_t`` divided by their sum: those of ``lambda`` by ``z``."""
    slope = _exp_and_slope(x, t)[1]
    return slope / slope.sum(-1, keepdim=True)


def _divergence_at_target(q: Tensor, log_p: Tensor, y: Tensor, beta: float) -> Tensor:
    """:func:`divergence_at_target`, differentiable."""
    if compiling():
        from .tsallis_operators import divergence_at_target as operator

        return operator(q, log_p, y, float(beta))
    result = _Divergence.apply(q, log_p, y, beta)
    return result


def divergence_at_target(q: Tensor, log_p: Tensor, y: Tensor, beta: float) -> Tensor:
    """:func:`bregman` where ``q > 0``, given ``y = log(p / q)`` as well as ``log p``."""
    gamma = beta - 1
    near = (beta * y).abs() < 0.5
    below = q**beta * torch.where(
        near, _series(torch.where(near, y, 0), beta), _exp_integral(y, beta, gamma)
    )
    # The same, in terms of p, where q may be so small that its power is 0.
    lost = (-y).exp() * _exp_integral(-y, gamma) - _exp_integral(-y, beta)
    return torch.where(beta * y < 1, below, _power(log_p, beta) * lost)


class _Divergence(Function):
    """The derivatives of :func:`divergence_at_target` by ``q`` and ``log p``.

    ``y`` follows from the two and has no derivative of its own.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, log_p: Tensor, y: Tensor, beta: float) -> Tensor:
        return divergence_at_target(q, log_p, y, beta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.beta = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        q, log_p, y = ctx.saved_tensors
        by_q = grad * by_target(q, log_p, y, ctx.beta) if ctx.needs_input_grad[0] else None
        return by_q, grad * by_log_p(q, log_p, y, ctx.beta), None, None

    @staticmethod
    def jvp(ctx: Any, dq: Tensor | None, dlog_p: Tensor | None, *_: Any) -> Tensor:
        q, log_p, y = ctx.saved_tensors
        by_q = torch.zeros_like(y) if dq is None else by_target(q, log_p, y, ctx.beta) * dq
        return by_q if dlog_p is None else by_q + by_log_p(q, log_p, y, ctx.beta) * dlog_p


def by_log_p(q: Tensor, log_p: Tensor, y: Tensor, beta: float) -> Tensor:
    """The derivative of the divergence by ``log p``, ``p^(1 - t) (p - q)``."""
    near = y < 1
    gained = torch.where(near, q * torch.expm1(torch.where(near, y, 0)), log_p.exp() - q)
    return gained if beta == 1 else _power(log_p, beta - 1) * gained


def by_target(q: Tensor, log_p: Tensor, y: Tensor, beta: float) -> Tensor:
    """The derivative of the divergence by ``q``, ``log_t q - log_t p``."""
    gamma, near = beta - 1, y < 1
    if gamma == 0:
        return -y
    close = _exp_integral(torch.where(near, y, 0), gamma)
    return torch.where(near, -(q**gamma) * close, (q**gamma - _power(log_p, gamma)) / gamma)


def _power(log_p: Tensor, exponent: float) -> Tensor:
    return (exponent * log_p).exp()


def _exp_integral(y: Tensor, *rates: float) -> Tensor:
    """``(e^{a y} - 1) / a`` for the first rate ``a``, minus the same for the second."""
    parts = [torch.expm1(rate * y) / rate if rate else y for rate in rates]
    return parts[0] if len(parts) == 1 else parts[0] - parts[1]


def _series(y: Tensor, beta: float) -> Tensor:
    """``_exp_integral(y, beta, beta - 1)`` for small ``y``, where the difference would cancel."""
    total = torch.zeros_like(y)
    for n in range(16, 1, -1):
        total.mul_(y).add_((beta ** (n - 1) - (beta - 1) ** (n - 1)) / math.factorial(n))
    return total * y.square()
