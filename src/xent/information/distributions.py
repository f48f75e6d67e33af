r"""Entropy and divergence of probability vectors.

Kullback-Leibler divergence is summed as :math:`\sum_j p_j \log(p_j / q_j) - p_j + q_j`. Each term
is at least 0, so nothing cancels between the terms. The sums of p and q differ from 1 by a rounding
error, which enters the result only squared. A term is computed from ``log(p / q)`` and ``p - q``.
Both keep all digits, whether they come from probabilities or from logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._probabilities import check_axis, check_floating, read_distribution
from .._series import exp_beyond_line
from ..arrays import takes_arrays
from ..engines.modes import can_look_at, widened
from ..softmax import log_softmax
from .common import Sums, Unit, in_unit, nats_per, read_pair


@takes_arrays
def entropy(p: Tensor, dim: int = -1, *, unit: Unit = "nat", from_logits: bool = False) -> Tensor:
    r"""Entropy of a distribution: the mean information of a draw from it.

    .. math:: H(p) = -\sum_j p_j \log p_j

    Takes probabilities, or logits with ``from_logits``. For logits, also behind a linear head, use
    :func:`xent.entropy`, which needs one pass.

    Args:
        p: probabilities, any shape, summing to 1 along ``dim``; or logits.
        dim: the axis of the classes, which the result lacks.
        unit: ``"nat"`` or ``"bit"``.
        from_logits: whether ``p`` holds logits, of which ``-inf`` masks a class.

    Returns:
        At least 0, at most the logarithm of the number of classes; in the dtype of ``p``.

    Raises:
        TypeError: if ``p`` is not floating point.
        ValueError: if it holds no probabilities, or has no axis ``dim``.

    Example:
        >>> import torch
        >>> from xent.information import entropy
        >>> entropy(torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]), unit="bit")
        tensor([1., 0.])

    References:
        Shannon, *A mathematical theory of communication*, 1948.
    """
    x, log_p = _normalised(read_distribution("p", p, dim, from_logits), from_logits)
    return in_unit(_expected(-log_p, x), unit, p.dtype)


@takes_arrays
def cross_entropy_of(
    p: Tensor,
    q: Tensor,
    dim: int = -1,
    *,
    unit: Unit = "nat",
    from_logits: bool = False,
    sums: Sums = "must be 1",
) -> Tensor:
    r"""Cross-entropy of two distributions: mean code length for draws from p, coded for q.

    .. math:: H(p, q) = -\sum_j p_j \log q_j = H(p) + \mathrm{KL}(p \,\|\, q)

    For the logits of a model and targets use :func:`xent.cross_entropy`.

    Args:
        p: probabilities to draw with, any shape, summing to 1 along ``dim``; or logits.
        q: probabilities to code with, in the shape of ``p``; or logits.
        dim: the axis of the classes, which the result lacks.
        unit: ``"nat"`` or ``"bit"``.
        from_logits: whether ``p`` and ``q`` hold logits.
        sums: what becomes of probabilities that do not sum to 1. ``"must be 1"`` raises;
            ``"normalize"`` divides each row by its sum; ``"as given"`` takes the numbers for what
            they are, as formulas by hand do, and warns.

    Returns:
        At least the entropy of ``p``; ``inf`` if what is possible under p is impossible under q.

    Raises:
        TypeError: if ``p`` or ``q`` is not floating point.
        ValueError: if they hold no probabilities, or differ in shape.

    Warns:
        UserWarning: with ``sums="as given"``, if a row does not sum to 1; the warning names it.

    Example:
        >>> import torch
        >>> from xent.information import cross_entropy_of
        >>> p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.5, 0.25])
        >>> cross_entropy_of(p, q, unit="bit").item(), cross_entropy_of(q, p).item()
        (1.5, inf)
        >>> round(cross_entropy_of([0, 1], [0.01, 0.96], sums="normalize").item(), 4)
        0.0104
    """
    x, y, dtype = read_pair(p, q, dim, from_logits, sums)
    if sums == "as given" and not from_logits:
        return in_unit(_expected(-_log(y), x), unit, dtype)
    x, _ = _normalised(x, from_logits)
    _, log_q = _normalised(y, from_logits)
    return in_unit(_expected(-log_q, x), unit, dtype)


@takes_arrays
def kl_divergence(
    p: Tensor, q: Tensor, dim: int = -1, *, unit: Unit = "nat", from_logits: bool = False
) -> Tensor:
    r"""Kullback-Leibler divergence: what coding for q costs above the entropy of p.

    .. math:: \mathrm{KL}(p \,\|\, q) = \sum_j p_j \log \frac{p_j}{q_j}

    The divergence is not symmetric, so it is no distance. Its gradient is 0 at p = q: it is the
    gradient of :math:`\sum_j p_j \log(p_j / q_j) - p_j + q_j`, which is the same along the simplex.

    Args:
        p: probabilities, any shape, summing to 1 along ``dim``; or logits.
        q: probabilities in the shape of ``p``; or logits.
        dim: the axis of the classes, which the result lacks.
        unit: ``"nat"`` or ``"bit"``.
        from_logits: whether ``p`` and ``q`` hold logits.

    Returns:
        At least 0; exactly 0 where p and q are equal; ``inf`` if what is possible under p is
        impossible under q.

    Raises:
        TypeError: if ``p`` or ``q`` is not floating point.
        ValueError: if they hold no probabilities, or differ in shape.

    Example:
        >>> import torch
        >>> from xent.information import kl_divergence
        >>> p = torch.tensor([0.3, 0.7], dtype=torch.float64)
        >>> q = p + torch.tensor([1e-9, -1e-9], dtype=torch.float64)
        >>> kl_divergence(p, p).item(), f"{kl_divergence(p, q).item():.4e}"
        (0.0, '2.3810e-18')

    References:
        Kullback & Leibler, *On information and sufficiency*, 1951.
    """
    x, y, dtype = read_pair(p, q, dim, from_logits)
    x, y, difference, log_ratio = _compare(x, y, from_logits)
    return in_unit(_divergence(x, difference, log_ratio), unit, dtype)


@takes_arrays
def jensen_shannon(
    p: Tensor,
    q: Tensor,
    dim: int = -1,
    *,
    weight: float = 0.5,
    unit: Unit = "nat",
    from_logits: bool = False,
) -> Tensor:
    r"""Jensen-Shannon divergence: what a draw from the mixture tells about where it came from.

    .. math:: \mathrm{JS} = w\,\mathrm{KL}(p \,\|\, m) + (1 - w)\,\mathrm{KL}(q \,\|\, m),
        \qquad m = w p + (1 - w) q

    Args:
        p: probabilities, any shape, summing to 1 along ``dim``; or logits.
        q: probabilities in the shape of ``p``; or logits.
        dim: the axis of the classes, which the result lacks.
        weight: weight of ``p`` in the mixture, between 0 and 1.
        unit: ``"nat"`` or ``"bit"``.
        from_logits: whether ``p`` and ``q`` hold logits.

    Returns:
        At least 0, and 0 where p and q are equal; at most the entropy of the weights, 1 bit for
        equal ones, where p and q have no class in common. Always finite.

    Raises:
        TypeError: if ``p`` or ``q`` is not floating point.
        ValueError: if they hold no probabilities, or differ in shape; or for a weight that is not
            between 0 and 1.

    Example:
        >>> import torch
        >>> from xent.information import jensen_shannon
        >>> jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), unit="bit").item()
        1.0

    References:
        Lin, *Divergence measures based on the Shannon entropy*, 1991.
    """
    if not 0 < weight < 1:
        raise ValueError(f"`weight` must be greater than 0 and less than 1, got {weight}")
    x, y, dtype = read_pair(p, q, dim, from_logits)
    return in_unit(_jensen_shannon(x, y, weight, from_logits), unit, dtype)


@takes_arrays
def jensen_shannon_distance(
    p: Tensor, q: Tensor, dim: int = -1, *, unit: Unit = "nat", from_logits: bool = False
) -> Tensor:
    r"""Square root of the Jensen-Shannon divergence with equal weights: a metric.

    .. math:: d(p, q) = \sqrt{\mathrm{JS}(p, q)}, \qquad d(p, r) \le d(p, q) + d(q, r)

    Args:
        p: probabilities, any shape, summing to 1 along ``dim``; or logits.
        q: probabilities in the shape of ``p``; or logits.
        dim: the axis of the classes, which the result lacks.
        unit: unit of the divergence under the root, ``"nat"`` or ``"bit"``.
        from_logits: whether ``p`` and ``q`` hold logits.

    Returns:
        At least 0, at most 1 in bits. Where p and q are equal, the gradient is given as 0.

    Raises:
        TypeError: if ``p`` or ``q`` is not floating point.
        ValueError: if they hold no probabilities, or differ in shape.

    Example:
        >>> import torch
        >>> from xent.information import jensen_shannon_distance
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
        >>> round(jensen_shannon_distance(p, q, unit="bit").item(), 4)
        0.2209

    References:
        Endres & Schindelin, *A new metric for probability distributions*, 2003.
    """
    x, y, dtype = read_pair(p, q, dim, from_logits)
    js = _jensen_shannon(x, y, 0.5, from_logits) / nats_per(unit)
    root = torch.where(js == 0, 1.0, js).sqrt()  # the derivative at 0 is infinite
    return torch.where(js == 0, 0.0, root).to(dtype)


@takes_arrays
def perplexity(
    p: Tensor, q: Tensor | None = None, dim: int = -1, *, from_logits: bool = False
) -> Tensor:
    r"""Perplexity, :math:`e^{H(p)}`: the number of equally likely classes as hard to guess.

    Args:
        p: probabilities, any shape, summing to 1 along ``dim``; or logits.
        q: if given, the perplexity of q on draws from p, :math:`e^{H(p, q)}`.
        dim: the axis of the classes, which the result lacks.
        from_logits: whether ``p`` and ``q`` hold logits.

    Returns:
        Between 1 and the number of classes; with ``q`` it has no upper bound.

    Raises:
        TypeError: if ``p`` or ``q`` is not floating point.
        ValueError: if they hold no probabilities, or differ in shape.

    Example:
        >>> import torch
        >>> from xent.information import perplexity
        >>> round(perplexity(torch.full((6,), 1 / 6)).item(), 4)
        6.0
    """
    if q is None:
        return entropy(p, dim, from_logits=from_logits).exp()
    return cross_entropy_of(p, q, dim, from_logits=from_logits).exp()


@takes_arrays
def information_content(
    p: Tensor, dim: int = -1, *, unit: Unit = "nat", from_logits: bool = False
) -> Tensor:
    r"""Information of the news that an event has occurred: :math:`-\log p`, element by element.

    Args:
        p: probabilities, any shape, of any events: they need not sum to 1. Or logits.
        dim: the axis of the classes, if ``p`` holds logits.
        unit: ``"nat"`` or ``"bit"``.
        from_logits: whether ``p`` holds logits.

    Returns:
        In the shape of ``p``; ``inf`` for the impossible.

    Raises:
        TypeError: if ``p`` is not floating point.
        ValueError: if a probability is not in [0, 1].

    Example:
        >>> import torch
        >>> from xent.information import information_content
        >>> information_content(torch.tensor([1.0, 0.5, 0.125, 0.0]), unit="bit")
        tensor([0., 1., 3., inf])
    """
    if from_logits:
        check_axis("p", p, dim)
        return in_unit(-log_softmax(widened(p), dim), unit, p.dtype)
    check_floating("p", p)
    if can_look_at(p) and bool(((p < 0) | (p > 1)).any()):
        raise ValueError(
            "`p` must hold probabilities between 0 and 1; for logits pass from_logits=True"
        )
    return in_unit(-widened(p).log(), unit, p.dtype)


# ---- one distribution -----------------------------------------------------------------------


def _normalised(x: Tensor, from_logits: bool) -> tuple[Tensor, Tensor]:
    """Probabilities and their logarithms, from logits or from numbers that sum to 1.

    Numbers are divided by their sum. The surplus of the sum over 1 is added up from the smaller
    numbers and ``largest - 1``. So a largest number that was rounded to 1 beside 1e-20 is 1 - 1e-20
    again, which shows in its logarithm. The surplus is a rounding error and has no derivative.
    """
    if from_logits:
        log_p = log_softmax(x)
        return log_p.exp(), log_p
    top = x.argmax(-1, keepdim=True)
    surplus = x.scatter(-1, top, x.gather(-1, top) - 1).sum(-1, keepdim=True).detach()
    return x / (1 + surplus), _log(x) - torch.log1p(surplus)


def _expected(value: Tensor, p: Tensor) -> Tensor:
    """Mean under p of a value, which may be infinite where p is 0."""
    return (p * torch.where((p == 0) & value.isinf(), 0.0, value)).sum(-1)


# ---- two distributions ----------------------------------------------------------------------


def _jensen_shannon(x: Tensor, y: Tensor, weight: float, from_logits: bool) -> Tensor:
    p, q, difference, _ = _compare(x, y, from_logits)
    mixture = q + weight * difference
    above, below = (1 - weight) * difference, -weight * difference  # p and q minus the mixture
    of_p = _divergence(p, above, _log_ratio(p, mixture, above))
    of_q = _divergence(q, below, _log_ratio(q, mixture, below))
    return weight * of_p + (1 - weight) * of_q


def _compare(x: Tensor, y: Tensor, from_logits: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``p``, ``q``, ``p - q`` and ``log(p / q)``, none of them by cancellation."""
    if not from_logits:
        return x, y, x - y, _log_ratio(x, y, x - y)
    p, q = log_softmax(x).exp(), log_softmax(y).exp()
    log_ratio = _log_ratio_of_logits(x, y, p)
    near = log_ratio.abs() < 1
    difference = torch.where(near, q * torch.expm1(torch.where(near, log_ratio, 0.0)), p - q)
    return p, q, difference, log_ratio


