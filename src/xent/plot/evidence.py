"""Pictures of what features tell about classes, and of the places of an image that tell it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .canvas import COLORS, new_axes, shown, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def information(estimate: Any, ax: Axes | None = None) -> Axes:
    """Draw what each class adds to an estimate of mutual information, and the most it could add.

    Args:
        estimate: an :class:`xent.learn.InformationEstimate`.
        ax: where to draw; by default new axes.

    Returns:
        The axes. The grey bars add up to H(Y), the coloured ones to the estimate.

    Raises:
        ImportError: if matplotlib is not installed.

    Example:
        >>> import torch
        >>> from xent.learn import mutual_information_from_logits
        >>> from xent.plot import information
        >>> y = torch.tensor([0, 0, 1])
        >>> information(mutual_information_from_logits(5 * torch.eye(2)[y], y)).get_title()
        '0.630 of at most 0.637 nats'
    """
    rows = range(len(estimate.classes))
    ax = ax or new_axes(7.6, 1.4 + 0.3 * len(rows))[0]
    p = estimate.counts.double() / estimate.counts.sum()
    ax.barh(rows, torch.special.entr(p).tolist(), color="0.85", label="the most there is")
    ax.barh(rows, estimate.per_class.tolist(), height=0.5, color=COLORS[0], label="found")
    ax.set_yticks(rows, [shown(name) for name in estimate.classes])
    ax.axvline(0, color="black", linewidth=0.8)
    ax.invert_yaxis()
    ax.set_xlabel("nats")
    ax.set_ylabel("class")
    ax.set_title(f"{estimate.nats:.3f} of at most {estimate.bound:.3f} nats", fontsize="medium")
    ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))  # outside the axes
    return ax


@styled
def information_bars(
    estimates: Mapping[str, Any], truth: Mapping[str, float] | None = None, ax: Axes | None = None
) -> Axes:
    """Estimates of mutual information one below the other, with intervals and bounds.

    Args:
        estimates: :class:`xent.learn.InformationEstimate` by name.
        truth: the true values in nats, where they are known.
        ax: where to draw; by default new axes.

    Returns:
        The axes. A grey bar ends at H(Y).

    Raises:
        ImportError: if matplotlib is not installed.

    Example:
        >>> import torch
        >>> from xent.learn import mutual_information_from_logits
        >>> from xent.plot import information_bars
        >>> y = torch.tensor([0, 0, 1])
        >>> found = mutual_information_from_logits(torch.eye(2)[y], y)
        >>> information_bars({"x": found}).get_xlabel()
        'mutual information (nats)'
    """
    found, rows = list(estimates.values()), range(len(estimates))
    ax = ax or new_axes(7.6, 1.4 + 0.3 * len(rows))[0]
    nats = torch.tensor([one.nats for one in found], dtype=torch.float64, device="cpu")
    low, high = torch.tensor([one.interval for one in found], dtype=torch.float64, device="cpu").T
    ax.barh(rows, [one.bound for one in found], color="0.88", label="H(Y), the most there is")
    ax.errorbar(
        nats.tolist(), rows, xerr=torch.stack([nats - low, high - nats]).clamp(min=0).tolist(),
        fmt="o", color=COLORS[0], markersize=4, capsize=3,
        label=f"estimate, {found[0].confidence:.0%} interval",
    )  # fmt: skip
    if truth is not None:
        known = {row: truth[name] for row, name in enumerate(estimates) if name in truth}
        ax.plot(
            list(known.values()), list(known), "D", color=COLORS[1], markersize=9,
            fillstyle="none", label="truth",
        )  # fmt: skip
    ax.set_yticks(rows, [shown(name) for name in estimates])
    ax.invert_yaxis()
    ax.set_xlabel("mutual information (nats)")
    ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))  # outside the axes
    return ax


@styled
def activation_map(image: Tensor, map: Tensor, ax: Axes | None = None) -> Axes:
    """A map of evidence for a class, drawn over the image.

    Args:
        image: grey values, ``(H, W)``.
        map: one number per place, ``(h, w)``, of the same field of view: of
            :func:`xent.learn.info_cam`, say. Orange speaks for the class, purple against it.
        ax: where to draw; by default new axes.

    Returns:
        The axes, whose units are pixels of the image.

    Raises:
        ValueError: if ``image`` or ``map`` is no matrix.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import torch
        >>> from xent.plot import activation_map
        >>> ax = activation_map(torch.rand(8, 8), torch.randn(4, 4))
        >>> len(ax.images)
        2
    """
    if image.ndim != 2 or map.ndim != 2:
        raise ValueError(
            f"`image` and `map` must be matrices, got {tuple(image.shape)} and {tuple(map.shape)}"
        )
    ax = ax or new_axes(3.2, 3.2)[0]
    height, width = image.shape
    frame = (-0.5, width - 0.5, height - 0.5, -0.5)
    map = map.detach()
    most = map.abs().max().item() or 1.0
    ax.imshow(image.detach().tolist(), cmap="gray_r", extent=frame)
    ax.imshow(
        map.tolist(), cmap="PuOr_r", vmin=-most, vmax=most, extent=frame, alpha=0.6,
        interpolation="bilinear",
    )  # fmt: skip
    ax.set_xticks([])
    ax.set_yticks([])
    return ax
