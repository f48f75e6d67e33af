"""Losses of log-probabilities, with the names and the arguments of PyTorch's functions.

If you have logits, :func:`xent.cross_entropy` and :func:`xent.losses.distillation_loss` keep more
digits: a log-probability in float32 cannot tell 1 - 1e-9 from 1.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from .._check import broadcasts_to, is_tensor, one_of
from .._probabilities import log_probabilities, probabilities
from ..class_dim import takes_class_dim
from ..engines.modes import autocasts, wide_dtype, widened
from ..engines.rows.labels import check_labels
from ..frames.reduction import (
    Reduction,
    RowValues,
    leave_out,
    read_reduction,
    rows_left_out,
    stable_sum,
    weigh,
)
from ..frames.row_checks import refuse_probabilities
from ..heads.log_probs import LinearLogProbs
from ..heads.problem import make_problem
from .catalog import member
from .classification import _legacy_reduction, cross_entropy


@member("other", proper=True, convex=True)
@takes_class_dim(refuses=False)
def nll_loss(
    input: Tensor | LinearLogProbs,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    *,
    class_dim: int | None = None,
    normalizer: float | Tensor | str | None = None,
    row_weight: Tensor | None = None,
    empty: Literal["nan", "zero"] = "nan",
) -> Tensor:
    r"""Negative log-likelihood: minus the log-probability of the target. In nats.

    A drop-in for :func:`torch.nn.functional.nll_loss` that refuses what is no log-probability.

    .. math:: \ell_n = -w_{y_n} \log p_{n, y_n}

    Use:
        For log-probabilities that a model returns already; not for logits, which
        :func:`~xent.cross_entropy` takes with more digits.

    Args:
        input: log-probabilities, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``; or those of a linear
            head, ``torch.log_softmax`` of :class:`xent.LinearLogits`, the classes on the last axis.
        target: class indices of any integer type, in the shape of the rows, ``()``, ``(N,)`` or
            ``(N, d1, ...)``.
        weight: class weights, ``(C,)``.
        size_average: deprecated in PyTorch; use ``reduction``.
        ignore_index: class index that marks rows to leave out.
        reduce: deprecated in PyTorch; use ``reduction``.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, which divides by the summed class weight of
            the rows that are kept.
        class_dim: the axis of the classes, as for :func:`cross_entropy`.
        normalizer: another divisor of the mean: a number or 0-d tensor, ``"count"`` for the
            number of rows kept, ``"weight"`` for the rule above.
        row_weight: factor on each row, in the shape of the rows; the mean divides by its sum, too.
            0 leaves a row out, whatever it holds.
        empty: ``"nan"`` as PyTorch, or ``"zero"``: the mean of no rows.

    Returns:
        A scalar, or the shape of the rows for ``reduction="none"``, in the dtype of ``input``
        (float32 under autocast).

    Raises:
        ValueError: for shapes that do not fit, numbers above 0 (looked for on the CPU), a class
            index out of range, or a value an option cannot take.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> log_p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]).log()
        >>> xent.nll_loss(log_p, torch.tensor([0, 2]), reduction="none")
        tensor([0.3567, 2.3026])
    """
    if size_average is not None or reduce is not None:
        reduction = _legacy_reduction(size_average, reduce)
    refuse_probabilities("nll_loss", input, target)
    if isinstance(input, LinearLogProbs):
        log_probs: Any = input
        if log_probs.sign > 0:
            result = cross_entropy(
                log_probs.logits, target, weight, ignore_index=ignore_index, reduction=reduction,
                normalizer=normalizer, row_weight=row_weight, empty=empty,
            )  # fmt: skip
            return result
        input = input.materialize_for("nll_loss")
    problem = make_problem(input, target, weight, ignore_index)
    how = read_reduction(reduction, normalizer, row_weight, empty, problem.rows, input.device)
    problem, how = leave_out(problem, how)
    labels, ignored = problem.tensors.target, problem.settings.ignore_index
    check_labels(labels, problem.classes, ignored)
    kept, known = labels != ignored, (labels >= 0) & (labels < problem.classes)
    log_p = input.movedim(problem.axis, -1)  # (..., C)
    log_probabilities("input", log_p, kept.unsqueeze(-1))
    label = torch.where(known, labels, 0)
    values = -log_p.gather(-1, label.unsqueeze(-1)).squeeze(-1).to(wide_dtype(input))
    mass = torch.ones_like(values) if weight is None else weight.to(values.dtype)[label]
    # Where labels cannot be read, a label that does not exist gets an infinite loss.
    values = torch.where(known, values * mass, torch.inf)
    rows = RowValues(values, kept, torch.where(kept, mass, 0.0))
    return how.of(rows).to(problem.result_dtype())


@member("other", proper=True, convex=True, second_pass=True)
def kl_div(
    input: Tensor | LinearLogProbs,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Literal["none", "batchmean", "sum", "mean"] = "mean",
    log_target: bool = False,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Kullback-Leibler divergence of a target from log-probabilities, element by element.

    A drop-in for :func:`torch.nn.functional.kl_div` without NaN: a target of 0 counts 0, whatever
    is predicted for it (PyTorch: NaN where the prediction is 0, too, or the target is given as a
    logarithm). For divergences of whole distributions use :func:`xent.information.kl_divergence`,
    for logits :func:`xent.losses.distillation_loss`.

    .. math:: \ell = t \, (\log t - \log p), \qquad 0 \log 0 = 0

    The derivative by a target of 0 is infinite; the gradient given for it is 0.

    Use:
        For programs written for PyTorch's function, on log-probabilities; not for logits, which are
        for :func:`~xent.losses.distillation_loss`.

    Args:
        input: log-probabilities, of any shape.
        target: probabilities in the shape of ``input``; with ``log_target`` their logarithms.
            Nothing is broadcast.
        size_average: deprecated in PyTorch; use ``reduction``.
        reduce: deprecated in PyTorch; use ``reduction``.
        reduction: ``"none"``, ``"sum"``, ``"batchmean"``, which divides by the length of the first
            axis (a 0-d input by 1) and is the mean divergence of rows ``(N, C)``, or ``"mean"``,
            which divides by the number of elements and warns, as in PyTorch, because the result is
            not the mean divergence.
        log_target: whether ``target`` holds logarithms.
        weight: factor on each element; broadcasts to the shape of ``input``: ``(C,)`` for class
            weights of ``(N, C)``. 0 leaves an element out, whatever it holds.

    Returns:
        In nats; a scalar, or the shape of ``input`` for ``reduction="none"``, in the dtype of
        ``input`` and ``target`` together (float32 under autocast).

    Raises:
        ValueError: for shapes that do not fit, log-probabilities above 0 or a target outside [0, 1]
            (looked for on the CPU), or a value an option cannot take.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> p, t = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.75, 0.0]])
        >>> xent.kl_div(p.log(), t, reduction="none")
        tensor([[-0.1733,  0.3041,  0.0000]])
        >>> round(xent.kl_div(p.log(), t.log(), reduction="batchmean", log_target=True).item(), 4)
        0.1308
    """
    if size_average is not None or reduce is not None:
        reduction = _legacy_reduction(size_average, reduce)
    one_of("reduction", reduction, ("none", "batchmean", "sum", "mean"))
    if isinstance(input, LinearLogProbs):
        input = input.materialize_for("kl_div")
    _check_pair(input, target)
    if weight is not None:
        is_tensor("weight", weight)
        broadcasts_to("weight", weight, input)
        if weight.is_complex():
            raise TypeError(f"`weight` must hold real numbers, got {weight.dtype}")
        weight = weight.to(wide_dtype(input)).expand(input.shape)
    out = rows_left_out(weight)
    counted = None if out is None else ~out
    log_probabilities("input", input, counted)
    (log_probabilities if log_target else probabilities)("target", target, counted)
    log_p, t = input.to(wide_dtype(input)), widened(target)
    none = (t == -torch.inf) if log_target else (t == 0)
    none = none if out is None else none | out
    t, log_p = torch.where(none, 1.0 - log_target, t), torch.where(none, 0.0, log_p)
    q, log_q = (t.exp(), t) if log_target else (t, t.log())
    values = weigh(torch.where(none, 0.0, q * (log_q - log_p)), None, weight)
    dtype = torch.promote_types(input.dtype, target.dtype)
    dtype = torch.float32 if autocasts(input) and dtype.itemsize < 4 else dtype
    if reduction == "none":
        return values.to(dtype)
    total = stable_sum(values)
    if reduction == "mean":
        warnings.warn(
            "reduction='mean' divides by the number of elements, rows times classes; the mean "
            "divergence of the rows is reduction='batchmean'",
            stacklevel=3,
        )
        total = total / values.new_tensor(input.numel())
    elif reduction == "batchmean" and input.ndim:
        total = total / values.new_tensor(input.shape[0])
    return total.to(dtype)


def _check_pair(input: Tensor, target: Tensor) -> None:
    for name, value in (("input", input), ("target", target)):
        is_tensor(name, value)
        if not value.is_floating_point():
            hint = "; class indices are for xent.nll_loss" if name == "target" else ""
            raise TypeError(f"`{name}` must be floating point, got {value.dtype}{hint}")
    if input.shape != target.shape:
        raise ValueError(
            f"`target` must have the shape of `input`, {tuple(input.shape)}, got "
            f"{tuple(target.shape)}; nothing is broadcast here: pass target.expand_as(input)"
        )
    if input.device != target.device:
        raise ValueError(f"`input` is on {input.device} but `target` on {target.device}")
