"""The frame: turns a few lines on row statistics into a loss with everything around it.

logits + target --engine--> RowStatistics --the few lines--> one value per row
    --mask, weights, reduction, normaliser--> scalar
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ._check import finite_number, one_of, vector_of_classes
from .engines import Explanation, choose, measure, transforms_active
from .engines.problem import Problem
from .logits import make_transform
from .row_statistics import REQUESTS, RowStatistics
from .targets import class_axis, read_target

Reduction = Literal["none", "mean", "sum"]
Needs = str | tuple[str, ...] | Callable[..., tuple[str, ...]]


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
    first_class: int | None = None,
    engine: str = "auto",
) -> RowStatistics:
    """The row statistics themselves: log-odds, log-probability, lse and more; differentiable.

    Args:
        input: logits, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        target: class indices (int64 or uint8) in the shape of the rows, ``()``, ``(N,)`` or
            ``(N, d1, ...)``; or probabilities in the shape of ``input``.
        weight: class weights, ``(C,)``. They scale ``mass``, soft targets and ``mean``.
        ignore_index: class index that marks rows to leave out.
        logit_scale: factor on the logits, a number or one per row.
        softcap: replaces logits ``z`` by ``softcap * tanh(z / softcap)``, after the scale.
        class_bias: added to the logits, ``(C,)``, after scale and softcap.
        entropy: also compute the entropy of the predictions.
        mean: also compute the mean logit.
        top: also find the largest logit and its class.
        first_class: for logits that are one shard of the classes: the number of the first one.
            Targets outside the shard are then absent rather than wrong, and the statistics of all
            shards :meth:`~xent.RowStatistics.merge` into those of the whole.
        engine: ``"auto"``, ``"native"`` or ``"reference"``; see :func:`xent.explain`.

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
    requests = tuple(n for n, on in zip(REQUESTS, (entropy, mean, top), strict=True) if on)
    problem = _problem(
        input, target, weight, ignore_index, logit_scale, softcap, class_bias, requests, first_class
    )
    return measure(problem, engine)


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
    problem = _problem(input, target, weight, ignore_index, logit_scale, softcap, class_bias, ())
    return choose(problem, engine)


def _problem(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    logit_scale: float | Tensor | None,
    softcap: float | None,
    class_bias: Tensor | None,
    requests: tuple[str, ...],
    first_class: int | None = None,
) -> Problem:
    checked = read_target(input, target, ignore_index, first_class)
    axis = class_axis(input)
    rows = input.shape[:axis] + input.shape[axis + 1 :]
    classes = input.shape[axis]
    transform = make_transform(logit_scale, softcap, class_bias, rows, classes, input.device)
    if weight is not None:
        vector_of_classes("weight", weight, classes, input.device)
        same = weight.dtype == input.dtype or checked.soft or _autocasts(input)
        if not same:
            raise TypeError(
                f"expected `weight` of the logits' dtype {input.dtype} but found {weight.dtype}; "
                f"call weight.to(input.dtype)"
            )
    return Problem(input, checked, transform, weight, requests)


def _autocasts(input: Tensor) -> bool:
    """Whether autocast is on; it computes losses in float32, and so do we, without the copy."""
    return torch.is_autocast_enabled(input.device.type)


def result_dtype(problem: Problem) -> torch.dtype:
    """The dtype of a loss: what PyTorch's promotion makes of logits, soft targets and weights."""
    dtype = problem.logits.dtype
    if problem.target.soft:
        dtype = torch.promote_types(dtype, problem.target.values.dtype)
        if problem.class_weight is not None:
            dtype = torch.promote_types(dtype, problem.class_weight.dtype)
    return torch.float32 if _autocasts(problem.logits) and dtype.itemsize < 4 else dtype


def stable_sum(values: Tensor) -> Tensor:
    """The sum, with the same bits for any number of threads.

    PyTorch splits long sums over threads; rows of a matrix it sums one by one.
    """
    values = values.flatten()
    width = 4096
    while values.numel() > width and not torch.compiler.is_compiling():
        whole = values.numel() // width * width
        parts = values[:whole].view(-1, width).sum(-1)
        values = torch.cat([parts, values[whole:].sum().unsqueeze(0)])
    return values.sum()


