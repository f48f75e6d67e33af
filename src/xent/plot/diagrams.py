"""Diagrams that each explain one thing: two log terms, calibration, confusion, the Jacobian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import softmax_jacobian
from .canvas import COLORS, new_axes, shown, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def binary_terms(target: float = 0.5, ax: Axes | None = None) -> Axes:
    """The two log terms of binary cross-entropy and their sum, against the probability.

    Args:
        target: the target ``t``, in [0, 1]. The sum is least where the probability equals it; the
            least value, the entropy of ``t``, is marked.
        ax: where to draw; by default new axes.

    Returns:
        The axes.

    Raises:
        ValueError: if ``target`` is outside [0, 1].
        ImportError: if matplotlib is not installed.

    Example:
        >>> from xent.plot import binary_terms
        >>> binary_terms(0.3).get_xlabel()
        'probability p of class 1'
    """
    if not 0 <= target <= 1:
        raise ValueError(f"`target` must be between 0 and 1, got {target}")
    ax = ax or new_axes(6.7, 4.6)[0]
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64, device="cpu")
    first = -torch.special.xlogy(target, p)
    second = -torch.special.xlog1py(1 - target, -p)
    t, rest = f"{target:g}", f"{1 - target:g}"
    x = p.tolist()
    ax.plot(x, first.tolist(), "--", color=COLORS[0], label=f"first term, $-{t}\\,\\log p$")
    ax.plot(
        x, second.tolist(), ":", color=COLORS[1], linewidth=2.2,
        label=f"second term, $-{rest}\\,\\log(1-p)$",
    )  # fmt: skip
    ax.plot(x, (first + second).tolist(), color=COLORS[2], linewidth=2, label="sum")
    floor = (
        torch.special.entr(torch.tensor([target, 1 - target], dtype=torch.float64, device="cpu"))
        .sum()
        .item()
    )
    ax.plot(
        [target], [floor], "o", color="black", zorder=5, clip_on=False,
        label=f"least at $p={t}$: {floor:.3f} nats",
    )  # fmt: skip
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 4)
    ax.set_xlabel("probability p of class 1")
    ax.set_ylabel("loss (nats)")
    ax.set_title(f"binary cross-entropy, target {t}", fontsize="medium")
    ax.grid(alpha=0.3)
    ax.legend(loc="upper center")
    return ax


@styled
def reliability(table: Any, ax: Axes | None = None) -> Axes:
    """Reliability diagram: how often predictions of each confidence are right.

    Args:
        table: bins of predictions with ``edges`` (one more than bins), ``confidence`` and
            ``accuracy`` (the means of each bin), ``count`` (predictions in it) and ``ece``.
        ax: where to draw; by default new axes.

    Returns:
        The axes. A perfectly calibrated model has its bars end on the diagonal; the grey strip
        below shows where the predictions are.

    Raises:
        ImportError: if matplotlib is not installed.

    Example:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> from xent.plot import reliability
        >>> table = SimpleNamespace(
        ...     edges=torch.tensor([0.0, 0.5, 1.0]), confidence=torch.tensor([0.4, 0.9]),
        ...     accuracy=torch.tensor([0.5, 0.7]), count=torch.tensor([20, 80]), ece=0.18)
        >>> reliability(table).get_title()
        'expected calibration error 0.180'
    """
    ax = ax or new_axes(6, 5.4)[0]
    edges, confidence, accuracy, count = (
        torch.as_tensor(getattr(table, name), device="cpu").double()
        for name in ("edges", "confidence", "accuracy", "count")
    )
    there = count > 0
    left, width = edges[:-1][there], (edges[1:] - edges[:-1])[there]
    bars = {"align": "edge", "edgecolor": "white", "linewidth": 0.8}
    ax.bar(
        left.tolist(), accuracy[there].tolist(), width.tolist(), color=COLORS[0],
        label="accuracy", **bars,
    )  # fmt: skip
    gap = (confidence - accuracy)[there]
    ax.bar(
        left.tolist(), gap.tolist(), width.tolist(), accuracy[there].tolist(), align="edge",
        color="none", edgecolor=COLORS[1], hatch="///", linewidth=0.8, label="gap to confidence",
    )  # fmt: skip
    share = 0.2 * count[there] / count.max()
    ax.bar(
        left.tolist(), (-share).tolist(), width.tolist(), color="0.65",
        label=f"share of the {int(count.sum()):,} predictions", **bars,
    )  # fmt: skip
    ax.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="calibrated")
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.22, 1)
    ax.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    ax.set_xlabel("confidence")
    ax.set_ylabel("accuracy")
    ax.set_title(f"expected calibration error {float(table.ece):.3f}", fontsize="medium")
    ax.legend(loc="upper left")
    return ax


@styled
def confusion_matrix(matrix: Any, labels: Sequence[Any], ax: Axes | None = None) -> Axes:
    """Draw a confusion matrix: how many rows of each class are taken for each class.

    Args:
        matrix: counts of rows, ``(K, K)``: row i, column j counts those of class i taken for j.
        labels: what the K classes are called.
        ax: where to draw; by default new axes.

    Returns:
        The axes. The colour is the share of the class, so that rare classes are seen as well; up to
        12 classes the counts are written out.

    Raises:
        ValueError: if there is not one row and column for each label.
        ImportError: if matplotlib is not installed.

    Example:
        >>> from xent.plot import confusion_matrix
        >>> confusion_matrix([[8, 2], [1, 9]], ["cat", "dog"]).get_ylabel()
        'class'
    """
    counts, classes = torch.as_tensor(matrix, device="cpu"), len(labels)
    if counts.shape != (classes, classes):
        raise ValueError(
            f"`matrix` must have a row and a column for each of the {classes} labels, got shape "
            f"{tuple(counts.shape)}"
        )
    ax = ax or new_axes(6.2, 5.4)[0]
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    image = ax.imshow(share.tolist(), cmap="Blues", vmin=0, vmax=1)
    ax.figure.colorbar(image, ax=ax, label="share of the class")
    step = -(-classes // 40)  # with more than 40 names only every second, third, ... is shown
    ticks, names = range(0, classes, step), [shown(label, 20) for label in labels[::step]]
    wide = sum(map(len, names)) > 40
    ax.set_xticks(ticks, names, rotation=90 if wide else 0)
    ax.set_yticks(ticks, names)
    if classes <= 12:
        for i, row in enumerate(counts.tolist()):
            for j, count in enumerate(row):
                color = "white" if share[i, j] > 0.6 else "black"
                ax.text(j, i, f"{count:,}", ha="center", va="center", color=color)
    right = counts.diagonal().sum() / counts.sum()
    ax.set_xlabel("taken for")
    ax.set_ylabel("class")
    ax.set_title(f"{right:.1%} of {counts.sum():,} rows are right", fontsize="medium")
    return ax


@styled
def jacobian(input: Tensor, ax: Axes | None = None) -> Axes:
    """The Jacobian of softmax at one row of logits as a heat map.

    Args:
        input: logits, ``(C,)``.
        ax: where to draw; by default new axes.

    Returns:
        The axes. Row ``i`` and column ``j`` hold how the probability of ``i`` changes with the
        logit of ``j``; up to 12 classes the numbers are written out.

    Raises:
        ValueError: if ``input`` is not one row.
        TypeError: if ``input`` is not floating point.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import torch
        >>> from xent.plot import jacobian
        >>> jacobian(torch.tensor([2.0, 1.0, 0.0])).get_xlabel()
        'logit j'
    """
    if not isinstance(input, Tensor) or input.ndim != 1:
        raise ValueError("`input` must be a tensor with one row of logits, shape (C,)")
    matrix = softmax_jacobian(input.detach().cpu())
    ax = ax or new_axes(6.7, 5.4)[0]
    most = matrix.abs().max().item() or 1.0
    image = ax.imshow(matrix.tolist(), cmap="PuOr_r", vmin=-most, vmax=most)
    figure = ax.figure
    figure.colorbar(image, ax=ax, label=r"$\partial p_i / \partial z_j$")
    classes = len(matrix)
    if classes <= 12:
        ax.set_xticks(range(classes))
        ax.set_yticks(range(classes), [f"{i}: p={p:.3f}" for i, p in enumerate(input.softmax(0))])
        for i, row in enumerate(matrix.tolist()):
            for j, value in enumerate(row):
                color = "white" if abs(value) > 0.6 * most else "black"
                number = f"{value:.3f}".replace("-", "\N{MINUS SIGN}")
                ax.text(j, i, number, ha="center", va="center", color=color)
    ax.set_xlabel("logit j")
    ax.set_ylabel("probability i")
    ax.set_title("Jacobian of softmax", fontsize="medium")
    return ax
