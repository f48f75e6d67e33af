"""The frame: turns a few lines on row statistics into a loss with everything around it.

logits + target --engine--> RowStatistics --the few lines--> one value per row
    --mask, weights, reduction, normaliser--> scalar
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .._check import one_of
from ..engines.rows import sum_of_nll
from ..engines.rows.problem import Problem
from ..heads import gradients
from ..heads.measure import measure
from ..heads.problem import HeadProblem, make_problem
from ..heads.stand_in import Lean
from ..hyperparameters import Hyperparameters
from ..overrides import overridable
from ..row_statistics import REQUESTS, RowStatistics
from ..targets import are_alike
from .by_chunks import reduce_problem
from .containers import through_containers
from .docstrings import loss_docstring
from .reduction import (
    Reduction,
    RowValues,
    divisor_of_labels,
    divisor_of_rows,
    leave_out,
    read_reduction,
)

Needs = str | tuple[str, ...] | Callable[..., tuple[str, ...]]

# What a loss may do to its logits and targets before the statistics are taken: options of
# `make_problem` by name.
OWN_OPTIONS = ("logit_scale", "class_bias", "class_scale", "mean_weight", "target_table")


def row_loss(
    body: Callable[..., Tensor] | None = None,
    *,
    needs: Needs = (),
    weighted: bool = False,
    soft: bool = True,
    own: Mapping[str, Callable[..., Any]] | None = None,
    rowwise: bool = True,
    plain: Callable[..., bool] = lambda **_: False,
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
    number of rows. Its docstring is that of the function, with these arguments explained.

    Args:
        body: the function; its parameters after the first are the loss's hyperparameters. Those
            annotated with a range of ``xent.hyperparameters`` are checked at every call.
        needs: statistics that must be asked for: ``"entropy"``, ``"mean"``, ``"top"``,
            ``"squares"``, ``"cubes"`` or several of them, or a function of the hyperparameters that
            returns them.
        weighted: the body applies the class weights itself (as ``s.nll`` does). Otherwise the
            frame multiplies each row by the weight of its target class.
        soft: whether probabilities make sense as targets. If not, they are refused.
        own: options that the loss sets itself, each a function of the hyperparameters:
            ``logit_scale``, ``class_bias``, ``class_scale`` (factor on the logits of each class),
            ``mean_weight`` (what ``mean`` weighs the classes by) or ``target_table`` (``(C, C)``:
            the soft target that stands for each class). The caller cannot set these.
        rowwise: what the body makes of a row depends on no other row. Behind a linear head it then
            sees a chunk of rows at a time.
        plain: whether, with these hyperparameters, the body is ``s.nll`` and nothing else, or
            ``-s.log_prob`` if it is not ``weighted``. Its gradient is known before the statistics
            are, so that some engines find both in one sweep.

    Returns:
        The loss.

    Raises:
        ValueError: for an unknown name in ``needs`` or ``own``.

    Example:
        >>> import torch, xent
        >>> @xent.row_loss
        ... def focal(s, gamma=2.0):
        ...     return -s.miss**gamma * s.log_prob
        >>> logits, target = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]]), torch.tensor([0, 1])
        >>> round(focal(logits, target, gamma=1.0).item(), 4)
        0.0725
        >>> focal(logits, target, reduction="none", weight=torch.tensor([1.0, 0.5, 1.0])).shape
        torch.Size([2])
    """
    if body is None:
        return functools.partial(
            row_loss,
            needs=needs,
            weighted=weighted,
            soft=soft,
            own=own,
            rowwise=rowwise,
            plain=plain,
        )
    parameters = list(inspect.signature(body).parameters.values())
    if not parameters:
        raise ValueError(
            f"@row_loss: {body.__name__}() must take the row statistics as its first parameter"
        )
    hyper = Hyperparameters(body)
    asked = needs if callable(needs) else lambda **_: (needs,) if isinstance(needs, str) else needs
    if not callable(needs):
        _check_needs(asked())
    sets = dict(own or {})
    for name in sets:
        one_of("own", name, OWN_OPTIONS)

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
        if not soft:
            refuse_probabilities(body.__name__, input, target)
        settings = hyper.settings(hyperparameters, input)
        options: dict[str, Any] = {"logit_scale": logit_scale, "class_bias": class_bias}
        for name, set_by in sets.items():
            if options.get(name) is not None:
                raise TypeError(f"{body.__name__}() sets `{name}` itself; leave it out")
            options[name] = set_by(**settings)
        if weighted:
            options.setdefault("mean_weight", weight)
        problem = make_problem(
            input, target, weight, ignore_index, softcap=softcap,
            requests=_check_needs(asked(**settings)), **options,
        )  # fmt: skip
        reduce = read_reduction(
            reduction, normalizer, problem.flat(row_weight), empty, problem.rows, problem.device
        )
        every_row = problem  # those of weight 0 among them, which have statistics
        problem, reduce = leave_out(problem, reduce)
        if inplace_backward:
            _refuse_shared_logits(input)

        def rows_of(part: Problem, stats: RowStatistics) -> RowValues:
            values = body(stats, **settings)
            if values.shape != part.rows:
                raise ValueError(
                    f"{body.__name__} must return one value per row, shape {tuple(part.rows)}; it "
                    f"returned shape {tuple(values.shape)}"
                )
            if not (weighted or part.settings.soft or weight is None):
                values = values * stats.mass
            kept, mass = None if stats.complete else part.kept(), stats.mass
            if part.settings.soft:
                mass = torch.ones_like(mass) if kept is None else kept.to(mass.dtype)
            return RowValues(values, kept, mass)

        ahead = isinstance(problem, HeadProblem) and rowwise and not return_stats
        if (
            ahead
            and reduction != "none"
            and hyper.fit_chunks(settings)
            and not gradients.needs_all((*problem.others, reduce.row_weight))
        ):

            def rows_of_chunk(part: Problem, _: Any) -> RowValues:
                # A chunk is nobody's but ours: its gradient takes the place of its logits.
                return rows_of(part, measure(part, engine, part.logits.is_leaf))

            result = reduce_problem(problem, rows_of_chunk, reduce, tuple(settings.values()))
            return result.to(problem.result_dtype())
        if reduction != "none" and not (return_stats or inplace_backward) and plain(**settings):
            total = None
            if not isinstance(problem, HeadProblem):
                total = sum_of_nll(
                    problem, reduce.row_weight, lambda: divisor_of_labels(problem, reduce), engine
                )
            if total is not None:
                return total.to(problem.result_dtype())
        apart = return_stats and problem is not every_row
        stats = measure(problem, engine, inplace_backward and not apart)
        result = reduce.of(rows_of(problem, stats)).to(problem.result_dtype())
        result = problem.unflat(result) if reduction == "none" else result
        if not return_stats:
            return result
        return result, problem.unflat(measure(every_row, engine) if apart else stats)

    common = [
        p
        for p in inspect.signature(loss, follow_wrapped=False).parameters.values()
        if p.name not in sets and p.kind is not p.VAR_KEYWORD
    ]
    loss.__signature__ = inspect.Signature([*common, *hyper.parameters])  # pyright: ignore
    loss.__doc__ = loss_docstring(body, [p.name for p in common], soft)
    loss.needs = asked  # pyright: ignore
    return overridable(through_containers(loss, divisor_of_rows, of_rows=True, rowwise=rowwise))


def _check_needs(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        one_of("needs", name, REQUESTS)
    return tuple(names)


def refuse_probabilities(name: str, input: Tensor, target: Tensor) -> None:
    """Raise for a soft target."""
    logits = isinstance(input, (Tensor, Lean)) and isinstance(target, Tensor)
    if logits and target.is_floating_point() and are_alike(target, input):
        raise ValueError(
            f"{name} takes one class per row, but `target` has the shape of `input`, which makes "
            f"it probabilities. Pass class indices, target.argmax(1) say"
        )


def _refuse_shared_logits(input: Tensor) -> None:
    """Gradients may overwrite logits only where nobody else reads them."""
    if isinstance(input, Lean):
        raise ValueError("inplace_backward=True is for logits; behind a linear head it is the rule")
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
