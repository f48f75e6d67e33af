"""Losses as objectives of gradient boosting, for LightGBM and XGBoost.

    objective = Objective(xent.losses.focal_loss, "lightgbm", gamma=2.0)
    data = lightgbm.Dataset(X, y, init_score=objective.init_score(y))
    model = lightgbm.train({"objective": objective, "num_class": 3}, data)
    scores = model.predict(X, raw_score=True) + objective.start(y)
    probability = objective.probabilities(scores)

Trees are grown on the gradient of the loss and the diagonal of its Hessian, both exact. A
hand-written objective often fails to reproduce the built-in one because of three things beside the
loss: the factor that each library puts on the Hessian of a softmax, the score that the library
starts from, and sample weights, which the library leaves to the objective. All three are here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from .. import softmax
from .._check import one_of
from ..losses import CATALOG, binary_cross_entropy_with_logits, cross_entropy

__all__ = ["Metric", "Objective"]

# Factor on the diagonal Hessian of K scores per row. The scores of a softmax act on each other, so
# its diagonal alone is no bound of its curvature. Twice the diagonal always is a bound; where the
# classes are equally likely, K / (K - 1) times the diagonal is one, too.
_HESSIAN_SCALE: dict[str, Callable[[int], float]] = {
    "lightgbm": lambda classes: classes / (classes - 1),
    "xgboost": lambda classes: 2.0,
}

_CROSS_ENTROPY = (cross_entropy, binary_cross_entropy_with_logits)


class Objective:
    r"""A loss as the objective of LightGBM or XGBoost.

    Call an objective as either library does: ``(scores, dataset)`` from their ``train`` functions,
    ``(label, scores[, sample_weight])`` from their scikit-learn estimators. One score per row is
    the log-odds of class 1; K scores per row are logits of K classes.

    .. math::
        g = w \frac{\partial \ell}{\partial z}, \qquad
        h = w \max\Bigl(a \frac{\partial^2 \ell}{\partial z^2}, \epsilon\Bigr), \qquad
        a = \begin{cases} 1 & \text{one score} \\ K / (K - 1) & \text{LightGBM} \\
        2 & \text{XGBoost} \end{cases}

    With cross-entropy this is the objective that the libraries have built in. There they start from
    the priors of the classes. With a custom objective they start from 0, or XGBoost from 0.5; so
    pass :meth:`init_score`.

    Args:
        loss: any loss of one class per row: a member of the family, or your own
            :func:`xent.row_loss`. With one score ``z`` per row the loss gets ``(0, z)``. Or a
            loss of one logit and a target in [0, 1]; with K scores per row, the loss is called
            for each class against the rest.
        library: whose conventions to follow, ``"lightgbm"`` or ``"xgboost"``.
        targets: what a loss that the catalog does not know takes as targets: ``"classes"`` or
            ``"binary"``.
        hessian_scale: the factor :math:`a`; None for the library's own, 1 for the true diagonal.
        min_hessian: the floor :math:`\epsilon`. The curvature of a loss that is not convex may be
            negative; there a Newton step would raise the loss.
        **options: hyperparameters and options of the loss, such as ``gamma`` or ``weight``.

    Raises:
        ValueError: for an unknown library, or a loss that does not take one target per row.

    Example:
        >>> import torch, xent
        >>> from xent.integrations.boosting import Objective
        >>> objective = Objective(xent.cross_entropy, "xgboost")
        >>> gradient, hessian = objective([1, 0], [0.0, 2.0])
        >>> gradient.round(4).tolist(), hessian.round(4).tolist()
        ([-0.5, 0.8808], [0.25, 0.105])

    References:
        Friedman, *Greedy function approximation: a gradient boosting machine*, Annals of
        Statistics 2001. Chen and Guestrin, *XGBoost*, KDD 2016. Ke et al., *LightGBM*, NIPS 2017.
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        library: str,
        *,
        targets: Literal["classes", "binary"] | None = None,
        hessian_scale: float | None = None,
        min_hessian: float = 1e-16,
        **options: Any,
    ) -> None:
        one_of("library", library, ("lightgbm", "xgboost"))
        self.loss, self.library, self.options = loss, library, options
        self.targets = _targets_of(loss) if targets is None else targets
        one_of("targets", self.targets, ("classes", "binary"))
        self.hessian_scale, self.min_hessian = hessian_scale, min_hessian
        self.__name__ = getattr(loss, "__name__", "loss")

    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[Any, Any]:
        """Gradient and Hessian, as arrays in the shape of the scores.

        Args:
            first: labels; or scores, if a dataset follows.
            second: scores; or the dataset of labels and weights.
            sample_weight: one factor per row.
        """
        scores, label, weight = _read_call(first, second, sample_weight)
        gradient, hessian = self.derivatives(scores, label, weight)
        return gradient.numpy(), hessian.numpy()

    def values(self, scores: Tensor, label: Tensor) -> Tensor:
        """The loss of each row.

        Args:
            scores: ``(N,)`` or ``(N, K)``, in float64.
            label: ``(N,)``.

        Raises:
            ValueError: if the loss does not give one value per row.
        """
        wide = scores.ndim == 2
        if self.targets == "classes":
            logits = scores if wide else torch.stack([torch.zeros_like(scores), scores], 1)
            rows = self.loss(logits, _classes(label), reduction="none", **self.options)
        elif wide:
            against_rest = torch.nn.functional.one_hot(_classes(label), scores.shape[1]).to(scores)
            rows = self.loss(scores, against_rest, reduction="none", **self.options).sum(1)  # (N,)
        else:
            rows = self.loss(scores, label.to(scores), reduction="none", **self.options)
        if not isinstance(rows, Tensor) or rows.shape != label.shape:
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(
                f"{self.__name__} must give one value per row, shape {tuple(label.shape)}; got "
                f"{got}. If it takes one logit and a target in [0, 1], say targets='binary'"
            )
        return rows

    def derivatives(
        self, scores: Tensor, label: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gradient and diagonal Hessian of the summed loss, in the shape of ``scores``.

        Args:
            scores: ``(N,)`` or ``(N, K)``, in float64.
            label: ``(N,)``.
            weight: one factor per row.
        """
        z = scores.detach().requires_grad_()
        plain = self.loss in _CROSS_ENTROPY and not self.options
        with torch.enable_grad():
            loss = self.values(z, label).sum()
            (gradient,) = torch.autograd.grad(loss, z, create_graph=not plain)
            hessian = _variance(scores, self.targets) if plain else _diagonal(gradient, z)
        gradient = gradient.detach()
        scale = self.hessian_scale
        if scale is None:
            coupled = scores.ndim == 2 and self.targets == "classes"
            scale = _HESSIAN_SCALE[self.library](scores.shape[1]) if coupled else 1.0
        hessian = (scale * hessian).clamp(min=self.min_hessian)
        if weight is None:
            return gradient, hessian
        weight = weight.view(-1, *[1] * (scores.ndim - 1))
        return gradient * weight, hessian * weight

    def start(self, label: Any, sample_weight: Any = None) -> Any:
        """Score to start from: a number for two classes, ``(K,)`` for more.

        The score is the log-prior of each class, the best constant for cross-entropy. For one score
        per row, and for each class against the rest, it is the log-odds of the prior. XGBoost
        centres log-priors, which changes no probability.

        Args:
            label: labels of the training rows, 0 to K - 1; two classes have one score. For a loss
                of a target in [0, 1], numbers in [0, 1].
            sample_weight: one factor per row.

        Raises:
            ValueError: for labels that are no classes, or if a class has no rows, and so no finite
                score.
        """
        label = _column("label", label)
        weight = torch.ones_like(label)
        if sample_weight is not None:  # both libraries keep weights in float32
            weight = _column("sample_weight", sample_weight, len(label)).float().double()
        if self.targets == "binary" and bool(((label >= 0) & (label <= 1)).all()):
            of_1 = (weight * label).sum()
            share = torch.stack([weight.sum() - of_1, of_1])
        else:
            classes = _classes(label)
            if bool((classes < 0).any()):
                raise ValueError(
                    f"`label` must hold the classes 0 to K - 1, got {classes.min().item()}; of -1 "
                    "and 1 make (label + 1) / 2"
                )
            share = torch.bincount(classes, weight, minlength=2)
        share = share / share.sum()
        if not bool((share > 0).all()):
            raise ValueError(
                f"`label` has no rows of class {(share <= 0).nonzero()[:, 0].tolist()}: the score "
                f"to start from would be -inf"
            )
        if len(share) == 2:
            return torch.logit(share[1]).item()
        if self.targets == "binary":
            return torch.logit(share).numpy()
        prior = share.log()
        return (prior - prior.mean() if self.library == "xgboost" else prior).numpy()

    def init_score(self, label: Any, sample_weight: Any = None, rows: int | None = None) -> Any:
        """:meth:`start` for every row: ``init_score=`` of LightGBM, ``base_margin=`` of XGBoost.

        Neither library keeps these scores. Raw predictions of LightGBM are without them,
        so add :meth:`start`; XGBoost takes the scores again with the rows to predict.

        Args:
            label: labels of the training rows.
            sample_weight: one factor per row.
            rows: number of rows; by default as many as labels.

        Returns:
            An array, ``(rows,)`` or ``(rows, K)``.

        Raises:
            ValueError: as :meth:`start`.
        """
        import numpy as np

        start = np.asarray(self.start(label, sample_weight))
        return np.tile(start, (len(label) if rows is None else rows,) + (1,) * start.ndim)

    def probabilities(self, scores: Any) -> Any:
        """Probability of class 1, or of each class, from raw scores.

        Args:
            scores: raw predictions, ``(N,)`` or ``(N, K)``, the start included.
        """
        scores = _array(scores)
        if self.targets == "binary" or scores.ndim == 1:
            return torch.sigmoid(scores).numpy()
        return softmax(scores, 1).numpy()

    @property
    def metric(self) -> Metric:
        """The weighted mean of the loss, as a metric of the same library."""
        return Metric(self)


class Metric:
    """The mean loss of raw scores, in the form that the library asks for.

    LightGBM gets ``(name, value, False)``: lower is better. XGBoost gets ``(name, value)`` in
    ``train`` and the value alone in its estimators. Both libraries hand raw scores to a metric only
    if the objective is custom, too.

    Args:
        objective: an :class:`Objective`.

    Example:
        >>> import xent
        >>> from xent.integrations.boosting import Objective
        >>> metric = Objective(xent.cross_entropy, "lightgbm").metric
        >>> name, value, higher_is_better = metric([1, 0], [0.0, 0.0])
        >>> name, round(value, 4), higher_is_better
        ('cross_entropy', 0.6931, False)
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.__name__ = objective.__name__

    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> Any:
        """Compute the metric; the arguments are those of the objective.

        Args:
            first: labels; or scores, if a dataset follows.
            second: scores; or the dataset of labels and weights.
            sample_weight: one factor per row.
        """
        scores, label, weight = _read_call(first, second, sample_weight)
        with torch.no_grad():
            values = self.objective.values(scores, label)
        weight = torch.ones_like(values) if weight is None else weight
        mean = ((values * weight).sum() / weight.sum()).item()
        if self.objective.library == "lightgbm":
            return self.__name__, mean, False
        return (self.__name__, mean) if hasattr(second, "get_label") else mean


def _targets_of(loss: Callable[..., Any]) -> str:
    """Return the kind of targets that a loss takes, from the catalog or from its frame."""
    entry = next((member for member in CATALOG.values() if member.function is loss), None)
    found = entry.targets if entry else "classes" if hasattr(loss, "needs") else None
    if found not in ("classes", "binary"):
        raise ValueError(
            f"{getattr(loss, '__name__', loss)} does not tell what it takes as targets: say "
            f'targets="classes" for one class per row, or targets="binary" for a number in [0, 1]'
        )
    return found


def _read_call(first: Any, second: Any, sample_weight: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return scores, labels and weights from either of the two forms of a call."""
    if hasattr(second, "get_label"):
        scores, label, sample_weight = first, second.get_label(), second.get_weight()
    else:
        label, scores = first, second
    scores, label = _array(scores), _column("label", label)
    if scores.ndim not in (1, 2) or len(scores) != len(label):
        raise ValueError(
            f"scores must have shape ({len(label)},) or ({len(label)}, K), as LightGBM 4 and "
            f"XGBoost 2.1 pass them; got {tuple(scores.shape)}"
        )
    if sample_weight is None or not len(sample_weight):
        return scores, label, None
    return scores, label, _column("sample_weight", sample_weight, len(label))


def _array(values: Any) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(values, dtype=np.float64))


def _column(name: str, values: Any, rows: int | None = None) -> Tensor:
    try:
        column = _array(values)
    except (TypeError, ValueError) as error:
        hint = "; np.unique(label, return_inverse=True)[1] numbers the classes"
        raise ValueError(f"`{name}` must hold numbers: {error}{hint * (name == 'label')}") from None
    if column.ndim != 1 or rows not in (None, len(column)):
        wanted = "(N,)" if rows is None else f"({rows},)"
        raise ValueError(f"`{name}` must have shape {wanted}, got {tuple(column.shape)}")
    return column


def _classes(label: Tensor) -> Tensor:
    whole = label.long()
    if bool((bad := whole != label).any()):
        raise ValueError(
            "`label` must hold whole numbers, the classes 0 to K - 1, got "
            f"{label[bad][0].item():g}; with one score a loss of a target in [0, 1] takes fractions"
        )
    return whole


def _variance(scores: Tensor, targets: str) -> Tensor:
    """Compute ``p (1 - p)``, the diagonal Hessian of cross-entropy, with all its digits."""
    if scores.ndim == 1 or targets == "binary":
        return torch.sigmoid(scores) * torch.sigmoid(-scores)
    p = softmax(scores, 1)  # (N, K)
    top = torch.zeros_like(p, dtype=torch.bool).scatter_(1, p.argmax(1, keepdim=True), True)
    rest = p.masked_fill(top, 0).sum(1, keepdim=True)  # 1 - p of the largest p, with all its digits
    return p * torch.where(top, rest, 1 - p)


def _diagonal(gradient: Tensor, z: Tensor) -> Tensor:
    """Diagonal of the Hessian; one call for all rows, since only the classes of a row interact."""
    if z.ndim == 1:
        return torch.autograd.grad(gradient.sum(), z)[0]
    columns = [
        torch.autograd.grad(gradient[:, k].sum(), z, retain_graph=True)[0][:, k]
        for k in range(z.shape[1])
    ]
    return torch.stack(columns, 1)
