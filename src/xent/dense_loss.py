"""The second frame: losses that need all logits of a row at once, not a handful of numbers.

They say what they are of logits and target probabilities, classes last, in float64; the frame adds
the options that every loss has. For what is a function of row statistics, :func:`xent.row_loss` is
faster and keeps nothing of the size of the logits.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from ._check import label_out_of_range
from .docstrings import loss_docstring
from .engines.problem import Problem
from .engines.transforms import can_look_at
from .hyperparameters import Hyperparameters
from .measurement import make_problem, result_dtype
from .reduction import Reduction, check_reduction, reduce_rows

values_can_be_seen = can_look_at

F = TypeVar("F", bound=Callable[..., Any])


class DenseRows(NamedTuple):
    """What a dense loss is given, in float64 where the device has it."""

    logits: Tensor  # (N..., C), after scale, softcap and bias; -inf masks a class
    target: Tensor  # (N..., C), each row a distribution


def dense_loss(body: Callable[..., Tensor]) -> Any:
    """Turn a function of :class:`DenseRows` into a loss. A decorator.

    The options are those of :func:`xent.row_loss` but for the ones about engines and statistics,
    and class indices and probabilities are both targets. Class weights count by the target: with
    probabilities a row has the weight that its target expects.
    """
    hyper = Hyperparameters(body)

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
        empty: Literal["nan", "zero"] = "nan",
        **hyperparameters: Any,
    ) -> Tensor:
        settings = hyper.settings(hyperparameters, input)
        problem = make_problem(
            input, target, weight, ignore_index, logit_scale, softcap, class_bias, ()
        )
        row_weight = check_reduction(reduction, normalizer, row_weight, empty, problem.rows)
        rows, kept = _read(problem)
        values = body(rows, **settings)
        mass = torch.ones_like(values)
        if kept is not None:
            # Where labels cannot be looked at, one that does not exist has a loss of infinity.
            values = torch.where(rows.target.sum(-1) > 0, values, torch.inf)
            mass = kept.to(mass.dtype)
        if weight is not None:
            expected = (rows.target * weight.to(values.dtype)).sum(-1)
            values = values * expected
            mass = mass if kept is None else torch.where(kept, expected, 0)
        return reduce_rows(
            values, kept, mass, reduction=reduction, normalizer=normalizer, row_weight=row_weight,
            empty=empty,
        ).to(result_dtype(problem))  # fmt: skip

    shared = [
        p
        for p in inspect.signature(loss, follow_wrapped=False).parameters.values()
        if p.kind is not p.VAR_KEYWORD
    ]
    loss.__signature__ = inspect.Signature([*shared, *hyper.parameters])  # pyright: ignore
    loss.__doc__ = loss_docstring(body, [p.name for p in shared], soft=True)
    return loss


def _read(problem: Problem) -> tuple[DenseRows, Tensor | None]:
    """The rows, and for class indices which of them are kept."""
    wide = wide_dtype(problem.logits)
    x = problem.logits.movedim(problem.axis, -1).to(wide)
    target = problem.target
    if target.soft:
        q = target.values.movedim(problem.axis, -1)
        check_distribution("target", q)
        return DenseRows(problem.transform(x), q.to(wide)), None
    kept = target.values != target.ignore_index
    check_labels(target.values, problem.classes, target.ignore_index)
    classes = torch.arange(problem.classes, device=x.device)
    # What an ignored row holds must not leave a trace, not even 0 * NaN in a gradient.
    x = torch.where(kept.unsqueeze(-1), x, 0)
    return DenseRows(problem.transform(x), (classes == target.values.unsqueeze(-1)).to(wide)), kept


def check_labels(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Raise on a class index that does not exist, where looking is possible."""
    bad = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    if can_look_at(labels) and bool(bad.any()):
        raise label_out_of_range(int(labels[bad].flatten()[0]), classes, ignore_index)


def check_distribution(name: str, q: Tensor, at_most: bool = False) -> None:
    """Raise unless the last axis holds probabilities that add up to 1, or with ``at_most`` to less.

    Not where looking at values is impossible or would wait for a device.
    """
    if not can_look_at(q) or q.numel() == 0:
        return
    slack = max(1e-3, 4 * torch.finfo(q.dtype).eps)
    total = q.detach().sum(-1, dtype=torch.float64)
    off = (total - 1).clamp(min=0) if at_most else (total - 1).abs()
    if bool((q < 0).any()) or not bool((off <= slack).all()):
        found = f"sums from {total.min():.4g} to {total.max():.4g}, smallest entry {q.min():.4g}"
        raise ValueError(
            f"`{name}` must hold probabilities, none negative and each row adding up to "
            f"{'at most ' * at_most}1; got {found}. Divide each row by its sum"
        )


def wide_dtype(x: Tensor) -> torch.dtype:
    """What rows are worked on in: float64 where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def explained(function: F) -> F:
    """Explain in the docstring what all losses share, where it does not itself. A decorator."""
    doc = function.__doc__ or ""
    names = [n for n in inspect.signature(function).parameters if f"    {n}: " not in doc]
    function.__doc__ = loss_docstring(function, names, soft=False)
    return function
