"""The algebra of one row: from sums to fields, and from partial derivatives to a gradient.

A row has logits ``z_j``. One class is kept apart, the *pivot*: the class of an index target, or the
class with the largest logit under a soft target ``q``. All other classes are the *rest*. Engines
sum over the rest, relative to a ``shift`` that is the largest logit of the rest, or close to it:

    total = sum_rest exp(z_j - shift)         log_sum = log(total)
    d     = pivot - shift - log_sum           the log-odds of the pivot against the rest
    lse   = log(exp(pivot) + sum_rest exp(z_j))
    above = lse - pivot = log(1 + e^-d)       the pivot has probability e^-above = sigmoid(d)
    below = lse - shift = log_sum + log(1 + e^d)

Every argument and result is a float64 tensor with one number for each row, (N,). No function
subtracts two nearly equal numbers: small losses keep all their digits.

**One source, two users.** PyTorch runs the functions as they are: the reference engine computes a
few sums and calls the functions, and autograd differentiates the fields. Triton compiles the same
source: in ``engines/triton/algebra.py`` the names ``xp``, ``log1p``, ``product``, ``constant`` and
others stand for functions of a kernel. (``xp`` is a common name for a module of array functions,
such as PyTorch or NumPy.) The C++ core has a hand-written copy. In ``tests/engines/rows``,
``test_native_algebra.py`` compares the copy with this source function by function;
``test_algebra.py`` compares the coefficients with autograd of the fields, and the compiled
functions with those of PyTorch.

Triton reads the source, so functions here call only each other, ``xp`` and the imported names.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import torch as xp
from torch import Tensor, log1p

from ...extremes import logit_of_exp, product

INF = inf


def constant(x: Tensor) -> Tensor:
    """Return the value of ``x`` without its derivative."""
    return x.detach()


def one_minus_exp(x: Tensor) -> Tensor:
    """Return ``1 - e^-x`` for ``x >= 0``, with all digits of small values."""
    return -xp.expm1(-x)


# ---- from sums to fields ------------------------------------------------------------------------


class Odds(NamedTuple):
    """The pivot against the rest; (N,) each."""

    total: Tensor  # sum_rest exp(z_j - shift)
    log_sum: Tensor
    d: Tensor  # log-odds of the pivot
    above: Tensor  # lse - pivot
    below: Tensor  # lse - shift; 0 where the rest is empty
    lse: Tensor
    pivot_prob: Tensor  # sigmoid(d)
    rest_prob: Tensor  # sigmoid(-d)


class SoftFields(NamedTuple):
    """Fields of a soft target; (N,) each."""

    log_prob: Tensor
    log_odds: Tensor
    target: Tensor
    mass: Tensor


class EmptyRow(NamedTuple):
    """Fields of a row without classes to look at; (N,) each."""

    zero: float
    lse: Tensor
    log_odds: Tensor
    log_prob: Tensor
    mass: Tensor
    support: Tensor


# The entry of `EmptyRow` that a field has in such a row. Every other field is 0.
IN_EMPTY_ROW = {
    "shift": "lse",
    "lse": "lse",
    "top_logit": "lse",
    "rest_top_logit": "lse",
    "pivot_log_odds": "lse",
    "log_odds": "log_odds",
    "log_prob": "log_prob",
    "target": "log_prob",
    "mass": "mass",
    "support": "support",
}


def finite_or_nan(logit: Tensor) -> Tensor:
    """Return the logit, or NaN for +inf: an overflow must not look like a certain prediction."""
    return xp.where(logit == INF, float("nan"), logit)


def lost_in_difference(a: Tensor, b: Tensor, difference: Tensor) -> Tensor:
    """Return what ``a - b`` lost by rounding, exactly (Knuth); 0 if the difference is infinite."""
    minus_b = difference - a
    lost = (a - (difference - minus_b)) - (b + minus_b)
    return xp.where(xp.abs(lost) < INF, lost, 0.0)


def odds_of(pivot: Tensor, shift: Tensor, small: Tensor, ties: Tensor) -> Odds:
    """Return the odds of the pivot from its logit and the sums over the rest.

    ``ties`` is the number of classes whose logit is the shift, ``small`` the sum over all others.
    Together they have more digits than ``total = ties + small``. An engine that does not count
    classes passes ``ties = 0``. The total is 0 or, as the shift is close to the largest logit,
    close to 1 or larger.
    """
    pivot = finite_or_nan(pivot)
    total = small + ties
    empty = total == 0
    some = xp.where(empty, 1.0, total)
    # ties + small may round a tiny sum away: log(total + lost) = log(total) + lost / total.
    lost = constant(small - (some - ties))
    log_sum = xp.where(empty, -INF, xp.log(some) + lost / constant(some))

    # d = lead - log_sum, with lead = pivot - shift. The rounding of the lead is known, and is
    # corrected. If the total is NaN, all of the row is NaN, the derivative by the pivot included.
    lead = (pivot - shift) * constant(xp.where(total == total, 1.0, total))
    rounding = constant(lost_in_difference(pivot, shift, lead))
    d = lead - (log_sum - rounding)

    # The odds of the less likely side, e^-d or e^d. An exponential of d would magnify the rounding
    # of d by half a unit in the last place per nat. So where the pivot leads,
    # e^-d = e^-lead * total, with e^-rounding = 1 - rounding.
    leads = lead > 0
    ratio = xp.exp(xp.where(leads, -lead, d)) * xp.where(leads, total - total * rounding, 1.0)
    overlap = log1p(ratio)
    above = overlap - xp.where(leads, 0.0, d)  # log(1 + e^-d) = log(1 + e^d) - d
    below = xp.where(empty, 0.0, overlap + xp.where(leads, lead, log_sum))
    lse = xp.where(d < 0, shift + below, pivot + above)
    pivot_prob = xp.where(leads, 1.0, ratio) / (1.0 + ratio)
    rest_prob = xp.where(leads, ratio, 1.0) / (1.0 + ratio)
    return Odds(total, log_sum, d, above, below, lse, pivot_prob, rest_prob)


def soft_fields(
    odds: Odds, pivot: Tensor, shift: Tensor, own: Tensor, rest_mass: Tensor, deficit: Tensor
) -> SoftFields:
    """Return the fields of a soft target ``q``, which is ``own`` at the pivot.

    ``rest_mass`` is ``sum_rest q_j``, and ``deficit`` is ``sum_rest q_j (shift - z_j)``.
    """
    # -log_prob = sum_j q_j (lse - z_j), where lse - z_j = below + (shift - z_j) for the rest
    nll = product(own, odds.above) + deficit + product(rest_mass, odds.below)
    # target = sum_j q_j z_j, where z_j = shift - (shift - z_j) for the rest
    target = product(own, finite_or_nan(pivot)) + product(rest_mass, shift) - deficit
    return SoftFields(-nll, logit_of_exp(-nll), target, own + rest_mass)


def entropy_of(odds: Odds, spread: Tensor) -> Tensor:
    """Return the entropy ``-sum_j p_j log p_j``.

    ``spread`` is ``sum_rest (shift - z_j) exp(z_j - shift)``.
    """
    # -log p_j = above for the pivot, and below + (shift - z_j) for the rest, on average over the
    # rest below + spread / total.
    surprise = odds.below + spread / xp.where(odds.total == 0, 1.0, odds.total)
    return product(odds.pivot_prob, odds.above) + product(odds.rest_prob, surprise)


def unit_of(odds: Odds) -> Tensor:
    """Return ``exp(shift - lse)``: for the rest ``p_j = unit exp(z_j - shift)``."""
    return odds.rest_prob / xp.where(odds.total == 0, 1.0, odds.total)


def fields_of_empty_rows(nothing: Tensor, missed: Tensor, mass: Tensor) -> EmptyRow:
    """Return the fields of rows without classes to look at.

    An ignored row has the fields of a certain prediction: every loss of it is 0. A shard whose
    classes are all masked (``nothing``) is the identity of the merge, with ``-inf`` for every
    logit. Its target has probability 0 if the shard should hold a part of the target (``missed``).
    """
    return EmptyRow(
        0.0,
        xp.where(nothing, -INF, 0.0),
        xp.where(missed, -INF, INF),
        xp.where(missed, -INF, 0.0),
        xp.where(nothing, mass, 0.0),
        xp.where(nothing, 0.0, 1.0),
    )


# ---- from partial derivatives to coefficients ---------------------------------------------------
#
# `of_x` is the partial derivative of the loss by field x. With e_j = exp(z_j - shift), the gradient
# of every class of the rest is
#
#   d loss / d z_j = e_j (unit all + unit spread (z_j - shift) + square e_j + cube e_j^2)
#                    + mean c_j + soft q_j
#
# where unit = 1 / total. So unit e_j is the share of class j in the probability of the rest,
# p_j = rest_prob unit e_j, and `all` is the gradient of the rest as a whole. The entry of the pivot
# is computed separately, from the log-odds: there is no "p - 1".


class Coefficients(NamedTuple):
    """Coefficients of the gradient of each row; (N,) each."""

    all: Tensor
    at_pivot: Tensor  # the entry of the pivot
    spread: Tensor
    square: Tensor
    cube: Tensor
    mean: Tensor
    soft: Tensor


def sigmoid(d: Tensor) -> Tensor:
    """Return ``1 / (1 + e^-d)``, with all digits of small values."""
    e = xp.exp(-xp.abs(d))
    return xp.where(d < 0, e, 1.0) / (1.0 + e)


def coefficients_of_index(
    d: Tensor, of_lse: Tensor, of_log_prob: Tensor, of_log_odds: Tensor, of_target: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (all, at_pivot) of the fields that every loss of an index target may use."""
    rest_prob = sigmoid(-d)
    # log_odds = pivot - log sum_rest exp(z_j): slope 1 by the pivot and -1 by the rest as a whole
    # log_prob = log sigmoid(d): the same, times d log_prob / d d = sigmoid(-d)
    # lse: each class has its probability; target = pivot
    slope = of_log_odds + product(rest_prob, of_log_prob)
    return of_lse * rest_prob - slope, of_lse * sigmoid(d) + slope + of_target


