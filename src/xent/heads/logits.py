"""Logits of a linear head that are never all in memory at once."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .._check import is_tensor, one_of, whole_number
from ..engines.modes import autocasts, is_freed, version, without_autocast
from ..logits import LogitTransform
from .stand_in import Lean

MAX_WORKSPACE = 128 << 20
Products = Literal["float32", "input"]


@dataclasses.dataclass(init=False, repr=False, eq=False)  # so that wrappers find its tensors
class LinearLogits(Lean):
    """``hidden @ weight.T + bias`` for every loss and for :func:`xent.statistics`.

    The object stands for the logits without holding them: losses compute the logits a chunk of
    rows at a time, forward and backward. The object has the shape, dtype and device of the logits.
    Its rows may be sliced and reshaped; scaling (``logits * s``, ``logits / t``) and a softcap
    (``cap * torch.tanh(logits / cap)``) are recorded and not computed. A PyTorch function either
    works by chunks, too (``torch.nn.functional.cross_entropy``), or gets all logits as a tensor,
    with a warning. An object that is made under :func:`torch.no_grad` is a constant. Logits are
    computed only when a loss asks for them: after a step of an optimizer they are those of the new
    weight.

    Args:
        hidden: ``(..., D)``: one row of features for each row of logits.
        weight: ``(V, D)``, of the dtype of ``hidden``. Under autocast they may differ; the wider
            one is taken.
        bias: ``(V,)``, of the same dtype, or None.
        max_workspace: bytes that a chunk of logits may take, or one row of them if that is more.
        products: the type of the products with a weight of 16 bits, which the logits of a chunk
            then have: ``"float32"``, or ``"input"`` for that of the weight. Unless given, a CPU
            takes 16 bits where it multiplies them in hardware and the loss is summed over the rows,
            which is several times faster. The logits are rounded then, as those of
            ``hidden @ weight.T`` are: a mean of 10 nats is off by 5e-5 to 2e-4, and by 2e-8 with
            products in float32. Values of single rows, log-probabilities, entropies and
            divergences of two heads have products in float32. :func:`xent.explain` says what is
            taken and why.

    Raises:
        TypeError: if they are not floating point, or of different dtypes.
        ValueError: for shapes that do not fit, different devices, or unknown ``products``.

    Example:
        >>> import torch, xent
        >>> hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(10, 4)
        >>> logits = xent.LinearLogits(hidden, weight)
        >>> logits.shape
        torch.Size([6, 10])
        >>> target = torch.arange(6)
        >>> lean = xent.losses.focal_loss(logits, target)
        >>> torch.allclose(lean, xent.losses.focal_loss(hidden @ weight.T, target))
        True
    """

    lean: ClassVar[dict[Callable[..., Any], Callable[..., Any]]] = {}

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        max_workspace: int = MAX_WORKSPACE,
        products: Products | None = None,
    ) -> None:
        hidden, weight, bias = under_autocast(hidden, weight, bias)
        check_head(hidden, weight, bias)
        max_workspace = whole_number("max_workspace", max_workspace)
        if max_workspace <= 0:
            raise ValueError(f"`max_workspace` must be a number of bytes, got {max_workspace!r}")
        if products is not None:
            one_of("products", products, ("float32", "input"))
        self.max_workspace = max_workspace
        self.products: Products | None = products
        if not torch.is_grad_enabled():  # as logits computed here would be
            hidden, weight, bias = _constant(hidden), _constant(weight), _constant(bias)
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.versions = {
            "hidden": version(hidden),
            "weight": version(weight),
            "bias": version(bias),
        }
        self.scale: float | Tensor = 1.0  # before the cap
        self.softcap: float | None = None
        self.capped = False  # True after tanh, until the factor of the cap comes
        self.divisor: float | None = None  # of a division just recorded: tanh makes it the cap
        self.undivided: float | Tensor = 1.0  # the scale before that division
        self.dtype = hidden.dtype

    # ---- what it shares with a tensor -----------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        """The shape of the logits, ``(..., V)``."""
        return self.hidden.shape[:-1] + self.weight.shape[:1]

    @property
    def requires_grad(self) -> bool:
        """True if a part of the head requires a gradient."""
        learned = isinstance(self.scale, Tensor) and self.scale.requires_grad
        return learned or any(t.requires_grad for t in self.parts)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors of the head: features, weight and bias."""
        pair = self.hidden, self.weight
        return pair if self.bias is None else (*pair, self.bias)

    # ---- what is recorded -----------------------------------------------------------------------

    def _with(self, **changes: Any) -> LinearLogits:
        other = object.__new__(LinearLogits)
        vars(other).update({**vars(self), **changes, "_all": None})
        new = {name: version(x) for name, x in changes.items() if name in self.versions}
        other.versions = {**self.versions, **new}
        return other

    def unchanged(self) -> LinearLogits:
        """Return these logits.

        Raises:
            RuntimeError: if a part was changed, or its memory freed, since they were made: they
                would not be the logits of that time.
        """
        for name, before in self.versions.items():
            part = getattr(self, name)
            if before is None or part is None:
                continue
            if part._version != before:
                raise RuntimeError(
                    f"the {name} behind {self!r} was changed after these logits were made, as by "
                    f"the step of an optimizer; compute the logits again, or keep "
                    f".materialize() of them"
                )
            if is_freed(part):
                raise RuntimeError(
                    f"the {name} behind {self!r} is no longer in memory, as after the forward of a "
                    f"unit of FSDP. Call fully_shard(head, reshard_after_forward=False), or leave "
                    f"the head in the root unit"
                )
        return self

    def reshape(self, *shape: Any) -> LinearLogits:
        """Reshape the rows; the last axis, of the classes, stays."""
        given = shape[0] if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
        sizes = [int(n) for n in given]
        if not sizes or sizes[-1] not in (-1, self.weight.shape[0]):
            raise ValueError(
                f"LinearLogits of shape {tuple(self.shape)} keep their last axis, the classes; "
                f"cannot reshape to {sizes}. Call .materialize() for a tensor"
            )
        if sizes[-1] == -1 and -1 not in sizes[:-1]:
            rows = math.prod(self.shape[:-1])
            if math.prod(sizes[:-1]) != rows:
                raise ValueError(f"shape {sizes} does not hold the {rows} rows of {self!r}")
        return self._with(hidden=self.hidden.reshape(*sizes[:-1], self.hidden.shape[-1]))

    def view(self, *shape: Any) -> LinearLogits:
        """Reshape the rows, as :meth:`reshape`."""
        if len(shape) == 1 and isinstance(shape[0], torch.dtype):
            raise TypeError("LinearLogits have no memory to see as another dtype")
        return self.reshape(*shape)

    def __getitem__(self, index: Any) -> LinearLogits | Tensor:
        """Some of the rows, or a slice of the classes; other picks of classes need the logits."""
        parts = self.spelled_out(index)
        if parts is None:
            return self.rows(index)
        *rows, classes = parts
        if not isinstance(classes, slice):
            return self.materialize_for("indexing classes")[index]
        bias = None if self.bias is None else self.bias[classes]
        return self._with(weight=self.weight[classes], bias=bias).rows((*rows, slice(None)))

    def spelled_out(self, index: Any) -> tuple[Any, ...] | None:
        """An index with a part for every axis, if it says something about the classes."""
        parts = index if isinstance(index, tuple) else (index,)
        missing = self.ndim - sum(_axes(p) for p in parts)
        at = next((k for k, p in enumerate(parts) if p is Ellipsis), len(parts))
        parts = (*parts[:at], *[slice(None)] * missing, *parts[at + 1 :])
        last = parts[-1] if parts else slice(None)
        return None if isinstance(last, slice) and last == slice(None) else parts

    def rows(self, index: Any) -> LinearLogits:
        """Return the rows that an index picks."""
        return self._with(hidden=self.hidden[index])

    def to(self, *arguments: Any, **options: Any) -> LinearLogits | Tensor:
        """Return logits of another dtype. The device stays that of the parts."""
        for other in arguments:
            if isinstance(other, Tensor):
                return self.to(other.device, other.dtype)
        dtypes = [a for a in (*arguments, options.get("dtype")) if isinstance(a, torch.dtype)]
        devices = [
            a for a in (*arguments, options.get("device")) if isinstance(a, (str, torch.device))
        ]
        dtype, device = next(iter(dtypes), None), next(iter(devices), None)
        if device is not None and torch.device(device) != self.device:
            raise ValueError(f"{self!r} cannot move; move hidden and weight to {device}")
        if dtype is not None and not dtype.is_floating_point:
            return self.materialize_for(f"a cast to {dtype}").to(dtype)
        return self if dtype is None else self._with(dtype=dtype)

    def __mul__(self, factor: Any) -> LinearLogits | Tensor:
        """Record a scale; or the second half of a softcap."""
        if not _is_scalar(factor):
            return self.materialize_for("multiplication by a tensor") * factor
        if self.capped:
            if isinstance(factor, Tensor) or factor != self.softcap:
                return self.materialize_for("a factor that is not the cap") * factor
            return self._with(capped=False)
        if self.softcap is not None:
            return self.materialize_for("a scale after the softcap") * factor
        return self._with(scale=self.scale * factor, divisor=None)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> LinearLogits | Tensor:
        """Record a division by a number."""
        if not _is_scalar(divisor) or self.capped or self.softcap is not None:
            return self.materialize_for("a division") / divisor
        cap = float(divisor) if isinstance(divisor, (int, float)) and divisor > 0 else None
        return self._with(scale=self.scale / divisor, undivided=self.scale, divisor=cap)

    def __add__(self, other: Any) -> LinearLogits | Tensor:
        """Add a number for each class to the bias; or add other logits of the same rows."""
        if isinstance(other, LinearLogits):
            return _sum(self, other)
        plain = self.softcap is None and not isinstance(self.scale, Tensor) and self.scale == 1.0
        if not plain or not _is_per_class(other, self.shape):
            return self.materialize_for("addition of a tensor") + other
        joined = self.absorb(None, other.reshape(-1))
        return joined._with(divisor=None, dtype=torch.promote_types(self.dtype, other.dtype))

    __radd__ = __add__

    def tanh(self) -> LinearLogits | Tensor:
        """Record the first half of a softcap, after a division by the cap."""
        if self.softcap is not None or self.divisor is None:
            return self.materialize_for("tanh").tanh()
        return self._with(softcap=self.divisor, scale=self.undivided, divisor=None, capped=True)

    def recorded(self) -> tuple[float | Tensor | None, float | None]:
        """The recorded scale and cap, as `logit_scale` and `softcap` of a loss; None for none."""
        if self.capped:
            raise ValueError("tanh of LinearLogits is half a softcap; multiply by the cap, too")
        one = not isinstance(self.scale, Tensor) and self.scale == 1.0
        return None if one else self.scale, self.softcap

    def without_recorded(self) -> LinearLogits:
        """The head with its rows on one axis, ``(N, V)``, without recorded scale and softcap."""
        self.unchanged()
        hidden = self.hidden.reshape(-1, self.hidden.shape[-1])
        return self._with(hidden=hidden, scale=1.0, softcap=None, divisor=None, undivided=1.0)

    def with_parts(self, hidden: Any, weight: Any, bias: Any) -> LinearLogits:
        """Return a copy of this head with other tensors, or None for those to be set later."""
        return self._with(hidden=hidden, weight=weight, bias=bias)

    def with_hidden(self, hidden: Tensor) -> LinearLogits:
        """Return a copy of this head with other features."""
        return self._with(hidden=hidden)

    def absorb(self, scale: Tensor | None, class_bias: Tensor | None) -> LinearLogits:
        """A head whose product is ``scale * logits + class_bias``, differentiable, ``(N, V)``.

        A scale per row is possible only where there is no bias yet.
        """
        # In float32 at least: a factor of 16 bits would be off for all logits of a row alike.
        wide = torch.promote_types(self.hidden.dtype, torch.float32)
        hidden, bias = self.hidden, None if self.bias is None else self.bias.to(wide)
        if scale is not None:
            hidden = (hidden.to(wide) * (scale.unsqueeze(-1) if scale.ndim else scale)).to(wide)
            if bias is not None:
                masked = bias == -torch.inf  # a scale of 0 would make it NaN
                scaled = (bias.masked_fill(masked, 0) * scale).to(wide)
                bias = torch.where(masked, bias, scaled)
        if class_bias is not None:
            bias = class_bias.to(wide) if bias is None else bias + class_bias.to(wide)
        return self._with(hidden=hidden, bias=bias)

    # ---- the logits themselves ------------------------------------------------------------------

    def materialize(self) -> Tensor:
        """All ``N x V`` logits as a tensor, differentiable."""
        return self.transform(self.product())

    def product(self) -> Tensor:
        """The product of features and weight, in the wider of their dtypes, whatever autocast."""
        self.unchanged()
        wide = torch.promote_types(self.hidden.dtype, self.weight.dtype)
        parts = (None if x is None else x.to(wide) for x in (self.hidden, self.weight, self.bias))
        # Not as a function that others may see: the mode of a lean head would make it late again.
        with without_autocast(self.hidden), torch._C.DisableTorchFunction():
            return torch.nn.functional.linear(*parts)  # pyright: ignore

    def transform(self, z: Tensor) -> Tensor:
        """Apply the recorded scale and cap to products with the weight, ``(N, some classes)``."""
        scale, cap = self.scale, self.softcap
        if not isinstance(scale, Tensor):
            one = scale == 1.0
            scale = None if one else torch.tensor(scale, dtype=torch.float64, device=z.device)
        z = LogitTransform(scale, cap or 0.0)(z)
        return (z / cap if self.capped and cap else z).to(self.dtype)

    def detach(self) -> LinearLogits:
        """Return a copy of this head whose tensors are constants."""
        names = ("hidden", "weight", "bias", "scale")
        return self._with(**{name: _constant(getattr(self, name)) for name in names})


