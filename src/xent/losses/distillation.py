"""Learning from a teacher: divergences of two predictions that are both given as logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .._check import finite_number, one_of, vector_of_classes, whole_number
from ..class_dim import takes_class_dim
from ..engines.choice import Explanation
from ..engines.dense.problem import KINDS, DenseProblem, Form, form_for
from ..engines.modes import wide_dtype
from ..frames.dense_loss import explain_dense, explained, reduce_rows
from ..frames.dense_rows import by_rows
from ..frames.reduction import Reduce, Reduction, RowValues
from ..heads.logits import LinearLogits
from ..heads.problem import problem_of
from ..hyperparameters import Range
from .catalog import member
from .classification import cross_entropy
from .divergence import DIVERGENCES, diverge
from .teacher import axis_of_both, check_teacher, distill

Divergence = Literal["forward", "reverse", "jensen_shannon", "skew", "total_variation"]


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
    teacher_temperature: float | None = None,
    center: Tensor | None = None,
    divergence: Divergence = "forward",
    beta: float | None = None,
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
        m = \beta q + (1 - \beta) p \\
        \text{skew:}\; & D(q \| m) \qquad
        \text{total variation:}\; \tfrac12 \sum_j |p_j - q_j|

    and with ``target``, :math:`1 - \alpha` times that plus :math:`\alpha` times the cross-entropy
    of the labels at temperature 1.

    The divergence is never negative, and right to the last digits however near the student is. It
    is a sum of terms :math:`q_j (e^{y_j} - 1 - y_j)` of the log-ratios :math:`y_j`, which come from
    the difference of the two logits. A teacher that requires a gradient gets one, too: detach the
    teacher, or compute it under ``torch.no_grad()``. On a CPU the compiled core computes in float64
    a row at a time; without it, and on other devices, there are float64 tensors of the size of the
    logits.

    Use:
        For a student that learns from the logits of a teacher; not when only the top of the teacher
        is stored, which is for :func:`~xent.losses.sparse_cross_entropy`.

    Args:
        input: logits of the student, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``; ``-inf`` masks a
            class.
        teacher: logits of the teacher, in the shape of ``input``.
        target: labels to learn from, too, as for :func:`xent.cross_entropy`. Rows with the label
            ``ignore_index`` are left out.
        row_mask: bool, in the shape of the rows: which rows count.
        temperature: ``T``, positive. Divides both logits; above 1 improbable classes count more.
        teacher_temperature: another temperature for the teacher; below that of the student it makes
            the teacher surer (DINO: 0.04 and 0.1).
        center: subtracted from the logits of the teacher, ``(C,)`` or ``(1, C)``, a constant: their
            running mean keeps one class from winning everywhere (DINO).
        divergence: ``"forward"`` makes the student cover all classes of the teacher, ``"reverse"``
            makes it prefer the likeliest, ``"jensen_shannon"`` is between the two, and bounded;
            ``"skew"`` is the forward one with a mixture for the student, and bounded, too;
            ``"total_variation"`` is at most 1 and pulls equally at every class.
        beta: share of the teacher in the mixture, above 0 and below 1; unless given 0.5 for
            Jensen-Shannon and 0.1 for the skew divergence, whose authors call it alpha.
        alpha: share of the labels in the loss, in [0, 1]; 0.5 unless given. Only with ``target``.
        keep_gradient_size: multiply by :math:`T^2` of the student, so that gradients do not shrink
            as the temperature grows. False gives the plain divergence.
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
        generalised Jensen-Shannon). Ko et al., *DistiLLM*, ICML 2024 (skew). Wen et al.,
        *f-divergence minimization for sequence-level knowledge distillation*, ACL 2023 (total
        variation). Caron et al., *Emerging properties in self-supervised vision transformers*, ICCV
        2021 (DINO).
    """
    check_teacher(input, teacher)
    order = _read_order(
        temperature, divergence, beta, alpha, keep_gradient_size, ignore_index, target is not None
    )
    classes = input.shape[axis_of_both(input, teacher)]
    order = order.for_teacher(classes, input.device, temperature, teacher_temperature, center)
    order = order.for_types(input.dtype, teacher.dtype)
    return distill(
        order, input, teacher, target, row_mask, reduction, normalizer, row_weight, empty
    )


