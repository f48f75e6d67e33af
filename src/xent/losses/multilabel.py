"""Losses of rows that may have several labels at once."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

from .._check import one_of
from ..class_dim import takes_class_dim
from ..engines import elements
from ..engines.elements.problem import ElementProblem, Form
from ..frames.element_checks import make_problem, mark_out, smooth, without_weightless
from ..frames.element_head import labels_behind_head
from ..frames.element_loss import Elements, element_loss, power, product
from ..frames.reduction import Reduction, RowValues, read_reduction, rows_left_out
from ..heads.logits import LinearLogits
from ..hyperparameters import Fraction, NonNegative
from ..targets import class_axis
from .catalog import member


@member("other", proper=True, convex=True)
@takes_class_dim(elements=True)
def multilabel_cross_entropy(
    input: Tensor | LinearLogits,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    class_dim: int | None = None,
    labels: Literal["sum", "mean"] = "sum",
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_value: float | None = None,
    row_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | Literal["count", "weight"] | None = None,
    empty: Literal["nan", "zero"] = "nan",
    engine: str = "auto",
) -> Tensor:
    r"""Sigmoid cross-entropy of rows with any number of labels each. In nats per row.

    .. math:: \ell_n = \sum_c -t_{nc} \log \sigma(z_{nc}) - (1 - t_{nc}) \log \sigma(-z_{nc})

    The labels of a row are reduced first: ``labels="sum"`` is the negative log-likelihood of all
    labels of a row, ``labels="mean"`` that of one label on average (``multilabel_soft_margin_loss``
    in PyTorch). The mean is the sum divided by the number of labels, and so is its gradient.

    Use:
        For rows with any number of labels; not for classes that exclude each other, which are for
        :func:`~xent.cross_entropy`.

    Args:
        input: logits, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``: one per label.
        target: probabilities of the labels, in the shape of ``input``; or booleans or integers.
        weight: factor on each element; broadcasts to the shape of ``input``. 0 leaves an element
            out, whatever it holds.
        class_dim: the axis of the labels, as for :func:`cross_entropy` that of the classes.
        labels: ``"sum"`` or ``"mean"`` over the labels of a row; the mean is over those known.
        pos_weight: factor on the targets, the term of label 1; broadcasts likewise.
        label_smoothing: in [0, 1]: how far targets move towards 1/2.
        ignore_value: target that marks labels nobody knows, -1 say, or NaN. A row without known
            labels is left out.
        row_weight: factor on each row, in the shape of the rows; the mean divides by its sum.
        reduction: ``"none"``, ``"sum"`` or ``"mean"`` over the rows.
        normalizer: another divisor of the mean, as for :func:`xent.cross_entropy`.
        empty: ``"nan"`` as PyTorch, or ``"zero"``: the mean of no rows.
        engine: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``.

    Returns:
        A scalar, or the shape of the rows for ``reduction="none"``, in the dtype of ``input`` and
        ``target`` together (float32 under autocast).

    Raises:
        ValueError: for shapes that do not fit, targets outside [0, 1] (on the CPU), or an option.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
        >>> target = torch.tensor([[1, 0, 1], [0, 0, 1]])
        >>> xent.losses.multilabel_cross_entropy(logits, target, reduction="none")
        tensor([1.1333, 2.0794])
        >>> xent.losses.multilabel_cross_entropy(logits, target, labels="mean", reduction="none")
        tensor([0.3778, 0.6931])
    """
    one_of("labels", labels, ("sum", "mean"))
    problem = make_problem(input, target, weight, pos_weight, ignore_value)
    problem = smooth(problem, label_smoothing)
    if not isinstance(input, Tensor):
        loss = functools.partial(
            multilabel_cross_entropy, labels=labels, label_smoothing=label_smoothing,
            ignore_value=problem.ignore_value, engine=engine,
        )  # fmt: skip
        logits: LinearLogits = input
        known = without_weightless(problem).kept()
        if known is not None:  # NaN in a row without known labels must not spread
            hidden = torch.where(known.any(-1, keepdim=True), logits.hidden, 0)
            logits = logits.with_hidden(hidden)
        return labels_behind_head(
            loss, logits, problem, row_weight=row_weight, reduction=reduction,
            normalizer=normalizer, empty=empty,
        )  # fmt: skip
    rows = _LabelRows(problem, row_weight, reduction, normalizer, empty)
    problem = rows.problem
    if labels == "mean":
        known = problem.kept()
        number = input.shape[rows.axis] if known is None else known.sum(rows.axis, keepdim=True)
        share = torch.ones((), dtype=torch.float64, device=input.device) / number
        problem = problem._replace(weight=share if weight is None else weight * share)
    wide = torch.promote_types(problem.dtype, torch.float32)
    problem = without_weightless(problem)._replace(body=_cross_entropy, form=Form(), dtype=wide)
    return rows.reduce(elements.values(problem, engine).sum(rows.axis, dtype=torch.float64))


def _cross_entropy(input: Tensor, target: Tensor, pos_weight: Tensor | None) -> Tensor:
    return Elements(input, target, pos_weight).nll


@member("other", proper=False, convex=True)
@takes_class_dim(elements=True)
def zlpr_loss(
    input: Tensor,
    target: Tensor,
    *,
    class_dim: int | None = None,
    ignore_value: float | None = None,
    row_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | Literal["count", "weight"] | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Zero-bounded log-sum-exp and pairwise rank-based loss of rows with several labels.

    Every label of a row should score above 0 and every other class below, and labels above other
    classes: softmax cross-entropy for any number of labels, with 0 as the score of the threshold.

    .. math:: \ell_n = \log\Bigl(1 + \sum_c (1 - t_{nc}) e^{z_{nc}}\Bigr)
        + \log\Bigl(1 + \sum_c t_{nc} e^{-z_{nc}}\Bigr)

    Use:
        For rows with several labels that should rank above all others; not when each label needs
        its probability, since the loss is not proper.

    Args:
        input: logits, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: labels 0 and 1 in the shape of ``input``, or numbers between; without gradient.
        class_dim: the axis of the labels.
        ignore_value: target that marks labels nobody knows. A row without known labels is left out.
        row_weight: factor on each row, in the shape of the rows; the mean divides by its sum.
        reduction: ``"none"``, ``"sum"`` or ``"mean"`` over the rows.
        normalizer: another divisor of the mean, as for :func:`multilabel_cross_entropy`.
        empty: ``"nan"`` as PyTorch, or ``"zero"``: the mean of no rows.

    Returns:
        A scalar, or the shape of the rows for ``reduction="none"``, in the dtype of ``input`` and
        ``target`` together (float32 under autocast).

    Raises:
        ValueError: for shapes that do not fit, targets outside [0, 1] (on the CPU), or an option.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[3.0, -3.0, -3.0], [0.0, 0.0, 0.0]])
        >>> target = torch.tensor([[1, 0, 0], [1, 1, 0]])
        >>> xent.losses.zlpr_loss(logits, target, reduction="none")
        tensor([0.1435, 1.7918])

    References:
        Su et al., *ZLPR: a novel loss for multi-label classification*, 2022.
    """
    problem = make_problem(input, target, None, None, ignore_value)
    if not isinstance(input, Tensor):
        loss = functools.partial(zlpr_loss, ignore_value=problem.ignore_value)
        return labels_behind_head(
            loss, input, problem, row_weight=row_weight, reduction=reduction,
            normalizer=normalizer, empty=empty,
        )  # fmt: skip
    rows = _LabelRows(problem, row_weight, reduction, normalizer, empty)
    problem = rows.problem
    elements.check_targets(problem)
    z, yes, no = problem.input.double(), problem.target.detach().double(), 1.0
    known = problem.kept()
    if known is not None:
        z, yes = torch.where(known, z, 0.0), torch.where(known, yes, 0.0)
        no = known.double()
    above = _log1p_sum(no - yes, z, rows.axis)
    return rows.reduce(above + _log1p_sum(yes, -z, rows.axis))


