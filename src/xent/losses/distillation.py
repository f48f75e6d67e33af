"""Learning from a teacher: divergences of two predictions that are both given as logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .._check import class_indices, finite_number, is_tensor, one_of, whole_number
from ..class_dim import takes_class_dim
from ..engines.choice import Explanation
from ..engines.dense.problem import DenseProblem, Form, form_for
from ..engines.modes import autocasts, wide_dtype
from ..engines.rows.problem import Index
from ..frames.dense_loss import explain_dense, explained, reduce_rows
from ..frames.reduction import (
    Reduce,
    Reduction,
    RowValues,
    divisor_of,
    read_reduction,
    weigh,
)
from ..heads import products
from ..heads.gradients import RowFunction, numbers_of, row_values, sum_ahead
from ..heads.logits import LinearLogits, are_logits
from ..heads.problem import HeadProblem, flat_rows, problem_of
from ..hyperparameters import Range
from ..targets import class_axis
from .catalog import member
from .classification import cross_entropy
from .divergence import DIVERGENCES, diverge


@member("other", proper=True, convex=True, second_pass=True)
@explained
@takes_class_dim(alike=("teacher", "target"))
def distillation_loss(
    input: Tensor | LinearLogits,
    teacher: Tensor | LinearLogits,
    target: Tensor | None = None,
    row_mask: Tensor | None = None,
    *,
    class_dim: int | None = None,
    temperature: float = 1.0,
    divergence: Literal["forward", "reverse", "jensen_shannon"] = "forward",
    beta: float = 0.5,
    alpha: float | None = None,
    keep_gradient_size: bool = True,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Divergence of a student from a teacher, both given by their logits.

    With :math:`q = \mathrm{softmax}(\text{teacher} / T)` and
    :math:`p = \mathrm{softmax}(\text{input} / T)`, :math:`T^2` times one of

    .. math::
        \text{forward:}\; & D(q \| p) = \sum_j q_j \log \frac{q_j}{p_j} \qquad
        \text{reverse:}\; D(p \| q) \\
        \text{Jensen-Shannon:}\; & \beta D(q \| m) + (1 - \beta) D(p \| m), \quad
        m = \beta q + (1 - \beta) p

    and with ``target``, :math:`1 - \alpha` times that plus :math:`\alpha` times the cross-entropy
    of the labels at temperature 1.

    The divergence is never negative, and right to the last digits however near the student is. It
    is a sum of terms :math:`q_j (e^{y_j} - 1 - y_j)` of the log-ratios :math:`y_j`, which come from
    the difference of the two logits. A teacher that requires a gradient gets one, too: detach the
    teacher, or compute it under ``torch.no_grad()``. On a CPU the compiled core computes in float64
    a row at a time; without it, and on other devices, there are float64 tensors of the size of the
    logits.

    Args:
        input: logits of the student, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``; ``-inf`` masks a
            class.
        teacher: logits of the teacher, in the shape of ``input``.
        target: labels to learn from, too, as for :func:`xent.cross_entropy`. Rows with the label
            ``ignore_index`` are left out.
        row_mask: bool, in the shape of the rows: which rows count.
        temperature: ``T``, positive. Divides both logits; above 1 improbable classes count more.
        divergence: ``"forward"`` makes the student cover all classes of the teacher, ``"reverse"``
            makes it prefer the likeliest, ``"jensen_shannon"`` is between the two, and bounded.
        beta: share of the teacher in the mixture of Jensen-Shannon, above 0 and below 1.
        alpha: share of the labels in the loss, in [0, 1]; 0.5 unless given. Only with ``target``.
        keep_gradient_size: multiply by :math:`T^2`, so that gradients do not shrink as the
            temperature grows. False gives the plain divergence.
        ignore_index: class index in ``target`` that marks rows to leave out.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of rows kept.

    Example:
        >>> import torch, xent
        >>> teacher = torch.tensor([[3.0, 1.0, 0.0]])
        >>> near = teacher + torch.tensor([0, 0, 1e-3])
        >>> f"{xent.losses.distillation_loss(near, teacher).item():.4e}"
        '2.0129e-08'
        >>> far = xent.losses.distillation_loss(torch.zeros(1, 3), teacher, temperature=2.0)
        >>> round(far.item(), 4)
        0.7706

    References:
        Hinton, Vinyals & Dean, *Distilling the knowledge in a neural network*, 2015.
        Agarwal et al., *On-policy distillation of language models*, ICLR 2024 (reverse and
        generalised Jensen-Shannon).
    """
    _check_teacher(input, teacher)
    order = _read_order(
        temperature, divergence, beta, alpha, keep_gradient_size, ignore_index, target is not None
    ).for_types(input.dtype, teacher.dtype)
    plain = isinstance(input, Tensor) and isinstance(teacher, Tensor)
    axis = class_axis(input) if plain else len(input.shape) - 1
    rows = input.shape[:axis] + input.shape[axis + 1 :]
    reduce = read_reduction(reduction, normalizer, row_weight, empty, rows, input.device)
    if target is not None:
        is_tensor("target", target)
    if target is not None and not target.is_floating_point():
        target = class_indices("target", target)
    kept = _rows_kept(input, target, row_mask, order.ignore_index, rows)
    if kept is None and row_weight is not None:
        kept = torch.ones(rows, dtype=torch.bool, device=input.device)
    if kept is not None:
        unweighted = kept
        kept, reduce = reduce.counting(unweighted)
        if kept is not unweighted and target is not None and target.shape == rows:
            target = torch.where(kept, target, order.ignore_index)
    dtype = torch.promote_types(input.dtype, teacher.dtype)
    dtype = torch.float32 if autocasts(input) and dtype.itemsize < 4 else dtype
    if isinstance(input, Tensor) and isinstance(teacher, Tensor):
        return order.reduce(input, teacher, kept, target, reduce, dtype)
    return _reduce_by_chunks(input, teacher, order, kept, target, reduce).to(dtype)


