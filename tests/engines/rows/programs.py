"""Losses of rows as programs for the core, the same in torch, and two ways to run programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad, softplus

from xent.engines.core import TYPES, _core
from xent.row_statistics import FIELDS, INDEX, field_mask, fields_of

NOWHERE = (0, 0, 0, 1, 0, 1)  # the arguments for a missing matrix


def number(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the same, with 1.0 for true and 0.0 for false."""
    return lambda *operands: function(*operands).double()


# Operations with a slope by every operand, and operations without slopes.
ONE = {
    "neg": torch.neg,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sigmoid": torch.sigmoid,
    "logsigmoid": logsigmoid,
    "softplus": softplus,
    "tanh": torch.tanh,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "relu": torch.relu,
}
TWO = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}
FLAT_ONE = {
    "detach": Tensor.detach,
    "logical_not": number(torch.logical_not),
    "isfinite": number(torch.isfinite),
    "isnan": number(torch.isnan),
}
FLAT_TWO = {
    name: number(getattr(torch, name))
    for name in ("gt", "ge", "lt", "le", "eq", "ne", "logical_and", "logical_or")
}
IN_TORCH: dict[str, Callable[..., Tensor]] = {
    **ONE, **TWO, **FLAT_ONE, **FLAT_TWO, "where": lambda a, b, c: torch.where(a != 0, b, c),
}  # fmt: skip


class Tape:
    """Record a program step by step; every method returns a register."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, tuple[int, ...], float]] = []

    def __call__(self, operation: str, *operands: int, constant: float = 0.0) -> int:
        self.steps.append((operation, operands, constant))
        return len(self.steps) - 1

    def field(self, name: str) -> int:
        return self("field", INDEX[name])

    def input(self, place: int) -> int:
        return self("input", place)

    def constant(self, value: float) -> int:
        return self("constant", constant=value)

    def program(self) -> Any:
        """Return the program for the core."""
        codes = {name: code for code, name in enumerate(_core.OPERATIONS)}
        return _core.Program(
            [(codes[name], *operands, *(0,) * (3 - len(operands)), c)
             for name, operands, c in self.steps]
        )  # fmt: skip

    def in_torch(self, fields: dict[str, Tensor], inputs: list[Tensor]) -> Tensor:
        """Return the value of every row by torch."""
        register: list[Tensor] = []
        some = next(iter(fields.values()))
        for name, operands, c in self.steps:
            if name == "field":
                register.append(fields[FIELDS[operands[0]]])
            elif name == "input":
                register.append(inputs[operands[0]].expand_as(some))
            elif name == "constant":
                register.append(torch.full_like(some, c, requires_grad=False))
            else:
                register.append(IN_TORCH[name](*[register[k] for k in operands]))
        return register[-1]


class Call(NamedTuple):
    """A call of the core. Rows are all axes of the logits but the second."""

    logits: Tensor
    labels: Tensor | None = None
    soft: Tensor | None = None  # (N, C), or with labels a table (C, C)
    requests: tuple[str, ...] = ()
    weight: Tensor | None = None
    row_weight: Tensor | None = None
    inputs: tuple[Tensor, ...] = ()
    scale: Tensor | None = None
    softcap: float = 0.0
    class_scale: Tensor | None = None
    class_bias: Tensor | None = None
    ignore_index: int = -100

    @property
    def rows(self) -> int:
        return self.logits.numel() // self.logits.shape[1]

    @property
    def mask(self) -> int:
        return field_mask(self.soft is not None, self.requests)

    def vector(self, x: Tensor | None, keep: list[Tensor]) -> int:
        """Return the address of a number per class, in the type of the sweep, padded with zeros."""
        if x is None:
            return 0
        wide = torch.float64 if self.logits.dtype == torch.float64 else torch.float32
        keep.append(pad(x.to(wide), (0, 32)))
        return keep[-1].data_ptr()

    def arguments(self, keep: list[Tensor]) -> tuple[Any, ...]:
        """Return the first arguments of both ways."""
        labels = 0 if self.labels is None else self.labels.data_ptr()
        scale = self.scale
        transform = (
            0 if scale is None else scale.data_ptr(),
            scale is not None and scale.ndim > 0,
            self.softcap,
            self.vector(self.class_scale, keep),
            self.vector(self.class_bias, keep),
        )
        weight = self.vector(self.weight, keep)
        return (
            matrix(self.logits), self.rows, self.logits.shape[1],
            (labels, self.ignore_index, 0, False), matrix(self.soft), transform, (weight, weight),
        )  # fmt: skip

    def in_one(
        self, tape: Tape, divisor: tuple[int, float, bool] = (0, 0.0, False), slope: float = 1.0,
        gradient: bool = True, dtype: torch.dtype | None = None,
    ) -> tuple[Any, Tensor, Tensor]:  # fmt: skip
        """Compute loss and gradient in one call; return the core's answer, loss and gradient."""
        keep: list[Tensor] = []
        out = torch.full_like(self.logits, 7.0)
        loss = torch.full((), 7.0, dtype=dtype or self.logits.dtype)
        weight = self.row_weight
        answer = _core.loss(
            tape.program(), *self.arguments(keep), self.mask,
            [(x.data_ptr(), int(x.ndim > 0)) for x in self.inputs],
            0 if weight is None else weight.data_ptr(), divisor, slope, loss.data_ptr(),
            TYPES[loss.dtype], matrix(out) if gradient else NOWHERE,
        )  # fmt: skip
        return answer, loss, out

    def in_two(self, tape: Tape, divisor: float, slope: float = 1.0) -> tuple[Tensor, Tensor]:
        """Compute the loss and the gradient by two sweeps, with torch's autograd between them.

        Rows that are left out must be marked to be ignored.
        """
        keep: list[Tensor] = []
        names = fields_of(self.mask)
        table = torch.empty(len(names), self.rows, dtype=torch.float64)
        _core.row_statistics(*self.arguments(keep), table.data_ptr(), self.mask)
        fields = [row.clone().requires_grad_() for row in table]
        values = tape.in_torch(dict(zip(names, fields, strict=True)), list(self.inputs))
        if self.labels is not None:
            values = torch.where(self.labels.flatten() != self.ignore_index, values, 0.0)
        if self.row_weight is not None:
            values = values * self.row_weight
        loss = values.sum() / divisor
        partials = torch.autograd.grad(loss * slope, fields, allow_unused=True)
        slopes = [(0, 0) if p is None else (held(p, keep), 1) for p in partials]
        out = torch.full_like(self.logits, 7.0)
        _core.row_gradient(*self.arguments(keep), table.data_ptr(), self.mask, slopes, matrix(out))
        return loss.detach(), out