def coefficients_of_soft(
    d: Tensor, own: Tensor, mass: Tensor, log_prob: Tensor,
    of_lse: Tensor, of_log_prob: Tensor, of_log_odds: Tensor, of_target: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (all, at_pivot, soft) of these fields for a soft target, ``own`` at the pivot."""
    rest_prob = sigmoid(-d)
    # log_odds is a function of log_prob, with derivative 1 / (1 - e^log_prob).
    flat = (of_log_odds == 0) | (log_prob >= 0)
    steep = xp.where(flat, 0.0, of_log_odds / one_minus_exp(xp.where(flat, 1.0, -log_prob)))
    slope = of_log_prob + steep
    # log_prob = sum_j q_j z_j - mass lse: slope q_j - mass p_j; target = sum_j q_j z_j: slope q_j.
    # For the pivot q - mass p = (q - mass) + mass (1 - p).
    at_pivot = of_lse * sigmoid(d) + slope * ((own - mass) + mass * rest_prob) + of_target * own
    return (of_lse - slope * mass) * rest_prob, at_pivot, slope + of_target


def coefficients_of_entropy(
    d: Tensor, log_sum: Tensor, entropy: Tensor, of_entropy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (all, at_pivot, spread): ``d entropy / d z_j = -p_j (log p_j + entropy)``."""
    # -log p_j = above for the pivot, and below - (z_j - shift) for the rest.
    overlap = log1p(xp.exp(-xp.abs(d)))
    above = overlap - xp.where(d < 0, d, 0.0)
    below = overlap + log_sum + xp.where(d < 0, 0.0, d)
    rest_prob = sigmoid(-d)
    all_ = product(rest_prob, of_entropy * (below - entropy))
    at_pivot = product(sigmoid(d), of_entropy * (above - entropy))
    return all_, at_pivot, -of_entropy * rest_prob


def coefficients_of_powers(
    d: Tensor, unit: Tensor,
    squares: Tensor, cubes: Tensor, of_squares: Tensor, of_cubes: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (all, at_pivot, square, cube) for the sums of ``p_j^k`` over the rest, k = 2 and 3.

    ``d (sum_rest p_j^k) / d z_j = k p_j (p_j^(k - 1) - sum_rest p_j^k)``, without the power for the
    pivot, which is not in the sum.
    """
    rest_prob = sigmoid(-d)
    of_squares, of_cubes = 2 * of_squares, 3 * of_cubes
    shared = of_squares * squares + of_cubes * cubes
    unit = unit * rest_prob  # p_j = unit e_j
    square = of_squares * unit * unit
    cube = of_cubes * unit * unit * unit
    return -rest_prob * shared, -sigmoid(d) * shared, square, cube


def coefficient_of_mean(support: Tensor, of_mean: Tensor) -> Tensor:
    """Return the coefficient ``mean``, for a mean over ``support`` classes."""
    return xp.where(support == 0, 0.0, of_mean / xp.where(support == 0, 1.0, support))


def gradient_at(x: Tensor, unit: Tensor, weight: Tensor, k: Coefficients) -> Tensor:
    """Return the gradient of one class of the rest, without the term ``soft q_j``.

    ``x`` is ``z_j - shift``, and ``weight`` is ``c_j``.
    """
    e = xp.exp(x)
    return e * (unit * (k.all + k.spread * x) + e * (k.square + e * k.cube)) + k.mean * weight
