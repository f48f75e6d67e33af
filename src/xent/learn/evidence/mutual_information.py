r"""Mutual information of features and classes, bounded from below by cross-entropy.

Take a classifier that predicts :math:`q(y \mid x)`. On rows that it was not trained on, its
cross-entropy is at least :math:`H(Y \mid X)`. Guessing by the frequencies of the classes has the
cross-entropy :math:`H(Y)`; what the classifier saves compared with that is information:

.. math:: I(X; Y) \ge H(Y) - \mathrm{CE} = \mathrm{E} \log \frac{q(y \mid x)}{\pi_y}

The true posterior reaches the bound. :math:`\log C - \mathrm{CE}` is a bound only if all classes
are equally common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._check import class_indices, finite_number, is_tensor
from ..._probabilities import rounding
from ...arrays import takes_arrays
from ...information import NATS_PER_BIT, entropy_from_counts
from ...losses import cross_entropy, logit_adjusted_loss

__all__ = ["InformationEstimate", "MutualInformation", "mutual_information_from_logits"]


@dataclass(frozen=True, eq=False)
class InformationEstimate:
    """An estimate of mutual information with the numbers behind it; prints as a table.

    ``xent.plot.information`` draws it.

    Attributes:
        entropy: H(Y) of the labels in nats, the most that features can tell about the labels.
        cross_entropy: mean loss in nats on rows the classifier was not trained on.
        interval: of the estimate, by bootstrap over the rows, labels and losses together. The
            interval covers the chance in the rows, not how far the classifier is from the best.
        confidence: the probability that the interval is made for.
        pointwise: ``log q(y | x) / pi_y`` of each row, ``(N,)``, float64; the estimate is its mean.
        classes: the classes.
        counts: rows of each class, ``(C,)``.
        per_class: what each class adds to the estimate, ``(C,)``; at most ``pi_c log(1 / pi_c)``.
    """

    entropy: float
    cross_entropy: float
    interval: tuple[float, float]
    confidence: float
    pointwise: Tensor
    classes: tuple[Any, ...]
    counts: Tensor
    per_class: Tensor

    @property
    def nats(self) -> float:
        """The estimate, H(Y) - CE, on average not above the truth. Below 0 nothing was found."""
        return self.entropy - self.cross_entropy

    @property
    def bits(self) -> float:
        """The estimate in bits."""
        return self.nats / NATS_PER_BIT

    @property
    def bound(self) -> float:
        """H(Y) in nats; neither estimate nor truth is above it."""
        return self.entropy

    @property
    def share(self) -> float:
        """Share of H(Y) that the features tell, at most 1."""
        return self.nats / self.entropy

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as a dictionary for JSON, without the values of single rows."""
        return {
            "nats": self.nats,
            "bits": self.bits,
            "interval": list(self.interval),
            "confidence": self.confidence,
            "bound": self.bound,
            "share": self.share,
            "cross_entropy": self.cross_entropy,
            "rows": len(self.pointwise),
            "classes": [str(name) for name in self.classes],
            "counts": self.counts.tolist(),
            "per_class": self.per_class.tolist(),
        }

    def __str__(self) -> str:
        low, high = self.interval
        lines = [
            f"information      {self.nats:.4f} nats = {self.bits:.4f} bits",
            f"interval         {low:.4f} to {high:.4f} nats ({self.confidence:.0%}, bootstrap)",
            f"at most          {self.bound:.4f} nats, the label's entropy; share {self.share:.1%}",
            f"cross-entropy    {self.cross_entropy:.4f} nats on {len(self.pointwise)} rows",
        ]
        if self.nats < 0:
            lines.append("below 0: the classifier found nothing, and did worse than frequencies")
        return "\n".join(lines)


