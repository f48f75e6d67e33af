"""Softmax regression as an estimator of scikit-learn, with any loss of one class per row."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    column_or_1d,
    validate_data,
)
from torch import Tensor

from ... import log_softmax
from ..._check import one_of
from .criteria import Criterion, LinearProblem, loss_of, softmax_criterion
from .curvature import logits_of
from .design import Design
from .linear_objective import Objective
from .separation import SeparationWarning, separation
from .shares import one_blas_thread
from .solvers import SMOOTH, SOLVERS, solve
from .task import UNSAID, SolverTask, enough, progress

__all__ = ["SoftmaxRegression"]

DTYPES = (np.float64, np.float32)


class SoftmaxRegression(ClassifierMixin, BaseEstimator):
    r"""Linear scores, a softmax, and any loss of one class per row.

    .. math:: \min_{W, b}\ \frac1S \sum_n s_n\, \ell(W x_n + b,\, y_n)
        + \frac1{CS} \Bigl(\frac{1 - \rho}2 \|W\|_2^2 + \rho \|W\|_1\Bigr),
        \qquad S = \sum_n s_n

    with :math:`\rho` = ``l1_ratio`` and weights :math:`s_n` of the rows. With cross-entropy it is
    scikit-learn's ``LogisticRegression``: the same parameters, objective and coefficients. Two
    classes have one score, that of the second; the first has the score 0.

    The Newton methods work in coordinates that undo the correlations of the features, and L-BFGS
    does so where it has not converged after 40 iterations: where correlations are strong, tens of
    sweeps over the rows do what would take hundreds. L-BFGS sweeps over rows in single precision as
    long as their digits suffice; the last steps take the gradient in double precision. Many rows
    are shared out to as many threads as PyTorch has.

    Args:
        C: inverse of the strength of the penalty; ``np.inf`` for none. If then the classes can be
            separated, no best coefficients exist, and a ``SeparationWarning`` says so.
        l1_ratio: how much of the penalty is l1, from 0 to 1; above 0 it takes a solver for l1.
        loss: name of a loss of one class per row, or the function itself; its options by
            ``functools.partial(xent.losses.focal_loss, gamma=1.0)``.
        solver: ``"newton"``, with the full Hessian; ``"lbfgs"``, ``"newton-cg"`` and
            ``"trust-region"`` of SciPy, the last two with products of the Hessian, all followed by
            ``"newton"`` if the full Hessian is small enough; ``"gradient-descent"`` with the step
            1/L, ``"accelerated"`` and ``"proximal-newton"``, which take l1. ``"auto"`` takes, with
            l1, ``"proximal-newton"`` for up to 2000 coefficients and ``"accelerated"`` for more;
            without l1 ``"newton"`` for few coefficients, else ``"lbfgs"``; without any penalty,
            ``"trust-region"`` for up to 50,000 scores (rows times classes).
        tol: no entry of the gradient is larger at the end, in coordinates of about unit curvature,
            so the objective is about ``tol**2`` nats above its minimum.
        max_iter: most iterations. If they do not reach the minimum, or rounding hides more than
            1e-9 nats, a ``ConvergenceWarning`` says how far above the minimum the fit ended.
        fit_intercept: whether there is an intercept b, which is not penalised.
        class_weight: a dictionary class -> weight, ``"balanced"``, or None.
        warm_start: whether ``fit`` begins with the coefficients that are there.
        verbose: 1 shows the progress.

    Attributes:
        classes_: the classes, sorted.
        coef_: W, ``(classes, features)``; ``(1, features)`` for two classes.
        intercept_: b, ``(classes,)`` or ``(1,)``; zeros without one.
        precision_: how sure the coefficients are: the curvature of the summed loss along each
            coefficient plus that of the penalty, ``(K, features + intercept)``.
        n_iter_: iterations of the last fit.
        history_: the objective after each of them, the start first.

    Raises:
        ValueError: for parameters out of range, one class only, NaN, and whatever does not fit.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from xent.learn import SoftmaxRegression
        >>> x, y = load_iris(return_X_y=True)
        >>> model = SoftmaxRegression(C=10).fit(x, y)
        >>> round(model.score(x, y), 3), model.coef_.shape
        (0.98, (3, 4))

    References:
        Preconditioning by the bound of the Hessian: Böhning, *Multinomial logistic regression
        algorithm*, 1992. Acceleration: Beck and Teboulle, *A fast iterative shrinkage-thresholding
        algorithm*, 2009; its restart: O'Donoghue and Candès, 2015.
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        l1_ratio: float = 0.0,
        loss: str | Callable[..., Any] = "cross_entropy",
        solver: str = "auto",
        tol: float = 1e-6,
        max_iter: int = 1000,
        fit_intercept: bool = True,
        class_weight: dict[Any, float] | str | None = None,
        warm_start: bool = False,
        verbose: int = 0,
    ) -> None:
        self.C = C
        self.l1_ratio = l1_ratio
        self.loss = loss
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SoftmaxRegression:
        """Find the coefficients.

        Args:
            X: features, ``(rows, features)``: an array, a data frame, or a sparse matrix.
            y: classes, ``(rows,)``.
            sample_weight: weight of each row, ``(rows,)``; 2 counts it twice.

        Returns:
            Itself.
        """
        self._check_parameters()
        X, y = self._read(X, y, reset=True)
        self.classes_ = self._classes(y)
        problem = self._problem(X, y, sample_weight)
        self._classes(y[problem.design.weight.numpy() > 0])
        start = problem.zeros()
        if self.warm_start and hasattr(self, "coef_"):
            start = self._start_from(problem)
        strength = self._strength(start) / (self.C * problem.total)
        l1 = self.l1_ratio * strength if self.l1_ratio > 0 and not self._unpenalised else None
        objective = problem.objective((1 - self.l1_ratio) * strength, problem.zeros())
        left = self._minimise(objective, l1, start)
        self._remember(objective, self._strength(start) / self.C, problem.total)
        if not (self._unpenalised and self._warn_if_separable(problem.design, y, left)):
            self._warn_if_left(left)
        return self

    @available_if(lambda self: self.l1_ratio == 0)
    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> SoftmaxRegression:
        """Learn from further rows; earlier rows need not be kept.

        What was learnt so far, by ``fit`` or here, is remembered as a normal distribution of each
        coefficient; the new rows are fitted with that in the place of the penalty. The first call
        does the same as ``fit``. Many rows per call are better than few.

        Args:
            X: features of the new rows.
            y: their classes.
            classes: all classes there will ever be; needed in the first call.
            sample_weight: weight of each row.

        Returns:
            Itself.

        References:
            Chapelle and Li, *An empirical evaluation of Thompson sampling*, NeurIPS 2011.
        """
        self._check_parameters()
        first = not hasattr(self, "precision_")
        X, y = self._read(X, y, reset=first)
        if first:
            self.classes_ = self._all_classes(classes, y)
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"partial_fit: `classes` must be those before, {self.classes_}")
        if y.ndim == 1 and len(unseen := np.setdiff1d(y, self.classes_)):
            raise ValueError(f"partial_fit: y has {unseen[:5]}, not among {self.classes_}")
        problem = self._problem(X, y, sample_weight)
        start = problem.zeros() if first else self._start_from(problem)
        prior = self._strength(start) / self.C if first else torch.from_numpy(self.precision_)
        objective = problem.objective(prior / problem.total, start)
        self._warn_if_left(self._minimise(objective, None, start))
        self._remember(objective, prior, problem.total)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """The scores: ``(rows, classes)``, or ``(rows,)`` of the second of two classes.

        Args:
            X: features, ``(rows, features)``.
        """
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=DTYPES, reset=False)
        scores = np.asarray(X @ self.coef_.T) + self.intercept_
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The class of each row, ``(rows,)``; of equal scores the first.

        Args:
            X: features, ``(rows, features)``.
        """
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the probabilities, ``(rows, classes)``, exact also where these are 0 or 1.

        Args:
            X: features, ``(rows, features)``.
        """
        return log_softmax(logits_of(torch.from_numpy(self.decision_function(X)))).numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probabilities of the classes, ``(rows, classes)``.

        Args:
            X: features, ``(rows, features)``.
        """
        return np.exp(self.predict_log_proba(X))

    # ---- what the two regressions do differently ------------------------------------------------

    def _read(self, X: Any, y: Any, *, reset: bool) -> tuple[Any, np.ndarray]:
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=DTYPES, reset=reset)
        check_classification_targets(y)
        return X, column_or_1d(y, warn=True)

    def _classes(self, y: np.ndarray) -> np.ndarray:
        # Sorting millions of words takes seconds; a set does not.
        classes = np.unique(y) if y.dtype != object else np.array(sorted({*y.tolist()}), object)
        if len(classes) < 2:
            raise ValueError(
                f"y has one class only, {classes[0]!r}, in rows of a weight above 0; it takes two"
            )
        return classes

    def _all_classes(self, classes: Any, y: np.ndarray) -> np.ndarray:
        if classes is None:
            raise ValueError("partial_fit: the first call must name all `classes`")
        return self._classes(np.asarray(classes))

    def _criterion(self, y: np.ndarray, weight: Tensor) -> Criterion:
        """Return the criterion for rows of these classes and weights."""
        return softmax_criterion(
            loss_of(self.loss, "classes"), self._indices(y), weight, len(self.classes_)
        )

    def _decisions(self, scores: Tensor, y: np.ndarray) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield each independent decision: its name, its scores and its classes."""
        yield "the classes", scores, self._indices(y)

    # ---- what they share ------------------------------------------------------------------------

    def _check_parameters(self) -> None:
        positive = isinstance(self.C, Real) and self.C > 0
        if not positive:
            raise ValueError(
                f"`C` must be a positive number, or np.inf for no penalty, got {self.C!r}"
            )
        if not (isinstance(self.l1_ratio, Real) and 0 <= self.l1_ratio <= 1):
            raise ValueError(f"`l1_ratio` must be from 0 to 1, got {self.l1_ratio!r}")
        if not (isinstance(self.tol, Real) and self.tol >= 0):
            raise ValueError(f"`tol` must be at least 0, got {self.tol!r}")
        if not (isinstance(self.max_iter, Integral) and self.max_iter >= 1):
            raise ValueError(f"`max_iter` must be a whole number from 1 on, got {self.max_iter!r}")
        one_of("solver", self.solver, SOLVERS)
        if self.l1_ratio > 0 and self.solver in ("newton", *SMOOTH):
            raise ValueError(
                f"solver={self.solver!r} takes no l1_ratio above 0, got {self.l1_ratio}; "
                "use solver='auto' or 'accelerated'"
            )

    def _problem(self, X: Any, y: np.ndarray, sample_weight: Any) -> LinearProblem:
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if self.class_weight is not None:
            weight = weight * self._weight_of_class(y, weight)
        total = weight.sum()
        if not 0 < total < math.inf:
            raise ValueError(f"the weights of the rows add up to {total}; there is nothing to fit")
        share = torch.from_numpy(weight / total)
        design = Design(X, share, intercept=self.fit_intercept)
        return LinearProblem(design, self._criterion(y, share), total)

    def _weight_of_class(self, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
        of_class = compute_class_weight(
            self.class_weight, classes=self.classes_, y=y, sample_weight=weight
        )
        return of_class[np.searchsorted(self.classes_, y)]

    def _strength(self, like: Tensor) -> Tensor:
        """Return 1 for penalised coefficients and 0 for the intercept, ``(K, columns)``."""
        strength = torch.ones_like(like)
        if self.fit_intercept:
            strength[:, -1] = 0
        return strength

    def _learnt(self, design: Design) -> Tensor:
        """Return the fitted coefficients with the intercept as a column, ``(K, columns)``."""
        return design.joined(self.coef_, self.intercept_)

    def _start_from(self, problem: LinearProblem) -> Tensor:
        """Return the fitted coefficients as a start, or raise unless they fit the problem."""
        w, shape = self._learnt(problem.design), problem.zeros().shape
        if w.shape != shape:
            raise ValueError(
                f"warm_start: coefficients of shape {(*w.shape,)} do not fit {(*shape,)}; "
                "features, classes and fit_intercept must be those of the fit before"
            )
        return w

    def _minimise(self, objective: Objective, l1: Tensor | None, start: Tensor) -> float:
        """Run the solver, and keep the coefficients.

        Returns:
            How far the result is above the minimum, in nats; 0 if the solver has converged.
        """
        with progress(self.verbose, self.max_iter) as report:
            task = SolverTask(objective, l1, self.tol, self.max_iter, report)
            solution = solve(task, start, self.solver)
        w = solution.w
        if not bool(w.isfinite().all()):
            raise ValueError("the loss is not finite; scale the features, or take another loss")
        self.coef_ = w[:, : objective.design.features].numpy().copy()
        self.intercept_ = w[:, -1].numpy().copy() if self.fit_intercept else np.zeros(len(w))
        self.history_, self.n_iter_ = solution.history, max(solution.iterations, 1)
        done = solution.left <= max(enough(task, w, solution.history[-1]), UNSAID)
        return 0.0 if done else solution.left

    def _warn_if_left(self, left: float) -> None:
        if not left <= 0:  # NaN, too
            way_out = (
                "raise max_iter"
                if self.n_iter_ >= self.max_iter
                else "more iterations would not help, but features nearer to 0 and to each other "
                "in size, a penalty (C), or another solver"
            )
            warnings.warn(
                f"{type(self).__name__}: not converged after {self.n_iter_} iterations: the "
                f"objective is about {left:.2g} nats above its minimum; {way_out}",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _remember(self, objective: Objective, prior: Tensor, total: float) -> None:
        """Keep the precision of the coefficients, for further rows."""
        with one_blas_thread():
            learnt = objective.rough.hessian_diagonal(self._learnt(objective.design))
        self.precision_ = (prior + total * learnt).numpy()

    def _warn_if_separable(self, design: Design, y: np.ndarray, left: float) -> bool:
        """Warn if no best coefficients exist, and return True if so."""
        far = f", here about {left:.2g} nats above its limit" if left > 0 else ""
        scores = design.scores(self._learnt(design))
        seen = design.weight > 0  # rows of weight 0 are not in the loss
        x, found = design.with_ones()[seen.numpy()], False
        for name, columns, target in self._decisions(scores[seen], y[seen.numpy()]):
            kind = separation(x, columns, target)
            if kind is not None:
                found = True
                how = "completely" if kind == "complete" else "in part"
                warnings.warn(
                    f"{type(self).__name__}: {name} can be separated {how}, and C=inf penalises "
                    f"nothing: the loss has no minimum{far}, and the coefficients grow without "
                    "bound. Set C, for example C=1",
                    SeparationWarning,
                    stacklevel=3,
                )
        return found

    @property
    def _unpenalised(self) -> bool:
        return bool(np.isinf(self.C))

    def _indices(self, y: np.ndarray) -> Tensor:
        """Return the classes as indices."""
        return torch.from_numpy(np.searchsorted(self.classes_, y))
