"""Lists of items for losses of orders: reading, sorting, sums over parts of a list, pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._check import is_tensor
from ..engines.modes import deferred, refuse_where, widened
from ..frames.dense_rows import CHUNK, computed_twice
from ..frames.reduction import RowValues, read_reduction
from ..heads.logits import LinearLogits

_NOTHING = -1e30  # the logarithm of an empty sum; finite, since a gradient of inf - inf is NaN
_SURE = 700.0  # e^-700 is about the smallest number of float64 that has all its digits


class Lists:
    """Scores of the items of lists, a mask of the items that count, and the reduction; checked.

    Attributes:
        scores: ``(..., n)``, float64, 0 for items that do not count.
        there: which items count, bool, ``(..., n)``: none of a list that is left out.
        kept: which lists count, bool, ``(...)``.
        reduce: the options of the reduction.
    """

    def __init__(
        self,
        scores: tuple[str, Tensor | LinearLogits],
        mask: Tensor | None,
        reduction: str,
        normalizer: float | Tensor | str | None,
        empty: str,
        row_weight: Tensor | None = None,
        *,
        fewest: int = 1,
    ) -> None:
        """Read a call. A list with less than ``fewest`` items is left out."""
        self.name, given = scores
        if isinstance(given, LinearLogits):  # what they are sorted by has the same size
            given = given.materialize()
        is_tensor(self.name, given)
        if not given.is_floating_point():
            raise TypeError(
                f"`{self.name}` must be floating point, got {given.dtype}; call {self.name}.float()"
            )
        if given.ndim == 0:
            raise ValueError(
                f"`{self.name}` must hold lists, (n,) or (..., n); got a single number"
            )
        self.given = given
        there = torch.ones_like(given, dtype=torch.bool) if mask is None else mask
        is_tensor("mask", there)
        refuse_other_shape("mask", there, (self.name, given))
        if there.dtype != torch.bool:
            raise TypeError(f"`mask` must be bool, True for items that count; got {there.dtype}")
        rows = given.shape[:-1]
        reduce = read_reduction(reduction, normalizer, row_weight, empty, rows, given.device)
        self.kept, self.reduce = reduce.counting(there.sum(-1) >= fewest)
        self.there = there & self.kept.unsqueeze(-1)
        self.scores = torch.where(self.there, widened(given), 0.0)

    def factors(self, name: str, x: Tensor) -> Tensor:
        """Factors that broadcast to the shape of the scores, expanded to it; checked."""
        is_tensor(name, x)
        if x.is_complex():
            raise TypeError(f"`{name}` must hold real numbers, got {x.dtype}")
        try:
            return widened(x).to(self.given.device).expand(self.given.shape)
        except RuntimeError:
            raise ValueError(
                f"`{name}` must broadcast to the shape of `{self.name}`, "
                f"{tuple(self.given.shape)}; got {tuple(x.shape)}"
            ) from None

    def keys(self, name: str, keys: Tensor) -> Tensor:
        """Numbers to sort by, one for each item, 0 where an item does not count; checked."""
        is_tensor(name, keys)
        refuse_other_shape(name, keys, (self.name, self.given))
        if keys.is_complex():
            raise TypeError(f"`{name}` must hold real numbers, got {keys.dtype}")
        keys = widened(keys.detach()) if keys.is_floating_point() else keys.long()
        keys = torch.where(self.there, keys, 0)
        refuse_where(
            keys.isnan(),
            lambda: ValueError(f"`{name}` holds NaN, which has no place in an order; use `mask`"),
            f"`{name}` holds NaN",
        )
        return keys

    def reduced(
        self, values: Tensor, kept: Tensor | None = None, mass: Tensor | None = None
    ) -> Tensor:
        """The reduction of one value per list, or of other values with a mask of their own.

        ``mass`` is what each value adds to the divisor of the mean.
        """
        kept = self.kept if kept is None else kept
        mass = kept.to(values.dtype) if mass is None else mass
        return self.reduce.of(RowValues(values, kept, mass)).to(self.given.dtype)


def events(event: Tensor, like: tuple[str, Tensor], there: Tensor) -> Tensor:
    """Events as bool, from bool or from 0 and 1; checked.

    Args:
        event: in the shape of ``like``.
        like: another tensor and its name.
        there: what counts; elsewhere nothing happens.
    """
    is_tensor("event", event)
    refuse_other_shape("event", event, like)
    happens = event == 1
    refuse_where(
        there & ~happens & (event != 0),
        lambda: ValueError("`event` must hold True and False, or 1 and 0"),
        "`event` must be 0 or 1",
    )
    return happens & there


def refuse_other_shape(name: str, x: Tensor, like: tuple[str, Tensor]) -> None:
    """Raise unless a tensor has the shape and the device of another one."""
    other, there = like
    if (x.shape, x.device) != (there.shape, there.device):
        raise ValueError(
            f"`{name}` must have the shape of `{other}`, {tuple(there.shape)}, on "
            f"{there.device}; got {tuple(x.shape)} on {x.device}"
        )


def runs(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of the run of equal keys around each key; the keys are ascending."""
    keys = keys.contiguous()
    return torch.searchsorted(keys, keys), torch.searchsorted(keys, keys, right=True)


