"""Which labels are wrong, and how often each class is taken for which: confident learning.

    python examples/mislabelled.py [--seeds 5] [--picture runs/mislabelled.png]

Needs scikit-learn, and matplotlib for the picture. Takes ten seconds.

A part of the labels of the handwritten digits is exchanged: uniformly at random (sym), or for one
digit that looks alike (asym). A linear classifier is trained on them, each row predicted by one
that has not seen it. From these predictions come the matrix of the noise, once from the rows that
are the surest of each class (anchors), once from counts of confident rows, and the rows that seem
mislabelled. Both are compared with the truth; the errors are standard deviations over the seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from torch import Tensor
from tqdm import tqdm

import xent
from xent.learn import find_label_issues
from xent.learn.label_noise import Filter, confident_noise_matrix, estimate_noise_matrix

ALIKE = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
NOISE = {
    **{f"sym .{k}": xent.symmetric_noise_matrix(10, k / 10) for k in (2, 4, 6)},
    **{f"asym .{k}": xent.pair_noise_matrix(10, k / 10, ALIKE) for k in (2, 4)},
}
ESTIMATES = {
    "no noise": lambda p, labels: torch.eye(10, dtype=torch.float64),
    "anchors, 100 %": lambda p, labels: estimate_noise_matrix(p, 100),
    "anchors, 97 %": lambda p, labels: estimate_noise_matrix(p),
    "confident counts": confident_noise_matrix,
}
FILTERS = get_args(Filter)
DIGITS: Any = load_digits()
X, Y = DIGITS.data / 16, torch.tensor(DIGITS.target)


def spoilt(matrix: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy labels, and for each row the prediction of a classifier that has not seen it."""
    labels = xent.flip_labels(Y, matrix, torch.Generator().manual_seed(seed))
    classifier = LogisticRegression(C=0.1, max_iter=1000)
    p = cross_val_predict(classifier, X, labels.numpy(), cv=5, method="predict_proba")
    return labels, torch.tensor(p)


def distances(p: Tensor, labels: Tensor, matrix: Tensor) -> Tensor:
    """Share of the labels that each estimate puts in the wrong place, mean of the classes."""
    estimates = [estimate(p, labels) for estimate in ESTIMATES.values()]
    return torch.stack([(t - matrix).abs().sum(1).mean() / 2 for t in estimates])


def hits(p: Tensor, labels: Tensor) -> Tensor:
    """Precision and recall of each filter, ``(filters, 2)``."""
    wrong = labels != Y
    found = [wrong[find_label_issues(p, labels, filter_by=name)].double() for name in FILTERS]
    return torch.stack([torch.stack([f.mean(), f.sum() / wrong.sum()]) for f in found])


