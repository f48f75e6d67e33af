"""Losses of ordered classes and of discrete times: decisions between one class and the next.

C classes in order have C - 1 cutpoints between them. At each cutpoint there is a decision, and the
decisions are cross-entropies of single logits.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .._check import class_indices, is_tensor, whole_number
from .._series import log1mexp
from ..class_dim import takes_class_dim
from ..engines import elements
from ..engines.elements.problem import Form
from ..engines.modes import autocasts, refuse_where, widened
from ..engines.rows.labels import check_labels
from ..frames.element_checks import make_problem
from ..frames.element_head import reduce_values
from ..frames.reduction import Reduction, RowValues, read_reduction
from ..heads.logits import LinearLogits, are_logits
from ..heads.problem import flat_rows
from ..targets import class_axis
from .catalog import member
from .lists import events
from .multilabel import _cross_entropy as binary_cross_entropy


@member("other", proper=True, convex=True, second_pass=True)
@takes_class_dim(alike=())
def cumulative_loss(
    input: Tensor | LinearLogits,
    target: Tensor,
    *,
    class_dim: int | None = None,
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | Literal["count", "weight"] | None = None,
    empty: Literal["nan", "zero"] = "nan",
    engine: str = "auto",
) -> Tensor:
    r"""Cross-entropy of "is the class above k?", summed over all k (CORAL). In nats per row.

    .. math:: \ell = \sum_{k=0}^{C-2} -[y > k] \log \sigma(z_k) - [y \le k] \log \sigma(-z_k)

    ``sigmoid(z_k)`` is the probability that the class is above ``k``. CORAL gives all logits of a
    row one score and a bias each, so that the probabilities fall from one logit to the next; the
    loss itself asks for no such head.

    Use:
        For ordered classes such as ratings, with a question for each step; not for the
        probabilities of classes, unless the head keeps its logits in order.

    Args:
        input: logits, one fewer than there are classes: ``(C - 1,)``, ``(N, C - 1)`` or
            ``(N, C - 1, d1, ...)``; or :class:`xent.LinearLogits`.
        target: class indices from 0 to ``C - 1``, in the shape of the rows.
        class_dim: the axis of the logits of a row, as for :func:`xent.cross_entropy`.
        ignore_index: class index that marks rows to leave out.
        row_weight: factor on each row, in the shape of the rows; the mean divides by its sum.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of rows kept.
        normalizer: another divisor of the mean, as for :func:`xent.cross_entropy`.
        empty: ``"nan"`` as PyTorch, or ``"zero"``: the mean of no rows.
        engine: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``.

    Returns:
        A scalar, or the shape of the rows for ``reduction="none"``, in the dtype of ``input``
        (float32 under autocast).

    Raises:
        ValueError: for shapes that do not fit, a class index out of range, or an option.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> logits, target = torch.tensor([[2.0, -1.0], [3.0, 1.0]]), torch.tensor([1, 2])
        >>> xent.losses.cumulative_loss(logits, target, reduction="none")
        tensor([0.4402, 0.3618])

    References:
        Cao, Mirjalili & Raschka, *Rank consistent ordinal regression for neural networks*, Pattern
        Recognition Letters 2020.
    """
    y, kept = _read(input, target, ignore_index)
    return _decided(
        input, y, kept, torch.full_like(y, input.shape[class_axis(input)]), engine,
        reduction=reduction, normalizer=normalizer, row_weight=row_weight, empty=empty,
    )  # fmt: skip


@member("other", proper=True, convex=True, second_pass=True)
@takes_class_dim(alike=())
def continuation_loss(
    input: Tensor | LinearLogits,
    target: Tensor,
    event: Tensor | None = None,
    *,
    class_dim: int | None = None,
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | Literal["count", "weight"] | None = None,
    empty: Literal["nan", "zero"] = "nan",
    engine: str = "auto",
) -> Tensor:
    r"""Cross-entropy of "does it go on beyond k?", asked until the answer is no (CORN, hazards).

    .. math::
        \ell = \sum_{k < y} -\log \sigma(z_k) - [y < C - 1] \log \sigma(-z_y), \qquad
        \text{censored: } \sum_{k \le y} -\log \sigma(z_k)

    ``sigmoid(z_k)`` is the probability that the class is above ``k``, given that it is not below
    ``k``. So these are the log-probabilities of the classes for any logits, unlike those of
    :func:`cumulative_loss`. For discrete times ``sigmoid(-z_k)`` is the hazard of bin ``k``, and a
    row that was censored in bin ``y`` has survived it: minus the logarithm of ``P(Y > y)``. The
    last class is beyond all cutpoints, so a row censored there has the loss of an event.

    Use:
        For ordered classes, and for discrete survival times; not for classes without an order,
        which are for :func:`~xent.cross_entropy`.

    Args:
        input: logits, one fewer than there are classes: ``(C - 1,)``, ``(N, C - 1)`` or
            ``(N, C - 1, d1, ...)``; or :class:`xent.LinearLogits`.
        target: class indices from 0 to ``C - 1``, in the shape of the rows: the bin of the event,
            or the last bin in which a censored row was seen.
        event: in the shape of the rows: False or 0 for a row that was censored, of which no more is
            known than that it has survived bin ``y`` and all before. None if all is known.
        class_dim: the axis of the logits of a row, as for :func:`xent.cross_entropy`.
        ignore_index: class index that marks rows to leave out.
        row_weight: factor on each row, in the shape of the rows; the mean divides by its sum.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of rows kept.
            (The code of CORN divides by the number of questions instead.)
        normalizer: another divisor of the mean, as for :func:`xent.cross_entropy`.
        empty: ``"nan"`` as PyTorch, or ``"zero"``: the mean of no rows.
        engine: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``.

    Returns:
        In nats; a scalar, or the shape of the rows for ``reduction="none"``, in the dtype of
        ``input`` (float32 under autocast).

    Raises:
        ValueError: for shapes that do not fit, a class index out of range, an event that is neither
            0 nor 1 (looked for on the CPU), or an option.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> logits, target = torch.tensor([[2.0, -1.0], [3.0, 1.0]]), torch.tensor([1, 1])
        >>> xent.losses.continuation_loss(logits, target, reduction="none")
        tensor([0.4402, 1.3618])
        >>> event = torch.tensor([True, False])
        >>> xent.losses.continuation_loss(logits, target, event, reduction="none")
        tensor([0.4402, 0.3618])

    References:
        Shi, Cao & Raschka, *Deep neural networks for rank-consistent ordinal regression based on
        conditional probabilities*, Pattern Analysis and Applications 2023. Gensheimer &
        Narasimhan, *A scalable discrete-time survival model for neural networks*, PeerJ 2019.
    """
    y, kept = _read(input, target, ignore_index)
    above = y
    if event is not None:
        inside = y < input.shape[class_axis(input)]  # no cutpoint is above the last class
        above = y + (inside & ~events(event, ("target", target), kept)).long()
    return _decided(
        input, above, kept, y + 1, engine, reduction=reduction, normalizer=normalizer,
        row_weight=row_weight, empty=empty,
    )  # fmt: skip


def _read(input: Tensor | LinearLogits, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Check logits and classes; the result is that of :func:`_read_classes`."""
    are_logits("input", input)
    if not input.is_floating_point():
        raise TypeError(f"`input` must be floating point, got {input.dtype}; call input.float()")
    if input.ndim == 0:
        raise ValueError("`input` must have an axis of logits, one fewer than there are classes")
    axis = class_axis(input)
    shape, classes = input.shape[:axis] + input.shape[axis + 1 :], input.shape[axis] + 1
    return _read_classes(("input", input), shape, target, classes, ignore_index)


