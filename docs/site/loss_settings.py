"""Situations in which the pictures show losses that need more than logits and a target."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xent import losses

COUNTS = torch.tensor([10.0, 30.0, 100.0], dtype=torch.float64)  # class 0, which is drawn, is rare
MATRIX = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9]], dtype=torch.float64)

# Hyperparameters of losses of one row.
SETTINGS: dict[str, dict[str, Any]] = {
    "logit_adjusted_loss": {"prior": COUNTS},
    "vs_loss": {"counts": COUNTS},
    "seesaw_loss": {"counts": COUNTS},
    "forward_corrected_cross_entropy": {"matrix": MATRIX},
    "backward_corrected_cross_entropy": {"matrix": MATRIX},
    "forward_corrected_symmetric_noise_loss": {"rate": 0.2},
    "backward_corrected_symmetric_noise_loss": {"rate": 0.2},
    "structured_cross_entropy": {"table": MATRIX},
}

Curve = Callable[[Tensor], Tensor]


class Special(NamedTuple):
    """A picture of a loss as a function of one number.

    Attributes:
        curves: functions of the number, by their labels.
        over: what the number is.
        variable: a short name of the number.
        ends: the least and the largest number drawn.
        title: the situation.
    """

    curves: dict[str, Curve]
    over: str
    variable: str
    ends: tuple[float, float]
    title: str


def _row(*numbers: Any) -> Tensor:
    """Return these numbers as a row, ``(1, n)``."""
    row = [torch.as_tensor(x, dtype=torch.float64) for x in numbers]
    return torch.stack(row).unsqueeze(0)


def _label(*labels: int) -> Tensor:
    return torch.tensor(labels)


# ---- probabilities -----------------------------------------------------------------------------

INSIDE = (0.01, 0.99)


def _over_probability(title: str, **curves: Curve) -> Special:
    return Special(curves, "probability that the model predicts", "probability", INSIDE, title)


def _set(p: Tensor) -> Tensor:
    inside = torch.tensor([[True, True, False]])
    return losses.set_cross_entropy(_row(p / 2, p / 2, 1 - p).log(), inside)


def _mixed(p: Tensor, lam: float) -> Tensor:
    return losses.mixup_cross_entropy(_row(p, 1 - p).log(), _label(0), _label(1), lam)


def _distilled(p: Tensor, divergence: Any) -> Tensor:
    teacher = _row(0.8, 0.2).log()
    return losses.distillation_loss(_row(p, 1 - p).log(), teacher, divergence=divergence)


def _decoupled(p: Tensor) -> Tensor:
    student = _row(p, (1 - p) / 2, (1 - p) / 2).log()
    return losses.decoupled_distillation_loss(
        student, _row(0.8, 0.15, 0.05).log(), _label(0), temperature=1.0
    )


def _divergence(p: Tensor) -> Tensor:
    return losses.kl_div(_row(p, 1 - p).log(), _row(0.8, 0.2), reduction="sum")


# ---- logits and cosines ------------------------------------------------------------------------


def _of_element(z: Tensor, loss: Any, target: float) -> Tensor:
    return loss(z.reshape(1), torch.tensor([target], dtype=torch.float64))


def _over_label(loss: Any) -> Special:
    """A logit of three; the other two labels are not there."""
    there, missing = (
        lambda z, known=known: loss(_row(z, -2.0, -2.0), _row(known, 0.0, 0.0)) for known in (1, 0)
    )
    title = "two other labels missing, logits \N{MINUS SIGN}2"
    curves = {"the label is there": there, "it is not": missing}
    return Special(curves, "logit of a label", "logit", (-6.0, 6.0), title)


def _pair(similarity: Tensor, together: float) -> Tensor:
    target = torch.full((1, 1), together, dtype=torch.float64)
    return losses.siglip_loss(similarity.reshape(1, 1), target)


def _at_risk(log_hazard: Tensor) -> Tensor:
    event = torch.tensor([[True, False]])
    return losses.cox_loss(_row(log_hazard, 0.0), _row(1.0, 2.0), event)


def _over_cosine(loss: Any, **settings: Any) -> Special:
    def curve(cosine: Tensor) -> Tensor:
        return loss(_row(cosine, 0.2, 0.2), _label(0), **settings)

    title = "loss of a row, other cosines 0.2"
    return Special({"loss": curve}, "cosine of the target", "cosine", (-0.95, 0.95), title)


def _over_similarity(loss: Any, **settings: Any) -> Special:
    def curve(x: Tensor) -> Tensor:
        one, no = torch.ones_like(x), torch.zeros_like(x)
        rows = [(one, no, no), (x, (1 - x * x).sqrt(), no), (no, no, one)]
        features = torch.stack([torch.stack(row) for row in rows])
        return loss(features, _label(0, 0, 1), reduction="none", **settings)[0]

    title = "one positive, one negative at 0"
    over = "similarity to the positive"
    return Special({"loss": curve}, over, "similarity", (-0.95, 0.95), title)


# ---- orders ------------------------------------------------------------------------------------


def _over_lead(loss: Callable[[Tensor], Tensor], title: str, end: float = 6.0) -> Special:
    over = "lead of the better item"
    return Special({"loss": lambda x: loss(_row(x, 0.0))}, over, "lead", (-end, end), title)


def _over_score(loss: Callable[[Tensor, int], Tensor]) -> Special:
    curves = {f"class {y} of 0, 1, 2": partial(_swapped, loss, y) for y in (0, 1, 2)}
    return Special(
        curves, "score of the row", "score", (-6.0, 6.0), "cutpoints at \N{MINUS SIGN}2 and 2"
    )


def _swapped(loss: Callable[[Tensor, int], Tensor], y: int, s: Tensor) -> Tensor:
    return loss(s, y)


_BETTER = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
_CUTPOINTS = torch.tensor([-2.0, 2.0], dtype=torch.float64)

SPECIAL = {
    "set_cross_entropy": _over_probability("a set of two classes of three", loss=_set),
    "nll_loss": _over_probability(
        "loss of a row", loss=lambda p: losses.nll_loss(_row(p, 1 - p).log(), _label(0))
    ),
    "binary_cross_entropy": _over_probability(
        "loss of an element, target 1",
        loss=lambda p: losses.binary_cross_entropy(p.reshape(1), torch.ones(1).double()),
    ),
    "mixup_cross_entropy": _over_probability(
        "two classes, shares 0.7 and 0.3", loss=partial(_mixed, lam=0.7)
    ),
    "kl_div": _over_probability("two classes, targets 0.8 and 0.2", loss=_divergence),
    "distillation_loss": _over_probability(
        "a teacher who predicts 0.8",
        forward=partial(_distilled, divergence="forward"),
        reverse=partial(_distilled, divergence="reverse"),
        jensen_shannon=partial(_distilled, divergence="jensen_shannon"),
    ),
    "decoupled_distillation_loss": _over_probability(
        "a teacher who predicts 0.8, 0.15, 0.05", loss=_decoupled
    ),
    "continuous_bernoulli_loss": Special(
        {
            f"target {t}": partial(_of_element, loss=losses.continuous_bernoulli_loss, target=t)
            for t in (0.1, 0.5, 0.9)
        },
        "logit", "logit", (-6.0, 6.0), "loss of an element",
    ),
    "multilabel_cross_entropy": _over_label(losses.multilabel_cross_entropy),
    "zlpr_loss": _over_label(losses.zlpr_loss),
    "siglip_loss": Special(
        {
            "the pair belongs together": partial(_pair, together=1.0),
            "it does not": partial(_pair, together=0.0),
        },
        "similarity of a pair", "similarity", (-1.0, 1.0), "loss of a pair",
    ),
    "cosface_loss": _over_cosine(losses.cosface_loss),
    "arcface_loss": _over_cosine(losses.arcface_loss),
    "large_margin_loss": _over_cosine(losses.large_margin_loss, scale=30.0),
    "ldam_loss": _over_cosine(losses.ldam_loss, counts=COUNTS),
    "supcon_loss": _over_similarity(losses.supcon_loss),
    "nca_loss": _over_similarity(losses.nca_loss),
    "decoupled_contrastive_loss": _over_similarity(losses.decoupled_contrastive_loss),
    "multi_similarity_loss": _over_similarity(losses.multi_similarity_loss),
    "circle_loss": _over_similarity(losses.circle_loss),
    "plackett_luce_loss": _over_lead(
        lambda s: losses.plackett_luce_loss(s, _BETTER), "two items, one is more relevant"
    ),
    "pairwise_logistic_loss": _over_lead(
        lambda s: losses.pairwise_logistic_loss(s, _BETTER), "two items, one is more relevant"
    ),
    "cosent_loss": _over_lead(
        lambda s: losses.cosent_loss(s, _BETTER), "two pairs, one more alike", end=0.5
    ),
    "cox_loss": Special(
        {"loss": _at_risk},
        "log-hazard of the item with the event", "log-hazard", (-6.0, 6.0),
        "one other item at risk, log-hazard 0",
    ),
    "cumulative_link_loss": _over_score(
        lambda s, y: losses.cumulative_link_loss(s.reshape(1), _CUTPOINTS, _label(y))
    ),
    "cumulative_loss": _over_score(
        lambda s, y: losses.cumulative_loss((s - _CUTPOINTS).unsqueeze(0), _label(y))
    ),
    "continuation_loss": _over_score(
        lambda s, y: losses.continuation_loss((s - _CUTPOINTS).unsqueeze(0), _label(y))
    ),
}  # fmt: skip