@dataclass(frozen=True)
class MutualInformation:
    """Estimates what features tell about a class, by a classifier that is tested on held-out rows.

    Args:
        classifier: any of scikit-learn with ``predict_log_proba`` or ``predict_proba``, cloned for
            each fold; None for a :class:`~xent.learn.NetworkClassifier`. The better its
            probabilities, the closer the estimate comes to the truth, from below.
        folds: number of parts of the rows; each is tested by a classifier trained on the others.
        bootstrap: resamples for the interval.
        confidence: probability that the interval is made for.
        seed: of folds, bootstrap and the default classifier.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.linear_model import LogisticRegression
        >>> from xent.learn import MutualInformation
        >>> x, y = load_iris(return_X_y=True)
        >>> linear = LogisticRegression(max_iter=1000)
        >>> found = MutualInformation(linear).estimate(x, y, quiet=True)
        >>> found.nats > 0.9, round(found.bound, 4)
        (True, 1.0986)

    References:
        Qin, Kim & Gedeon, *Neural network classifiers as mutual information evaluators*, 2021.
        Barber & Agakov, *The IM algorithm: a variational approach to information maximization*,
        NeurIPS 2003.
    """

    classifier: Any = None
    folds: int = 5
    bootstrap: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def estimate(self, X: Any, y: Any, *, quiet: bool = False) -> InformationEstimate:
        """The mutual information of features and classes.

        Args:
            X: features, ``(N, F)``: what the classifier takes, an array, a data frame or a sparse
                matrix.
            y: classes, ``(N,)``, numbers or words.
            quiet: no progress bar.

        Returns:
            An :class:`InformationEstimate`.

        Raises:
            ValueError: if there is only one class, a class has fewer rows than folds, or the
                classifier gives probability 0 to the class of a row, gives probabilities that do
                not sum to 1, or has the classes in another order than the sorted one.
            TypeError: if the classifier has neither ``predict_log_proba`` nor ``predict_proba``.
            ImportError: without scikit-learn or tqdm.
        """
        from sklearn.base import clone
        from sklearn.model_selection import StratifiedKFold
        from sklearn.utils import _safe_indexing, indexable
        from sklearn.utils.validation import _num_samples
        from tqdm import tqdm

        (X,) = indexable(X)
        if _num_samples(X) != _num_samples(y):
            raise ValueError(f"`X` has {_num_samples(X)} rows, `y` has {_num_samples(y)}")
        y, classes, codes = _read_classes(y)
        _check_folds(classes, np.bincount(codes), self.folds)
        nll = torch.empty(len(codes), dtype=torch.float64, device="cpu")
        split = StratifiedKFold(self.folds, shuffle=True, random_state=self.seed).split(
            codes, codes
        )
        for train, test in tqdm(list(split), desc="folds", disable=quiet):
            model: Any = clone(self._classifier())
            model.fit(_safe_indexing(X, train), y[train])
            log_p = torch.from_numpy(_log_proba(model, _safe_indexing(X, test), classes))
            nll[test] = -log_p.gather(1, torch.from_numpy(codes[test])[:, None]).squeeze(1).double()
        impossible = int((~nll.isfinite()).sum())
        if impossible:
            raise ValueError(
                f"{type(model).__name__} gives probability 0 to the class of {impossible} of "
                f"{len(nll)} held-out rows, so the estimate is -inf; wrap the classifier in "
                f"sklearn.calibration.CalibratedClassifierCV, or take another"
            )
        return _information(nll, torch.from_numpy(codes), classes.tolist(), self)

    def _classifier(self) -> Any:
        if self.classifier is not None:
            return self.classifier
        from ..networks.network_classifier import NetworkClassifier

        return NetworkClassifier(random_state=self.seed)


