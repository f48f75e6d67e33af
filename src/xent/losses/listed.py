"""Targets that list a few classes of each row: their logits, and losses from one sweep."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..engines import rows
from ..engines.modes import can_look_at, widened
from ..engines.rows.labels import check_labels
from ..engines.rows.problem import Problem
from ..heads.measure import measure
from ..softmax import log_softmax
from .sets import lse_of, with_plain_logits


class Listed(NamedTuple):
    """Listed classes of each row, and their logits after scale, softcap and bias."""

    classes: Tensor  # (N..., K), 0 where there is none
    present: Tensor | None  # (N..., K); None where all are known to be there
    logits: Tensor  # (N..., K), float64, -inf where there is none


def look_up(
    problem: Problem, classes: Tensor, ignore_index: int, engine: str
) -> tuple[Problem, Listed]:
    """The problem to measure, and the logits of ``classes``, (N..., K).

    ``ignore_index`` stands for no class.
    """
    check_labels(classes, problem.classes, ignore_index, name="classes")
    present = unless_all((classes != ignore_index) & (classes >= 0) & (classes < problem.classes))
    classes = where(present, classes, 0)
    problem, x = rows.with_logits_of(problem, classes, engine)
    x = where(present, widened(x), 0)
    bias = problem.tensors.class_bias
    transform = problem.transform._replace(class_bias=None if bias is None else bias[classes])
    return problem, Listed(classes, present, where(present, transform(x), -torch.inf))


def unless_all(condition: Tensor) -> Tensor | None:
    """The condition, or None where it is known to hold everywhere: then no choice is needed."""
    return None if can_look_at(condition) and bool(condition.all()) else condition


def where(condition: Tensor | None, x: Tensor, otherwise: float) -> Tensor:
    """``torch.where``, whose condition may be None: it holds everywhere."""
    return x if condition is None else torch.where(condition, x, otherwise)


def nll_of_listed(problem: Problem, listed: Listed, mass: Tensor, engine: str) -> Tensor:
    """``-sum_k mass_k log p_k`` with one sweep over the logits.

    The sweep gives the log-probability of the likeliest listed class. Those of the others follow
    from the differences of their logits to that one.
    """
    height = listed.logits.detach()
    if listed.present is not None:  # a masked class comes before a place without a class
        height = height.nan_to_num(neginf=torch.finfo(height.dtype).min)
        height = torch.where(listed.present, height, -torch.inf)
    pivot = height.argmax(-1, keepdim=True)  # (N..., 1)
    label = listed.classes.gather(-1, pivot)
    if listed.present is not None:
        ignored = problem.settings.ignore_index
        label = torch.where(listed.present.gather(-1, pivot), label, ignored)
    s = measure(problem.replace(target=label[..., 0]), engine)
    used = unless_all(mass != 0)  # 0 times an infinite loss is 0
    at_pivot = listed.logits.gather(-1, pivot)
    gap = where(used, at_pivot - where(used, listed.logits, 0), 0)
    total = mass.sum(-1)
    some = unless_all(total != 0)
    nll = where(some, total * -where(some, s.log_prob, 0), 0)
    return nll + (mass * gap).sum(-1)


def refuse_doubles(listed: Listed) -> None:
    """Raise where a row lists a class twice."""
    if not can_look_at(listed.classes):
        return
    gaps = listed.classes.shape[-1]
    order = torch.arange(-1, -1 - gaps, -1, device="cpu")  # below 0, all different
    ranked = listed.classes
    if listed.present is not None:
        ranked = torch.where(listed.present, ranked, order)
    ranked = ranked.sort(-1).values
    double = ranked[..., 1:] == ranked[..., :-1]
    if bool(double.any()):
        raise ValueError(
            f"`classes` must list no class twice in a row; {int(ranked[..., 1:][double][0])} is. "
            f"Add up its probabilities"
        )


def nll_with_tail(problem: Problem, listed: Listed, q: Tensor, engine: str) -> Tensor:
    """Cross-entropy of the listed classes and of all the others as one more class."""
    # An empty place holds class 0, which must not be hidden. So it gets a class that is hidden.
    hidden = listed.classes
    if listed.present is not None:
        first = listed.present.to(torch.uint8).argmax(-1, keepdim=True)
        hidden = torch.where(listed.present, hidden, hidden.gather(-1, first))
    problem = with_plain_logits(problem)
    others = problem.logits.scatter(problem.axis, hidden.movedim(-1, problem.axis), -torch.inf)
    rest = lse_of(problem, others, engine).unsqueeze(-1)  # (N..., 1)
    empty = rest == -torch.inf  # every class is listed: what is missing from 1 was rounded off
    spare = torch.where(empty, 0, (1 - q.sum(-1, keepdim=True)).clamp(min=0))
    q, z = torch.cat([q, spare], -1), torch.cat([listed.logits, rest], -1)  # (N..., K + 1)
    there = None if listed.present is None else listed.present.any(-1, keepdim=True)
    log_p = log_softmax(where(there, z, 0))
    return -(q * torch.where(q == 0, 0, log_p)).sum(-1)