def _decided(
    input: Tensor | LinearLogits,
    target: Tensor,
    kept: Tensor,
    asked: Tensor,
    engine: str,
    **reduction: Any,
) -> Tensor:
    """Cross-entropy of the first ``asked`` decisions of each row: is the target above k?"""
    shape = target.shape
    reduce = read_reduction(rows=shape, device=input.device, **reduction)
    kept, reduce = reduce.counting(kept)
    asked = torch.where(kept, asked, 0)

    def of_rows(z: Tensor, axis: int, target: Tensor, asked: Tensor) -> Tensor:
        k = torch.arange(z.shape[axis], device=z.device).view(-1, *[1] * (z.ndim - 1 - axis))
        yes = (k < target.unsqueeze(axis)).to(z.dtype)
        yes = torch.where(k < asked.unsqueeze(axis), yes, -1.0)
        problem = make_problem(z, yes, None, None, -1.0)
        wide = torch.promote_types(problem.dtype, torch.float32)
        problem = problem._replace(body=binary_cross_entropy, form=Form(), dtype=wide)
        values = elements.values(problem, engine).sum(axis, dtype=torch.float64)
        return torch.where(target > len(k), torch.inf, values)  # there is no such class

    dtype = torch.float32 if input.dtype.itemsize < 4 and autocasts(input) else input.dtype
    if isinstance(input, Tensor):
        values = of_rows(input, class_axis(input), target, asked)
        return reduce.of(RowValues(values, kept, kept.to(values.dtype))).to(dtype)
    target, asked, kept, weight = flat_rows(shape, target, asked, kept, reduce.row_weight)
    result = reduce_values(
        input, lambda z, index: of_rows(z, 1, target[index], asked[index]), kept,
        (target, asked), reduce._replace(row_weight=weight),
    ).to(dtype)  # fmt: skip
    return result.view(shape) if reduce.reduction == "none" else result


