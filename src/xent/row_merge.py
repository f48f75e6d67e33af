"""The merge: statistics of disjoint sets of classes become those of their union.

Each part is packed into the fewest numbers, ``(K, N...)``. All parts, ``(P, K, N...)``, join in one
stacked operation to the numbers of the union, ``(K, N...)``, from which the statistics are read. A
chain of pairs would take one operation after another for each of many parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .extremes import log_sum_exp, logit_of_exp, product

if TYPE_CHECKING:
    from .row_statistics import RowStatistics

NO_CLASS = 2**53  # above every class, and the largest whole number that float64 counts to
_CLASSES = ("top", "rest_top")
_POWERS = (("rest_squares", 2), ("rest_cubes", 3))
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
    like = replace(
        first,
        mass=torch.stack([part.mass for part in parts]).sum(0),
        label=next((part.label for part in parts if part.label is not None), None),
        classes=sum(part.classes for part in parts),
        complete=any(part.complete for part in parts),
    )
    return read(joined(torch.stack([packed(part) for part in parts]), like), like)


def joined(table: Tensor, like: RowStatistics) -> Tensor:
    """The numbers of the union of packed parts, ``(K, N...)``.

    Args:
        table: the numbers of all parts, ``(P, K, N...)``.
        like: statistics of these rows that tell which numbers they are, and the labels.
    """
    names = names_of(like)
    numbers = dict(zip(names, table.unbind(1), strict=True))
    found = _of_soft(numbers, like.label) if like.soft else _of_index(numbers)
    if like.on_request:
        found |= _on_request(numbers, like.on_request, lse_of(found), like.label)
    return torch.stack([found[name].to(table.dtype) for name in names])


def read(numbers: Tensor, like: RowStatistics) -> RowStatistics:
    """The statistics that packed numbers hold, ``(K, N...)``.

    Args:
        numbers: the numbers.
        like: statistics that tell what the numbers do not: the targets, the number of classes and,
            for class indices, the masses.
    """
    found = dict(zip(names_of(like), numbers.unbind(0), strict=True))
    target = found["target"]
    if like.soft:
        log_odds, log_prob = logit_of_exp(found["log_prob"]), found["log_prob"]
    else:
        log_odds = torch.where(target == -torch.inf, target, target - found["rest"])
        log_prob = logsigmoid(log_odds)
    on_request = {name: found[name] for name in like.on_request}
    on_request |= {name: found[name].long() for name in _CLASSES if name in on_request}
    return replace(
        like, log_odds=log_odds, log_prob=log_prob, target=target, lse=lse_of(found),
        mass=found["mass"] if like.soft else like.mass, on_request=on_request,
    )  # fmt: skip


def lse_of(numbers: Numbers) -> Tensor:
    """Log-sum-exp of all classes."""
    if "lse" in numbers:
        return numbers["lse"]
    # Of an ignored row all parts have the target logit 0 and no rest, and so has the union.
    return log_sum_exp(torch.stack([numbers["target"], numbers["rest"]]))


def _of_index(numbers: Numbers) -> dict[str, Tensor]:
    """The numbers of an index target, whose logit is ``-inf`` in all parts but one."""
    return {"target": numbers["target"].amax(0), "rest": log_sum_exp(numbers["rest"])}


def _of_soft(numbers: Numbers, label: Tensor | None) -> dict[str, Tensor]:
    """The numbers of a soft target; the ``log_prob`` of a part is relative to its own ``lse``."""
    lse = log_sum_exp(numbers["lse"])
    if label is not None:  # a table of targets, where a row may be ignored
        lse = torch.where(label < 0, 0.0, lse)
    log_prob = (numbers["log_prob"] - product(numbers["mass"], lse - numbers["lse"])).sum(0)
    target, mass = numbers["target"].sum(0), numbers["mass"].sum(0)
    return {"target": target, "log_prob": log_prob, "lse": lse, "mass": mass}


def _on_request(
    numbers: Numbers, asked: Iterable[str], lse: Tensor, label: Tensor | None
) -> dict[str, Tensor]:
    """The statistics on request of the union, whose log-sum-exp is ``lse``."""
    found = {}
    if "entropy" in asked:
        # The chain rule of entropy: within the parts, and between them.
        share = _log_shares(lse_of(numbers), lse, label)
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
            found[peak], found[logit] = _largest(numbers[peak], numbers[logit])
    for name, power in _POWERS:
        if name in asked:
            share = _difference(lse_of(numbers), lse)
            found[name] = (numbers[name] * torch.exp(power * share)).sum(0)
    return found


def _log_shares(parts: Tensor, whole: Tensor, label: Tensor | None) -> Tensor:
    """The logarithms of the shares of all parts, with all digits where one part has nearly all.

    Of an ignored row, which is certain in each part, all parts have the share 1.
    """
    place = parts.detach().argmax(0, keepdim=True)
    others = log_sum_exp(parts.scatter(0, place, -torch.inf))  # all parts but the largest
    largest = parts.gather(0, place)
    of_largest = torch.where(largest == -torch.inf, largest, logsigmoid(largest - others))
    if label is not None:
        of_largest = torch.where(label < 0, 0.0, of_largest)
    return _difference(parts, whole).scatter(0, place, of_largest)


def _largest(classes: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Class and logit of the largest logit over the parts; of equal logits the lower class."""
    at_top = logits == logits.detach().amax(0)
    part = torch.where(at_top, classes, NO_CLASS).argmin(0, keepdim=True)
    return classes.gather(0, part)[0], logits.gather(0, part)[0]


