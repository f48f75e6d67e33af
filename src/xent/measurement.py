"""What a user may ask of rows of logits without a loss: their statistics, and which engine runs."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ._check import vector_of_classes, whole_number
from .engines.choice import Explanation
from .engines.modes import autocasts
from .engines.rows.problem import Problem
from .heads.logits import LinearLogits
from .heads.measure import choose, measure
from .logits import LogitTransform, make_transform
from .overrides import overridable
from .row_statistics import INDEX_ONLY, REQUESTS, RowStatistics
from .targets import are_alike, class_axis, read_target


@overridable
def statistics(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    logit_scale: float | Tensor | None = None,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    entropy: bool = False,
    mean: bool = False,
    top: bool = False,
    squares: bool = False,
    cubes: bool = False,
    class_scale: Tensor | None = None,
    first_class: int | None = None,
    engine: str = "auto",
) -> RowStatistics:
    """The row statistics themselves: log-odds, log-probability, lse and more; differentiable.

    Args:
        input: logits, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices of any integer type in the shape of the rows, ``()``, ``(N,)`` or
            ``(N, d1, ...)``; or probabilities in the shape of ``input``.
        weight: class weights, ``(C,)``. They scale ``mass``, soft targets and ``mean``.
        ignore_index: class index that marks rows to leave out.
        logit_scale: factor on the logits, a number or one per row.
        softcap: replaces logits ``z`` by ``softcap * tanh(z / softcap)``, after the scale.
        class_bias: added to the logits, ``(C,)``, after scale and softcap.
        entropy: also compute the entropy of the predictions.
        mean: also compute the mean logit.
        top: also find the largest logit and its class, and the same among the classes that are not
            the target (index targets).
        squares: also sum the squared probabilities of the classes that are not the target.
        cubes: likewise the third powers.
        class_scale: factor on the logits of each class, ``(C,)``, after scale and softcap and
            before ``class_bias``.
        first_class: for logits that are one shard of the classes: the number of the first one.
            Targets outside the shard are then absent rather than wrong, and the statistics of all
            shards :meth:`~xent.RowStatistics.merge` into those of the whole.
        engine: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``; see :func:`xent.explain`.

    Returns:
        :class:`xent.RowStatistics`, float64, in nats.

    Raises:
        ValueError: for shapes that do not fit, a class index out of range, or an engine that
            cannot do it.
        TypeError: for dtypes that do not fit.

    Example:
        >>> import torch, xent
        >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        >>> s = xent.statistics(logits, torch.tensor([0, 2]), entropy=True)
        >>> [round(v, 4) for v in s.prob.tolist()], [round(v, 4) for v in s.entropy.tolist()]
        ([0.6652, 0.3333], [0.8324, 1.0986])

        Two halves of the classes, merged:

        >>> a = xent.statistics(logits[:, :1], torch.tensor([0, 2]), first_class=0)
        >>> b = xent.statistics(logits[:, 1:], torch.tensor([0, 2]), first_class=1)
        >>> [round(v, 4) for v in a.merge(b).prob.tolist()]
        [0.6652, 0.3333]
    """
    wanted = (entropy, mean, top, squares, cubes)
    requests = tuple(name for name, on in zip(REQUESTS, wanted, strict=True) if on)
    shape = None
    if isinstance(input, LinearLogits):
        shape = input.shape[:-1]
        input, target, _, logit_scale, softcap = flatten(input, target, None, logit_scale, softcap)
    problem = make_problem(
        input, target, weight, ignore_index, logit_scale, softcap, class_bias, requests,
        first_class=first_class, class_scale=class_scale, mean_weight=weight,
    )  # fmt: skip
    stats = measure(problem, engine)
    return stats if shape is None else stats.reshape(shape)


def explain(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    logit_scale: float | Tensor | None = None,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    engine: str = "auto",
) -> Explanation:
    """Which engine a call with these arguments takes, and why. Computes nothing.

    Args:
        input: logits, as for :func:`statistics`, and so are the other arguments.
        target: class indices or probabilities.
        weight: class weights.
        ignore_index: class index that marks rows to leave out.
        logit_scale: factor on the logits.
        softcap: cap on the logits.
        class_bias: added to the logits.
        engine: the engine to ask for.

    Returns:
        An :class:`Explanation`: ``engine``, ``reason`` and ``gradient``; prints as text.

    Raises:
        ValueError: if a named engine cannot do it; the message says why.

    Example:
        >>> import torch, xent
        >>> plan = xent.explain(torch.randn(4, 10), torch.tensor([0, 1, 2, 3]), engine="reference")
        >>> print(plan)
        engine: reference (as asked)
        gradient: autograd on plain tensor operations
    """
    if isinstance(input, LinearLogits):
        input, target, _, logit_scale, softcap = flatten(input, target, None, logit_scale, softcap)
    problem = make_problem(
        input, target, weight, ignore_index, logit_scale, softcap, class_bias, ()
    )
    return choose(problem, engine)


def make_problem(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    logit_scale: float | Tensor | None,
    softcap: float | None,
    class_bias: Tensor | None,
    requests: tuple[str, ...],
    *,
    first_class: int | None = None,
    class_scale: Tensor | None = None,
    mean_weight: Tensor | None = None,
    target_table: Tensor | None = None,
    target_name: str = "target",
) -> Problem:
    """Check the arguments of a call against each other, and put them the way engines take them."""
    first_class = None if first_class is None else whole_number("first_class", first_class)
    checked = read_target(input, target, ignore_index, first_class, target_name)
    axis = class_axis(input)
    rows = input.shape[:axis] + input.shape[axis + 1 :]
    classes = input.shape[axis]
    transform = make_transform(
        logit_scale, softcap, class_bias, rows, classes, input.device, class_scale
    )
    if isinstance(input, LinearLogits):
        input, transform = _absorb(input, transform)
    if target_table is not None:
        if first_class is not None:
            raise ValueError(
                "a table of targets needs all classes; with `first_class` leave it out"
            )
        if target_table.shape != (classes, classes) or target_table.device != input.device:
            raise ValueError(
                f"`target_table` must have a row for each class, shape ({classes}, {classes}), on "
                f"{input.device}; got shape {tuple(target_table.shape)} on {target_table.device}"
            )
        checked = checked._replace(table=target_table, soft=True)
    if checked.soft and set(requests) & set(INDEX_ONLY):
        raise ValueError("squares and cubes are known for class indices only, not for soft targets")
    if mean_weight is not None and mean_weight is not weight:
        vector_of_classes("mean_weight", mean_weight, classes, input.device)
    if weight is not None:
        vector_of_classes("weight", weight, classes, input.device)
        same = weight.dtype == input.dtype or checked.soft or autocasts(input)
        if not same:
            raise TypeError(
                f"expected `weight` of the logits' dtype {input.dtype} but found {weight.dtype}; "
                f"call weight.to(input.dtype)"
            )
    return Problem(input, checked, transform, weight, requests, mean_weight).settled()


def _absorb(source: LinearLogits, transform: LogitTransform) -> tuple[Any, LogitTransform]:
    """Make a scale or bias that wants a gradient part of the head, which has one by chunks."""
    scale, _, bias, class_scale = transform
    wanted = [t is not None and t.requires_grad for t in (scale, bias)]
    capped = transform.softcap or class_scale is not None
    per_row = scale is not None and scale.ndim and source.bias is not None
    if not torch.is_grad_enabled() or not any(wanted) or per_row or (capped and wanted[1]):
        return source, transform
    if capped:
        return source.absorb(scale, None), transform._replace(scale=None)
    return source.absorb(scale, bias), transform._replace(scale=None, class_bias=None)


def result_dtype(problem: Problem) -> torch.dtype:
    """The dtype of a loss: what PyTorch's promotion makes of logits, soft targets and weights.

    Autocast computes losses in float32, and so do we, without the copy.
    """
    dtype = problem.logits.dtype
    if problem.target.soft and problem.target.table is None:
        dtype = torch.promote_types(dtype, problem.target.values.dtype)
        if problem.class_weight is not None:
            dtype = torch.promote_types(dtype, problem.class_weight.dtype)
    return torch.float32 if autocasts(problem.logits) and dtype.itemsize < 4 else dtype


class FlatCall(NamedTuple):
    """A call on logits behind a head: rows on one axis, what was recorded among the options."""

    input: Tensor  # LinearLogits: engines take them as logits
    target: Tensor
    row_weight: Tensor | None
    logit_scale: float | Tensor | None
    softcap: float | None


def flatten(
    input: LinearLogits,
    target: Any,
    row_weight: Tensor | None,
    logit_scale: float | Tensor | None,
    softcap: float | None,
) -> FlatCall:
    """Bring a call into the form that engines take."""
    rows = input.shape[:-1]
    scale, cap = input.recorded()
    if cap is not None and (softcap is not None or logit_scale is not None):
        raise ValueError(
            "these LinearLogits have a softcap already; leave out `softcap` and `logit_scale`"
        )
    if logit_scale is not None:
        scale = logit_scale if scale is None else scale * logit_scale
    if isinstance(target, Tensor):
        soft = target.is_floating_point() and are_alike(target, cast(Tensor, input))
        if not soft and target.shape != rows:
            squeeze = ". Pass target.squeeze(-1)" * (target.shape == (*rows, 1))
            raise ValueError(
                f"`target` must have shape {tuple(rows)} to hold one class index for each row of "
                f"logits behind a linear head, or the shape of the logits; got "
                f"{tuple(target.shape)}{squeeze}"
            )
    target, row_weight, scale = flat_rows(rows, target, row_weight, scale)
    cap = cap if softcap is None else softcap
    return FlatCall(cast(Tensor, input.bare()), target, row_weight, scale, cap)


def problem_of(logits: LinearLogits) -> Problem:
    """Logits behind a head alone, with any target: rows on one axis, recorded scale and cap."""
    call = flatten(logits, None, None, None, None)
    anything = torch.zeros(call.input.shape[0], dtype=torch.int64, device=logits.device)
    return make_problem(call.input, anything, None, -100, call.logit_scale, call.softcap, None, ())


def flat_rows(rows: torch.Size, *values: Any) -> tuple[Any, ...]:
    """Tensors whose first axes are those of the rows, with one axis in their place."""
    return tuple(
        x.reshape(-1, *x.shape[len(rows) :])
        if isinstance(x, Tensor) and x.shape[: len(rows)] == rows
        else x
        for x in values
    )
