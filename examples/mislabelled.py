"""Which labels are wrong, and how often each class is taken for which: confident learning.

    python examples/mislabelled.py [--small] [--seeds 5] [--seed 0] [--picture runs/mislabelled.png]

Needs scikit-learn, and matplotlib for the picture. Takes ten seconds.

A part of the labels of the handwritten digits is exchanged: uniformly at random (sym), or for one
digit that looks alike (asym). Linear classifiers are trained on them by cross-validation, so each
row is predicted by a classifier that has not seen the row. The predictions give two estimates of
the noise matrix, one from the most confident rows of each class (anchors), one from counts of
confident rows, and the rows that seem mislabelled. Both are compared with the truth; the errors are
standard deviations over the seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

import xent
from _experiment import hold, options, over_seeds, save
from xent.learn import find_label_issues
from xent.learn.label_noise import Filter, confident_noise_matrix, estimate_noise_matrix

ALIKE = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
NOISE = {
    **{f"sym .{k}": xent.losses.symmetric_noise_matrix(10, k / 10) for k in (2, 4, 6)},
    **{f"asym .{k}": xent.losses.pair_noise_matrix(10, k / 10, ALIKE) for k in (2, 4)},
}
ESTIMATES = {
    "no noise": lambda p, labels: torch.eye(10, dtype=torch.float64),
    "anchors, 100 %": lambda p, labels: estimate_noise_matrix(p, 100),
    "anchors, 97 %": lambda p, labels: estimate_noise_matrix(p),
    "confident counts": confident_noise_matrix,
}
FILTERS = list(get_args(Filter))
DIGITS: Any = load_digits()
X, Y = DIGITS.data / 16, torch.tensor(DIGITS.target)


def spoilt(matrix: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy labels, and for each row the prediction of a classifier that has not seen it."""
    labels = xent.losses.flip_labels(Y, matrix, torch.Generator().manual_seed(seed))
    classifier = LogisticRegression(C=0.1, max_iter=1000)
    p = cross_val_predict(classifier, X, labels.numpy(), cv=5, method="predict_proba")
    return labels, torch.tensor(p)


def distances(p: Tensor, labels: Tensor, matrix: Tensor) -> Tensor:
    """Return the share of labels that each estimate misplaces, as a mean of the classes."""
    estimates = [estimate(p, labels) for estimate in ESTIMATES.values()]
    return torch.stack([(t - matrix).abs().sum(1).mean() / 2 for t in estimates])


def hits(p: Tensor, labels: Tensor) -> Tensor:
    """Return precision and recall of each filter, ``(filters, 2)``."""
    wrong = labels != Y
    found = [wrong[find_label_issues(p, labels, filter_by=name)].double() for name in FILTERS]
    return torch.stack([torch.stack([f.mean(), f.sum() / wrong.sum()]) for f in found])


def show(kinds: list[str], names: list[str], figures: Tensor, digits: int) -> str:
    """Return a table of mean and standard deviation, of (kind of noise, seed, name)."""
    lines = [f"{'':20}" + "".join(f"{kind:>16}" for kind in kinds)]
    for k, name in enumerate(names):
        cells = (over_seeds(of_kind, digits) for of_kind in figures[..., k])
        lines.append(f"{name:20}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def claims(
    kinds: list[str], distance: Tensor, precision: Tensor, recall: Tensor
) -> dict[str, bool]:
    """Return each claim, about means over the seeds, with True if the claim holds."""
    distance, precision, recall = (x.mean(1) for x in (distance, precision, recall))
    at = list(ESTIMATES).index
    none, anchors, counts = (
        distance[:, [at(name)]] for name in ("no noise", "anchors, 100 %", "confident counts")
    )
    of = {name: (precision[:, k], recall[:, k]) for k, name in enumerate(FILTERS)}
    careless = of.pop("predicted_neq_given")[0]
    few = [k for k, kind in enumerate(kinds) if kind.endswith(".2")]
    return {
        "counts put fewer labels in the wrong place than anchors, at every noise": bool(
            (counts < torch.minimum(anchors, distance[:, [at("anchors, 97 %")]])).all()
        ),
        "and less than half as many as taking all labels for right": bool(
            (counts < none / 2).all()
        ),
        "at every noise prune_by_noise_rate, the default, both and confident_learning are more "
        "precise than predicted_neq_given": all(
            bool((of[name][0] > careless).all())
            for name in ("prune_by_noise_rate", "both", "confident_learning")
        ),
        "at sym .2 and asym .2 prune_by_noise_rate finds four of five wrong labels": bool(
            (of["prune_by_noise_rate"][1][few] > 0.8).all()
        ),
    }