# ---- the gradient of one part, from its numbers and those of the union ---------------------------


def with_gradient_of(own: Tensor, union: Tensor, like: RowStatistics) -> Tensor:
    """The numbers of the union, differentiable with respect to those of one part.

    The other parts are constants, and need not be at hand: what the union owes to one part follows
    from the numbers of both.

    Args:
        own: the numbers of the part, ``(K, N...)``.
        union: the numbers of the union, likewise.
        like: statistics of these rows that tell which numbers they are.
    """
    return cast(Tensor, _OfOnePart.apply(own, union, names_of(like), like.soft))


class _OfOnePart(torch.autograd.Function):
    """Returns the numbers of the union; backward gives the gradient of those of one part."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, union: Tensor, names: Sequence[str], soft: bool) -> Tensor:
        ctx.save_for_backward(own, union)
        ctx.names, ctx.soft = names, soft
        return union.view_as(union)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        named = [
            dict(zip(ctx.names, x.unbind(0), strict=True)) for x in (*ctx.saved_tensors, grads[0])
        ]
        found, none = _gradient(*named, soft=ctx.soft), torch.zeros_like(named[0]["target"])
        return torch.stack([found.get(name, none) for name in ctx.names]), None, None, None


def refuse_second_derivative() -> None:
    """Raise if a backward pass is recorded, to be differentiated again."""
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "a gradient that is differentiated again needs those of the other ranks, too; logits "
            "of a shard have first derivatives only"
        )


def _gradient(own: Numbers, union: Numbers, grad: Numbers, *, soft: bool) -> dict[str, Tensor]:
    """The gradient of the numbers of a part; those without one are left out."""
    own_lse = lse_of(own)
    log_share = _difference(own_lse, lse_of(union))
    if not soft:
        log_share = _share_of_index(own, union, own_lse, log_share)
    share = log_share.exp()
    found = {
        f"{peak}_logit": grad[f"{peak}_logit"] * (own[peak] == union[peak])
        for peak in _CLASSES
        if peak in own
    }
    of_lse = torch.zeros_like(share)
    if "entropy" in own:
        found["entropy"] = grad["entropy"] * share
        excess = product(share, own["entropy"] - log_share - union["entropy"])
        of_lse += grad["entropy"] * excess
    if "mean" in own:
        part = own["support"] / union["support"].clamp(min=1)
        found["mean"] = grad["mean"] * part
        found["mean_mass"] = grad["mean_mass"] * part
    for name, power in _POWERS:
        if name in own:
            found[name] = grad[name] * share**power
            excess = share**power * own[name] - share * union[name]
            of_lse += power * grad[name] * excess
    if soft:
        of_log_prob = grad["log_prob"]
        of_lse += grad["lse"] * share + of_log_prob * (own["mass"] - union["mass"] * share)
        none_of_none = (own["mass"] == 0) & (log_share == -torch.inf)  # see `product`
        of_mass = grad["mass"] + of_log_prob * torch.where(none_of_none, 0.0, log_share)
        soft_ones = {"target": grad["target"], "log_prob": of_log_prob, "mass": of_mass}
        return found | soft_ones | {"lse": of_lse}
    of_rest = grad["rest"] * _difference(own["rest"], union["rest"]).exp()
    found["rest"] = of_rest + of_lse * _difference(own["rest"], own_lse).exp()
    here = own["target"] == union["target"]
    found["target"] = grad["target"] * here + of_lse * _difference(own["target"], own_lse).exp()
    return found


def _share_of_index(own: Numbers, union: Numbers, own_lse: Tensor, log_share: Tensor) -> Tensor:
    """The logarithm of the share of a part, with all digits where it has the target and most else.

    It is ``-log(1 + x)``, where ``x`` is what the other parts have for each of this one.
    """
    x = (_difference(union["rest"], own_lse)).exp() - _difference(own["rest"], own_lse).exp()
    here = own["target"] == union["target"]
    x = x + torch.where(here, 0.0, _difference(union["target"], own_lse).exp())
    return torch.where(x < 1, -torch.log1p(x.clamp(min=0)), log_share)


def _difference(part: Tensor, whole: Tensor) -> Tensor:
    """The logarithm of a share; of nothing it is ``-inf``."""
    return torch.where(part == -torch.inf, part, part - whole)
