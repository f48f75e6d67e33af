"""Learning from a teacher where the labels are known: the target apart from the other classes."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .._check import class_indices, finite_number, whole_number
from ..class_dim import takes_class_dim
from ..engines.dense.problem import DenseProblem
from ..engines.modes import wide_dtype
from ..engines.rows.labels import check_labels
from ..frames.dense_loss import explained, reduce_rows
from ..frames.dense_rows import DenseRows, by_rows
from ..frames.reduction import Reduce, Reduction
from ..heads.logits import LinearLogits
from ..hyperparameters import Range
from .catalog import member
from .divergence import diverge
from .teacher import axis_of_both, check_teacher, distill


@member("other", proper=True, convex=True, second_pass=True)
@explained
@takes_class_dim(alike=("teacher",))
def decoupled_distillation_loss(
    input: Tensor | LinearLogits,
    teacher: Tensor | LinearLogits,
    target: Tensor,
    row_mask: Tensor | None = None,
    *,
    class_dim: int | None = None,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    keep_gradient_size: bool = True,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Divergence from a teacher in two parts: how sure of the target, and of the others (DKD).

    .. math::
        \ell = T^2 \bigl(\alpha\, D(b^q \| b^p) + \beta\, D(\hat q \| \hat p)\bigr), \quad
        b^p = (p_y,\ 1 - p_y), \quad \hat p_j = \frac{p_j}{1 - p_y} \;(j \ne y)

    with the probabilities ``q`` of the teacher and ``p`` of the student at temperature ``T``. The
    divergence of both, :func:`xent.losses.distillation_loss`, has ``1 - q_y`` in the place of
    ``beta``: the surer the teacher, the less the student learns from it about the other classes.
    Of a teacher that masks all classes but the target the student learns nothing about them.

    Use:
        For a student of a teacher that is very sure, and labelled rows; not without labels, which
        it needs to part the target from the other classes.

    Args:
        input: logits of the student, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``; ``-inf`` masks a
            class.
        teacher: logits of the teacher, in the shape of ``input``.
        target: class indices, in the shape of the rows.
        row_mask: bool, in the shape of the rows: which rows count.
        temperature: ``T``, positive. Divides both logits.
        alpha: weight of the target's part.
        beta: weight of the part of the other classes.
        keep_gradient_size: multiply by :math:`T^2`.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of rows kept.

    Example:
        >>> import torch, xent
        >>> teacher, student = torch.tensor([[9.0, 1.0, 0.0]]), torch.tensor([[9.0, 0.0, 1.0]])
        >>> label, loss = torch.tensor([0]), xent.losses.decoupled_distillation_loss
        >>> f"{loss(student, teacher, label, temperature=1.0).item():.4f}"
        '3.6969'
        >>> f"{xent.losses.distillation_loss(student, teacher).item():.4f}"
        '0.0002'

    References:
        Zhao et al., *Decoupled knowledge distillation*, CVPR 2022.
    """
    check_teacher(input, teacher)
    target = class_indices("target", target)
    axis = axis_of_both(input, teacher)
    rows = input.shape[:axis] + input.shape[axis + 1 :]
    if target.shape != rows:
        raise ValueError(
            f"`target` must hold one class for each row, shape {tuple(rows)}; got "
            f"{tuple(target.shape)}"
        )
    temperature = Range(0, open=True).check("temperature", temperature, None)
    weights = finite_number("alpha", alpha), finite_number("beta", beta)
    for name, weight in zip(("alpha", "beta"), weights, strict=True):
        Range(0).check(name, weight, None)
    scale = temperature**2 if keep_gradient_size else 1.0
    order = _Decoupled(temperature, *weights, scale, whole_number("ignore_index", ignore_index))
    return distill(
        order, input, teacher, target, row_mask, reduction, normalizer, row_weight, empty
    )


class _Decoupled(NamedTuple):
    """The options of a distillation in two parts."""

    temperature: float
    alpha: float
    beta: float
    scale: float
    ignore_index: int

    def reduce(
        self,
        student: Tensor,
        teacher: Tensor,
        kept: Tensor | None,
        target: Tensor | None,
        reduce: Reduce,
        dtype: torch.dtype,
    ) -> Tensor:
        """The loss of logits that are there. ``kept`` marks rows."""
        mass = None if kept is None else kept.to(wide_dtype(student))
        problem = DenseProblem(
            student, teacher, target, mass, self.values, None, self.scale, self.ignore_index, dtype
        )  # pyright: ignore
        return reduce_rows(problem, kept, reduce)

    def values(self, student: Tensor, teacher: Tensor | None, labels: Tensor | None) -> Tensor:
        """The value of each row."""
        assert teacher is not None
        assert labels is not None
        classes = student.shape[-1]
        check_labels(labels, classes, self.ignore_index)
        known = (labels >= 0) & (labels < classes)
        parts = functools.partial(_parts, *self[:3])
        found = by_rows(parts, student, teacher, torch.where(known, labels, 0))
        # Where labels cannot be looked at, one that does not exist has a loss of infinity.
        return torch.where(known, found, torch.inf)


def _parts(
    temperature: float, alpha: float, beta: float, student: Tensor, teacher: Tensor, label: Tensor
) -> Tensor:
    """The weighted sum of both divergences."""
    wide = wide_dtype(student)
    pair = [DenseRows(x.to(wide) / temperature, None, label) for x in (student, teacher)]
    total = pair[0].logits.new_zeros(label.shape)
    if alpha:
        s, t = (_of_target(rows) for rows in pair)
        total = total + alpha * diverge(s, t, 1.0, "forward", 0.5)
    if beta:
        s, t = (rows.logits.masked_fill(rows.is_label, -torch.inf) for rows in pair)
        none, unlearned = ((x == -torch.inf).all(-1) for x in (t, s))  # there are no other classes
        s, t = (torch.where((none | unlearned).unsqueeze(-1), 0.0, x) for x in (s, t))
        of_others = diverge(s, t, 1.0, "forward", 0.5)
        total = total + beta * torch.where(unlearned & ~none, torch.inf, of_others)
    return total


def _of_target(rows: DenseRows) -> Tensor:
    """Logits of the target and of all other classes together, ``(n, 2)``; masked if certain."""
    odds = rows.log_odds(rows.logits)
    certain = odds == torch.inf
    others = torch.zeros_like(odds).masked_fill(certain, -torch.inf)
    return torch.stack([odds.masked_fill(certain, 0), others], -1)
