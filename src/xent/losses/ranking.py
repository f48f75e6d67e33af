"""Losses of orders: rankings, survival times, graded similarities.

An order is a row of choices: the first item among all, the second among those that are left, and so
on. Each choice is a cross-entropy. After a sort, the log-sum-exps of all choices are one running
sum, so memory is linear in the number of items, and time is that of the sort.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from .._check import one_of, scalar, whole_number
from ..frames.reduction import Reduction
from ..heads.logits import LinearLogits
from ..logits import scaled
from .catalog import member
from .lists import (
    Lists,
    RankedItems,
    choice,
    counts,
    events,
    log1p_sum,
    log_sums,
    runs,
    sum_over_pairs,
)


@member("other", proper=True, convex=True, second_pass=True)
def plackett_luce_loss(
    score: Tensor | LinearLogits,
    relevance: Tensor,
    *,
    mask: Tensor | None = None,
    top: int | None = None,
    position_weight: Tensor | None = None,
    row_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | Literal["count", "weight"] | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Negative log-likelihood of a ranking under the model of Plackett and Luce (ListMLE).

    With the items in the order of their relevance, :math:`s_1` the score of the most relevant one,

    .. math:: \ell = \sum_k w_k \Bigl(\log \sum_{j \ge k} e^{s_j} - s_k\Bigr)

    Each place of the ranking is a choice by softmax among the items that are left. Items of equal
    relevance stay in the order in which they are given; shuffle them if that order means something.

    Use:
        For lists whose items have a full order; not for grades with many ties, whose items are then
        ordered as they come.

    Args:
        score: scores of the items of a list, ``(n,)``, or of several lists, ``(..., n)``; also
            ``LinearLogits(query, document)``, whose scores are then in memory, as the relevances.
        relevance: how good each item is, in the shape of ``score``: real numbers of any type. Only
            their order counts.
        mask: bool, in the shape of ``score``: which items are in the list. What the others hold
            leaves no trace.
        top: the loss is that of the first ``top`` places; None for all.
        position_weight: factor ``w`` on each place, the best first; broadcasts to the shape of
            ``score``. ``2.0 ** torch.arange(n - 1, -1, -1) - 1`` gives p-ListMLE.
        row_weight: factor on each list, in the shape of the lists; the mean divides by the sum,
            too.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of lists. A list
            with fewer than two items has no order: its loss is 0, and the mean leaves it out.
        normalizer: another divisor of the mean: a number or 0-d tensor, or ``"count"`` for the
            number of lists, whatever their weights.
        empty: ``"nan"`` as PyTorch, or ``"zero"``: the mean of no lists.

    Returns:
        In nats; a scalar, or the shape of the lists for ``reduction="none"``, in the dtype of
        ``score``.

    Raises:
        ValueError: for shapes that do not fit, NaN among the relevances (looked for on the CPU), or
            a value an option cannot take.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> score, relevance = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([3, 0, 1])
        >>> round(xent.losses.plackett_luce_loss(score, relevance).item(), 4)
        0.7209
        >>> round(xent.losses.plackett_luce_loss(score, relevance, top=1).item(), 4)
        0.4076

    References:
        Xia et al., *Listwise approach to learning to rank: theory and algorithm*, ICML 2008. Lan et
        al., *Position-aware ListMLE*, UAI 2014.
    """
    lists = Lists(("score", score), mask, reduction, normalizer, empty, row_weight, fewest=2)
    relevance = lists.keys("relevance", relevance)
    order = relevance.sort(dim=-1, descending=True, stable=True).indices.flip(-1)  # the worst first
    s, there = lists.scores.gather(-1, order), lists.there.gather(-1, order)
    rest = log_sums(s, there)[..., :-1]  # of the items behind each
    place = there.flip(-1).cumsum(-1).flip(-1) - 1
    used = there if top is None else there & (place < _at_least_1("top", top))
    weight: Tensor | None = None
    if position_weight is not None:
        weight = lists.factors("position_weight", position_weight)
        weight = weight.gather(-1, place.clamp(min=0))
        used = used & (weight != 0)
    values = choice(s, rest, used)
    values = values if weight is None else values * weight
    return lists.reduced(values.sum(-1))


def _at_least_1(name: str, value: Any) -> int:
    number = whole_number(name, value)
    if number < 1:
        raise ValueError(f"`{name}` must be at least 1, got {number}")
    return number