@takes_class_dim(alike=("teacher",))
def _explanation(
    input: Tensor | LinearLogits,
    teacher: Tensor | LinearLogits,
    *,
    class_dim: int | None = None,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    center: Tensor | None = None,
    divergence: str = "forward",
    beta: float | None = None,
    keep_gradient_size: bool = True,
    engine: str = "auto",
) -> Explanation:
    """The engine that computes the divergence of a call with these arguments, and why."""
    check_teacher(input, teacher)
    order = _read_order(temperature, divergence, beta, None, keep_gradient_size, -100, False)
    classes = input.shape[axis_of_both(input, teacher)]
    order = order.for_teacher(classes, input.device, temperature, teacher_temperature, center)
    order = order.for_types(input.dtype, teacher.dtype)
    heads = [problem_of(x) for x in (input, teacher) if isinstance(x, LinearLogits)]
    head = heads[0] if heads else None
    return explain_dense(input, teacher, None, None, order.form, head, engine)


distillation_loss.explanation = _explanation  # pyright: ignore


class _Order(NamedTuple):
    """The options of a divergence from a teacher."""

    form: Form | None  # None where kernels cannot compute the divergence
    body: Callable[[Tensor, Tensor], Tensor]  # the divergence in plain operations
    scale: float  # factor on the divergence
    share: float  # of the labels
    ignore_index: int

    def for_types(self, *dtypes: torch.dtype) -> _Order:
        """The options for logits of these types."""
        return self._replace(form=form_for(self.form, *dtypes))

    def for_teacher(
        self,
        classes: int,
        device: torch.device,
        temperature: float,
        teacher_temperature: float | None,
        center: Tensor | None,
    ) -> _Order:
        """The options for a teacher with its own temperature or centre, which no kernel has."""
        own = Range(0, open=True).check("teacher_temperature", teacher_temperature, None)
        if own is None and center is None:
            return self
        if center is not None:
            if isinstance(center, Tensor) and center.shape == (1, classes):
                center = center[0]  # as DINO keeps it
            vector_of_classes("center", center, classes, device)
            center = center.detach()
        temperature = Range(0, open=True).check("temperature", temperature, None)
        own = temperature if own is None else own
        plain = functools.partial(self.body, temperature=1.0)  # pyright: ignore

        def scaled(z: Tensor, v: Tensor) -> Tensor:
            wide = wide_dtype(z)
            v = v.to(wide) if center is None else v.to(wide) - center.to(wide)
            return plain(z.to(wide) / temperature, v / own)

        return self._replace(form=None, body=lambda z, v: by_rows(scaled, z, v))  # pyright: ignore

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
    beta: float | None,
    alpha: float | None,
    keep_gradient_size: bool,
    ignore_index: int,
    labelled: bool,
) -> _Order:
    """Check the options of a distillation."""
    temperature = Range(0, open=True).check("temperature", temperature, None)
    one_of("divergence", divergence, tuple(DIVERGENCES))
    usual = 0.1 if divergence == "skew" else 0.5
    beta = usual if beta is None else finite_number("beta", beta)
    if not 0 < beta < 1:
        raise ValueError(f"`beta` must be above 0 and below 1, got {beta}")
    alpha = Range(0, 1).check("alpha", alpha, None)
    ignore_index = whole_number("ignore_index", ignore_index)
    if not labelled and alpha is not None:
        other = "; the share of the teacher in the mixture is `beta`" * (divergence == "skew")
        raise ValueError(f"`alpha` is the share of the labels: pass them as `target`, too{other}")
    share = 0.0 if not labelled else 0.5 if alpha is None else alpha
    body = functools.partial(diverge, temperature=temperature, divergence=divergence, beta=beta)
    scale = (1 - share) * (temperature**2 if keep_gradient_size else 1.0)
    form = Form(divergence, (1 / temperature, beta)) if divergence in KINDS else None
    return _Order(form, body, scale, share, ignore_index)