@takes_class_dim(alike=("teacher",))
def _explanation(
    input: Tensor | LinearLogits,
    teacher: Tensor | LinearLogits,
    *,
    class_dim: int | None = None,
    temperature: float = 1.0,
    divergence: str = "forward",
    beta: float = 0.5,
    keep_gradient_size: bool = True,
    engine: str = "auto",
) -> Explanation:
    """The engine that computes the divergence of a call with these arguments, and why."""
    _check_teacher(input, teacher)
    order = _read_order(temperature, divergence, beta, None, keep_gradient_size, -100, False)
    order = order.for_types(input.dtype, teacher.dtype)
    heads = [problem_of(x) for x in (input, teacher) if isinstance(x, LinearLogits)]
    head = heads[0] if heads else None
    return explain_dense(input, teacher, None, None, order.form, head, engine)


distillation_loss.explanation = _explanation  # pyright: ignore


class _Order(NamedTuple):
    """The options of a distillation."""

    form: Form | None  # None where kernels cannot compute the divergence
    body: Callable[[Tensor, Tensor], Tensor]  # the divergence in plain operations
    scale: float  # factor on the divergence
    share: float  # of the labels
    ignore_index: int

    def for_types(self, *dtypes: torch.dtype) -> _Order:
        """The options for logits of these types."""
        return self._replace(form=form_for(self.form, *dtypes))

    def reduce(
        self,
        student: Tensor,
        teacher: Tensor,
        kept: Tensor | None,
        target: Tensor | None,
        reduce: Reduce,
        dtype: torch.dtype,
    ) -> Tensor:
        """The loss of logits that are there. ``kept`` marks rows, ``target`` may have labels."""
        wide = wide_dtype(student)
        mass = None if kept is None else kept.to(wide)
        problem = DenseProblem(
            student, teacher, None, mass, lambda z, v, _: self.body(z, v), self.form,  # pyright: ignore
            self.scale, self.ignore_index, dtype if target is None else wide,
        )  # fmt: skip
        result = reduce_rows(problem, kept, reduce)
        if target is None:
            return result
        if kept is not None:
            student = torch.where(kept.unsqueeze(problem.axis), student, 0)
        hard = cross_entropy(student, target, ignore_index=self.ignore_index, reduction="none")
        ones = torch.ones_like(hard) if mass is None else mass
        return (result + self.share * reduce.of(RowValues(hard, kept, ones))).to(dtype)


