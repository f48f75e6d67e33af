"""Confidence against accuracy, bin by bin: the table behind a reliability diagram."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .._check import is_whole, one_of
from ..arrays import takes_arrays

__all__ = ["Binning", "Reliability", "bin_confidences"]

Binning = Literal["width", "mass"]
"""Bins of equal width, or of an equal number of rows."""


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, bin by bin; prints as a table.

    ``xent.plot.reliability`` draws it.

    Attributes:
        confidence: mean confidence of the rows of each bin, ``(bins,)``, float64; NaN in an empty
            bin.
        accuracy: share of the rows of each bin that are right, ``(bins,)``, float64; NaN in an
            empty bin.
        count: number of rows in each bin, ``(bins,)``, int64.
        edges: borders of the bins from 0 to 1, ``(bins + 1,)``; a bin contains its upper border,
            rounded to the dtype of the confidences, float32 at most.
        ece: expected calibration error: the mean of ``|accuracy - confidence|`` over the bins,
            weighted with their counts.

    Example:
        >>> import torch
        >>> from xent.information import bin_confidences
        >>> confidence, right = torch.tensor([0.9, 0.8, 0.2]), torch.tensor([True, False, False])
        >>> print(bin_confidences(confidence, right, bins=2))
                  bin    count  confidence  accuracy
         0.000-0.500        1      0.2000    0.0000
         0.500-1.000        2      0.8500    0.5000
        ECE 0.3000  MCE 0.3500
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor
    edges: Tensor
    ece: float

    @classmethod
    def of_sums(
        cls, confidence: Tensor, accuracy: Tensor, count: Tensor, edges: Tensor
    ) -> Reliability:
        """Make the table from sums over the rows of each bin: of confidences, and of right rows."""
        # An empty bin has no mean: 0 / 0 is NaN.
        means, shares = confidence / count, accuracy / count
        gaps = torch.where(count > 0, (shares - means).abs(), 0.0)
        return cls(means, shares, count, edges, ((count * gaps).sum() / count.sum()).item())

    def merge(self, other: Reliability) -> Reliability:
        """The table of the rows of both tables, which must have the same bins.

        Args:
            other: a table of other rows.

        Raises:
            ValueError: if the bins differ.
        """
        if not torch.equal(self.edges, other.edges):
            raise ValueError("merge: the two tables have different bins")

        def total(name: str) -> Tensor:
            means = (torch.where(t.count > 0, t.count * getattr(t, name), 0.0) for t in both)
            return torch.stack([*means]).sum(0)

        both = (self, other)
        count = self.count + other.count
        return Reliability.of_sums(total("confidence"), total("accuracy"), count, self.edges)

    @property
    def mce(self) -> float:
        """Maximum calibration error, the largest ``|accuracy - confidence|`` of a bin."""
        return (self.accuracy - self.confidence)[self.count > 0].abs().max().item()

    def __str__(self) -> str:
        lines = ["          bin    count  confidence  accuracy"]
        for k, count in enumerate(self.count.tolist()):
            low, high = self.edges[k].item(), self.edges[k + 1].item()
            line = f"{low:6.3f}-{high:.3f} {count:8d}"
            if count:
                line += f"  {self.confidence[k].item():10.4f}  {self.accuracy[k].item():8.4f}"
            lines.append(line)
        return "\n".join([*lines, f"ECE {self.ece:.4f}  MCE {self.mce:.4f}"])


@takes_arrays
def bin_confidences(
    confidence: Tensor,
    right: Tensor,
    bins: int = 15,
    binning: Binning = "width",
    dtype: torch.dtype | None = None,
) -> Reliability:
    """The table of :func:`xent.learn.calibration.reliability`, from confidences.

    Args:
        confidence: one for each row, in [0, 1], ``(N,)``.
        right: whether the row is right, ``(N,)``.
        bins: the number of bins.
        binning: ``"width"`` or ``"mass"``; see :func:`xent.learn.calibration.reliability`.
        dtype: dtype in which the confidences were computed, if they have another one now.

    Returns:
        A :class:`Reliability`.

    Raises:
        ValueError: for an unknown ``binning``, or bins that are no positive whole number.

    Example:
        >>> import torch
        >>> from xent.information import bin_confidences
        >>> bin_confidences(torch.tensor([0.5, 1.0]), torch.tensor([True, True]), bins=4).ece
        0.25
    """
    one_of("binning", binning, ("width", "mass"))
    if not is_whole(bins) or bins < 1:
        raise ValueError(f"`bins` must be a whole number of at least 1, got {bins!r}")
    # A border is the confidence of a row (mass), or a fraction rounded as confidences are (width).
    edges = torch.arange(bins + 1, dtype=torch.float64, device=confidence.device) / bins
    edges, at = edges.to(confidence.dtype), _precision(dtype or confidence.dtype)
    if binning == "mass":
        # The last row of each bin but the last bin.
        last = torch.arange(1, bins, device=confidence.device) * len(confidence) // bins - 1
        edges[1:-1] = confidence.sort().values[last.clamp(min=0)]
        at = confidence.dtype
    which = torch.bucketize(confidence.to(at).contiguous(), edges[1:-1].to(at).contiguous())
    total, rights = (
        torch.bincount(which, weights=x.to(confidence.dtype), minlength=bins)
        for x in (confidence, right)
    )
    return Reliability.of_sums(total, rights, torch.bincount(which, minlength=bins), edges)


def _precision(dtype: torch.dtype) -> torch.dtype:
    """Dtype to compare confidences with borders: float64 may hold numbers computed in float32."""
    return torch.float32 if dtype == torch.float64 else dtype
