"""Pictures of what a linear classifier learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .canvas import COLORS, new_axes, shown, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def coefficient_paths(
    path: Any, ax: Axes | None = None, *, names: Sequence[str] = (), named: int = 6
) -> Axes:
    """Each coefficient over the strength of the penalty, from strong to weak.

    Args:
        path: an :class:`xent.learn.RegularizationPath`.
        ax: where to draw; by default new axes.
        names: of the features.
        named: how many features are named in the legend: those with the largest last coefficients.

    Returns:
        The axes. Several classes have a colour each. Above the axes stands how many coefficients
        are not 0.

    Raises:
        ValueError: if there are not as many names as features.
        ImportError: if matplotlib is not installed.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from xent.learn import SoftmaxRegression, regularization_path
        >>> from xent.plot import coefficient_paths
        >>> x, y = load_iris(return_X_y=True)
        >>> path = regularization_path(SoftmaxRegression(l1_ratio=1), x, y, Cs=4)
        >>> len(coefficient_paths(path).lines)
        12
    """
    _, classes, features = path.coef.shape
    if len(names) not in (0, features):
        raise ValueError(f"`names` must name each of the {features} features, got {len(names)}")
    ax = ax or new_axes(7.6, 4.6)[0]
    last = [max(abs(column)) for column in path.coef[-1].T]
    largest = sorted(range(features), key=lambda j: -last[j])[:named] if len(names) else []
    ranks = {j: rank for rank, j in enumerate(largest)}
    for j in range(features):
        for k in range(classes):
            color = COLORS[(k if classes > 1 else ranks.get(j, j)) % len(COLORS)]
            if len(names) and j not in ranks:
                color = "0.75"
            label = shown(names[j]) if j in ranks and k == 0 else None
            ax.plot(path.lambdas, path.coef[:, k, j], linewidth=1.2, color=color, label=label)
    ax.set_xscale("log")
    ax.invert_xaxis()
    ax.set_xlabel("λ")
    ax.set_ylabel("coefficient")
    above = ax.secondary_xaxis("top")
    some = range(0, len(path.lambdas), max(1, len(path.lambdas) // 6))
    above.set_xticks([path.lambdas[i] for i in some], [str(path.nonzero[i]) for i in some])
    above.minorticks_off()
    above.set_xlabel("coefficients that are not 0", fontsize="small")
    if largest:
        ax.legend(fontsize="small")
    return ax