def log_sums(x: Tensor, there: Tensor) -> Tensor:
    """Log-sum-exp of those of the first k numbers that are there, for k from 0 to n.

    An empty sum is -1e30.
    """
    x = torch.where(there, x.clamp(min=_NOTHING), _NOTHING)
    return torch.nn.functional.pad(x.logcumsumexp(-1), (1, 0), value=_NOTHING)  # (..., n + 1)


def counts(there: Tensor) -> Tensor:
    """The number of True among the first k, for k from 0 to n."""
    return torch.nn.functional.pad(there.long().cumsum(-1), (1, 0))  # (..., n + 1)


def log1p_sum(x: Tensor, there: Tensor) -> Tensor:
    """``log(1 + sum(exp(x)))`` over the numbers that are there, with all its digits.

    Numbers 700 nats below the largest, or below 0, add nothing; see :func:`choice`. The sum is
    infinite if a number is, which then has no derivative.
    """
    infinite = (there & (x == torch.inf)).any(-1)
    x = torch.where(there & (x != torch.inf), x, _NOTHING)
    top = torch.nn.functional.pad(x.detach(), (1, 0)).amax(-1, keepdim=True)
    total = torch.where(x < top - _SURE, _NOTHING, x).logsumexp(-1)
    values = choice(torch.zeros_like(total), total, there.any(-1))
    return torch.where(infinite, torch.inf, values)


def choice(x: Tensor, rest: Tensor, used: Tensor) -> Tensor:
    """Cross-entropy of choosing ``x`` instead of ``rest``, the log-sum-exp of what else there is.

    It is 0 where it is not used, where there is nothing else, and where it is below e^-700. The
    sums of this module have no second derivative by a sum whose slope is 0, unless ``torch.where``
    keeps this sum apart.
    """
    used = used & ~(x - rest > _SURE) & ~(rest < _NOTHING / 2)
    return torch.where(used, -torch.nn.functional.logsigmoid(torch.where(used, x - rest, 0.0)), 0.0)


# ---- pairs --------------------------------------------------------------------------------------


class RankedItems(NamedTuple):
    """Items of lists as the ``weight`` of :func:`pairwise_logistic_loss` sees them; constants.

    Attributes:
        score: the scores.
        relevance: the relevances.
        rank: the place of each item by its score, 0 for the highest; of equal scores the more
            relevant item comes first.
        index: where each item stands in its list.
    """

    score: Tensor
    relevance: Tensor
    rank: Tensor
    index: Tensor

    def part(self, where: Any) -> RankedItems:
        """Return the items that an index picks."""
        return RankedItems(*(x[where] for x in self))


def sum_over_pairs(
    score: Tensor,
    there: Tensor,
    end: Tensor,
    weight: Callable[[RankedItems, RankedItems], Tensor] | None,
    items: RankedItems | None,
) -> Tensor:
    """Sum of ``-log sigmoid(s_i - s_j)`` over the pairs of each list, a chunk of them at a time.

    Args:
        score: the best items first, ``(..., n)``.
        there: which items count.
        end: where the items begin that are worse than each item.
        weight: factor on each pair; None for 1.
        items: what ``weight`` is told about the items.
    """
    n = score.shape[-1]
    column = torch.arange(n, device=score.device)

    def of_rows(score: Tensor, a: int, b: int) -> Tensor:
        used = there[..., a:b, None] & there[..., None, a:] & (end[..., a:b, None] <= column[a:])
        factor = None
        if weight is not None and items is not None:
            better, worse = (..., slice(a, b), None), (..., None, slice(a, n))
            factor = weight(items.part(better), items.part(worse))
            if not isinstance(factor, Tensor):
                raise TypeError(f"`weight` must return a tensor, got {type(factor).__name__}")
            factor = widened(factor.detach())
            used = used & (factor != 0)
        gap = score[..., a:b, None] - score[..., None, a:]  # (..., b - a, n - a)
        values = -torch.nn.functional.logsigmoid(torch.where(used, gap, torch.inf))
        if factor is not None:
            values = torch.where(used, factor, 0.0) * values
        return values.sum((-2, -1))

    spans = list(_spans(n, score.numel() // max(n, 1))) or [(0, 0)]
    if len(spans) == 1:
        return of_rows(score, *spans[0])
    return sum((computed_twice(of_rows, score, *span) for span in spans), score.new_zeros(()))


def _spans(n: int, lists: int) -> Iterator[tuple[int, int]]:
    """Spans of items whose pairs with the items behind them fit a chunk."""
    a = 0
    while a < n:
        b = n if deferred() else min(n, a + max(1, CHUNK // max(1, lists * (n - a))))
        yield a, b
        a = b
