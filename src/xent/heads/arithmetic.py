"""Arithmetic that is recorded on logits behind a head: scales, softcaps, sums, masks of classes.

The answers are NotImplemented where the result is not a head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .logits import LinearLogits

# ---- factors -------------------------------------------------------------------------------------


def times(z: LinearLogits, other: Any) -> LinearLogits:
    """Record a factor: a number, one per row ``(..., 1)`` or one per class; or close a softcap."""
    if z.capped and not isinstance(other, Tensor) and other == z.softcap:
        return z._with(capped=False)
    if z.capped or z.softcap is not None:
        return NotImplemented
    if z.masked and not is_positive(other):
        return NotImplemented
    if is_scalar(other):
        return z._with(scale=z.scale * other, divisor=None)
    if is_per_row(other, z.shape):
        rows = other.expand(*z.shape[:-1], 1).squeeze(-1)
        dtype = torch.promote_types(z.dtype, other.dtype)
        return z._with(scale=z.scale * rows, divisor=None, dtype=dtype)
    if is_per_class(other, z.shape):
        per_class = other.reshape(-1)
        scaled = z._with(
            weight=z.weight * per_class.unsqueeze(-1),
            bias=None if z.bias is None else z.bias * per_class,
            divisor=None, dtype=torch.promote_types(z.dtype, other.dtype),
        )  # fmt: skip
        return _of_one_type(scaled)
    return NotImplemented


def divided(z: LinearLogits, other: Any, *, rounding_mode: str | None = None) -> LinearLogits:
    """Record a division by a number, by one per row or by one per class."""
    if z.capped or z.softcap is not None or rounding_mode is not None:
        return NotImplemented
    if isinstance(other, (int, float)) and other == 0:
        return NotImplemented
    if is_scalar(other):
        cap = float(other) if isinstance(other, (int, float)) and other > 0 else None
        return z._with(scale=z.scale / other, undivided=z.scale, divisor=cap)
    if is_per_row(other, z.shape) or is_per_class(other, z.shape):
        quotient = times(z, 1 / other)
        if isinstance(quotient, LinearLogits):  # 1 / other is float32 for integers
            assert isinstance(other, Tensor)
            quotient.dtype = torch.promote_types(z.dtype, other.dtype)
        return quotient
    return NotImplemented


def tanh(z: LinearLogits) -> LinearLogits:
    """Record the first half of a softcap, after a division by the cap."""
    if z.softcap is not None or z.divisor is None or z.masked:  # a cap would unmask the classes
        return NotImplemented
    return z._with(softcap=z.divisor, scale=z.undivided, divisor=None, capped=True)


# ---- sums ----------------------------------------------------------------------------------------


def plus(z: LinearLogits, other: Any, *, alpha: float = 1) -> LinearLogits:
    """Add a number for each class to the bias; or add other logits of the same rows."""
    if alpha != 1:
        other = other * alpha
    if isinstance(other, LinearLogits):
        return _sum(z, other)
    per_row = isinstance(z.scale, Tensor) and z.scale.ndim > 0
    if (
        z.softcap is not None
        or (per_row and z.bias is not None)
        or not is_per_class(other, z.shape)
    ):
        return NotImplemented
    dtype = torch.promote_types(z.dtype, other.dtype)
    joined = _without_scale(z).absorb(None, other.reshape(-1))
    return _of_one_type(joined._with(divisor=None, dtype=dtype))


def _without_scale(z: LinearLogits) -> LinearLogits:
    """Return the same logits with the scale in the features."""
    if not isinstance(z.scale, Tensor) and z.scale == 1.0:
        return z
    scale = torch.as_tensor(z.scale, dtype=torch.float64, device=z.device)
    return _of_one_type(z.absorb(scale, None)._with(scale=1.0, divisor=None))


def _of_one_type(z: LinearLogits) -> LinearLogits:
    """Return the same logits with features and weight in the wider of their types."""
    if z.hidden.dtype == z.weight.dtype:
        return z
    wide = torch.promote_types(z.hidden.dtype, z.weight.dtype)
    return z._with(hidden=z.hidden.to(wide), weight=z.weight.to(wide))


def _sum(a: LinearLogits, b: LinearLogits) -> LinearLogits:
    """The sum of two heads over the same classes: one head with the features side by side."""
    b.unchanged()
    per_row = any(
        x.bias is not None and isinstance(x.scale, Tensor) and x.scale.ndim for x in (a, b)
    )
    if a.shape != b.shape or a.softcap is not None or b.softcap is not None or per_row:
        return NotImplemented
    biases = [x.bias * x.scale for x in (a, b) if x.bias is not None]
    named = {a.products, b.products}
    changes = {
        "bias": sum(biases[1:], biases[0]) if biases else None,
        "scale": 1.0, "divisor": None, "dtype": torch.promote_types(a.dtype, b.dtype),
        "products": next((name for name in ("float32", "input") if name in named), None),
    }  # fmt: skip
    if a.hidden is b.hidden and not any(isinstance(x.scale, Tensor) for x in (a, b)):
        return _of_one_type(a._with(weight=a.weight * a.scale + b.weight * b.scale, **changes))
    hidden = torch.cat([_scaled(x) for x in (a, b)], -1)
    weight = torch.cat([a.weight, b.weight], -1)
    return _of_one_type(a._with(hidden=hidden, weight=weight, **changes))


def _scaled(z: LinearLogits) -> Tensor:
    scale = z.scale
    return z.hidden * (scale.unsqueeze(-1) if isinstance(scale, Tensor) and scale.ndim else scale)


# ---- masks of classes ----------------------------------------------------------------------------


def masked_fill(z: LinearLogits, mask: Any, value: Any) -> LinearLogits:
    """Record a value for some classes of all rows, as for the padding of a vocabulary."""
    whole = z.softcap is None and not isinstance(z.scale, Tensor) and z.scale > 0
    per_class = is_per_class(mask, z.shape) and mask.dtype == torch.bool
    learned = isinstance(value, Tensor) and (value.ndim > 0 or value.requires_grad)
    if not whole or not per_class or learned:
        return NotImplemented
    mask, value = mask.reshape(-1), float(value)
    if value != -torch.inf:
        z = _without_scale(z)
    wide = torch.promote_types(z.weight.dtype, torch.float32)
    none = z.weight.new_zeros(z.weight.shape[0], dtype=wide)
    bias = torch.where(mask, value, none if z.bias is None else z.bias.to(wide))
    if value == -torch.inf:  # whatever the product adds
        return z._with(bias=bias, divisor=None, masked=True)
    return z._with(weight=z.weight.masked_fill(mask.unsqueeze(-1), 0), bias=bias, divisor=None)


def set_item(z: LinearLogits, index: Any, value: Any) -> LinearLogits:
    """Record ``z[..., classes] = number`` for some classes of all rows."""
    parts = z.spelled_out(index)
    rows = [slice(None)] * (z.ndim - 1)
    if parts is None or list(parts[:-1]) != rows or (isinstance(value, Tensor) and value.ndim):
        return NotImplemented
    mask = torch.zeros(z.shape[-1], dtype=torch.bool, device=z.device)
    mask[parts[-1]] = True
    return in_place(masked_fill)(z, mask, value)


# ---- in place ------------------------------------------------------------------------------------


def in_place(function: Callable[..., LinearLogits]) -> Callable[..., LinearLogits]:
    """The answer that changes the stand-in itself."""

    def answer(z: LinearLogits, *args: Any, **kwargs: Any) -> LinearLogits:
        # What was read may be in use, and has to change, too. Without a record of gradients the
        # numbers change and their gradient does not.
        if z.is_read or (z.requires_grad and not torch.is_grad_enabled()):
            return NotImplemented
        found = function(z, *args, **kwargs)
        if found is NotImplemented:
            return NotImplemented
        z.part()
        vars(z).update({**vars(found), "dtype": z.dtype, "shown": z.shown})
        return z

    return answer


# ---- kinds of operands ---------------------------------------------------------------------------


def is_scalar(x: Any) -> bool:
    """A number, or a tensor that holds one."""
    return isinstance(x, (int, float)) or (isinstance(x, Tensor) and x.ndim == 0)


def is_positive(x: Any) -> bool:
    """A number above 0."""
    return isinstance(x, (int, float)) and x > 0


def is_per_class(x: Any, shape: torch.Size) -> bool:
    """A vector over the classes, whatever axes of length one it has before them."""
    fits = isinstance(x, Tensor) and 0 < x.ndim <= len(shape)
    return fits and x.numel() == x.shape[-1] == shape[-1]


def is_per_row(x: Any, shape: torch.Size) -> bool:
    """A number for each row, with an axis of length one for the classes."""
    if not isinstance(x, Tensor) or not 0 < x.ndim <= len(shape) or x.shape[-1] != 1:
        return False
    pairs = zip(x.shape[-2::-1], shape[-2::-1], strict=False)
    return all(size in (1, most) for size, most in pairs)


# ---- the registry --------------------------------------------------------------------------------


def _commutative(function: Callable[..., Any]) -> Callable[..., Any]:
    def answer(input: Any, other: Any, **options: Any) -> Any:
        first, second = (input, other) if isinstance(input, LinearLogits) else (other, input)
        return function(first, second, **options)

    return answer


def _minus(input: Any, other: Any, *, alpha: float = 1) -> Any:
    if not isinstance(input, LinearLogits):  # a tensor less logits
        less = times(other, -float(alpha))
        return less if less is NotImplemented else plus(less, input)
    return plus(input, other, alpha=-alpha)


def _negative(input: LinearLogits) -> LinearLogits:
    return times(input, -1.0)


def _register(answer: Callable[..., Any], *names: str) -> None:
    for name in names:
        for home in (torch, Tensor):
            if hasattr(home, name):
                LinearLogits.lean[getattr(home, name)] = answer


def _if_first(answer: Callable[..., Any]) -> Callable[..., Any]:
    """The answer for logits in the first place; elsewhere they are a tensor."""

    @functools.wraps(answer)
    def entry(input: Any, *args: Any, **kwargs: Any) -> Any:
        return answer(input, *args, **kwargs) if isinstance(input, LinearLogits) else NotImplemented

    return entry


_register(_commutative(times), "mul", "multiply", "__mul__", "__rmul__")
_register(_if_first(divided), "div", "divide", "true_divide", "__truediv__")
_register(_commutative(plus), "add", "__add__", "__radd__")
_register(_minus, "sub", "subtract", "__sub__")
_register(lambda input, other: _minus(other, input), "__rsub__")
_register(_negative, "neg", "negative", "__neg__")
_register(_if_first(tanh), "tanh")
_register(_if_first(masked_fill), "masked_fill")
_register(_if_first(set_item), "__setitem__")
_register(_if_first(in_place(times)), "mul_", "multiply_", "__imul__")
_register(_if_first(in_place(divided)), "div_", "divide_", "true_divide_", "__itruediv__")
_register(_if_first(in_place(plus)), "add_", "__iadd__")
_register(_if_first(in_place(_minus)), "sub_", "subtract_", "__isub__")
_register(_if_first(in_place(masked_fill)), "masked_fill_")
_register(in_place(LinearLogits.constant), "detach_")