def _product(a: Any, b: Any, *, out: None = None) -> Any:
    return a * b if isinstance(a, LinearLogits) else b * a


def _added(a: Any, b: Any, *, out: None = None) -> Any:
    return a + b if isinstance(a, LinearLogits) else b + a


def _sum(a: LinearLogits, b: LinearLogits) -> LinearLogits | Tensor:
    """The sum of two heads over the same classes: one head with the features side by side."""
    if a.shape != b.shape or a.softcap is not None or b.softcap is not None:
        return a.materialize_for("addition") + b.materialize_for("addition")
    hidden = torch.cat([a.hidden * a.scale, b.hidden * b.scale], -1)
    biases = [x.bias * x.scale for x in (a, b) if x.bias is not None]
    bias = sum(biases[1:], biases[0]) if biases else None
    weight = torch.cat([a.weight, b.weight], -1)
    named = {a.products, b.products}
    return a._with(
        hidden=hidden, weight=weight, bias=bias, scale=1.0, divisor=None,
        dtype=torch.promote_types(a.dtype, b.dtype),
        products=next((name for name in ("float32", "input") if name in named), None),
    )  # fmt: skip


LinearLogits.lean |= {
    torch.add: _added,
    torch.Tensor.add: _added,
    torch.Tensor.__add__: _added,
    torch.Tensor.__radd__: _added,
    torch.tanh: LinearLogits.tanh,
    torch.mul: _product,
    torch.Tensor.mul: _product,
    torch.Tensor.__mul__: _product,
    torch.Tensor.__rmul__: _product,
    torch.div: LinearLogits.__truediv__,
}