@member("other", proper=True, convex=True, second_pass=True)
def cumulative_link_loss(
    score: Tensor,
    cutpoints: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    row_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | Literal["count", "weight"] | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Negative log-likelihood of proportional odds: a score falls between two cutpoints.

    .. math:: \ell = -\log \bigl(\sigma(c_y - s) - \sigma(c_{y-1} - s)\bigr), \qquad
        c_{-1} = -\infty, \quad c_{C-1} = \infty

    The logarithm of the difference is the sum of the logarithms of :math:`\sigma(c_y - s)`, of
    :math:`\sigma(s - c_{y-1})` and of :math:`1 - e^{c_{y-1} - c_y}`, so the loss is finite however
    far the score is from its class.

    Use:
        For ordered classes and a model with one score per row; not when two classes differ by more
        than one score can say.

    Args:
        score: ``s``, one number per row, of any shape.
        cutpoints: ``c``, increasing, ``(C - 1,)``. To learn cutpoints that stay so, learn the first
            one and the logarithms of the differences: ``first + logs.exp().cumsum(0)``.
        target: class indices from 0 to ``C - 1``, in the shape of ``score``.
        ignore_index: class index that marks rows to leave out.
        row_weight: factor on each row, in the shape of ``score``; the mean divides by its sum.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the number of rows kept.
        normalizer: another divisor of the mean, as for :func:`xent.cross_entropy`.
        empty: ``"nan"`` as PyTorch, or ``"zero"``: the mean of no rows.

    Returns:
        In nats; a scalar, or the shape of ``score`` for ``reduction="none"``, in its dtype.

    Raises:
        ValueError: for shapes that do not fit, a class index out of range, cutpoints that do not
            increase (looked for on the CPU), or an option.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> score, cutpoints = torch.tensor([-1.0, 0.0, 40.0]), torch.tensor([-1.0, 1.0])
        >>> target = torch.tensor([0, 1, 0])
        >>> xent.losses.cumulative_link_loss(score, cutpoints, target, reduction="none")
        tensor([ 0.6931,  0.7719, 41.0000])

    References:
        McCullagh, *Regression models for ordinal data*, JRSS B 1980.
    """
    for name, x in (("score", score), ("cutpoints", cutpoints)):
        is_tensor(name, x)
        if not x.is_floating_point():
            raise TypeError(f"`{name}` must be floating point, got {x.dtype}; call {name}.float()")
    classes = _check_cutpoints(cutpoints, score)
    y, kept = _read_classes(("score", score), score.shape, target, classes, ignore_index)
    reduce = read_reduction(reduction, normalizer, row_weight, empty, score.shape, score.device)
    kept, reduce = reduce.counting(kept)
    s, c = torch.where(kept, widened(score), 0.0), widened(cutpoints)
    first, last = y == 0, y >= classes - 1
    lower, upper = (
        c.gather(0, k.clamp(0, classes - 2).flatten()).view(y.shape) for k in (y - 1, y)
    )
    sides = torch.nn.functional.logsigmoid(torch.stack([upper - s, s - lower]))
    ends = torch.stack([last, first])  # where a side is infinite
    inner = first | last
    width = torch.where(inner, 1.0, upper - lower)
    values = torch.where(inner, 0.0, -log1mexp(width)) - torch.where(ends, 0.0, sides).sum(0)
    values = torch.where(y == classes, torch.inf, values)  # there is no such class
    return reduce.of(RowValues(values, kept, kept.to(values.dtype))).to(score.dtype)


def _check_cutpoints(cutpoints: Tensor, score: Tensor) -> int:
    """The number of classes; raise unless the cutpoints are increasing numbers."""
    if cutpoints.ndim != 1 or len(cutpoints) == 0:
        raise ValueError(
            f"`cutpoints` must hold the numbers between C classes, (C - 1,), at least one; got "
            f"shape {tuple(cutpoints.shape)}"
        )
    if cutpoints.device != score.device:
        raise ValueError(f"`score` is on {score.device} but `cutpoints` on {cutpoints.device}")
    refuse_where(
        ~(cutpoints.diff() > 0),
        lambda: ValueError(
            "`cutpoints` must increase from each to the next. Sort them; or learn the first one "
            "and the logarithms of the differences: first + logs.exp().cumsum(0)"
        ),
        "`cutpoints` must increase",
    )
    return len(cutpoints) + 1


def _read_classes(
    input: tuple[str, Any], rows: torch.Size, target: Tensor, classes: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The class of each row, and which rows are kept; checked.

    An ignored row has class 0. A class that does not exist is ``classes`` where that cannot be
    looked for.
    """
    name, x = input
    target, ignore_index = (
        class_indices("target", target),
        whole_number("ignore_index", ignore_index),
    )
    if target.shape != rows:
        raise ValueError(
            f"`target` must hold a class for each row of `{name}`, shape {tuple(rows)}; got shape "
            f"{tuple(target.shape)}"
        )
    if target.device != x.device:
        raise ValueError(f"`{name}` is on {x.device} but `target` on {target.device}")
    check_labels(target, classes, ignore_index)
    kept = target != ignore_index
    known = (target >= 0) & (target < classes)
    return torch.where(kept, torch.where(known, target, classes), 0), kept
