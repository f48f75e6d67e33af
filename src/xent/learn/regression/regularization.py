r"""Regularization paths: coefficients of a linear classifier as its penalty grows weaker.

With l1, all coefficients are 0 from some strength of the penalty on. Such a model knows only the
frequencies of the classes; let :math:`G` be the gradient of its mean loss. The conditions of a
minimum, :math:`|G_{kj}| \le \lambda \rho` for each coefficient, give that strength:

.. math:: \lambda_{\max} = \frac1\rho \max_{kj} |G_{kj}|, \qquad
    C_{\min} = \frac1{S\, \lambda_{\max}}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import clone
from torch import Tensor

from .criteria import LinearProblem
from .design import Design
from .softmax_regression import SoftmaxRegression
from .solvers import solve
from .task import SolverTask

__all__ = ["RegularizationPath", "regularization_path", "smallest_C"]

SPAN = 1000  # the strongest penalty of a path over the weakest
NULL_TOL, NULL_ITERATIONS = 1e-12, 1000


@dataclass(frozen=True, eq=False)
class RegularizationPath:
    """Coefficients at each strength of the penalty, the strongest first; prints as a table.

    ``xent.plot.coefficient_paths`` draws it.

    Attributes:
        Cs: the inverse strengths, ascending, ``(n,)``.
        lambdas: the factor of the penalty, 1 / (C S), ``(n,)``.
        coef: ``(n, K, features)``, K = 1 for two classes.
        intercepts: ``(n, K)``.
        loss: the mean loss of a row, ``(n,)``.
        penalty: what the coefficients add to the objective, ``(n,)``.
        nonzero: how many coefficients are not 0, ``(n,)``.
        iterations: of the solver, ``(n,)``.
    """

    Cs: np.ndarray
    lambdas: np.ndarray
    coef: np.ndarray
    intercepts: np.ndarray
    loss: np.ndarray
    penalty: np.ndarray
    nonzero: np.ndarray
    iterations: np.ndarray

    @property
    def objective(self) -> np.ndarray:
        """The objective at each strength, loss plus penalty, ``(n,)``."""
        return self.loss + self.penalty

    def __str__(self) -> str:
        lines = [f"{'C':>11} {'lambda':>11} {'nonzero':>8} {'mean loss':>11} {'penalty':>11}"]
        rows = zip(self.Cs, self.lambdas, self.nonzero, self.loss, self.penalty, strict=True)
        lines += [f"{c:11.4g} {s:11.4g} {n:8d} {f:11.6f} {p:11.6f}" for c, s, n, f, p in rows]
        return "\n".join(lines)


def smallest_C(estimator: SoftmaxRegression, X: Any, y: Any, sample_weight: Any = None) -> float:
    """The largest ``C`` at which l1 makes every coefficient 0; any larger ``C`` leaves some.

    This is exact for losses that are convex in the scores. For other losses, all zeros meet the
    conditions of a minimum there, but another minimum may be lower.

    Args:
        estimator: a ``SoftmaxRegression`` or ``LogisticRegression`` with ``l1_ratio`` above 0;
            its ``C`` does not matter, and it is not changed.
        X: features, ``(rows, features)``.
        y: classes, ``(rows,)``, or labels.
        sample_weight: weight of each row, ``(rows,)``.

    Returns:
        C; infinite if no feature tells anything about the classes.

    Raises:
        TypeError: for another estimator.
        ValueError: for ``l1_ratio=0``, under which no coefficient is ever 0.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from xent.learn import SoftmaxRegression, smallest_C
        >>> x, y = load_iris(return_X_y=True)
        >>> round(smallest_C(SoftmaxRegression(l1_ratio=1), x, y), 6)
        0.008711
    """
    return _Start(estimator, X, y, sample_weight).smallest_C()


def regularization_path(
    estimator: SoftmaxRegression,
    X: Any,
    y: Any,
    Cs: int | Sequence[float] = 30,
    sample_weight: Any = None,
) -> RegularizationPath:
    """Fit a linear classifier at one strength of the penalty after the other.

    Each fit begins where the fit before ended; the first begins with coefficients of 0.

    Args:
        estimator: a ``SoftmaxRegression`` or ``LogisticRegression``; its ``C`` does not matter, and
            it is not changed. Its ``verbose`` shows the progress of each fit.
        X: features, ``(rows, features)``.
        y: classes, ``(rows,)``, or labels.
        Cs: values of ``C``; or how many, from :func:`smallest_C`, where every coefficient is 0, to
            1000 times that, in equal ratios.
        sample_weight: weight of each row, ``(rows,)``.

    Returns:
        The path.

    Raises:
        TypeError: for another estimator.
        ValueError: for ``Cs`` that are not positive and finite, or a number of them with
            ``l1_ratio=0``, or where no feature tells anything.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from xent.learn import SoftmaxRegression, regularization_path
        >>> x, y = load_iris(return_X_y=True)
        >>> path = regularization_path(SoftmaxRegression(l1_ratio=1), x, y, Cs=4)
        >>> path.nonzero.tolist()
        [0, 2, 4, 6]

    References:
        Friedman, Hastie and Tibshirani, *Regularization paths for generalized linear models via
        coordinate descent*, 2010.
    """
    start = _Start(estimator, X, y, sample_weight)
    grid = start.grid(Cs)
    model = start.model.set_params(warm_start=True)
    model.coef_, model.intercept_ = start.coef, start.intercept
    fitted = []
    for C in grid:
        model.set_params(C=float(C)).fit(X, y, sample_weight)
        fitted.append((model.coef_, model.intercept_, start.mean_loss(model), model.n_iter_))
    coef, intercepts, loss, iterations = (np.array(each) for each in zip(*fitted, strict=True))
    lambdas, l1_ratio = 1 / (grid * start.problem.total), model.l1_ratio
    size = np.square(coef).sum((1, 2)) * (1 - l1_ratio) / 2 + np.abs(coef).sum((1, 2)) * l1_ratio
    nonzero = np.count_nonzero(coef, axis=(1, 2))
    return RegularizationPath(
        grid, lambdas, coef, intercepts, loss, lambdas * size, nonzero, iterations
    )


class _Start:
    """A copy of an estimator with its rows, and the best model without coefficients.

    Attributes:
        model: the copy.
        problem: rows and loss.
        coef: zeros, ``(K, features)``.
        intercept: the best intercepts without features, ``(K,)``.
    """

    def __init__(self, estimator: SoftmaxRegression, X: Any, y: Any, sample_weight: Any) -> None:
        if not isinstance(estimator, SoftmaxRegression):
            raise TypeError(
                "`estimator` must be a SoftmaxRegression or LogisticRegression of xent.learn, got "
                f"{type(estimator).__name__}"
            )
        self.model: Any = clone(estimator)
        self.model._check_parameters()
        X, y = self.model._read(X, y, reset=True)
        self.model.classes_ = self.model._classes(y)
        self.problem: LinearProblem = self.model._problem(X, y, sample_weight)
        design = self.problem.design
        self.coef = np.zeros((self.problem.criterion.columns, design.features))
        self.intercept = np.zeros(len(self.coef))
        if design.intercept:
            self.intercept = self._best_intercept().numpy()

    def _best_intercept(self) -> Tensor:
        """Return the best intercept, by a fit to rows without features."""
        weight = self.problem.design.weight
        empty = Design(np.zeros((len(weight), 0)), weight, intercept=True)
        alone = LinearProblem(empty, self.problem.criterion, self.problem.total)
        objective = alone.objective(alone.zeros(), alone.zeros())
        task = SolverTask(objective, None, NULL_TOL, NULL_ITERATIONS, lambda value: None)
        return solve(task, alone.zeros(), "newton-cg").w[:, 0]

    def smallest_C(self) -> float:
        """Return the largest C at which all coefficients are 0."""
        if self.model.l1_ratio == 0:
            raise ValueError(
                "with l1_ratio=0 no strength of the penalty makes coefficients 0: give the values "
                "of `Cs`, or set l1_ratio"
            )
        zeros, design = self.problem.zeros(), self.problem.design
        objective = self.problem.objective(zeros, zeros)
        _, gradient = objective.value_and_gradient(design.joined(self.coef, self.intercept))
        most = gradient[:, : design.features].abs().max().item()
        return float(self.model.l1_ratio / (self.problem.total * most)) if most > 0 else np.inf

    def grid(self, Cs: int | Sequence[float]) -> np.ndarray:
        """The values of C, ascending."""
        if isinstance(Cs, Integral):
            if Cs < 1:
                raise ValueError(f"`Cs` must be at least 1 value, got {Cs}")
            least = self.smallest_C()
            if least == np.inf:
                raise ValueError("no feature tells anything about the classes; give values of `Cs`")
            return np.geomspace(least, SPAN * least, int(Cs))
        grid = np.sort(np.asarray(Cs, np.float64))
        if grid.ndim != 1 or len(grid) == 0 or not ((grid > 0) & (grid < np.inf)).all():
            raise ValueError(f"`Cs` must be positive finite numbers, or how many, got {Cs!r}")
        return grid

    def mean_loss(self, model: Any) -> float:
        """Return the mean loss of a fitted model, without the penalty."""
        design = self.problem.design
        w = design.joined(model.coef_, model.intercept_)
        return self.problem.criterion.mean_loss(design.scores(w)).item()
