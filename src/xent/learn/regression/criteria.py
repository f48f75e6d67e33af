"""Criteria of linear classifiers: the mean of any loss, as a function of the scores."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...losses import CATALOG, cross_entropy
from .curvature import AutogradCurvature, Curvature, SoftmaxCurvature, logits_of
from .design import Design
from .linear_objective import Objective


class Criterion(NamedTuple):
    """A mean loss as a function of the scores, with bounds of its curvature.

    Attributes:
        mean_loss: maps scores ``(N, K)`` to the mean loss, or with a slice of the rows to the part
            of the mean that these rows add.
        columns: K.
        bound: the largest curvature of cross-entropy in the scores of a row.
        curvature: the second derivatives of the mean loss by the scores.
    """

    mean_loss: Callable[..., Tensor]
    columns: int
    bound: float
    curvature: Curvature


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

    columns, bound = (1, 0.25) if classes == 2 else (classes, 0.5)
    closed = loss is cross_entropy
    curvature = SoftmaxCurvature(weight) if closed else AutogradCurvature(mean_loss)
    return Criterion(mean_loss, columns, bound, curvature)


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