def _log1p_sum(share: Tensor, z: Tensor, axis: int) -> Tensor:
    """``log(1 + sum(share exp(z)))``, with all its digits where the sum is small."""
    there = share > 0
    exponents = torch.where(there, share.log() + torch.where(there, z, 0.0), -1e300)
    return -torch.nn.functional.logsigmoid(-torch.logsumexp(exponents, axis))


class _LabelRows:
    """The rows of a problem, and the options of the reduction over them, checked."""

    def __init__(
        self,
        problem: ElementProblem,
        row_weight: Tensor | None,
        reduction: str,
        normalizer: float | Tensor | str | None,
        empty: str,
    ) -> None:
        shape = problem.input.shape
        if not shape:
            raise ValueError("`input` must have an axis of labels: (C,), (N, C) or (N, C, d1, ...)")
        self.problem, self.axis = problem, class_axis(problem.input)
        self.shape = shape[: self.axis] + shape[self.axis + 1 :]
        self.dtype = problem.dtype
        known = problem.kept()
        self.kept = None if known is None else known.any(self.axis)
        self.options = read_reduction(
            reduction, normalizer, row_weight, empty, self.shape, problem.input.device
        )
        out = rows_left_out(self.options.row_weight)
        if out is not None:
            self.problem = mark_out(problem, out.unsqueeze(self.axis))

    def reduce(self, values: Tensor) -> Tensor:
        """Reduce the values of the rows as the caller asked."""
        mass = torch.ones_like(values) if self.kept is None else self.kept.to(values.dtype)
        return self.options.of(RowValues(values, self.kept, mass)).to(self.dtype)


