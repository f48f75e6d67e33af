"""What a solver is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .linear_objective import Objective


@dataclass(frozen=True)
class Solution:
    """Where a solver stopped.

    Attributes:
        w: coefficients, ``(K, columns)``.
        history: the objective after each iteration, the start first.
        converged: whether the gradient came down to ``tol``, or the objective to its last digit;
            with l1, whether the conditions of a minimum hold to ``tol``.
    """

    w: Tensor
    history: list[float]
    converged: bool

    @property
    def iterations(self) -> int:
        """How many there were."""
        return len(self.history) - 1


@dataclass(frozen=True)
class Task:
    """What is to be minimised, how exactly, and who wants to hear of it.

    Attributes:
        objective: the smooth part.
        l1: weight of the absolute value of each coefficient, ``(K, columns)``, or None.
        tol: largest entry of the gradient at the end.
        max_iter: most iterations.
        report: called with the objective after each iteration.
    """

    objective: Objective
    l1: Tensor | None
    tol: float
    max_iter: int
    report: Callable[[float], None]