def are_logits(name: str, x: Any) -> None:
    """Raise unless an argument is a tensor, or logits behind a head."""
    if not isinstance(x, LinearLogits):
        is_tensor(name, x)


def outline(logits: Tensor | LinearLogits) -> Tensor:
    """A tensor of the shape, dtype and device of logits; of those behind a head it holds nothing.

    It is for checks that read no number.
    """
    if isinstance(logits, LinearLogits):
        return logits.hidden.new_empty((), dtype=logits.dtype).expand(logits.shape)
    return logits


def whole_logits(function: str, input: Any) -> Tensor:
    """The logits of a call as a tensor, classes on axis 1, for a function that needs them all."""
    if isinstance(input, LinearLogits):
        input = input.materialize_for(function)
        input = input.movedim(-1, 1) if input.ndim > 2 else input
    is_tensor("input", input)
    return input


def _is_scalar(x: Any) -> bool:
    """A number, or a tensor that holds one."""
    return isinstance(x, (int, float)) or (isinstance(x, Tensor) and x.ndim == 0)


def _is_per_class(x: Any, shape: torch.Size) -> bool:
    """A vector over the classes, whatever axes of length one it has before them."""
    fits = isinstance(x, Tensor) and 0 < x.ndim <= len(shape)
    return fits and x.numel() == x.shape[-1] == shape[-1]