@member("other", proper=True, convex=True, second_pass=True)
def cox_loss(
    log_hazard: Tensor,
    time: Tensor,
    event: Tensor,
    *,
    mask: Tensor | None = None,
    ties: Literal["breslow", "efron"] = "breslow",
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Cox's partial likelihood: cross-entropy of which item has the event, among those at risk.

    .. math:: \ell_i = \log \sum_{j:\, t_j \ge t_i} e^{h_j} - h_i \qquad\text{for each event } i

    Items of equal time share a risk set. Efron's correction for the ``m`` events of one time takes
    ``l/m`` of these events out of the risk set of the event with ``l`` events before it (in the
    order given).

    Use:
        For survival times, when only relative hazards matter; not for the times themselves, which
        are for :func:`~xent.losses.continuation_loss`.

    Args:
        log_hazard: ``h``, the logarithms of relative hazards, ``(n,)``; or ``(..., n)``: each list
            is a stratum with risk sets of its own.
        time: when an item had its event or was last seen, in the shape of ``log_hazard``.
        event: True or 1 where the item had the event, False or 0 where it was censored.
        mask: bool, in the shape of ``log_hazard``: which items there are. What the others hold
            leaves no trace.
        ties: ``"breslow"`` or ``"efron"``, which is closer to the truth with many ties.
        reduction: ``"none"``, with 0 for items without an event, ``"sum"``, or ``"mean"``, which
            divides by the number of events.
        normalizer: another divisor of the mean: the number of items, say.
        empty: ``"nan"`` as PyTorch, or ``"zero"``: the mean of no events.

    Returns:
        In nats; a scalar, or the shape of ``log_hazard`` for ``reduction="none"``, in its dtype.

    Raises:
        ValueError: for shapes that do not fit, NaN among the times or an event that is neither 0
            nor 1 (looked for on the CPU), or a value an option cannot take.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> hazard, time = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([1.0, 2.0, 3.0])
        >>> event = torch.tensor([True, False, True])
        >>> xent.losses.cox_loss(hazard, time, event, reduction="none")
        tensor([0.4076, 0.0000, 0.0000])

    References:
        Cox, *Regression models and life-tables*, JRSS B 1972. Efron, *The efficiency of Cox's
        likelihood function for censored data*, JASA 1977.
    """
    one_of("ties", ties, ("breslow", "efron"))
    items = Lists(("log_hazard", log_hazard), mask, reduction, normalizer, empty)
    time = items.keys("time", time)
    event = events(event, ("log_hazard", log_hazard), items.there)
    # The latest first, so that those at risk stand before; of one time the events last.
    order = event.long().sort(dim=-1, stable=True).indices
    order = order.gather(-1, (-time).gather(-1, order).sort(dim=-1, stable=True).indices)
    h, there, key, happens = (
        x.gather(-1, order) for x in (items.scores, items.there, -time, event)
    )
    sums, happened, (start, end) = log_sums(h, there), counts(happens), runs(key)
    tied = happened.gather(-1, end) - happened.gather(-1, start)
    risk = sums.gather(-1, end)
    if ties == "efron":
        first = end - tied
        rank = torch.arange(h.shape[-1], device=h.device) - first
        later = happens & (rank > 0)
        share = torch.where(later, rank.to(risk.dtype) / tied, 0.5)
        # log((1 - share) e^risk + share e^others): the tied events leave the sum by this share
        others, all_of = share.log() + sums.gather(-1, first), torch.log1p(-share) + risk
        risk = torch.where(later, all_of + choice(all_of, others, later), risk)
    # A small loss of an event alone at its time has all its digits.
    alone = choice(h, sums[..., :-1], happens & (tied == 1))
    values = torch.where(happens & (tied > 1), risk - h, alone)
    values = torch.zeros_like(values).scatter(-1, order, values)
    return items.reduced(values, event)


@member("other", proper=False, convex=True, second_pass=True)
def cosent_loss(
    similarity: Tensor | LinearLogits,
    label: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | Tensor = 20.0,
    row_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | Literal["count", "weight"] | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""CoSENT: pairs of texts of a higher label should be more similar than those of a lower one.

    .. math:: \ell = \log \Bigl(1 + \sum_{y_i > y_j} e^{s (x_j - x_i)}\Bigr)

    The sum has a term for each two items of different labels, up to ``n (n - 1) / 2``; time is that
    of a sort.

    Use:
        For pairs of texts with grades of similarity; not when the grades are to be predicted as
        numbers, since only their order counts.

    Args:
        similarity: ``x``, the similarity of the two texts of each item, ``(n,)``; or ``(..., n)``
            for several lists, whose items are not compared across lists. Also
            ``LinearLogits(text, other)``, as for :func:`plackett_luce_loss`.
        label: ``y``, how similar the texts are said to be, in the shape of ``similarity``. Only the
            order of the labels counts.
        mask: bool, in the shape of ``similarity``: which items there are. What the others hold
            leaves no trace.
        scale: ``s``, the inverse temperature, a number or a 0-d tensor to be learned.
        row_weight: factor on each list, in the shape of the lists; the mean divides by the sum,
            too.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of lists that
            have an item. A list whose labels are all equal counts, with the loss 0.
        normalizer: another divisor of the mean: a number or 0-d tensor, or ``"count"`` for the
            number of lists, whatever their weights.
        empty: ``"nan"`` as PyTorch, or ``"zero"``: the mean of no lists.

    Returns:
        In nats; a scalar, or the shape of the lists for ``reduction="none"``, in the dtype of
        ``similarity``.

    Raises:
        ValueError: for shapes that do not fit, NaN among the labels (looked for on the CPU), or a
            value an option cannot take.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> similarity, label = torch.tensor([0.9, 0.5, 0.6]), torch.tensor([1.0, 0.5, 0.0])
        >>> round(xent.losses.cosent_loss(similarity, label).item(), 4)
        2.1273

    References:
        Su, *CoSENT: a more effective sentence embedding scheme than Sentence-BERT*, 2022.
    """
    lists = Lists(("similarity", similarity), mask, reduction, normalizer, empty, row_weight)
    order = lists.keys("label", label)
    label, order = order.sort(dim=-1, stable=True)
    there = lists.there.gather(-1, order)
    x = scaled(lists.scores.gather(-1, order), scalar("scale", scale, similarity.device))
    lower, _ = runs(label)
    paired = there & (counts(there).gather(-1, lower) > 0)
    return lists.reduced(log1p_sum(log_sums(x, there).gather(-1, lower) - x, paired))


@member("other", proper=True, convex=True, second_pass=True)
def pairwise_logistic_loss(
    score: Tensor | LinearLogits,
    relevance: Tensor,
    *,
    mask: Tensor | None = None,
    weight: Callable[[RankedItems, RankedItems], Tensor] | None = None,
    row_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | Literal["count", "weight"] | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Cross-entropy of which of two items is the better one, over all pairs of a list (RankNet).

    .. math:: \ell = \sum_{r_i > r_j} -w_{ij} \log \sigma(s_i - s_j)

    The pairs are never all in memory: a chunk is computed at a time, and again for the gradient.

    Use:
        For lists whose items have grades, ties included; not for very long lists, since its time
        grows with the square of their length.

    Args:
        score: scores ``s`` of the items of a list, ``(n,)``, or of several lists, ``(..., n)``;
            also ``LinearLogits(query, document)``, as for :func:`plackett_luce_loss`.
        relevance: ``r``, how good each item is, in the shape of ``score``: real numbers of any
            type. Items of equal relevance are no pair.
        mask: bool, in the shape of ``score``: which items are in the list. What the others hold
            leaves no trace.
        weight: ``w``, a function of the better items and the worse items of some pairs, both
            :class:`RankedItems`, that returns a tensor which broadcasts to the pairs: the tensors
            of the better items have the shape ``(..., r, 1)``, those of the worse ``(..., 1, c)``.
            Weights are constants, without gradient. See the example for LambdaLoss.
        row_weight: factor on each list, in the shape of the lists; the mean divides by it, too.
        reduction: ``"none"`` for the sum of each list, ``"sum"``, or ``"mean"``, which divides by
            the number of pairs, whatever the ``weight`` of each.
        normalizer: another divisor of the mean: a number or 0-d tensor, or ``"count"`` for the
            number of lists that have a pair.
        empty: ``"nan"`` as PyTorch, or ``"zero"``: the mean of no pairs.

    Returns:
        In nats; a scalar, or the shape of the lists for ``reduction="none"``, in the dtype of
        ``score``.

    Raises:
        ValueError: for shapes that do not fit, NaN among the relevances (looked for on the CPU), or
            a value an option cannot take.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> score, relevance = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([2, 0, 1])
        >>> round(xent.losses.pairwise_logistic_loss(score, relevance).item(), 4)
        0.2512
        >>> def change_of_ndcg(better, worse):
        ...     gain = 2.0**better.relevance - 2.0**worse.relevance
        ...     return gain * (1 / (2.0 + better.rank).log2() - 1 / (2.0 + worse.rank).log2()).abs()
        >>> loss = xent.losses.pairwise_logistic_loss(score, relevance, weight=change_of_ndcg)
        >>> round(loss.item(), 4)
        0.1542

    References:
        Burges et al., *Learning to rank using gradient descent*, ICML 2005. Wang et al., *The
        LambdaLoss framework for ranking metric optimization*, CIKM 2018.
    """
    lists = Lists(("score", score), mask, reduction, normalizer, empty, row_weight, fewest=2)
    key, order = (-lists.keys("relevance", relevance)).sort(dim=-1, stable=True)  # the best first
    s, there = lists.scores.gather(-1, order), lists.there.gather(-1, order)
    number, (_, end) = counts(there), runs(key)
    pairs = torch.where(there, number[..., -1:] - number.gather(-1, end), 0)
    items = None
    if weight is not None:
        known = torch.where(there, s.detach(), -torch.inf)
        rank = known.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        items = RankedItems(s.detach(), -key.to(s.dtype), rank.to(s.dtype), order)
    values = sum_over_pairs(s, there, end, weight, items)
    return lists.reduced(values, lists.kept, pairs.sum(-1).to(values.dtype))
