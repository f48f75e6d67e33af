"""Scores of the classes: values and derivatives of scikit-learn's functions with weights."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics

from xent.commands.class_scores import SCORES, class_scores

N, K = 24, 3
rng = np.random.default_rng(0)
TARGET = rng.choice(K, N, p=[0.6, 0.3, 0.1])
PROBS = rng.dirichlet(np.ones(K), N) + np.eye(K)[TARGET] / 2
PROBS = (PROBS / PROBS.sum(1, keepdims=True)).round(1)  # with ties
PREDICTED = PROBS.argmax(1)
FOUND = class_scores(*map(torch.tensor, (PROBS, PREDICTED, TARGET)))


def theirs(name: str, k: int, weight: np.ndarray) -> float:
    hit, chosen = k == TARGET, k == PREDICTED
    return {
        "precision": lambda: metrics.precision_score(hit, chosen, sample_weight=weight),
        "f1": lambda: metrics.f1_score(hit, chosen, sample_weight=weight),
        "average_precision": lambda: metrics.average_precision_score(
            hit, PROBS[:, k], sample_weight=weight
        ),
        "roc_auc": lambda: metrics.roc_auc_score(hit, PROBS[:, k], sample_weight=weight),
    }[name]()


@pytest.mark.parametrize("name", SCORES)
def test_values_and_errors(name):
    """The error is the norm of the derivative by the weights, here by central differences."""
    step, slopes = 1e-4, np.empty((K, N))
    for k in range(K):
        assert FOUND[name]["classes"][k] == theirs(name, k, np.ones(N))
        for row in range(N):
            up, down = np.ones(N), np.ones(N)
            up[row], down[row] = 1 + step, 1 - step
            slopes[k, row] = (theirs(name, k, up) - theirs(name, k, down)) / (2 * step)
    # Differences are right to step^2 times a third derivative, and to their rounding.
    close = {"rel": 1e-6, "abs": 1e-9}
    errors = np.linalg.norm(slopes, axis=1)
    assert FOUND[name]["classes_standard_errors"] == pytest.approx(errors, **close)
    assert FOUND[name]["mean"] == pytest.approx(np.mean(FOUND[name]["classes"]), rel=1e-15)
    error = np.linalg.norm(slopes.mean(0))
    assert FOUND[name]["standard_error"] == pytest.approx(error, **close)


def test_the_error_of_precision_is_that_of_a_share():
    for k in range(K):
        q, count = FOUND["precision"]["classes"][k], (k == PREDICTED).sum()
        error = FOUND["precision"]["classes_standard_errors"][k]
        assert error == pytest.approx(math.sqrt(q * (1 - q) / count), rel=1e-12)


def test_means_are_those_of_scikit_learn():
    hot = np.eye(K)[TARGET]
    means = {
        "precision": metrics.precision_score(TARGET, PREDICTED, average="macro"),
        "f1": metrics.f1_score(TARGET, PREDICTED, average="macro"),
        "average_precision": metrics.average_precision_score(hot, PROBS, average="macro"),
        "roc_auc": metrics.roc_auc_score(hot, PROBS, average="macro"),
    }
    for name, mean in means.items():
        assert FOUND[name]["mean"] == pytest.approx(mean, rel=1e-14)


def test_classes_without_rows_and_without_predictions():
    probs = torch.tensor([[0.6, 0.3, 0.1], [0.7, 0.2, 0.1], [0.6, 0.3, 0.1]]).double()
    found = class_scores(probs, torch.tensor([0, 0, 0]), torch.tensor([0, 1, 0]))
    assert found["precision"]["classes"] == [pytest.approx(2 / 3), 0.0, None]
    assert found["f1"]["classes"] == [pytest.approx(0.8), 0.0, None]
    assert found["f1"]["mean"] == pytest.approx(0.4)
    assert found["roc_auc"]["classes"] == [0.0, 0.0, None]
    alone = class_scores(probs, torch.tensor([0, 0, 0]), torch.tensor([0, 0, 0]))
    assert alone["precision"]["mean"] == 1.0
    assert alone["roc_auc"]["mean"] is None