def reduce_rows(
    values: Tensor,
    problem: Problem,
    stats: RowStatistics,
    *,
    reduction: str,
    normalizer: float | Tensor | str | None,
    row_weight: Tensor | None,
    empty: str,
) -> Tensor:
    """Weigh and add up one value per row; ignored rows count for nothing."""
    if not problem.target.soft:
        kept = problem.target.values != problem.target.ignore_index
        values = torch.where(kept, values, 0.0)
    if row_weight is not None:
        values = values * row_weight
    if reduction == "none":
        return values
    total = stable_sum(values)
    if reduction == "sum":
        return total
    if normalizer is None or normalizer == "weight":
        each = torch.ones_like(stats.mass) if problem.target.soft else stats.mass
        divisor = stable_sum(each if row_weight is None else each * row_weight)
    elif isinstance(normalizer, str):
        kept_rows = stats.mass.new_ones(stats.mass.shape)
        if not problem.target.soft:
            kept_rows = torch.where(problem.target.values != problem.target.ignore_index, 1.0, 0.0)
        divisor = stable_sum(kept_rows)
    else:
        divisor = torch.as_tensor(normalizer, dtype=total.dtype, device=total.device)
    if empty == "zero":
        divisor = torch.where(divisor == 0, 1.0, divisor)
    return total / divisor


def _check_reduction(
    reduction: str, normalizer: float | Tensor | str | None, row_weight: Tensor | None, empty: str,
    problem: Problem,
) -> Tensor | None:  # fmt: skip
    one_of("reduction", reduction, ("none", "mean", "sum"))
    one_of("empty", empty, ("nan", "zero"))
    if normalizer is not None:
        if reduction != "mean":
            raise ValueError(
                f'`normalizer` replaces what reduction="mean" divides by; with '
                f"reduction={reduction!r} nothing is divided. Leave one of the two out"
            )
        if isinstance(normalizer, str):
            one_of("normalizer", normalizer, ("weight", "count"))
        elif isinstance(normalizer, Tensor):
            if normalizer.ndim:
                raise ValueError(
                    f"`normalizer` must be a number or a 0-d tensor, got shape "
                    f"{tuple(normalizer.shape)}"
                )
        else:
            finite_number("normalizer", normalizer)
    if row_weight is None:
        return None
    if not isinstance(row_weight, Tensor):
        raise TypeError(f"`row_weight` must be a torch.Tensor, got {type(row_weight).__name__}")
    if row_weight.shape != problem.rows:
        raise ValueError(
            f"`row_weight` must hold one number per row, shape {tuple(problem.rows)}; got shape "
            f"{tuple(row_weight.shape)}"
        )
    return row_weight.to(torch.float64) if row_weight.device.type != "mps" else row_weight


