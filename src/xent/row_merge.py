"""The merge: statistics of disjoint sets of classes become those of their union.

Each part is packed into the fewest numbers, ``(K, N...)``, and all parts, ``(P, K, N...)``, merge
in one stacked operation. A chain of pairs would take one operation after another for each of many
parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .extremes import log_sum_exp, logit_of_exp, product

if TYPE_CHECKING:
    from .row_statistics import RowStatistics

NO_CLASS = 2**53  # above every class, and the largest whole number that float64 counts to
_CLASSES = ("top", "rest_top")
# Numbers of a part that are always needed, by whether the target is soft, and those on request.
_ALWAYS = (("target", "rest"), ("target", "log_prob", "lse", "mass"))
_ON_REQUEST = (
    "entropy", "mean", "mean_mass", "support", "top", "top_logit", "rest_top", "rest_top_logit",
    "rest_squares", "rest_cubes",
)  # fmt: skip

Numbers = Mapping[str, Tensor]  # of all parts, (P, N...) each


def names_of(stats: RowStatistics) -> tuple[str, ...]:
    """The names of the numbers that statistics are packed into."""
    asked = (name for name in _ON_REQUEST if name in stats.on_request)
    return (*_ALWAYS[stats.soft], *asked)


def packed(stats: RowStatistics) -> Tensor:
    """The fewest numbers that a merge needs, ``(K, N...)``, float64; differentiable."""
    numbers = [getattr(stats, name) for name in names_of(stats)]
    return torch.stack([x.to(stats.target.dtype) for x in numbers])


def merged(parts: Sequence[RowStatistics]) -> RowStatistics:
    """Statistics of the union of disjoint sets of classes. Differentiable.

    Raises:
        ValueError: if some parts have soft targets, or a request, that others lack.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.soft != first.soft:
            raise ValueError("merge: one side has soft targets and the other class indices")
        for name in sorted(part.on_request.keys() ^ first.on_request.keys()):
            raise ValueError(f"merge: only one side holds `{name}`; ask for it on both")
    return union(
        torch.stack([packed(part) for part in parts]),
        replace(
            first,
            mass=torch.stack([part.mass for part in parts]).sum(0),
            label=next((part.label for part in parts if part.label is not None), None),
            classes=sum(part.classes for part in parts),
            complete=any(part.complete for part in parts),
        ),
    )


def union(table: Tensor, like: RowStatistics) -> RowStatistics:
    """Statistics of the union of packed parts.

    Args:
        table: the numbers of all parts, ``(P, K, N...)``.
        like: statistics that tell what the numbers do not: the targets, the number of classes and,
            for class indices, the masses of the union.
    """
    numbers = dict(zip(names_of(like), table.unbind(1), strict=True))
    fields = _of_soft(numbers, like.label) if like.soft else _of_index(numbers)
    on_request = _on_request(numbers, like.on_request, fields["lse"], like.label)
    return replace(like, **fields, on_request=on_request)


def _of_index(numbers: Numbers) -> dict[str, Tensor]:
    """The fields of an index target, whose logit is ``-inf`` in all parts but one."""
    target, rest = numbers["target"].amax(0), log_sum_exp(numbers["rest"])
    log_odds = torch.where(target == -torch.inf, target, target - rest)
    # Of an ignored row all parts have the target logit 0 and no rest, and so has the union.
    lse = log_sum_exp(torch.stack([target, rest]))
    return {"log_odds": log_odds, "log_prob": logsigmoid(log_odds), "target": target, "lse": lse}


def _of_soft(numbers: Numbers, label: Tensor | None) -> dict[str, Tensor]:
    """The fields of a soft target; the ``log_prob`` of a part is relative to its own ``lse``."""
    lse = log_sum_exp(numbers["lse"])
    if label is not None:  # a table of targets, where a row may be ignored
        lse = torch.where(label < 0, 0.0, lse)
    log_prob = (numbers["log_prob"] - product(numbers["mass"], lse - numbers["lse"])).sum(0)
    target, mass = numbers["target"].sum(0), numbers["mass"].sum(0)
    return {
        "log_odds": logit_of_exp(log_prob), "log_prob": log_prob, "target": target, "lse": lse,
        "mass": mass,
    }  # fmt: skip


def _on_request(
    numbers: Numbers, asked: Iterable[str], lse: Tensor, label: Tensor | None
) -> dict[str, Tensor]:
    """The statistics on request of the union, whose log-sum-exp is ``lse``."""
    found = {}
    if "entropy" in asked:
        # The chain rule of entropy: within the parts, and between them.
        share = _log_share(numbers, lse)
        found["entropy"] = product(share.exp(), numbers["entropy"] - share).sum(0)
    if "mean" in asked:
        support = numbers["support"]
        found["support"] = support.sum(0)
        if label is not None:
            found["support"] = torch.where(label < 0, 1.0, found["support"])  # as in each part
        for name in ("mean", "mean_mass"):
            found[name] = (numbers[name] * support).sum(0) / found["support"].clamp(min=1)
    for peak in _CLASSES:
        if peak in asked:
            logit = f"{peak}_logit"
            found[peak], found[logit] = _largest(numbers[peak].long(), numbers[logit])
    for name, power in (("rest_squares", 2), ("rest_cubes", 3)):
        if name in asked:
            share = _log_share(numbers, lse)
            found[name] = (numbers[name] * torch.exp(power * share)).sum(0)
    return found


def _log_share(numbers: Numbers, lse: Tensor) -> Tensor:
    """Log-probability of each part in the union."""
    own = numbers.get("lse")
    if own is None:
        own = log_sum_exp(torch.stack([numbers["target"], numbers["rest"]]))
    return torch.where(own == -torch.inf, -torch.inf, own - lse)


def _largest(classes: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Class and logit of the largest logit over the parts; of equal logits the lower class."""
    at_top = logits == logits.detach().amax(0)
    part = torch.where(at_top, classes, NO_CLASS).argmin(0, keepdim=True)
    return classes.gather(0, part)[0], logits.gather(0, part)[0]
