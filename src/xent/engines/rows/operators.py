"""The engines with kernels as torch operators: one for the statistics, one for the gradient.

`torch.compile(fullgraph=True)` and `torch.export` put these operators into their graphs. Eager code
does not use them: an operator registered from Python takes three times as long as a plain
autograd.Function.

The schemas are made of the fields of :class:`Tensors` and :class:`Settings`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor

from . import MODULES
from .problem import Problem, Settings, Tensors

_SEPARATOR = ","  # operators take no tuples of names
TENSORS = [  # as schemas declare them
    f"Tensor{'?' if name in Tensors._field_defaults else ''} {name}" for name in Tensors._fields
]
_TYPES = {bool: "bool", int: "SymInt", float: "float"}
# Shards of classes are no arguments of operators: compilers refuse them before.
_KINDS = {k: kind for k, kind in get_type_hints(Settings).items() if k != "shard"}
SETTINGS = [f"{_TYPES.get(kind, 'str')} {name}" for name, kind in _KINDS.items()]
_QUESTION = ", ".join([*TENSORS, *SETTINGS, "str engine"])


def table_op(problem: Problem, engine: str, inplace_backward: bool) -> Tensor:
    """Return the table of statistics, computed by the operator; differentiable."""
    refuse_inplace(inplace_backward)
    return row_statistics(*question(problem, engine))


def refuse_inplace(inplace_backward: bool) -> None:
    """Raise if the gradient is asked for in the memory of the logits."""
    if inplace_backward:
        raise ValueError(
            "inplace_backward=True cannot be compiled; leave the memory to the compiler"
        )


def question(problem: Problem, engine: str) -> tuple[Any, ...]:
    """Return a problem and its engine as arguments of an operator."""
    return (*problem.tensors, *settings_of(problem), engine)


def settings_of(problem: Problem) -> tuple[Any, ...]:
    """Return the settings of a problem as arguments of an operator."""
    *settings, requests, _ = problem.settings
    return (*settings, _SEPARATOR.join(requests))


def read_settings(given: Sequence[Any]) -> Settings:
    """Return settings from the arguments of an operator."""
    *settings, requests = given
    return Settings(*settings, requests=tuple(x for x in requests.split(_SEPARATOR) if x))


def _read(given: tuple[Any, ...]) -> tuple[Problem, Any]:
    """Return the problem and the engine from the arguments of an operator."""
    count = len(Tensors._fields)
    *settings, engine = given[count:]
    return Problem(Tensors(*given[:count]), read_settings(settings)), MODULES[engine]


def _row_statistics(*given: Any) -> Tensor:
    """Return the table of statistics, (fields, N...), in float64."""
    problem, engine = _read(given)
    return engine.row_statistics(problem)[0]


row_statistics = torch.library.custom_op(
    "xent::row_statistics", _row_statistics, mutates_args=(), schema=f"({_QUESTION}) -> Tensor"
)


@row_statistics.register_fake
def _(logits: Tensor, *rest: Any) -> Tensor:
    problem, _ = _read((logits, *rest))
    return logits.new_empty(problem.table_shape, dtype=torch.float64)


def _row_gradient(statistics: Tensor, partials: Tensor, *given: Any) -> Tensor:
    """Return the gradient of the logits."""
    problem, engine = _read(given)
    return engine.row_gradient(problem, statistics, partials.unbind(0))


row_gradient = torch.library.custom_op(
    "xent::row_gradient",
    _row_gradient,
    mutates_args=(),
    schema=f"(Tensor statistics, Tensor partials, {_QUESTION}) -> Tensor",
)


@row_gradient.register_fake
def _(statistics: Tensor, partials: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    count = len(Tensors._fields)
    ctx.save_for_backward(*inputs[:count], output)
    ctx.settings = inputs[count:]


def _backward(ctx: Any, partials: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, table = ctx.saved_tensors
    gradient = row_gradient(table, partials, *tensors, *ctx.settings)
    return (gradient,) + (None,) * (len(tensors) - 1 + len(ctx.settings))


row_statistics.register_autograd(_backward, setup_context=_setup_context)
