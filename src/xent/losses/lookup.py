"""Losses by the names that people type, and by the words of the field."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from .. import losses
from .._suggestions import near
from .catalog import CATALOG, Member

__all__ = ["about", "bare_signature", "find", "members"]

# What the field calls a loss, or a reason to take one, where neither name nor docstring says so.
TERMS = {
    "bce": ("binary_cross_entropy_with_logits", "binary_cross_entropy"),
    "categorical crossentropy": ("cross_entropy",),
    "sparse categorical crossentropy": ("cross_entropy",),
    "confusion matrix": ("forward_corrected_cross_entropy", "backward_corrected_cross_entropy"),
    "contrastive": ("supcon_loss", "decoupled_contrastive_loss", "siglip_loss", "nca_loss"),
    "hinge": ("crammer_singer_loss", "weston_watkins_loss"),
    "svm": ("crammer_singer_loss", "weston_watkins_loss"),
    "imbalance": (
        "logit_adjusted_loss", "vs_loss", "ldam_loss", "recall_loss", "seesaw_loss", "focal_loss",
    ),
    "kl": ("kl_div", "distillation_loss", "decoupled_distillation_loss", "reconstruction_excess"),
    "l1": ("mae_loss",),
    "absolute error": ("mae_loss",),
    "label smoothing": ("cross_entropy", "smoothed_cross_entropy", "structured_cross_entropy"),
    "log loss": ("cross_entropy", "binary_cross_entropy_with_logits"),
    "logistic": ("binary_cross_entropy_with_logits", "pairwise_logistic_loss"),
    "mse": ("brier_loss",),
    "l2": ("brier_loss",),
    "squared error": ("brier_loss",),
    "ohem": ("hardest_loss",),
    "hard examples": ("hardest_loss", "focal_loss", "dual_focal_loss"),
    "learning to rank": ("plackett_luce_loss", "pairwise_logistic_loss"),
    "softmax": ("cross_entropy",),
    "sigmoid": ("binary_cross_entropy_with_logits", "multilabel_cross_entropy"),
    "triplet": ("multi_similarity_loss", "circle_loss", "supcon_loss", "nca_loss"),
}  # fmt: skip
# Losses that people look for and that the library leaves to its users or to others.
NOT_HERE = {
    "exponential": "it is two lines: `@xent.row_loss` before "
    "`def exponential_loss(s): return (-s.log_odds / 2).exp()`",
    "dice": "it compares sums over an image, not a prediction with its target",
    "ctc": "torch.nn.functional.ctc_loss takes alignments; the losses here take a target per row",
    "huber": "torch.nn.functional.huber_loss is for regression; phuber_loss is its kin for classes",
}


@cache
def members() -> dict[str, Member]:
    """Members of the catalog by every name of a loss, second names too."""
    return {
        name: CATALOG[value.__name__]
        for name, value in vars(losses).items()
        if getattr(value, "__name__", None) in CATALOG
    }


def find(name: str) -> Member:
    """The loss with a name: ``focal``, ``focal-loss`` and ``focal_loss`` find the same one.

    Raises:
        ValueError: if there is no such loss. The message suggests names that look alike, or losses
            that the field calls so.
    """
    plain = name.strip().replace("-", "_").lower()
    for candidate in (plain, f"{plain}_loss"):
        if candidate in members():
            return members()[candidate]
    term = _term(name)
    if term in NOT_HERE:
        hint = f"; {NOT_HERE[term]}"
    elif term in TERMS:
        hint = f"; did you mean {' or '.join(TERMS[term])}?"
    else:
        hint = near(plain, members())
    raise ValueError(f"there is no loss {name!r}{hint}")


def about(words: str) -> list[Member]:
    """Losses that a term of the field means, or whose description holds all of these words.

    Args:
        words: ``"hinge"``, ``"rare classes"``. The description is the first line of the docstring
            and what it says of when to take the loss.

    Example:
        >>> from xent.losses.lookup import about
        >>> [member.name for member in about("squared error")]
        ['brier_loss']
        >>> [member.name for member in about("survival times")]
        ['cox_loss', 'continuation_loss']
    """
    term = _term(words)
    if term in TERMS:
        return [CATALOG[name] for name in TERMS[term]]
    if term in NOT_HERE or not term:
        return []
    asked = words.lower().split()
    return [m for m in CATALOG.values() if all(word in _description(m) for word in asked)]


def _term(words: str) -> str:
    """The words as :data:`TERMS` writes them."""
    plain = " ".join(re.split(r"[\s_-]+", words.strip().lower()))
    return plain.removesuffix(" loss")


def _description(member: Member) -> str:
    when, _, _ = member.use.partition("; not ")
    return f"{member.name} {member.summary} {when}".lower()


def bare_signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function for people: no types, and default functions by name."""
    parameters = []
    for p in inspect.signature(function).parameters.values():
        name = getattr(p.default, "__name__", None) if p.default is not p.empty else None
        default = _Named(name) if name else p.default
        parameters.append(p.replace(annotation=p.empty, default=default))
    return inspect.Signature(parameters)


class _Named(str):
    """A name that shows without quotes."""

    __repr__ = str.__str__