@takes_arrays
def mutual_information_from_logits(
    input: Tensor,
    target: Tensor,
    *,
    prior: Tensor | None = None,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> InformationEstimate:
    r"""Mutual information of the labels and the features from which logits were made.

    .. math:: I \ge H(Y) + \mathrm{E} \log \mathrm{softmax}_y(z), \qquad
        \text{PC-softmax:}\quad I \ge \mathrm{E} \log \frac{e^{z_y}}{\sum_j \pi_j e^{z_j}}

    If :math:`\pi` are the frequencies of ``target``, the second bound is the first with
    :math:`z + \log \pi` in the place of z: the loss of PC-softmax is
    :func:`xent.losses.logit_adjusted_loss` plus :math:`\log \pi_y`.

    Args:
        input: logits ``(N, C)``, of rows that the model was not trained on.
        target: classes, ``(N,)``.
        prior: for a model trained with :func:`xent.losses.logit_adjusted_loss` (PC-softmax,
            balanced softmax): how often each class occurs, ``(C,)``, counts or probabilities.
        bootstrap: resamples for the interval.
        confidence: probability that the interval is made for.
        seed: of the bootstrap.

    Returns:
        An :class:`InformationEstimate`.

    Raises:
        ValueError: for shapes that do not fit, labels out of range or only one class in
            ``target``, a loss that is not finite, or a ``confidence`` not between 0 and 1.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch
        >>> from xent.learn import mutual_information_from_logits
        >>> y = torch.tensor([0, 0, 0, 1])
        >>> log_ratio = torch.where(torch.eye(2)[y] > 0, 2.0, -2.0)
        >>> found = mutual_information_from_logits(log_ratio, y, prior=torch.tensor([3.0, 1.0]))
        >>> round(found.nats, 4), round(found.bound, 4)
        (0.5444, 0.5623)

    References:
        Qin, Kim & Gedeon, *Rethinking softmax with cross-entropy: neural network classifier as
        mutual information estimator*, 2019.
    """
    is_tensor("input", input)
    is_tensor("target", target)
    if input.ndim != 2 or target.ndim != 1:
        raise ValueError(
            f"`input` must hold logits (N, C) and `target` classes (N,); got {tuple(input.shape)} "
            f"and {tuple(target.shape)}"
        )
    if bool((class_indices("target", target) < 0).any()):
        raise ValueError("`target` holds negative classes; leave those rows out of both tensors")
    z = input.detach().double()
    if prior is None:
        nll = cross_entropy(z, target, reduction="none")
    else:
        is_tensor("prior", prior)
        nll = logit_adjusted_loss(z, target, prior=prior.double(), reduction="none")
    if not bool(nll.isfinite().all()):
        raise ValueError(
            f"the loss of {int((~nll.isfinite()).sum())} rows is not finite, and so the estimate; "
            f"xent.diagnose(input, target) finds them"
        )
    settings = MutualInformation(bootstrap=bootstrap, confidence=confidence, seed=seed)
    return _information(nll, target, list(range(z.shape[1])), settings)


def _information(
    nll: Tensor, codes: Tensor, classes: Sequence[Any], settings: MutualInformation
) -> InformationEstimate:
    """Compute the estimate from the loss, ``(N,)``, and the class, ``(N,)``, of each row."""
    if not 0 < finite_number("confidence", settings.confidence) < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, got {settings.confidence}")
    if settings.bootstrap < 2:
        raise ValueError(f"`bootstrap` must be at least 2 resamples, got {settings.bootstrap}")
    n, counts = len(codes), torch.bincount(codes, minlength=len(classes))
    if int((counts > 0).sum()) < 2:
        raise ValueError("the labels are all of one class, about which there is nothing to know")
    pointwise = -nll - (counts.double() / n).log()[codes]
    per_class = (
        torch.zeros(len(classes), dtype=torch.float64, device="cpu").index_add(0, codes, pointwise)
        / n
    )
    generator = torch.Generator().manual_seed(settings.seed)
    resampled = []
    for _ in range(settings.bootstrap):
        rows = torch.randint(n, (n,), generator=generator, device="cpu")
        drawn = torch.bincount(codes[rows], minlength=len(classes))
        resampled.append(entropy_from_counts(drawn) - nll[rows].mean())
    tail = (1 - settings.confidence) / 2
    low, high = (
        torch.stack(resampled)
        .quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64, device="cpu"))
        .tolist()
    )
    return InformationEstimate(
        entropy_from_counts(counts).item(), nll.mean().item(), (low, high), settings.confidence,
        pointwise, tuple(classes), counts, per_class,
    )  # fmt: skip


def _check_folds(classes: np.ndarray, counts: np.ndarray, folds: int) -> None:
    if folds < 2:
        raise ValueError(f"`folds` must be at least 2, got {folds}")
    if counts.min() < folds:
        raise ValueError(
            f"class {classes[counts.argmin()]!s} of `y` has {counts.min()} rows, fewer than the "
            f"{folds} `folds`; take fewer folds, or leave rare classes out"
        )


def _read_classes(y: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The labels, their classes, and the class of each as an index."""
    from sklearn.utils import assert_all_finite, column_or_1d

    y = column_or_1d(y)
    assert_all_finite(y, input_name="y")
    try:
        classes, codes = np.unique(y, return_inverse=True)
    except TypeError:
        kinds = ", ".join(sorted({type(label).__name__ for label in y}))
        raise ValueError(f"`y` must hold labels of one kind, got {kinds}") from None
    if len(classes) < 2:
        raise ValueError("`y` is all of one class, about which there is nothing to know")
    return y, classes, codes


def _log_proba(model: Any, X: Any, classes: np.ndarray) -> np.ndarray:
    """Return log-probabilities of the classes, ``(N, C)``, after a check.

    If probabilities do not sum to 1, the estimate is no bound.
    """
    name = type(model).__name__
    with np.errstate(divide="ignore"):  # the caller reports a probability of 0
        if hasattr(model, "predict_log_proba"):
            log_p = np.asarray(model.predict_log_proba(X))
        elif hasattr(model, "predict_proba"):
            log_p = np.log(model.predict_proba(X))
        else:
            raise TypeError(
                f"`classifier` must have predict_log_proba or predict_proba; {name} has neither"
            )
    if log_p.shape[1:] != classes.shape or not np.array_equal(
        getattr(model, "classes_", classes), classes
    ):
        raise ValueError(
            f"`classifier` must give probabilities of the {len(classes)} classes of `y`, sorted as "
            f"numpy.unique sorts them; those of {name} are others or in another order"
        )
    off = abs(np.exp(log_p).sum(1) - 1).max()
    if off > rounding():
        raise ValueError(
            f"`classifier` must give probabilities that sum to 1; those of {name} miss it by "
            f"{off:.3g}"
        )
    return log_p
