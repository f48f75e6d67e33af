"""Criteria of linear classifiers: the mean of any loss, as a function of the scores."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...losses import CATALOG, cross_entropy
from .linear_objective import Design, Objective


class Criterion(NamedTuple):
    """A mean loss as a function of the scores, with bounds of its curvature.

    Attributes:
        mean_loss: maps scores ``(N, K)`` to the mean loss, or with a slice of the rows to the part
            of the mean that these rows add.
        columns: K.
        bound: the largest curvature of cross-entropy in the scores of a row.
        curvature: maps the same arguments to the second derivatives by two scores of a row,
            ``(K, N, K)``; None leaves them to autograd, which takes five times as long.
    """

    mean_loss: Callable[..., Tensor]
    columns: int
    bound: float
    curvature: Callable[..., Tensor] | None = None


class LinearProblem(NamedTuple):
    """Rows, the criterion of their scores, and the sum of their weights."""

    design: Design
    criterion: Criterion
    total: float

    def zeros(self) -> Tensor:
        """Coefficients that are all 0, ``(K, columns)``."""
        return torch.zeros(
            self.criterion.columns, self.design.columns, dtype=torch.float64, device="cpu"
        )

    def objective(self, penalty: Tensor, anchor: Tensor) -> Objective:
        """Return the mean loss plus a penalty on squared distances from an anchor."""
        mean_loss, _, bound, curvature = self.criterion
        return Objective(self.design, mean_loss, bound, penalty, anchor, curvature)


def softmax_criterion(
    loss: Callable[..., Any], target: Tensor, weight: Tensor, classes: int
) -> Criterion:
    """Return the criterion of a loss of one class per row; the first of two classes scores 0."""

    def mean_loss(scores: Tensor, rows: slice = slice(None)) -> Tensor:
        return loss(logits_of(scores), target[rows], row_weight=weight[rows], reduction="sum")

    def curvature(scores: Tensor, rows: slice = slice(None)) -> Tensor:
        return weight[rows].unsqueeze(-1) * _softmax_curvature(scores)

    columns, bound = (1, 0.25) if classes == 2 else (classes, 0.5)
    return Criterion(mean_loss, columns, bound, curvature if loss is cross_entropy else None)


def _softmax_curvature(scores: Tensor) -> Tensor:
    """Second derivatives of cross-entropy by two scores of a row, ``(K, N, K)``."""
    p = torch.softmax(logits_of(scores), 1)  # (N, C)
    if scores.shape[1] == 1:
        return (p[:, :1] * p[:, 1:]).unsqueeze(0)
    pairs = -p.T.unsqueeze(2) * p  # (K, N, K)
    own = torch.diagonal(pairs, dim1=0, dim2=2)  # (N, K)
    own.zero_()
    own.copy_(-pairs.sum(2).T)  # 1 - p would lose the digits of a nearly sure class
    return pairs


def logits_of(scores: Tensor) -> Tensor:
    """Return the logits of all classes from the scores: two classes have one score."""
    if scores.ndim == 2 and scores.shape[1] > 1:
        return scores
    scores = scores.reshape(-1, 1)
    return torch.cat([torch.zeros_like(scores), scores], 1)


def loss_of(loss: str | Callable[..., Any], targets: str) -> Callable[..., Any]:
    """Return the function of a loss whose targets are ``"classes"`` or ``"binary"``."""
    what = "a loss of one class per row" if targets == "classes" else "a loss of single logits"
    if isinstance(loss, str):
        if loss not in CATALOG or CATALOG[loss].targets != targets:
            names = ", ".join(n for n, member in CATALOG.items() if member.targets == targets)
            raise ValueError(f"`loss` must be {what}, got {loss!r}; there are {names}")
        return CATALOG[loss].function
    option = "row_weight" if targets == "classes" else "weight"
    if not callable(loss) or not {option, "reduction"} <= {*inspect.signature(loss).parameters}:
        raise ValueError(
            f"`loss` must be {what} that takes {option}= and reduction=, as those of xent do, "
            f"got {loss!r}; a function of your own becomes one by @xent."
            f"{'row_loss' if targets == 'classes' else 'element_loss'}"
        )
    return loss
