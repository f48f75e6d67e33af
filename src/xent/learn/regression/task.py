"""The task that a solver is given, and the solution that it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .linear_objective import Objective

DIGITS = 100 * float(np.finfo(np.float64).eps)  # relative rounding of an objective

UNSAID = 1e-9  # nats above the minimum that need no warning


@dataclass(frozen=True)
class Solution:
    """Coefficients at which a solver stopped.

    Attributes:
        w: coefficients, ``(K, columns)``.
        history: the objective after each iteration, the start first.
        left: about how far the objective is above its minimum, in nats, by its gradient in
            coordinates of unit curvature.
    """

    w: Tensor
    history: list[float]
    left: float

    @property
    def iterations(self) -> int:
        """Number of iterations."""
        return len(self.history) - 1


@dataclass(frozen=True)
class SolverTask:
    """An objective to minimise, how exactly, and a function that reports progress.

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


def enough(task: SolverTask, w: Tensor, value: float) -> float:
    """Return how many nats above the minimum are enough: by ``tol`` in each entry, or rounding."""
    return max(0.5 * w.numel() * task.tol**2, DIGITS * max(abs(value), 1e-3))


@contextmanager
def progress(verbose: int, iterations: int) -> Iterator[Callable[[float], None]]:
    """Yield a function to call with the objective after each iteration; verbose shows a bar."""
    if not verbose:
        yield lambda objective: None
        return
    from tqdm import tqdm

    with tqdm(total=iterations, unit="iteration") as bar:

        def report(objective: float) -> None:
            bar.set_postfix_str(f"objective {objective:.8f}", refresh=False)
            bar.update()

        yield report