def held(x: Tensor, keep: list[Tensor]) -> int:
    """Return the address of a tensor, which is kept alive."""
    keep.append(x.contiguous())
    return keep[-1].data_ptr()


def matrix(x: Tensor | None) -> tuple[int, ...]:
    """Return rows of (N, C) or (N, C, d)."""
    if x is None:
        return NOWHERE
    step, inner = x.stride(), x.shape[2] if x.ndim == 3 else 1
    return (
        x.data_ptr(), TYPES[x.dtype], step[0], inner, step[2] if x.ndim == 3 else 0, step[1],
    )  # fmt: skip


def cross_entropy(smoothing: float = 0.0, z_loss: float = 0.0) -> Tape:
    """Record the body of ``xent.cross_entropy``."""
    t = Tape()
    mass = t.field("mass")
    loss = t("mul", t("neg", t.field("log_prob")), mass)
    if smoothing:
        uniform = t("sub", t("mul", t.field("mean_mass"), t.field("lse")), t.field("mean"))
        kept = t("mul", t.constant(1 - smoothing), loss)
        loss = t("add", kept, t("mul", t.constant(smoothing), uniform))
    if z_loss:
        square = t("pow", t.field("lse"), t.constant(2.0))
        loss = t("add", loss, t("mul", t("mul", t.constant(z_loss), mass), square))
    return t


def focal(gamma: float = 2.0) -> Tape:
    """Record the body of ``xent.losses.focal_loss``."""
    t = Tape()
    log_miss = t("logsigmoid", t("neg", t.field("log_odds")))
    share = t("exp", t("mul", t.constant(gamma), log_miss))
    t("mul", t("neg", share), t.field("log_prob"))
    return t
