"""Row statistics behind a linear head as torch operators, by chunks, for compilers.

`torch.compile(fullgraph=True)` and `torch.export` put these operators into their graphs in the
place of all logits. The operators are those of ``engines/rows/operators.py`` with a head for the
logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engines.rows import MODULES
from ..engines.rows.operators import (
    SETTINGS,
    TENSORS,
    read_settings,
    refuse_inplace,
    settings_of,
)
from ..engines.rows.problem import Tensors
from . import gradients
from .logits import LinearLogits
from .problem import HeadProblem

_HEAD = ("Tensor hidden", "Tensor weight", "Tensor? bias")
_OPTIONS = ("SymInt max_workspace", "str? products", "str engine")
_QUESTION = ", ".join((*_HEAD, *TENSORS[1:], *SETTINGS, *_OPTIONS))
_COUNT = len(_HEAD) + len(TENSORS[1:])  # of tensors


def table_op(problem: HeadProblem, engine: str, inplace_backward: bool) -> Tensor:
    """Return the table of statistics, computed by the operator; differentiable."""
    refuse_inplace(inplace_backward)
    return head_statistics(*question(problem, engine))


def question(problem: HeadProblem, engine: str) -> tuple[Any, ...]:
    """Return a problem and its engine as arguments of an operator."""
    source = problem.source
    options = source.max_workspace, source.products, engine
    head = source.hidden, source.weight, source.bias
    return (*head, *problem.others, *settings_of(problem), *options)


def _read(given: tuple[Any, ...]) -> tuple[HeadProblem, Any]:
    """Return the problem and the engine from the arguments of an operator."""
    hidden, weight, bias, *others = given[:_COUNT]
    *settings, max_workspace, products, engine = given[_COUNT:]
    source = LinearLogits(hidden, weight, bias, max_workspace=max_workspace, products=products)
    tensors = Tensors(hidden, *others)
    problem = HeadProblem(source, tensors, read_settings(settings), hidden.shape[:1])
    return problem, MODULES[engine]


def _head_statistics(*given: Any) -> Tensor:
    """Return the table of statistics, (fields, N), in float64."""
    return gradients.find_statistics(*_read(given))[0]


head_statistics = torch.library.custom_op(
    "xent::head_statistics", _head_statistics, mutates_args=(), schema=f"({_QUESTION}) -> Tensor"
)


@head_statistics.register_fake
def _(hidden: Tensor, *rest: Any) -> Tensor:
    problem, _ = _read((hidden, *rest))
    return hidden.new_empty(problem.table_shape, dtype=torch.float64)


def _head_gradient(
    statistics: Tensor, partials: Tensor, needed: list[bool], *given: Any
) -> list[Tensor]:
    """Return the gradients of features, weight and bias that are needed."""
    problem, engine = _read(given)
    found = gradients.find_gradient(problem, statistics, partials.unbind(0), engine, needed)
    return [x for x in found if x is not None]


head_gradient = torch.library.custom_op(
    "xent::head_gradient",
    _head_gradient,
    mutates_args=(),
    schema=f"(Tensor statistics, Tensor partials, bool[] needed, {_QUESTION}) -> Tensor[]",
)


@head_gradient.register_fake
def _(statistics: Tensor, partials: Tensor, needed: list[bool], *given: Any) -> list[Tensor]:
    parts = zip(given[: len(_HEAD)], needed, strict=True)
    return [x.new_empty(x.shape) for x, wanted in parts if wanted]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:_COUNT], output)
    ctx.settings = inputs[_COUNT:]


def _backward(ctx: Any, partials: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, table = ctx.saved_tensors
    head = zip(ctx.needs_input_grad, tensors[: len(_HEAD)], strict=False)
    needed = [wanted and x is not None for wanted, x in head]
    found = iter(head_gradient(table, partials, needed, *tensors, *ctx.settings))
    none = (None,) * (len(tensors) - len(_HEAD) + len(ctx.settings))
    return (*(next(found) if wanted else None for wanted in needed), *none)


head_statistics.register_autograd(_backward, setup_context=_setup_context)
