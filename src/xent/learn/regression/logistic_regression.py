"""Logistic regression as an estimator of scikit-learn, of classes or of labels side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils.validation import (
    check_is_fitted,
    validate_data,
)
from torch import Tensor

from ...losses import cross_entropy
from .criteria import Criterion, loss_of, softmax_criterion
from .curvature import AutogradCurvature
from .softmax_regression import DTYPES, SoftmaxRegression

__all__ = ["LogisticRegression"]

BINARY = "binary_cross_entropy_with_logits"


class LogisticRegression(SoftmaxRegression):
    r"""Logistic regression of two classes, of several, or of labels that do not exclude each other.

    Two classes have one score and a sigmoid. If y is a matrix of 0 and 1, ``(rows, labels)``, each
    label has its own score and sigmoid, all in one fit. More classes have a softmax, as in
    :class:`SoftmaxRegression`. Parameters, objective and coefficients are those of scikit-learn's
    class of this name.

    .. math:: \min_{W, b}\ \frac1S \sum_n s_n \sum_k \ell(w_k x_n + b_k,\, y_{nk})
        + \frac1{CS} \Bigl(\frac{1 - \rho}2 \|W\|_2^2 + \rho \|W\|_1\Bigr)

    Args:
        C: as in :class:`SoftmaxRegression`.
        l1_ratio: likewise.
        loss: name of a loss of a logit and a number in [0, 1], such as ``"sigmoid_focal_loss"``, or
            the function itself.
        solver: as in :class:`SoftmaxRegression`.
        tol: likewise.
        max_iter: likewise.
        fit_intercept: likewise.
        class_weight: likewise; not for a matrix of labels.
        warm_start: likewise.
        verbose: likewise.

    Attributes:
        classes_: the two classes, sorted; of a matrix of labels, their indices.
        coef_: ``(1, features)``; ``(labels, features)``.
        intercept_: ``(1,)``; ``(labels,)``.
        n_iter_: iterations of the last fit.
        history_: the objective after each of them, the start first.

    Example:
        >>> from sklearn.datasets import load_breast_cancer
        >>> from xent.learn import LogisticRegression
        >>> x, y = load_breast_cancer(return_X_y=True)
        >>> round(LogisticRegression().fit(x, y).score(x, y), 3)
        0.958
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        l1_ratio: float = 0.0,
        loss: str | Callable[..., Any] = BINARY,
        solver: str = "auto",
        tol: float = 1e-6,
        max_iter: int = 1000,
        fit_intercept: bool = True,
        class_weight: dict[Any, float] | str | None = None,
        warm_start: bool = False,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            C, l1_ratio=l1_ratio, loss=loss, solver=solver, tol=tol, max_iter=max_iter,
            fit_intercept=fit_intercept, class_weight=class_weight, warm_start=warm_start,
            verbose=verbose,
        )  # fmt: skip

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def predict(self, X: Any) -> np.ndarray:
        """The class of each row, ``(rows,)``, or its labels, ``(rows, labels)`` of 0 and 1.

        Args:
            X: features, ``(rows, features)``.
        """
        check_is_fitted(self)
        if not self.multilabel_:
            return super().predict(X)
        scores = self.decision_function(X)
        return (scores > 0).astype(int).reshape(len(scores), -1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the probabilities of the classes, or of each label.

        Args:
            X: features, ``(rows, features)``.
        """
        check_is_fitted(self)
        if not self.multilabel_:
            return super().predict_log_proba(X)
        scores = torch.from_numpy(self.decision_function(X))
        return torch.nn.functional.logsigmoid(scores).reshape(len(scores), -1).numpy()

    def _read(self, X: Any, y: Any, *, reset: bool) -> tuple[Any, np.ndarray]:
        y = y if issparse(y) else np.asarray(y)
        multilabel = y.ndim == 2 and y.shape[1] > 1
        if multilabel:
            X, y = validate_data(
                self, X, y, accept_sparse="csr", dtype=DTYPES, multi_output=True, reset=reset
            )
            y = y.toarray() if issparse(y) else y
            if not np.isin(y, (0, 1)).all():
                raise ValueError("y has several columns, but other entries than 0 and 1")
        else:
            X, y = super()._read(X, y, reset=reset)
        if not reset and multilabel != self.multilabel_:
            raise ValueError("y must be of the kind it was before: classes, or a matrix of labels")
        self.multilabel_ = multilabel
        return X, y

    def _classes(self, y: np.ndarray) -> np.ndarray:
        return np.arange(y.shape[1]) if self.multilabel_ and y.ndim == 2 else super()._classes(y)

    def _all_classes(self, classes: Any, y: np.ndarray) -> np.ndarray:
        return self._classes(y) if self.multilabel_ else super()._all_classes(classes, y)

    def _weight_of_class(self, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
        if self.multilabel_:
            raise ValueError(
                "`class_weight` has no meaning for a matrix of labels; set sample_weight, or a "
                "loss with pos_weight: partial(xent.binary_cross_entropy_with_logits, pos_weight=w)"
            )
        return super()._weight_of_class(y, weight)

    def _criterion(self, y: np.ndarray, weight: Tensor) -> Criterion:
        if len(self.classes_) > 2 and not self.multilabel_:
            if self.loss != BINARY:
                raise ValueError(
                    f"`loss` is one of single logits, and y has {len(self.classes_)} classes; "
                    "use SoftmaxRegression with a loss of one class per row"
                )
            return softmax_criterion(cross_entropy, self._indices(y), weight, len(self.classes_))
        loss = loss_of(self.loss, "binary")
        target = self._indicators(y)

        def mean_loss(scores: Tensor, rows: slice = slice(None)) -> Tensor:
            return loss(scores, target[rows], weight=weight[rows].unsqueeze(1), reduction="sum")

        return Criterion(mean_loss, target.shape[1], 0.25, AutogradCurvature(mean_loss))

    def _decisions(self, scores: Tensor, y: np.ndarray) -> Iterator[tuple[str, Tensor, Tensor]]:
        if not self.multilabel_:
            yield from super()._decisions(scores, y)
            return
        for label, column in enumerate(self._indicators(y).long().T):
            yield f"label {label}", scores[:, label : label + 1], column

    def _indicators(self, y: np.ndarray) -> Tensor:
        """Return the labels as 0 and 1, ``(rows, K)``."""
        y = y if self.multilabel_ else (y == self.classes_[1])[:, None]
        return torch.from_numpy(np.ascontiguousarray(y, np.float64))