def draw(
    kinds: list[str], distance: Tensor, precision: Tensor, recall: Tensor, seed: int, path: Path
) -> None:
    """Draw the errors of the matrices, precision against recall, and the worst rows of a seed."""
    from matplotlib.figure import Figure

    from xent.plot.canvas import COLORS

    figure = Figure(figsize=(14, 5.4), dpi=120, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 1.1))
    bars, points = left.subplots(1, 2)
    places = torch.arange(len(kinds))
    for k, (name, colour) in enumerate(zip(ESTIMATES, ("0.75", *COLORS), strict=False)):
        bars.bar(
            places + 0.2 * (k - 1.5), distance[..., k].mean(1), 0.2,
            yerr=distance[..., k].std(1), color=colour, label=name, capsize=2,
        )  # fmt: skip
    bars.set_xticks(places.tolist(), kinds)
    bars.set(ylabel="share of labels in the wrong place", title="How far each estimate is off")
    bars.legend(title="estimate of the noise")
    for kind, colour, x, y in zip(kinds, COLORS, recall, precision, strict=False):
        for name, marker, u, v in zip(FILTERS, "osDv^", x.T, y.T, strict=True):
            points.errorbar(
                u.mean(), v.mean(), xerr=u.std(), yerr=v.std(), fmt=marker, color=colour,
                elinewidth=0.8, label=kind if name == FILTERS[0] else None,
            )  # fmt: skip
    for name, marker in zip(FILTERS, "osDv^", strict=True):
        points.plot([], [], marker, color="0.4", label=name)
    points.set(xlabel="recall", ylabel="precision", title="How many wrong labels are found")
    points.grid(alpha=0.3)
    names = points.get_legend_handles_labels()
    left.legend(*names, loc="outside lower right", ncols=4, fontsize="small")
    labels, p = spoilt(NOISE["sym .2"], seed)
    for ax, row in zip(
        right.subplots(3, 5).flat, find_label_issues(p, labels).tolist(), strict=False
    ):
        ax.imshow(DIGITS.images[row], cmap="gray_r")
        ax.set_title(
            f"labelled {labels[row]}", fontsize="small",
            color="black" if labels[row] != Y[row] else COLORS[1],
        )  # fmt: skip
        ax.set_axis_off()
    right.suptitle("The first suspects, sym .2 (orange: labelled right)")
    save(figure, path, dpi=120)


def main() -> None:
    """Run the experiment; print, check and draw."""
    chosen = options(__file__, __doc__, seeds=(5, 2))
    torch.set_num_threads(1)
    threadpool_limits(1)  # the matrices of the classifiers are small, too
    each, kinds = [], ["sym .2", "asym .2"] if chosen.small else list(NOISE)
    for kind in tqdm(kinds, unit="kind", leave=False):
        matrix = NOISE[kind]
        runs = [spoilt(matrix, seed) for seed in chosen.seeds]
        each.append([(distances(p, labels, matrix), hits(p, labels)) for labels, p in runs])
    distance = torch.stack([torch.stack([d for d, _ in runs]) for runs in each])
    found = torch.stack([torch.stack([f for _, f in runs]) for runs in each])
    precision, recall = found.unbind(-1)  # (kinds, seeds, filters)

    print("Share of the labels that an estimate of the noise matrix puts in the wrong place\n")
    print(show(kinds, list(ESTIMATES), distance, 3))
    print("\nPrecision of the rows that are found, %\n")
    print(show(kinds, FILTERS, 100 * precision, 1))
    print("\nRecall, %\n")
    print(show(kinds, FILTERS, 100 * recall, 1), "\n")
    hold(claims(kinds, distance, precision, recall))
    draw(kinds, distance, precision, recall, chosen.seed, chosen.picture)


if __name__ == "__main__":
    main()
