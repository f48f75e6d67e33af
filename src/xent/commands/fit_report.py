"""Report of a classifier on rows that it was not fitted on: figures, text, picture."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import cross_entropy
from ..information import NATS_PER_BIT, report
from ..plot.canvas import new_axes, rendered, styled
from .class_scores import SCORES, class_scores
from .page import table

MOST_CLASSES = 12  # in a table
MOST_FEATURES = 5  # named for each class


class Judged(NamedTuple):
    """Rows with known classes, and the predictions of a classifier for them.

    Attributes:
        classes: the names of the K classes.
        log_probs: log-probabilities of the classes, ``(N, K)``.
        predicted: the index of the predicted class, ``(N,)``.
        target: the index of the true class, ``(N,)``.
    """

    classes: list[Any]
    log_probs: Tensor
    predicted: Tensor
    target: Tensor

    @classmethod
    def of(cls, model: Any, x: np.ndarray, target: list[int]) -> Judged:
        """Return the predictions of a classifier for features ``(N, F)``."""
        predicted = np.searchsorted(model.classes_, model.predict(x))
        log_probs = torch.from_numpy(model.predict_log_proba(x))
        return cls(
            model.classes_.tolist(), log_probs, torch.from_numpy(predicted), torch.tensor(target)
        )

    def confusion(self) -> Tensor:
        """Rows by true and by predicted class, ``(K, K)``."""
        size = len(self.classes)
        pairs = self.target * size + self.predicted
        return torch.bincount(pairs, minlength=size * size).view(size, size)

    def reliability(self) -> Any:
        """Confidence against accuracy."""
        from ..learn.calibration import reliability

        return reliability(self.log_probs, self.target, from_logits=True)

    def figures(self) -> dict[str, Any]:
        """The figures, each as a number that JSON can hold."""
        losses: Any = cross_entropy(self.log_probs, self.target, reduction="none")
        told = report(losses.mean(), self.target)
        confusion, calibration = self.confusion(), self.reliability()
        rows, right = len(losses), int(confusion.diagonal().sum())
        # By Agresti and Coull: two more right and two more wrong rows, so that no error is 0.
        rate = (right + 2) / (rows + 4)
        return {
            "rows": rows,
            "log_loss_nats": told.nats,
            "log_loss_bits": told.bits,
            "log_loss_standard_error_nats": losses.std(correction=0).item() / math.sqrt(rows),
            "label_entropy_nats": told.label_entropy,
            "skill": told.skill if told.label_entropy else None,
            "accuracy": right / rows,
            "accuracy_standard_error": math.sqrt(rate * (1 - rate) / (rows + 4)),
            "most_frequent_class": self.classes[int(confusion.sum(1).argmax())],
            "most_frequent_share": confusion.sum(1).max().item() / rows,
            "calibration_error": calibration.ece,
            "most_calibration_error": calibration.mce,
            "classes": self.classes,
            "scores": class_scores(self.log_probs.exp(), self.predicted, self.target),
            "confusion": confusion.tolist(),
        }


def describe(figures: dict[str, Any]) -> str:
    """The figures for people."""
    nats, entropy = figures["log_loss_nats"], figures["label_entropy_nats"]
    error, bits = figures["log_loss_standard_error_nats"], 1 / NATS_PER_BIT
    lines = [
        [f"on {figures['rows']:,} rows", "this model", "frequencies only"],
        ["log loss, nats", f"{nats:.4f} +- {error:.4f}", f"{entropy:.4f}"],
        ["log loss, bits", f"{bits * nats:.4f} +- {bits * error:.4f}", f"{bits * entropy:.4f}"],
        [
            "accuracy",
            f"{figures['accuracy']:.2%} +- {figures['accuracy_standard_error']:.2%}",
            f"{figures['most_frequent_share']:.2%} (always {figures['most_frequent_class']})",
        ],
    ]
    skill = figures["skill"]
    share = "" if skill is None else f"skill {skill:.4f} = 1 - log loss / that of the frequencies; "
    calibration = f"expected calibration error {figures['calibration_error']:.4f}"
    scores = f"\n{share}{calibration}\n\n" + _describe_scores(figures)
    return table(lines) + scores + "\n\n" + _describe_confusion(figures)


def _describe_scores(figures: dict[str, Any]) -> str:
    """Return the scores of the classes and their means; for many classes only the means."""
    scores = [figures["scores"][name] for name in SCORES]
    lines = [["class against the others", *SCORES.values()]]
    if len(figures["classes"]) <= MOST_CLASSES:
        for k, name in enumerate(figures["classes"]):
            pairs = [(s["classes"][k], s["classes_standard_errors"][k]) for s in scores]
            lines.append([str(name), *(_with_error(*pair) for pair in pairs)])
    means = [_with_error(score["mean"], score["standard_error"]) for score in scores]
    return table([*lines, ["mean of the classes", *means]])


def _with_error(value: float | None, error: float | None) -> str:
    """Return a figure with its standard error; an error of 0 says nothing, so it is left out."""
    if value is None or error is None:
        return "-"
    return f"{value:.4f}" + f" +- {error:.4f}" * (error >= 5e-5)


def _describe_confusion(figures: dict[str, Any]) -> str:
    """Return the confusion matrix; for many classes only the most frequent confusions."""
    names, counts = [str(name) for name in figures["classes"]], figures["confusion"]
    if len(names) <= MOST_CLASSES:
        lines = [["class, and what it is taken for:", *names, "right"]]
        for k, row in enumerate(counts):
            right = f"{row[k] / sum(row):.1%}" if sum(row) else "no row"
            lines.append([names[k], *map(str, row), right])
        return table(lines)
    pairs = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j]
    lines = [["class", "taken for", "rows"]]
    lines += [[names[i], names[j], str(n)] for n, i, j in sorted(pairs, reverse=True)[:10]]
    return f"the most frequent confusions of {len(names)} classes\n" + table(lines)


def largest(coefficients: np.ndarray, names: list[str], classes: list[Any]) -> dict[str, Any]:
    """The features that say most about each class, ``{class: {feature: coefficient}}``.

    Args:
        coefficients: per standard deviation of the feature, ``(K, F)``; ``(1, F)`` of two classes.
        names: of the features.
        classes: names of all classes.
    """
    whose = classes[1:] if len(coefficients) == 1 else classes
    found = {}
    for name, row in zip(whose, coefficients, strict=True):
        # Coefficients equal up to rounding, as those of two categories, stay in their order.
        sizes = np.array([float(f"{abs(w):.6g}") for w in row])
        order = np.argsort(-sizes, kind="stable")[:MOST_FEATURES]
        found[str(name)] = {names[k]: float(row[k]) for k in order if row[k]}
    return found


def describe_largest(found: dict[str, Any]) -> str:
    """The largest coefficients for people."""
    lines = [["class", "largest coefficients, per standard deviation of the feature"]]
    for name, row in [*found.items()][:MOST_CLASSES]:
        words = ", ".join(f"{feature} {w:+.3f}" for feature, w in row.items())
        lines.append([name, words or "all are 0"])
    more = len(found) - MOST_CLASSES
    return table(lines) + (f"\nand {more} more classes in the record" if more > 0 else "")


@styled
def picture(judged: Judged, title: str) -> bytes:
    """Reliability diagram and confusion matrix side by side, as PNG."""
    from ..plot import confusion_matrix, reliability

    left, right = new_axes(12, 5.4, columns=2)
    reliability(judged.reliability(), left)
    confusion_matrix(judged.confusion(), judged.classes, right)
    figure: Any = left.figure
    figure.suptitle(title)
    return rendered(figure)