def _log_ratio(p: Tensor, q: Tensor, difference: Tensor) -> Tensor:
    """Log of p / q, all digits kept where the two nearly agree; 0 where both are 0."""
    near = (2 * difference.abs() < q) & (p > 0)
    close = torch.log1p(torch.where(near, difference, 0.0) / torch.where(near, q, 1.0))
    return torch.where(near, close, _log(p) - torch.where((p == 0) & (q == 0), 1.0, q).log())


def _log_ratio_of_logits(x: Tensor, y: Tensor, p: Tensor) -> Tensor:
    """Log of softmax(x) / softmax(y); 0 where a class is masked on both sides.

    The result is ``x - y`` plus the same number for all classes. The log-ratio of one class gives
    that number, the likeliest class of x. If the logits nearly agree, this log-ratio is computed
    from the mean change of the exponentials, without the rounding errors of the two normalisers.
    """
    if x.shape[-1] == 0:
        return x - y
    top = x.argmax(-1, keepdim=True)
    masked = (x == -torch.inf) & (y == -torch.inf)
    gap = torch.where(masked, 0.0, x) - torch.where(masked, 0.0, y)
    gap = torch.where(masked, 0.0, gap - gap.gather(-1, top))
    near = gap.abs().amax(-1, keepdim=True) < 1
    close = torch.log1p((p * torch.expm1(torch.where(near, -gap, 0.0))).sum(-1, keepdim=True))
    far = (log_softmax(x) - log_softmax(y)).gather(-1, top)
    return torch.where(masked, 0.0, gap + torch.where(near, close, far))


def _divergence(p: Tensor, difference: Tensor, log_ratio: Tensor) -> Tensor:
    """Sum of ``p log(p / q) - (p - q)``, which is at least 0 term by term."""
    near = log_ratio.abs() < 1
    close = p * exp_beyond_line(torch.where(near, log_ratio, 0.0))
    far = p * torch.where(near | (p == 0), 0.0, log_ratio)
    far = torch.where(log_ratio == torch.inf, log_ratio, far)  # also where p has underflowed
    return torch.where(near, close, far - difference).sum(-1)


def _log(p: Tensor) -> Tensor:
    """Log of p; ``-inf`` at 0, where the gradient is 0."""
    return torch.where(p == 0, -torch.inf, torch.where(p == 0, 1.0, p).log())
