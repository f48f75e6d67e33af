"""Finds out if linear scores can separate the classes, so that no best fit exists."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import csr_array, eye_array, kron, vstack
from torch import Tensor

__all__ = ["SeparationWarning"]

LARGE = 8.0  # nats of margin above which the linear program is asked
ENTRIES = 3_000_000  # most entries of a linear program


class SeparationWarning(UserWarning):
    """Warning: the classes can be separated and no penalty is set, so there is no best fit.

    The loss falls for ever while the coefficients grow. The size at which the solver stopped is
    arbitrary; only the direction of the coefficients means something.
    """


def separation(x: Any, scores: Tensor, target: Tensor) -> Literal["complete", "partial"] | None:
    """Decide whether linear scores can separate the classes, completely or in part.

    Args:
        x: the rows with their column of ones, ``(N, columns)``, dense or sparse.
        scores: the fitted scores, ``(N, K)``; if they separate the classes, nothing else is asked.
        target: class of each row, ``(N,)``; for K = 1 there are two classes.

    Returns:
        ``"complete"`` if every row has its largest score at its class; ``"partial"`` if some scores
        never prefer another class and sometimes the right one; None if there are no such scores, if
        no fitted margin is large, or if the linear program that decides would be very large.
    """
    if scores.shape[1] == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], 1)
    own = scores.gather(1, target.unsqueeze(1)).squeeze(1)
    others = scores.scatter(1, target.unsqueeze(1), -torch.inf).amax(1)
    margin = own - others  # (N,)
    if margin.min() > 0:
        return "complete"
    classes = scores.shape[1]
    if margin.max() < LARGE or 2 * x.shape[0] * x.shape[1] * (classes - 1) > ENTRIES:
        return None
    constraints: Any = vstack(
        [
            _differences(csr_array(x[rows]), label, classes)
            for label in range(classes)
            if len(rows := np.flatnonzero(target.numpy() == label))
        ]
    )
    scale = abs(constraints).max(axis=0).toarray().ravel()  # scale of each column, for the solver
    constraints = constraints.multiply(1 / np.where(scale > 0, scale, 1.0)).tocsr()
    best = linprog(
        -constraints.sum(axis=0), A_ub=-constraints, b_ub=np.zeros(constraints.shape[0]),
        bounds=(-1, 1), method="highs",
    )  # fmt: skip
    return "partial" if best.status == 0 and -best.fun > 1e-6 else None


def _differences(x: csr_array, label: int, classes: int) -> csr_array:
    """Matrix from all coefficients to the score of a label minus each other score, for rows."""
    others = np.delete(np.arange(classes), label)
    pick = -eye_array(classes).tocsr()[others]
    pick = pick + csr_array(
        (np.ones(len(others)), (np.arange(len(others)), np.full(len(others), label))), pick.shape
    )
    return kron(pick, x).tocsr()  # ((C - 1) * n, C * columns)
