"""Entropy of counts: exactly, and as an estimate for the distribution behind the counts."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Literal, SupportsIndex

import torch
from torch import Tensor

from .._check import is_tensor, one_of
from ..arrays import takes_arrays
from ..engines.modes import can_look_at, widened
from .common import Unit, in_unit, nats_per

Estimator = Literal["plug-in", "miller-madow"]


@takes_arrays
def entropy_from_counts(
    counts: Tensor, dim: int = -1, *, estimator: Estimator = "plug-in", unit: Unit = "nat"
) -> Tensor:
    r"""Entropy of the distribution that counts were drawn from.

    .. math:: \hat H = \sum_j \frac{n_j}{n} \log \frac{n}{n_j}, \qquad
        \hat H_\mathrm{MM} = \hat H + \frac{m - 1}{2 n}

    The plug-in estimate is too small by about ``(m - 1) / 2n`` on average, where ``m`` classes are
    possible. Miller and Madow add this number, where ``m`` counts the classes that have been seen.

    Args:
        counts: how often each class occurred, any shape, integers or floating point.
        dim: the axis of the classes, which the result lacks.
        estimator: ``"plug-in"``, the entropy of the frequencies, or ``"miller-madow"``.
        unit: ``"nat"`` or ``"bit"``.

    Returns:
        In float64 for integers, else in the dtype of ``counts``.

    Raises:
        TypeError: if ``counts`` is not a tensor of numbers.
        ValueError: if a count is negative, or nothing has been counted.

    Example:
        >>> import torch
        >>> from xent.information import entropy_from_counts
        >>> entropy_from_counts(torch.tensor([2, 1, 1, 0]), unit="bit")
        tensor(1.5000, dtype=torch.float64)

    References:
        Miller, *Note on the bias of information estimates*, 1955.
    """
    is_tensor("counts", counts)
    one_of("estimator", estimator, ("plug-in", "miller-madow"))
    if counts.dtype == torch.bool or counts.is_complex():
        raise TypeError(f"`counts` must be integers or floating point, got {counts.dtype}")
    if counts.ndim == 0 or not -counts.ndim <= dim < counts.ndim:
        raise ValueError(f"`dim` must name one of the {counts.ndim} axes of `counts`, got {dim}")
    n_j = widened(counts).movedim(dim, -1)  # (..., C)
    n = n_j.sum(-1, keepdim=True)  # (..., 1)
    if can_look_at(n):
        if bool((n_j < 0).any()):
            raise ValueError(f"`counts` must not be negative, got {n_j.min().item():g}")
        if bool((n == 0).any()):
            raise ValueError("`counts` must count something in every row, but one sums to 0")
    seen = n_j > 0
    # The log of a share near 1 keeps its digits: no ratio of nearly equal numbers is formed.
    terms = n_j / n * torch.log1p((n - n_j) / torch.where(seen, n_j, 1.0))
    nats = torch.where(seen, terms, 0.0).sum(-1)
    if estimator == "miller-madow":
        nats = nats + (seen.sum(-1) - 1) / (2 * n.squeeze(-1))
    return in_unit(nats, unit, counts.dtype if counts.is_floating_point() else nats.dtype)


@takes_arrays
def entropy_from_samples(
    samples: Tensor, *, estimator: Estimator = "plug-in", unit: Unit = "nat"
) -> Tensor:
    r"""Entropy of the discrete distribution that samples were drawn from.

    Args:
        samples: one draw per element, ``(N,)``; or one draw of D numbers per row, ``(N, D)``, for
            their joint entropy.
        estimator: ``"plug-in"`` or ``"miller-madow"``, as in :func:`entropy_from_counts`.
        unit: ``"nat"`` or ``"bit"``.

    Returns:
        A scalar in float64.

    Raises:
        TypeError: if ``samples`` is not a tensor.
        ValueError: if it has another number of axes, or holds no sample.

    Example:
        >>> import torch
        >>> from xent.information import entropy_from_samples
        >>> text = torch.tensor(list(b"abracadabra"))
        >>> round(entropy_from_samples(text, unit="bit").item(), 4)
        2.0404
    """
    is_tensor("samples", samples)
    if samples.ndim not in (1, 2) or samples.shape[0] == 0:
        raise ValueError(
            f"`samples` must have shape (N,), or (N, D) for draws of D numbers, with N at least "
            f"1; got {tuple(samples.shape)}"
        )
    counts = samples.unique(dim=0, return_counts=True)[1]
    return entropy_from_counts(counts, estimator=estimator, unit=unit)


def combinatorial_entropy(
    n: SupportsIndex, k: SupportsIndex | Iterable[SupportsIndex], *, unit: Unit = "bit"
) -> float:
    r"""Information per item in how n items are arranged, k of them of one kind.

    .. math:: \frac{1}{n} \log \binom{n}{k} \;\longrightarrow\; H(k / n) \quad (n \to \infty)

    An arrangement costs less than the entropy of its frequencies, because the frequencies are
    known. With several kinds the binomial coefficient becomes the multinomial one.

    Args:
        n: the number of items, at least 1.
        k: how many are of one kind; or how many of each of several kinds. What is left of ``n``
            is one more kind.
        unit: ``"bit"`` or ``"nat"``.

    Returns:
        In bits per item by default. Nothing cancels, however large ``n`` is.

    Raises:
        TypeError: if ``n`` or ``k`` is not whole.
        ValueError: if ``n`` is below 1, or the kinds are negative or more than ``n`` together.

    Example:
        >>> from xent.information import combinatorial_entropy
        >>> [round(combinatorial_entropy(n, 3 * n // 10), 6) for n in (10, 100, 10**4, 10**6)]
        [0.690689, 0.846027, 0.880607, 0.881281]
        >>> round(combinatorial_entropy(10**9, (250_000_000, 250_000_000)), 6)
        1.5
    """
    total = operator.index(n)
    kinds = [operator.index(j) for j in (k if isinstance(k, Iterable) else (k,))]
    kinds.append(total - sum(kinds))
    if total < 1 or min(kinds) < 0:
        raise ValueError(
            f"`k` must be counts of at least 0 that sum to at most `n`, which is at least 1; got "
            f"n = {total} and k = {kinds[:-1]}"
        )
    # Stirling's formula: the entropy of the frequencies, and a small rest of each factorial.
    kinds = [j for j in kinds if j]
    entropy = math.fsum(j * math.log1p((total - j) / j) for j in kinds)
    roots = math.fsum([_log_root(total), *(-_log_root(j) for j in kinds)])
    return (entropy + roots) / total / nats_per(unit) if len(kinds) > 1 else 0.0


def _log_root(n: int) -> float:
    """Log of ``n! / (n / e) ** n``, which is about ``sqrt(2 pi n)``."""
    if n < 16:
        return math.lgamma(n + 1) - n * math.log(n) + n
    series = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
    beyond = math.fsum(c / n / float(n) ** (2 * i) for i, c in enumerate(series))
    return 0.5 * math.log(2 * math.pi * n) + beyond