def _with_margin(gamma_neg: float, gamma_pos: float, clip: float, detach_focus: bool) -> Form:
    return Form(
        gamma=gamma_pos, gamma_negative=gamma_neg, margin=clip, detached=float(detach_focus)
    )


@member("binary", proper=False, convex=False)
@element_loss(form=_with_margin)
def asymmetric_loss(
    e: Elements,
    gamma_neg: NonNegative = 4.0,
    gamma_pos: NonNegative = 1.0,
    clip: Fraction = 0.05,
    detach_focus: bool = False,
) -> Tensor:
    r"""Focal loss that gives easy negatives less weight than positives, and the easiest none.

    .. math:: \ell = \bigl(t (1 - p) + (1 - t) p_m\bigr)^{\gamma_+ t + \gamma_- (1 - t)}
        \bigl(-t \log p - (1 - t) \log(1 - p_m)\bigr), \qquad p_m = \max(p - m, 0)

    The official code adds the values up (``reduction="sum"``) and clamps its logarithms at
    ``1e-8``; here nothing is clamped. The two versions of that code differ in whether the focusing
    factor is differentiated.

    Use:
        For many labels of which a row has few; not for few balanced labels, of which
        :func:`~xent.losses.multilabel_cross_entropy` got more right in the ``multilabel``
        experiment.

    Args:
        gamma_neg: how much less weight negatives get that are right.
        gamma_pos: how much less weight positives get that are right.
        clip: the margin ``m``: negatives with a probability below ``m`` do not count.
        detach_focus: take the focusing factor for a constant in the gradient.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([2.0, 0.0, -4.0])
        >>> xent.losses.asymmetric_loss(logits, torch.tensor([1, 0, 0]), reduction="none")
        tensor([0.0151, 0.0245, 0.0000])

    References:
        Ridnik et al., *Asymmetric loss for multi-label classification*, ICCV 2021.
    """
    yes, no = e.target, 1 - e.target
    log_rest = e.log_miss
    prob, miss = e.log_prob.exp(), log_rest.exp()  # in less time than `e.prob` and `e.miss`
    shifted = (prob - clip).clamp(min=0)
    if clip:  # log(1 - p_m): from p_m where that is small, else from 1 - p_m = (1 - p) + m
        low = shifted < 0.5
        of_shifted = torch.log1p(-torch.where(low, shifted, 0.0))
        log_rest = torch.where(low, of_shifted, (miss + clip).log())
    focus = power(yes * miss + no * shifted, gamma_pos * yes + gamma_neg * no)
    if detach_focus:
        focus = focus.detach()
    return focus * (product(yes, -e.log_prob) + product(no, -log_rest))