def _check_needs(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        one_of("needs", name, REQUESTS)
    return tuple(names)


def _refuse_signed_mean(row_weight: Tensor, reduction: str, normalizer: object) -> None:
    """A mean over signed weights divides by their sum, which may be anything, even zero."""
    if reduction != "mean" or normalizer is not None or row_weight.device.type != "cpu":
        return
    if torch.compiler.is_compiling() or transforms_active():
        return
    if bool((row_weight < 0).any()):
        raise ValueError(
            '`row_weight` has negative entries, and reduction="mean" would divide by their sum. '
            'Say what to divide by: normalizer="count" for the number of rows, or a number'
        )


def _refuse_shared_logits(input: Tensor) -> None:
    """Gradients may overwrite logits only where nobody else reads them."""
    if not input.requires_grad:
        return
    owner = input if input._base is None else input._base
    if owner.is_leaf:
        raise ValueError(
            "inplace_backward=True writes the gradient over `input`, but its memory is that of a "
            "leaf: it is yours, not an intermediate result. Leave inplace_backward off"
        )
    reach = 0  # of the axes with smaller steps, in elements
    for step, n in sorted(zip(input.stride(), input.shape, strict=True)):
        if n > 1 and step <= reach:
            raise ValueError(
                "inplace_backward=True needs logits of their own memory; `input` overlaps itself"
            )
        reach += step * (n - 1)


def row_loss(
    body: Callable[..., Tensor] | None = None, *, needs: Needs = (), weighted: bool = False
) -> Any:
    r"""Turn a few lines on row statistics into a loss. A decorator.

    The decorated function takes a :class:`~xent.RowStatistics` and hyperparameters and returns one
    value per row. What comes out is a loss

    ``loss(input, target, weight=None, *, ignore_index=-100, reduction="mean", normalizer=None,
    row_weight=None, logit_scale=None, softcap=None, class_bias=None, return_stats=False,
    inplace_backward=False, empty="nan", engine="auto", **hyperparameters)``

    with index and soft targets, any number of dimensions, every engine and exact gradients; the
    arguments mean what they mean in :func:`xent.cross_entropy`. ``reduction="mean"`` divides by the
    summed class weight (times ``row_weight``) of the rows that are kept; with soft targets by the
    number of rows.

    Args:
        body: the function; its parameters after the first are the loss's hyperparameters.
        needs: statistics that must be asked for: ``"entropy"``, ``"mean"``, ``"top"`` or several
            of them, or a function of the hyperparameters that returns them.
        weighted: the body applies the class weights itself (as ``s.nll`` does). Otherwise the
            frame multiplies each row by the weight of its target class.

    Returns:
        The loss.

    Raises:
        ValueError: for an unknown name in ``needs``.

    Example:
        >>> import torch, xent
        >>> @xent.row_loss
        ... def focal(s, gamma=2.0):
        ...     return -torch.sigmoid(-s.log_odds) ** gamma * s.log_prob
        >>> logits, target = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]]), torch.tensor([0, 1])
        >>> round(focal(logits, target, gamma=1.0).item(), 4)
        0.0725
        >>> focal(logits, target, reduction="none", weight=torch.tensor([1.0, 0.5, 1.0])).shape
        torch.Size([2])
    """
    if body is None:
        return functools.partial(row_loss, needs=needs, weighted=weighted)
    parameters = list(inspect.signature(body).parameters.values())
    if not parameters:
        raise ValueError(
            f"@row_loss: {body.__name__}() must take the row statistics as its first parameter"
        )
    hyper = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters[1:]]
    asked = needs if callable(needs) else lambda **_: (needs,) if isinstance(needs, str) else needs
    if not callable(needs):
        _check_needs(asked())
    defaults = {p.name: p.default for p in hyper if p.default is not p.empty}

    @functools.wraps(body)
    def loss(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        normalizer: float | Tensor | str | None = None,
        row_weight: Tensor | None = None,
        logit_scale: float | Tensor | None = None,
        softcap: float | None = None,
        class_bias: Tensor | None = None,
        return_stats: bool = False,
        inplace_backward: bool = False,
        empty: Literal["nan", "zero"] = "nan",
        engine: str = "auto",
        **hyperparameters: Any,
    ) -> Tensor | tuple[Tensor, RowStatistics]:
        problem = _problem(
            input, target, weight, ignore_index, logit_scale, softcap, class_bias,
            _check_needs(asked(**{**defaults, **hyperparameters})),
        )  # fmt: skip
        row_weight = _check_reduction(reduction, normalizer, row_weight, empty, problem)
        if row_weight is not None:
            _refuse_signed_mean(row_weight, reduction, normalizer)
        if inplace_backward:
            _refuse_shared_logits(input)
        stats = measure(problem, engine, inplace_backward)
        values = body(stats, **hyperparameters)
        if values.shape != problem.rows:
            raise ValueError(
                f"{body.__name__} must return one value per row, shape {tuple(problem.rows)}; it "
                f"returned shape {tuple(values.shape)}"
            )
        if not (weighted or problem.target.soft or weight is None):
            values = values * stats.mass
        result = reduce_rows(
            values, problem, stats, reduction=reduction, normalizer=normalizer,
            row_weight=row_weight, empty=empty,
        ).to(result_dtype(problem))  # fmt: skip
        return (result, stats) if return_stats else result

    own = list(inspect.signature(loss, follow_wrapped=False).parameters.values())
    loss.__signature__ = inspect.Signature(own[:-1] + hyper)  # pyright: ignore
    return loss
