"""Precision, F1, average precision and ROC AUC of each class, with their standard errors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

SCORES = {
    "precision": "precision", "f1": "F1", "average_precision": "average precision",
    "roc_auc": "ROC AUC",
}  # fmt: skip


def class_scores(probs: Tensor, predicted: Tensor, target: Tensor) -> dict[str, dict[str, Any]]:
    """Scores of scikit-learn, each class against the others, as plain types.

    Args:
        probs: of the K classes, ``(N, K)``.
        predicted: the index of the predicted class, ``(N,)``.
        target: the index of the true class, ``(N,)``.

    Returns:
        For each of ``SCORES`` the mean over the classes that have rows, its standard error, and
        both of each class, None for a class without rows. ROC AUC needs rows of two classes.
    """
    size, there = probs.shape[1], target.unique()
    hits, chosen = (one_hot(index, size)[:, there].double() for index in (target, predicted))
    probs = probs[:, there]  # (N, classes with rows)
    values = _scores(probs, predicted, target, hits, there)
    errors, total = [], torch.zeros(len(SCORES), len(target), dtype=torch.float64)
    for columns in zip(probs.T, chosen.T, hits.T, strict=True):
        slopes = _slopes(*columns)
        errors.append(slopes.norm(dim=1))
        total += slopes
    errors = torch.stack(errors, 1)  # (scores, classes with rows)
    error_of_mean = total.norm(dim=1) / len(there)
    found = {}
    for k, name in enumerate(SCORES):
        known = name != "roc_auc" or len(there) > 1
        found[name] = {
            "mean": values[k].mean().item() if known else None,
            "standard_error": error_of_mean[k].item() if known else None,
            "classes": _of_all(values[k], there, size) if known else [None] * size,
            "classes_standard_errors": _of_all(errors[k], there, size) if known else [None] * size,
        }
    return found


def _of_all(numbers: Tensor, there: Tensor, size: int) -> list[float | None]:
    """Return a number for each class, None for classes without rows."""
    known = dict(zip(there.tolist(), numbers.tolist(), strict=True))
    return [known.get(k) for k in range(size)]


def _scores(
    probs: Tensor, predicted: Tensor, target: Tensor, hits: Tensor, there: Tensor
) -> list[Tensor]:
    """The scores by class, in the order of ``SCORES``."""
    from sklearn import metrics

    each: dict[str, Any] = {"average": None}
    counted = each | {"labels": there, "zero_division": 0}
    scores = [
        metrics.precision_score(target, predicted, **counted),
        metrics.f1_score(target, predicted, **counted),
        metrics.average_precision_score(hits, probs, **each),
        metrics.roc_auc_score(hits, probs, **each) if len(there) > 1 else [float("nan")],
    ]
    return [torch.as_tensor(score, dtype=torch.float64).view(-1) for score in scores]


def _slopes(p: Tensor, chosen: Tensor, hit: Tensor) -> Tensor:
    """The derivatives of the scores of a class by the weights of the rows, ``(scores, N)``.

    Their norm is the standard error of a score: the infinitesimal jackknife. For precision this
    is the error of a share, the root of ``q (1 - q) / n``.
    """
    weight = torch.ones_like(hit, requires_grad=True)
    weighted = _weighted(weight, p, chosen, hit)
    slopes = [torch.autograd.grad(one, weight, retain_graph=True)[0] for one in weighted]
    return torch.stack(slopes)


def _weighted(weight: Tensor, p: Tensor, chosen: Tensor, hit: Tensor) -> list[Tensor]:
    """The scores of a class as functions of the weights of the rows, in the order of ``SCORES``."""
    right = (weight * chosen * hit).sum()
    precision = right / (weight * chosen).sum().clamp(min=1)  # 0 for a class never predicted
    f1 = 2 * right / (weight * (chosen + hit)).sum()
    falling, order = p.sort(descending=True)
    hits, misses = (weight * hit)[order], (weight * (1 - hit))[order]
    _, run, sizes = falling.unique_consecutive(return_inverse=True, return_counts=True)
    to = sizes.cumsum(0)[run]  # how many rows come up to this one, or have the same probability
    hits_to, misses_to = pad(hits.cumsum(0), (1, 0))[to], pad(misses.cumsum(0), (1, 0))[to]
    misses_before = pad(misses.cumsum(0), (1, 0))[to - sizes[run]]
    average_precision = (hits * hits_to / (hits_to + misses_to)).sum() / hits.sum()
    beaten = misses.sum() - (misses_before + misses_to) / 2  # of equal rows a half
    roc_auc = (hits * beaten).sum() / (hits.sum() * misses.sum())
    return [precision, f1, average_precision, roc_auc]