def _read_order(
    temperature: float,
    divergence: str,
    beta: float,
    alpha: float | None,
    keep_gradient_size: bool,
    ignore_index: int,
    labelled: bool,
) -> _Order:
    """Check the options of a distillation."""
    temperature = Range(0, open=True).check("temperature", temperature, None)
    one_of("divergence", divergence, tuple(DIVERGENCES))
    beta = finite_number("beta", beta)
    if not 0 < beta < 1:
        raise ValueError(f"`beta` must be above 0 and below 1, got {beta}")
    alpha = Range(0, 1).check("alpha", alpha, None)
    ignore_index = whole_number("ignore_index", ignore_index)
    if not labelled and alpha is not None:
        raise ValueError("`alpha` is the share of the labels: pass them as `target`, too")
    share = 0.0 if not labelled else 0.5 if alpha is None else alpha
    body = functools.partial(diverge, temperature=temperature, divergence=divergence, beta=beta)
    scale = (1 - share) * (temperature**2 if keep_gradient_size else 1.0)
    return _Order(Form(divergence, (1 / temperature, beta)), body, scale, share, ignore_index)


def _reduce_by_chunks(
    student: Tensor | LinearLogits,
    teacher: Tensor | LinearLogits,
    order: _Order,
    kept: Tensor | None,
    target: Tensor | None,
    reduce: Reduce,
) -> Tensor:
    """Reduce the loss chunk by chunk, if student or teacher has its logits behind a head."""
    shape = student.shape[:-1]
    kept, target, weight = flat_rows(shape, kept, target, reduce.row_weight)
    sides = [_side(student), _side(teacher)]
    heads = [side for side in sides if isinstance(side, HeadProblem)]
    tensors = [side for side in sides if isinstance(side, Tensor)]
    read = (*tensors, target, weight, *(x for side in heads for x in side.others))
    questions = [side if isinstance(side, Tensor) else side.with_source(None) for side in sides]
    each = reduce.reduction == "none"

    def some_rows(index: Index, *z: Tensor) -> Tensor:
        chunks = iter(z)
        pair = [
            side[index]
            if isinstance(side, Tensor)
            else side.of_rows(index, next(chunks)).transformed()
            for side in questions
        ]
        here, labels, w = (None if x is None else x[index] for x in (kept, target, weight))
        part = Reduce("none" if each else "sum", None, None if each else w, "nan")
        return order.reduce(pair[0], pair[1], here, labels, part, torch.float64)

    rows = RowFunction(
        tuple(side.source for side in heads), None if kept is None else numbers_of(kept), some_rows,
        tuple(x for x in read if isinstance(x, Tensor)),
    )  # fmt: skip
    if each:
        return weigh(row_values(rows), kept, weight).reshape(shape)
    total = sum_ahead(rows)
    if reduce.reduction == "sum":
        return total
    mass = torch.ones(shape.numel(), dtype=total.dtype, device=total.device)
    mass = mass if kept is None else kept.to(total.dtype)
    divisor = divisor_of(kept, mass, reduce.normalizer, weight)
    return reduce.by(total, divisor)


def _side(logits: Tensor | LinearLogits) -> HeadProblem | Tensor:
    """The logits of student or teacher, all rows on one axis: ``(N, C)``."""
    if isinstance(logits, Tensor):
        return logits.reshape(-1, logits.shape[-1])
    return problem_of(products.for_comparison(logits))


def _check_teacher(input: Tensor | LinearLogits, teacher: Tensor | LinearLogits) -> None:
    for name, value in (("input", input), ("teacher", teacher)):
        are_logits(name, value)
        if not value.is_floating_point():
            raise TypeError(f"`{name}` must hold floating-point logits, got {value.dtype}")
    if input.ndim == 0 or input.shape != teacher.shape:
        raise ValueError(
            f"`input` and `teacher` must hold logits of the same rows and classes; got shapes "
            f"{tuple(input.shape)} and {tuple(teacher.shape)}"
        )
    if input.device != teacher.device:
        raise ValueError(f"`input` is on {input.device} but `teacher` on {teacher.device}")


def _rows_kept(
    input: Tensor | LinearLogits, target: Tensor | None, row_mask: Tensor | None, ignore_index: int,
    rows: torch.Size,
) -> Tensor | None:  # fmt: skip
    """A mask of the rows that count; None for all."""
    kept = None
    if row_mask is not None:
        is_tensor("row_mask", row_mask)
        if row_mask.shape != rows or row_mask.dtype != torch.bool:
            raise ValueError(
                f"`row_mask` must be bool, one per row, shape {tuple(rows)}; got {row_mask.dtype} "
                f"of shape {tuple(row_mask.shape)}"
            )
        kept = row_mask
    if target is not None and target.shape == rows:
        labelled = target != ignore_index
        kept = labelled if kept is None else kept & labelled
    return kept