def _axes(index: Any) -> int:
    """Return the number of axes that one part of an index covers."""
    if isinstance(index, Tensor) and index.dtype == torch.bool:
        return index.ndim
    return 0 if index is None or index is Ellipsis else 1


def _constant(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def under_autocast(*parts: Any) -> tuple[Any, ...]:
    """Under autocast, cast all tensors to the widest of their dtypes."""
    floats = [x for x in parts if isinstance(x, Tensor) and x.is_floating_point()]
    if not any(autocasts(x) for x in floats):
        return parts
    widest = functools.reduce(torch.promote_types, (x.dtype for x in floats))
    return tuple(x.to(widest) if any(x is y for y in floats) else x for x in parts)


def check_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    names: tuple[str, str, str] = ("hidden", "weight", "bias"),
) -> None:
    """Raise unless these make a head; ``names`` are those that the caller has for them."""
    first, second, third = names
    for name, x in ((first, hidden), (second, weight), (third, bias)):
        if x is None and name == third:
            continue
        is_tensor(name, x)
        assert x is not None
        if not x.is_floating_point():
            raise TypeError(f"`{name}` must be floating point, got {x.dtype}; call .float()")
        if x.dtype != hidden.dtype:
            raise TypeError(f"`{name}` is {x.dtype} but `{first}` is {hidden.dtype}; make them one")
        if x.device != hidden.device:
            raise ValueError(f"`{name}` is on {x.device} but `{first}` on {hidden.device}")
    if weight.ndim != 2 or hidden.ndim == 0 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"`{first}` (..., D) and `{second}` (V, D) must agree in D; got shapes "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"`{third}` must have shape ({weight.shape[0]},), a number for each class; got "
            f"{tuple(bias.shape)}"
        )
