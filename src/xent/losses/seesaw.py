"""Class imbalance in detection: what a rare class suffers from the negatives of frequent ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ..frames.dense_loss import dense_loss
from ..frames.dense_rows import DenseRows
from ..hyperparameters import Counts, NonNegative
from .catalog import member
from .imbalance import rarest_if_unseen


@member(proper=False, convex=True, second_pass=True)
@dense_loss(soft=False)
def seesaw_loss(
    rows: DenseRows, counts: Counts, p: NonNegative = 0.8, q: NonNegative = 2.0
) -> Tensor:
    r"""Cross-entropy whose rows push rarer classes down less, and classes in the lead more.

    .. math:: \ell = -\log \frac{e^{z_y}}{e^{z_y} + \sum_{j \ne y} S_j e^{z_j}}, \qquad
        S_j = \min\Bigl(1, \frac{n_j}{n_y}\Bigr)^p \max\Bigl(1, \frac{p_j}{p_y}\Bigr)^q

    The first factor, mitigation, spares classes rarer than that of the row. The second one,
    compensation, takes this back where such a class is mistaken for the class of the row; it counts
    as a constant of the row, without a gradient. The authors count the rows seen so far.

    Use:
        For long tails in detection, where frequent classes push rare ones down; not when the logits
        fill the memory, since it keeps tensors of their size.

    Args:
        counts: rows per class, ``(C,)``, or probabilities. A class without rows counts as the
            rarest of the others; where all have none, all are alike.
        p: strength of mitigation.
        q: strength of compensation.

    Example:
        >>> import torch, xent
        >>> counts = torch.tensor([90.0, 10.0])
        >>> logits, label = torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
        >>> xent.losses.seesaw_loss(logits, label, counts=counts, reduction="none")
        tensor([0.1591, 1.4959])

    References:
        Wang et al., *Seesaw loss for long-tailed instance segmentation*, CVPR 2021.
    """
    z = rows.logits
    log_n = rarest_if_unseen(counts.to(z.dtype)).log()  # (C,)
    rarer = (log_n - rows.expected(log_n).unsqueeze(-1)).clamp(max=0)  # (..., C)
    ahead = torch.relu(z - rows.expected(z).unsqueeze(-1)).detach()  # log(p_j / p_y)
    ahead = torch.where(ahead.isfinite(), ahead, 0.0)  # a masked target costs infinity without it
    return -rows.log_prob(z + p * rarer + q * ahead)
