r"""Losses that evolution found: by genetic programming, or as polynomials tuned by CMA-ES.

Each of them pulls a prediction towards the target and, in its own way, away from full confidence.
That makes these losses generalise from few rows. :mod:`xent.learn.loss_search` looks for new ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._check import finite_number
from .._series import exp_beyond_line
from ..engines.modes import compiling
from ..frames.dense_loss import dense_loss
from ..frames.dense_rows import DenseRows
from ..frames.row_loss import row_loss
from ..hyperparameters import Range
from ..row_statistics import RowStatistics
from .catalog import member

SATURATION = 20.0  # nats; 1 / p is 4.9e8 there


def _inverse_prob(s: RowStatistics) -> Tensor:
    """``1 / p`` of the target; above :data:`SATURATION` nats its tangent in ``-log p``."""
    nats = -s.log_prob
    capped = nats.clamp(max=SATURATION)
    return capped.exp() * (1 + (nats - capped))


@member(proper=False, convex=True, in_nats=False)
@row_loss(needs="mean", soft=False)
def baikal_loss(s: RowStatistics) -> Tensor:
    r"""Baikal: the mean surprise of all classes plus the inverse probability of the target.

    .. math:: \ell = -\frac1C \sum_j \Bigl(\log p_j - \frac{[j = y]}{p_j}\Bigr)
        = \mathrm{lse} - \bar z + \frac{1}{C p_y}

    The first part is large where any class is improbable, the second where the target is. Where
    :math:`-\log p_y` is above 20 nats, the tangent there replaces
    :math:`1 / p_y = e^{-\log p_y}` as a function of :math:`-\log p_y`. So the loss grows linearly
    and nothing overflows.

    Use:
        For few rows, where it beat cross-entropy in the ``evolved_losses`` experiment; not
        when probabilities are used as they are, since the loss is not proper.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 200.0]])
        >>> xent.losses.baikal_loss(logits, torch.tensor([0, 0, 0]), reduction="none")
        tensor([1.6946e+00, 5.3215e+00, 4.3907e+10])

    References:
        Gonzalez & Miikkulainen, *Improved training speed, accuracy, and data utilization through
        loss function optimization*, CEC 2020.
    """
    return s.lse - s.mean + _inverse_prob(s) / s.support


@member(proper=False, convex=True, in_nats=False)
@row_loss(needs="mean", soft=False)
def baikal_cma_loss(
    s: RowStatistics,
    coefficients: Sequence[float] = (2.7279, 0.9863, 1.5352, -1.1135, 1.3716, -0.8411),
) -> Tensor:
    r"""Baikal with a coefficient, tuned by CMA-ES, at each node of its formula.

    .. math:: \ell = -\frac1C \sum_j c_0
        \Bigl(c_1 \log(c_2 p_j) - c_3 \frac{c_4 [j = y]}{c_5 p_j}\Bigr)
        = c_0 \Bigl(c_1 (\mathrm{lse} - \bar z - \log c_2)
        + \frac{c_3 c_4}{c_5} \frac{1}{C p_y}\Bigr)

    Training depends on :math:`c_0 c_1` and :math:`c_0 c_3 c_4 / c_5` only. With all six
    coefficients 1 the loss is :func:`xent.losses.baikal_loss`; the tangent above 20 nats is the
    same.

    Use:
        For few training rows, with coefficients that evolution tuned; not as an improvement on
        :func:`~xent.losses.baikal_loss`, which did as well in the ``evolved_losses`` experiment.

    Args:
        coefficients: :math:`c_0, \dots, c_5`; :math:`c_2` positive and :math:`c_5` not zero.

    Example:
        >>> import torch, xent
        >>> logits, target = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
        >>> xent.losses.baikal_cma_loss(logits, target, reduction="none")
        tensor([ 4.6906, 22.6556])

    References:
        Gonzalez & Miikkulainen, *Improved training speed, accuracy, and data utilization through
        loss function optimization*, CEC 2020.
    """
    _refuse_other_than("coefficients", coefficients, 6)
    c = coefficients
    if c[2] <= 0 or c[5] == 0:
        raise ValueError(
            f"`coefficients` must hold a positive third number, whose logarithm is taken, and a "
            f"sixth that is not zero, by which is divided; got {c}"
        )
    surprise = c[1] * (s.lse - s.mean - math.log(c[2]))
    return c[0] * (surprise + c[3] * c[4] / c[5] * _inverse_prob(s) / s.support)


@member(proper=False, bounded=True, convex=False, in_nats=False)
@row_loss(needs=("squares", "cubes"), soft=False)
def taylorglo_loss(
    s: RowStatistics,
    theta: Sequence[float] | Tensor = (
        -10.9408, 7.5216, 8.2896, 0.2415, 7.8726, 8.9666, 2.0184, 7.0513,
    ),
) -> Tensor:  # fmt: skip
    r"""TaylorGLO: a polynomial of third order in label and probability, summed over the classes.

    .. math:: -\sum_j \bigl(\theta_2 v_j + \theta_3 v_j^2 + \theta_4 v_j^3
        + \theta_5 u_j v_j + \theta_6 u_j v_j^2 + \theta_7 u_j^2 v_j\bigr), \qquad
        u_j = [j = y] - \theta_0, \quad v_j = p_j - \theta_1

    are the terms of a Taylor polynomial around label :math:`\theta_0` and probability
    :math:`\theta_1` that depend on the probability, factorials included. Probabilities add up to 1,
    so a part of the sum, the whole term of :math:`\theta_2` among it, does not depend on the
    prediction. That part may be so large that rounding hides the rest. Without it the loss is

    .. math:: \ell = -\bigl(b_1 p_y + b_2 p_y^2 + b_3 \sum_{j \ne y} p_j^2
        + \theta_4 \sum_j p_j^3\bigr), \qquad \begin{aligned}
        b_1 &= \theta_5 - 2 \theta_1 \theta_6 + (1 - 2 \theta_0) \theta_7 \\
        b_2 &= \theta_3 - 3 \theta_1 \theta_4 + (1 - \theta_0) \theta_6 \\
        b_3 &= \theta_3 - 3 \theta_1 \theta_4 - \theta_0 \theta_6 \end{aligned}

    The gradient is that of the polynomial. The loss may be negative: only differences matter.

    Use:
        For few training rows, or to search for a loss by eight numbers; not when probabilities are
        used as they are, since the loss is not proper.

    Args:
        theta: :math:`\theta_0, \dots, \theta_7`, numbers or a tensor of them, which may require
            a gradient. The default was evolved on MNIST by the authors.

    Example:
        Cross-entropy, ``-x log(p)`` for a class of label x, expanded around x = p = 1/2:

        >>> import torch, xent
        >>> theta = (0.5, 0.5, 1.0, -1.0, 4 / 3, 2.0, -2.0, 0.0)
        >>> logits, target = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
        >>> xent.losses.taylorglo_loss(logits, target, theta=theta, reduction="none")
        tensor([-1.3049,  0.2183])

    References:
        Gonzalez & Miikkulainen, *Optimizing loss functions through multivariate Taylor polynomial
        parameterization*, GECCO 2021, and the experiments published with it.
    """
    _refuse_other_than("theta", theta, 8)
    if isinstance(theta, Tensor):
        theta = theta.to(s.prob.dtype)
    label, centre, _, second, third, mixed, mixed_squares, mixed_labels = theta
    linear = mixed - 2 * centre * mixed_squares + (1 - 2 * label) * mixed_labels
    of_rest = second - 3 * centre * third - label * mixed_squares
    squares = of_rest + mixed_squares
    # Polynomials that imitate cross-entropy are flat at p = 1. So near 1 the polynomial of the
    # target is one in 1 - p, whose slope there is a sum of few products.
    slope = mixed + 2 * second + 2 * (1 - label - centre) * mixed_squares
    slope = slope + (1 - 2 * label) * mixed_labels + 3 * (1 - 2 * centre) * third
    p, miss = s.prob, -torch.expm1(s.log_prob)
    near = linear + squares + third - miss * (slope - miss * (squares + 3 * third - miss * third))
    far = p * (linear + p * (squares + p * third))
    of_target = torch.where(miss < p, near, far)
    return -(of_target + of_rest * s.rest_squares + third * s.rest_cubes)


def _refuse_other_than(name: str, values: Sequence[float] | Tensor, count: int) -> None:
    """Raise unless ``values`` are so many finite numbers, or a tensor of them."""
    if isinstance(values, Tensor):
        if values.shape != (count,) or not values.is_floating_point():
            raise ValueError(
                f"`{name}` must hold {count} floating-point numbers, got {values.dtype} of shape "
                f"{tuple(values.shape)}"
            )
        return
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != count:
        raise ValueError(f"`{name}` must hold {count} numbers, got {values!r}")
    for value in values:
        finite_number(name, value)


@member(proper=False, bounded=True, convex=False, second_pass=True, in_nats=False)
@dense_loss
def ngl_loss(rows: DenseRows, alpha: Annotated[float, Range(high=700)] = 2.4092) -> Tensor:
    r"""Next Generation Loss: exponential in the probabilities, twice as steep for the target.

    .. math:: \ell = \frac1C \sum_j \Bigl(e^{\alpha - p_j (1 + q_j)} - \cos \cos \sin p_j\Bigr)

    with :math:`q_j = 1` for the target and 0 for the others, or the probabilities of a soft target.
    Not a function of row statistics: the sum is a second pass over the row, in plain tensor
    operations that keep tensors of the size of the logits. The mean is over the classes that are
    not masked by ``-inf``.

    Use:
        For few rows, where it beat cross-entropy in the ``evolved_losses`` experiment; not
        for large vocabularies, since it keeps tensors of the size of the logits.

    Args:
        alpha: logarithm of the scale of the exponential part, at most 700.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]])
        >>> xent.losses.ngl_loss(logits, torch.tensor([0, 0]), reduction="none")
        tensor([5.6521, 6.9457])

    References:
        Akhmedova & Körber, *Next generation loss function for image classification*,
        arXiv:2404.12948, 2024.
    """
    # Not torch.softmax, whose sum of 100,000 exponentials is wrong in the last four digits.
    power = (rows.logits - rows.logits.detach().amax(-1, keepdim=True)).exp()
    masked = (rows.logits == -torch.inf) & (power == 0)  # of no class the power is NaN, so the loss
    p = power / power.sum(-1, keepdim=True)
    # A probability near 1 is 1 minus the others, and so is its derivative.
    sure = p > 0.5
    p = torch.where(sure, 1 - torch.where(sure, 0, p).sum(-1, keepdim=True), p)
    # Exponentials of all classes have nearly the same slope, which cancels: probabilities add up to
    # 1. So exp(-x) is 1 - x + beyond(x), and of the slopes only those of the target are left.
    beyond = _exp_beyond_line(p * (1 + rows.target)) - p * rows.target
    terms = math.exp(alpha) * beyond - p.sin().cos().cos()
    count = (~masked).sum(-1).to(p.dtype)
    return (torch.where(masked, 0, terms).sum(-1) + math.exp(alpha) * (count - 1)) / count


def _exp_beyond_line(x: Tensor) -> Tensor:
    """``exp(-x) - 1 + x`` for positive x, with all digits of its derivative."""
    if compiling():  # compilers fuse the series, which takes half of the time of a call otherwise
        small = x < 1
        return torch.where(small, exp_beyond_line(torch.where(small, x, 0)), torch.expm1(-x) + x)
    result = _ExpBeyondLine.apply(x)
    return result


class _ExpBeyondLine(Function):
    """The function with the derivative ``-expm1(-x)``, which is not ``1 - (expm1(-x) + 1)``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.expm1(-x) + x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * -torch.expm1(-x)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangent * -torch.expm1(-x)
