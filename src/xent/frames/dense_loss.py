"""The second frame: losses that need all logits of a row, because no few statistics suffice.

The body of such a loss is a function of logits and target, classes last, in float64; the frame
adds the options that every loss has.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar, overload

import torch
from torch import Tensor

from .._probabilities import sums_to_1
from ..class_dim import takes_class_dim
from ..engines import dense
from ..engines.choice import Explanation
from ..engines.dense.problem import DenseProblem, Form, form_for
from ..engines.modes import wide_dtype
from ..engines.rows.labels import check_labels
from ..engines.rows.problem import Problem
from ..heads.logits import LinearLogits, outline
from ..heads.measure import how_logits_come
from ..heads.problem import HeadProblem, make_problem
from ..hyperparameters import Hyperparameters
from ..overrides import overridable
from .by_chunks import reduce_problem
from .containers import through_containers
from .dense_rows import DenseRows, by_rows
from .docstrings import described, loss_docstring
from .reduction import (
    Normalizer,
    Reduce,
    Reduction,
    RowValues,
    divisor_of_rows,
    leave_out,
    read_reduction,
    rows_left_out,
    stable_sum,
)
from .row_checks import refuse_probabilities

F = TypeVar("F", bound=Callable[..., Any])


class DenseLoss(Protocol):
    """A loss of all logits of a row, as :func:`dense_loss` makes it."""

    __name__: str

    def __call__(
        self,
        input: Tensor | LinearLogits,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        class_dim: int | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        normalizer: Normalizer = None,
        row_weight: Tensor | None = None,
        logit_scale: float | Tensor | None = None,
        softcap: float | None = None,
        class_bias: Tensor | None = None,
        empty: Literal["nan", "zero"] = "nan",
        **hyperparameters: Any,
    ) -> Tensor:
        """The loss."""
        ...


@overload
def dense_loss(body: Callable[..., Tensor]) -> DenseLoss: ...


@overload
def dense_loss(
    *, soft: bool = True, form: Callable[..., Form | None] | None = None
) -> Callable[[Callable[..., Tensor]], DenseLoss]: ...


def dense_loss(
    body: Callable[..., Tensor] | None = None,
    *,
    soft: bool = True,
    form: Callable[..., Form | None] | None = None,
) -> Any:
    """Turn a function of all logits of a row into a loss. A decorator, with or without options.

    The decorated function takes :class:`xent.DenseRows` and hyperparameters and returns one value
    per row, in plain operations. A function of few statistics is better made by
    :func:`xent.row_loss`, which has kernels and keeps nothing of the size of the logits. What comes
    out has the options of a :func:`xent.row_loss` but those for statistics and engines. Large
    inputs are computed some rows at a time, and behind a linear head a chunk of logits at a time.
    Targets are class indices or probabilities. A class weight is a factor on the rows of the class;
    with probabilities the factor of a row is the mean of the class weights under its target.

    Args:
        body: the function; its parameters after the first are the loss's hyperparameters. Those
            annotated with a range of ``xent.hyperparameters`` are checked at every call. Behind a
            linear head a tensor with a number per class must be annotated so, as ``ClassVector``
            say: any other tensor may hold a number per row, and then all logits are computed.
        soft: whether probabilities make sense as targets. If not, they are refused.
        form: how kernels compute the same for class indices, from the hyperparameters; None where
            they cannot. Only for losses of this library, whose kernels are written.

    Returns:
        The loss.

    Raises:
        ValueError: by the loss, if the function returns anything but one value per row.

    Example:
        >>> import torch, xent
        >>> @xent.dense_loss
        ... def cubic(rows, power=3.0):
        ...     error = torch.softmax(rows.logits, -1) - rows.target
        ...     return error.abs().pow(power).sum(-1)
        >>> logits, target = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
        >>> cubic(logits, target, reduction="none")
        tensor([0.0034, 1.3667])
        >>> cubic(xent.LinearLogits(torch.randn(5, 3), torch.randn(9, 3)), torch.arange(5)).shape
        torch.Size([])
    """
    if body is None:
        return functools.partial(_made, soft=soft, form=form)
    return _made(body, soft, form)


def _made(
    body: Callable[..., Tensor], soft: bool, form: Callable[..., Form | None] | None
) -> DenseLoss:
    """The loss of a body and its form."""
    hyper = Hyperparameters(body)

    @functools.wraps(body)
    def loss(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        *,
        class_dim: int | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        normalizer: float | Tensor | str | None = None,
        row_weight: Tensor | None = None,
        logit_scale: float | Tensor | None = None,
        softcap: float | None = None,
        class_bias: Tensor | None = None,
        empty: Literal["nan", "zero"] = "nan",
        **hyperparameters: Any,
    ) -> Tensor:
        settings = hyper.settings(hyperparameters, input)
        if not soft:
            refuse_probabilities(body.__name__, input, target)
        problem = make_problem(
            input, target, weight, ignore_index, logit_scale, softcap, class_bias
        )
        known_form = _form_of(form, problem, settings)
        reduce = read_reduction(
            reduction, normalizer, problem.flat(row_weight), empty, problem.rows, problem.device
        )
        if problem.settings.soft:
            _check_distributions(problem, reduce)
        problem, reduce = leave_out(problem, reduce)
        whole = functools.partial(_value_of_each, body, settings)
        if known_form is not None:
            return _reduce_labelled(problem, whole, known_form, reduce, weight)

        together = hyper.may_be_of_rows(settings)  # then no part of the rows goes alone
        values_of = functools.partial(_values_by_operations, whole, weight, together)
        return reduce_problem(
            problem, values_of, reduce, tuple(settings.values()), chunks=hyper.fit_chunks(settings)
        ).to(problem.result_dtype())

    explanation = functools.partial(_explanation, hyper, form)
    loss.explanation = takes_class_dim(explanation)  # pyright: ignore
    explain = functools.partial(loss_docstring, body, soft=soft)
    made = described(loss, hyper.parameters, (), explain)
    entry = through_containers(made, divisor_of_rows, of_rows=True)
    return overridable(takes_class_dim(entry, short=made))


def _check_distributions(problem: Problem, reduce: Reduce) -> None:
    """Raise unless the soft targets of the rows that count sum to 1."""
    q = problem.tensors.target.movedim(problem.axis, -1)
    out = rows_left_out(reduce.row_weight)
    if out is not None:
        q = torch.where(out.unsqueeze(-1), 1 / problem.classes, q)
    sums_to_1("target", q)


def _value_of_each(
    body: Callable[..., Tensor], settings: dict[str, Any], rows: DenseRows
) -> Tensor:
    """The values of a body; raise unless it is one for each row."""
    values = body(rows, **settings)
    if values.shape != rows.logits.shape[:-1]:
        raise ValueError(
            f"{body.__name__} must return one value per row, shape "
            f"{tuple(rows.logits.shape[:-1])}; it returned shape {tuple(values.shape)}"
        )
    return values + 0.0  # no minus 0 of a row that has one class only


def _form_of(
    form: Callable[..., Form | None] | None, problem: Problem, settings: dict[str, Any]
) -> Form | None:
    """The form of a problem for kernels; None if they cannot compute it."""
    known = None if form is None or problem.settings.soft else form(**settings)
    return form_for(known, problem.dtype)


def _explanation(
    hyper: Hyperparameters,
    form: Callable[..., Form | None] | None,
    input: Tensor | LinearLogits,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    logit_scale: float | Tensor | None = None,
    softcap: float | None = None,
    class_bias: Tensor | None = None,
    engine: str = "auto",
    **hyperparameters: Any,
) -> Explanation:
    """The engine that a call of a loss with these arguments takes, and why."""
    settings = hyper.settings(hyperparameters, input)
    problem = make_problem(input, target, weight, ignore_index, logit_scale, softcap, class_bias)
    head = problem if isinstance(problem, HeadProblem) else None
    known_form = _form_of(form, problem, settings)
    return explain_dense(input, None, target, weight, known_form, head, engine)


def explain_dense(
    input: Tensor | LinearLogits,
    teacher: Tensor | LinearLogits | None,
    target: Tensor | None,
    weight: Tensor | None,
    form: Form | None,
    head: HeadProblem | None,
    engine: str,
) -> Explanation:
    """The engine for logits and what they are compared with, and why."""
    logits, other = outline(input), None if teacher is None else outline(teacher)
    # The class weights stand for those of the rows, which are made of them.
    problem = DenseProblem(logits, other, target, weight, _no_body, form, 1.0, -100, logits.dtype)
    plan = dense.choose(problem, engine)
    if head is None:
        return plan
    gradient, products = how_logits_come(head)
    return plan._replace(gradient=gradient, products=products)


def _no_body(*_: Tensor | None) -> Tensor:
    raise NotImplementedError


def _values_by_operations(
    body: Callable[[DenseRows], Tensor],
    weight: Tensor | None,
    together: bool,
    part: Problem,
    _: Any,
) -> RowValues:
    """The values of some rows in plain operations; ``together`` for all of them in one call."""
    rows, kept, known = _read(part)
    values = body(rows) if together else by_rows(lambda *some: body(DenseRows(*some)), *rows)
    mass = torch.ones_like(values)
    if kept is not None:
        # Where labels cannot be looked at, one that does not exist has a loss of infinity.
        values = torch.where(known, values, torch.inf)
        mass = kept.to(mass.dtype)
    if weight is not None:
        expected = rows.expected(weight.to(values.dtype))
        values = values * expected
        mass = mass if kept is None else torch.where(kept, expected, 0)
    return RowValues(values, kept, mass)


def _reduce_labelled(
    problem: Problem,
    body: Callable[[DenseRows], Tensor],
    form: Form,
    reduce: Reduce,
    weight: Tensor | None,
) -> Tensor:
    """The reduction of a loss of class indices that has a kernel."""
    dtype = problem.result_dtype()
    if not isinstance(problem, HeadProblem):
        rows, kept = _labelled(problem, body, form, weight)
        return reduce_rows(rows._replace(dtype=dtype), kept, reduce)

    def values_of(part: Problem, _: Any) -> RowValues:
        rows, kept = _labelled(part, body, form, weight)
        assert rows.row_weight is not None
        return RowValues(dense.values(rows), kept, rows.row_weight)

    return reduce_problem(problem, values_of, reduce).to(dtype)


def _labelled(
    problem: Problem, body: Callable[[DenseRows], Tensor], form: Form, weight: Tensor | None
) -> tuple[DenseProblem, Tensor]:
    """The rows of class indices for an engine, and a mask of the kept ones."""
    labels, ignore_index = problem.tensors.target, problem.settings.ignore_index
    wide, classes, axis = wide_dtype(problem.logits), problem.classes, problem.axis
    kept = labels != ignore_index
    if weight is None:
        mass = kept.to(wide)
    else:
        inside = (labels >= 0) & (labels < classes)
        # `weight[labels]` would read a number of a label under vmap, which cannot do that.
        of_rows = weight.to(wide).index_select(0, torch.where(inside, labels, 0).flatten())
        mass = torch.where(kept, of_rows.view(labels.shape), 0)
    logits, transform = problem.logits, problem.transform
    if transform.softcap or transform.tensors:
        z = logits.movedim(axis, -1).to(wide)
        z = transform(torch.where(kept.unsqueeze(-1), z, 0))  # an ignored row may hold NaN
        logits = z.movedim(-1, axis)

    def values(logits: Tensor, _: Tensor | None, labels: Tensor | None) -> Tensor:
        assert labels is not None
        check_labels(labels, classes, ignore_index)
        known = (labels >= 0) & (labels < classes)
        rows = (logits.to(wide), None, torch.where(known, labels, 0))
        found = by_rows(lambda *some: body(DenseRows(*some)), *rows)
        # Where labels cannot be looked at, one that does not exist has a loss of infinity.
        return torch.where(known, found, torch.inf)

    rows = DenseProblem(logits, None, labels, mass, values, form, 1.0, ignore_index, wide)
    return rows, kept


def _read(problem: Problem) -> tuple[DenseRows, Tensor | None, Tensor]:
    """The rows; for class indices also masks of the kept rows and of those with a valid class."""
    wide = wide_dtype(problem.logits)
    x = problem.logits.movedim(problem.axis, -1).to(wide)
    values, ignore_index = problem.tensors.target, problem.settings.ignore_index
    if problem.settings.soft:
        q = values.movedim(problem.axis, -1)
        return DenseRows(problem.transform(x), q.to(wide), None), None, values
    check_labels(values, problem.classes, ignore_index)
    kept, known = values != ignore_index, (values >= 0) & (values < problem.classes)
    # An ignored row may hold NaN; without `where` a gradient would hold 0 * NaN.
    z = problem.transform(torch.where(kept.unsqueeze(-1), x, 0))
    return DenseRows(z, None, torch.where(known, values, 0)), kept, known


def reduce_rows(
    problem: DenseProblem, kept: Tensor | None, reduce: Reduce, engine: str = "auto"
) -> Tensor:
    """The reduction of the rows of a problem.

    Args:
        problem: its row weights are what each row adds to the divisor of the mean, None for 1.
        kept: mask of the rows that count, None for all.
        reduce: the options of the call.
        engine: the engine to ask for.
    """
    mass, row_weight = problem.row_weight, reduce.row_weight
    if reduce.reduction == "none" or reduce.learned():
        each = dense.values(problem._replace(dtype=torch.float64), engine)
        ones = torch.ones_like(each) if mass is None else mass
        return reduce.of(RowValues(each, kept, ones)).to(problem.dtype)
    weight = mass if row_weight is None else row_weight if mass is None else mass * row_weight

    def result(values: Tensor) -> Tensor:
        total = stable_sum(values)
        if reduce.reduction == "sum":
            return total
        ones = torch.ones_like(total).expand(problem.rows) if mass is None else mass
        return reduce.by(total, reduce.divisor(RowValues(values, kept, ones)))

    def divisor() -> float | str | None:
        normalizer = reduce.normalizer
        if reduce.reduction == "sum":
            return None
        if normalizer == "count" and kept is not None:
            return float(kept.sum())
        if normalizer is None or isinstance(normalizer, str):
            return normalizer or "weight"
        return float(normalizer)

    weighted = problem._replace(row_weight=weight)
    return dense.loss(weighted, divisor, reduce.empty == "zero", result, engine)


def explained(function: F) -> F:
    """Make a loss overridable, and add the arguments that all losses share to its docstring."""
    doc = function.__doc__ or ""
    names = [n for n in inspect.signature(function).parameters if f"    {n}: " not in doc]
    function.__doc__ = loss_docstring(function, names, soft=False)
    return overridable(function)