def show(names: list[str] | tuple[str, ...], figures: Tensor, digits: int) -> str:
    """A table of mean and standard deviation, of (kind of noise, seed, name)."""
    lines = [f"{'':20}" + "".join(f"{kind:>16}" for kind in NOISE)]
    for k, name in enumerate(names):
        cells = (
            f"{c.mean():{digits + 3}.{digits}f} ± {c.std():.{digits}f}" for c in figures[..., k]
        )
        lines.append(f"{name:20}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def check(distance: Tensor, precision: Tensor, recall: Tensor) -> list[str]:
    """Assert the claims; they come back as sentences."""
    distance, precision, recall = (x.mean(1) for x in (distance, precision, recall))
    at, counts = FILTERS.index, list(ESTIMATES).index("confident counts")
    few = [k for k, kind in enumerate(NOISE) if kind in ("sym .2", "asym .2")]
    claims = {
        "counts estimate every matrix better than both kinds of anchors": bool(
            (distance[:, counts] < distance[:, 1:counts].amin(1)).all()
        ),
        "counts put less than half of the wrong labels in the wrong place": bool(
            (distance[:, counts] < distance[:, 0] / 2).all()
        ),
        "confident learning is more precise than looking wherever the prediction differs": bool(
            (precision[:, at("both")] > precision[:, at("predicted_neq_given")]).all()
        ),
        "at a fifth of wrong labels it finds four of five": bool(
            (recall[few, at("prune_by_noise_rate")] > 0.8).all()
        ),
    }
    wrong = [claim for claim, holds in claims.items() if not holds]
    assert not wrong, f"not borne out: {wrong}"
    return list(claims)


def draw(distance: Tensor, precision: Tensor, recall: Tensor, path: Path) -> None:
    """The errors of the matrices, precision against recall, and the worst suspects of a seed."""
    from matplotlib.figure import Figure

    from xent.plot.canvas import COLORS

    figure = Figure(figsize=(14, 4.6), dpi=120, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 1.1))
    bars, points = left.subplots(1, 2)
    places = torch.arange(len(NOISE))
    for k, (name, colour) in enumerate(zip(ESTIMATES, ("0.75", *COLORS), strict=False)):
        bars.bar(
            places + 0.2 * (k - 1.5), distance[..., k].mean(1), 0.2,
            yerr=distance[..., k].std(1), color=colour, label=name, capsize=2,
        )  # fmt: skip
    bars.set_xticks(places.tolist(), list(NOISE))
    bars.set(ylabel="share of labels in the wrong place", title="estimates of the noise matrix")
    bars.legend()
    for kind, colour, x, y in zip(NOISE, COLORS, recall, precision, strict=False):
        for name, marker, u, v in zip(FILTERS, "osDv^", x.T, y.T, strict=True):
            points.errorbar(
                u.mean(), v.mean(), xerr=u.std(), yerr=v.std(), fmt=marker, color=colour,
                elinewidth=0.8, label=kind if name == FILTERS[0] else None,
            )  # fmt: skip
    for name, marker in zip(FILTERS, "osDv^", strict=True):
        points.plot([], [], marker, color="0.4", label=name)
    points.set(xlabel="recall", ylabel="precision", title="wrong labels found")
    points.grid(alpha=0.3)
    points.set_xlim(left=0.15)  # room for the names
    points.legend(loc="center left", fontsize="small")
    labels, p = spoilt(NOISE["sym .2"], seed=0)
    for ax, row in zip(
        right.subplots(3, 5).flat, find_label_issues(p, labels).tolist(), strict=False
    ):
        ax.imshow(DIGITS.images[row], cmap="gray_r")
        ax.set_title(
            f"labelled {labels[row]}", fontsize="small",
            color="black" if labels[row] != Y[row] else COLORS[1],
        )  # fmt: skip
        ax.set_axis_off()
    right.suptitle("sym .2: the first suspects (red: labelled right)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Run the experiment; print, check and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="draws of wrong labels, at least 2")
    parser.add_argument("--picture", type=Path, default=Path("runs/mislabelled.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    each, seeds = [], range(arguments.seeds)
    for matrix in tqdm(NOISE.values(), unit="kind", leave=False):
        runs = [spoilt(matrix, seed) for seed in seeds]
        each.append([(distances(p, labels, matrix), hits(p, labels)) for labels, p in runs])
    distance = torch.stack([torch.stack([d for d, _ in runs]) for runs in each])
    found = torch.stack([torch.stack([f for _, f in runs]) for runs in each])
    precision, recall = found.unbind(-1)  # (kinds, seeds, filters)

    print("Share of the labels that an estimate of the noise matrix puts in the wrong place\n")
    print(show(list(ESTIMATES), distance, 3))
    print("\nPrecision of the rows that are found, %\n")
    print(show(FILTERS, 100 * precision, 1))
    print("\nRecall, %\n")
    print(show(FILTERS, 100 * recall, 1), "\n")
    for claim in check(distance, precision, recall):
        print(f"holds: {claim}")
    draw(distance, precision, recall, arguments.picture)
    print(f"\n{arguments.picture}")


if __name__ == "__main__":
    main()
