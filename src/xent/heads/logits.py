"""Logits of a linear head that are never all in memory at once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NoReturn

import torch
from torch import Tensor

from .._check import is_tensor, one_of, whole_number
from ..engines.modes import (
    PLAIN_TENSORS,
    autocasts,
    is_dtensor,
    is_freed,
    on_accelerator,
    share_memory,
    version,
    without_autocast,
)
from ..logits import LogitTransform
from ..shards import summed_gradient
from .stand_in import Lean, Shown

# Bytes of a chunk. On a CPU more leave the caches; on an accelerator chunks that are larger have
# faster products, and add up the gradient of the weight less often.
WORKSPACE, WORKSPACE_ON_ACCELERATORS = 128 << 20, 1 << 30
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
    computed only when a loss asks for them; if a part has changed by then, as after a step of an
    optimizer, that is an error.

    Of DTensors it stands for a DTensor of logits: the weight may be split by its classes over one
    dimension of a mesh, and the features by their rows over others. Losses of rows take it, and
    give DTensors; ``to_local()`` makes it one for plain targets. See ``docs/parallel.md``.

    Args:
        hidden: ``(..., D)``: one row of features for each row of logits.
        weight: ``(V, D)``, of the dtype of ``hidden``. Under autocast they may differ; the wider
            one is taken.
        bias: ``(V,)``, of the same dtype, or None.
        max_workspace: bytes that a chunk of logits may take, or one row of them if that is more.
            Unless given, 128 MiB on a CPU, and 1 GiB on an accelerator, where larger chunks are
            faster. A gradient of a weight of 16 bits is added up over chunks in float32, in memory
            beside these bytes; with one chunk there is nothing to add up.
        products: the type of the products with a weight of 16 bits, which the logits of a chunk
            then have: ``"float32"``, or ``"input"`` for that of the weight. Unless given, a CPU
            takes 16 bits where it multiplies them in hardware and the loss is summed over the rows,
            which is several times faster. The logits are rounded then, as those of
            ``hidden @ weight.T`` are: a mean of 10 nats is off by 5e-5 to 2e-4, and by 2e-8 with
            products in float32. Values of single rows, log-probabilities, entropies and
            divergences of two heads have products in float32. :func:`xent.explain` says what is
            taken and why.

    Raises:
        TypeError: if they are not floating point, or of different dtypes; or if some are DTensors
            and others plain tensors, whose rows may be the same on all ranks or different ones.
        ValueError: for shapes that do not fit, different devices, or unknown ``products``; for
            DTensors on different meshes, or split along the features.

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
    _of_dtensors: ClassVar[type[LinearLogits]]  # the kind whose weight is a DTensor

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    def __new__(
        cls, hidden: Any = None, weight: Any = None, bias: Any = None, **options: Any
    ) -> LinearLogits:
        """Make an object of the kind that the tensors need."""
        if hidden is None:  # as copies are made
            return object.__new__(cls)
        plain = type(hidden) in PLAIN_TENSORS and type(weight) in PLAIN_TENSORS
        distributed = not plain and any(map(is_dtensor, (weight, hidden, bias)))
        return object.__new__(cls._of_dtensors if distributed else LinearLogits)

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        max_workspace: int | None = None,
        products: Products | None = None,
    ) -> None:
        hidden, weight, bias = self.read(*under_autocast(hidden, weight, bias))
        if max_workspace is None:
            max_workspace = WORKSPACE_ON_ACCELERATORS if on_accelerator(hidden) else WORKSPACE
        max_workspace = whole_number("max_workspace", max_workspace)
        if max_workspace <= 0:
            raise ValueError(f"`max_workspace` must be a number of bytes, got {max_workspace!r}")
        if products is not None:
            one_of("products", products, ("float32", "input"))
        self.max_workspace = max_workspace
        self.most_rows: int | None = None  # of a chunk; by default what the workspace holds
        self.group: Any = None  # ranks that each have some classes of these features
        self.products: Products | None = products
        if not torch.is_grad_enabled():  # as logits computed here would be
            hidden, weight, bias = _constant(hidden), _constant(weight), _constant(bias)
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.versions = {
            "hidden": version(hidden),
            "weight": version(weight),
            "bias": version(bias),
        }
        self.originals: list[tuple[Tensor, int | None]] = []  # tensors and their versions
        self.scale: float | Tensor = 1.0  # before the cap; a tensor is 0-d or one number per row
        self.softcap: float | None = None
        self.capped = False  # True after tanh, until the factor of the cap comes
        self.divisor: float | None = None  # of a division just recorded: tanh makes it the cap
        self.undivided: float | Tensor = 1.0  # the scale before that division
        self.dtype = hidden.dtype
        self.like_hidden = hidden.is_contiguous()  # whether all logits have that order in memory
        self.masked = False  # True if classes were filled with -inf: a cap would unmask them
        self.shown = Shown()

    def read(self, hidden: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
        """Return features, weight and bias; raise unless they make a head."""
        check_head(hidden, weight, bias)
        return hidden, weight, bias

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
        """The tensors of the head, which are features, weight and bias."""
        pair = self.hidden, self.weight
        return pair if self.bias is None else (*pair, self.bias)

    # ---- what is recorded -----------------------------------------------------------------------

    def _with(self, **changes: Any) -> LinearLogits:
        new = {name: version(x) for name, x in changes.items() if name in self.versions}
        if new:  # a part of a part that was changed would look unchanged
            self.unchanged()
        parts = {**vars(self), **changes, "_all": None}
        other = LinearLogits.__new__(LinearLogits, parts["hidden"], parts["weight"])
        vars(other).update(parts)
        other.shown = Shown()
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
            if before is not None and part is not None and part._version != before:
                self._refuse_changed(name)
        for original, before in self.originals:
            if before is not None and original._version != before:
                self._refuse_changed("tensor")
        self.in_memory()
        self.refuse_if_stale()
        if self.overwritten:
            raise RuntimeError(
                f"{self!r} were computed as a tensor, and this tensor was changed in place, so "
                f"they are no longer the logits of a head; use the tensor, .materialize()"
            )
        return self

    def _refuse_changed(self, name: str) -> NoReturn:
        raise RuntimeError(
            f"the {name} behind {self!r} was changed after these logits were made, as by the step "
            f"of an optimizer; compute the logits again, or keep .materialize() of them"
        )

    def in_memory(self) -> None:
        """Raise a RuntimeError if the memory of a part was given back."""
        for name in ("hidden", "weight", "bias"):
            part = getattr(self, name)
            if part is not None and is_freed(part):
                raise RuntimeError(
                    f"the {name} behind {self!r} is no longer in memory, as after the forward of a "
                    f"unit of FSDP. Call fully_shard(head, reshard_after_forward=False), or leave "
                    f"the head in the root unit"
                )

    def stale_with(self, originals: Sequence[Tensor]) -> LinearLogits:
        """Return these logits, which changes of other tensors make stale.

        The parts show the numbers of these tensors without counting their changes: the weight that
        FSDP gathers from its parameter does not.
        """
        self.originals = [(x, version(x)) for x in originals]
        return self

    @property
    def row_tensors(self) -> list[Tensor]:
        """The tensors with a number or more for each row; features, and scales if they differ."""
        return [self.hidden, *(x.unsqueeze(-1) for x in self._scales.values())]

    @property
    def _scales(self) -> dict[str, Tensor]:
        named = {"scale": self.scale, "undivided": self.undivided}
        return {name: x for name, x in named.items() if isinstance(x, Tensor) and x.ndim}

    def with_rows(self, tensors: Sequence[Tensor]) -> LinearLogits:
        """Return logits that have other rows, given the tensors of these rows.

        They show the rows of these logits where the features are views, and copies elsewhere.
        """
        hidden, *scales = tensors
        changes = {name: x.squeeze(-1) for name, x in zip(self._scales, scales, strict=True)}
        some = self._with(hidden=hidden, **changes)
        is_copy = self.like_hidden and not share_memory(hidden, self.hidden)
        return some if is_copy else self._shows(some)

    def _shows(self, view: LinearLogits) -> LinearLogits:
        """Note that a stand-in shows logits of this one."""
        view.shown = self.shown
        return view

    def with_scale_per_row(self) -> LinearLogits:
        """Return the same logits with a scale for each row."""
        rows = self.shape[:-1]
        scales = {
            name: torch.as_tensor(x, dtype=torch.float64, device=self.device).expand(rows)
            for name, x in (("scale", self.scale), ("undivided", self.undivided))
        }
        return self._with(**scales)

    def without_divisor(self) -> LinearLogits:
        """Return the same logits; tanh of them is no softcap."""
        return self._with(divisor=None)

    def has_head_of(self, other: Any) -> bool:
        """True if other logits differ from these in their rows only."""
        if not isinstance(other, LinearLogits):
            return False
        other.unchanged()
        recorded = ("softcap", "capped", "masked", "dtype", "products", "max_workspace")
        parts = ((self.weight, other.weight), (self.bias, other.bias))
        numbers = [x for x in (self.scale, other.scale) if not (isinstance(x, Tensor) and x.ndim)]
        return (
            all(getattr(self, name) == getattr(other, name) for name in recorded)
            and all(_are_one(a, b) for a, b in parts)
            and (len(numbers) < 2 or numbers[0] is numbers[1] or _equal(*numbers))
            and self.hidden.dtype == other.hidden.dtype
        )

    def equals(self, other: LinearLogits) -> bool:
        """True if other logits have the same parts and the same scale, so the same numbers."""
        same_scale = self.scale is other.scale or _equal(self.scale, other.scale)
        return self.hidden is other.hidden and same_scale and self.has_head_of(other)

    def is_zero_without_features(self) -> bool:
        """True if features of zero give logits of zero."""
        return self.bias is None

    def picked(self, index: Any) -> LinearLogits:
        """Return some of the rows, or a slice of the classes; no other pick of classes is lean."""
        parts = self.spelled_out(index)
        if parts is None:
            return self.rows(index)
        *rows, classes = parts
        if not isinstance(classes, slice):
            return NotImplemented
        bias = None if self.bias is None else self.bias[classes]
        some = self._shows(self._with(weight=self.weight[classes], bias=bias))
        return some.rows((*rows, slice(None)))

    def spelled_out(self, index: Any) -> tuple[Any, ...] | None:
        """An index with a part for every axis, if it says something about the classes."""
        parts = index if isinstance(index, tuple) else (index,)
        parts = tuple(_as_tensor(p, self.device) for p in parts)
        missing = self.ndim - sum(_axes(p) for p in parts)
        at = next((k for k, p in enumerate(parts) if p is Ellipsis), len(parts))
        parts = (*parts[:at], *[slice(None)] * missing, *parts[at + 1 :])
        last = parts[-1] if parts else slice(None)
        return None if isinstance(last, slice) and last == slice(None) else parts

    def rows(self, index: Any) -> LinearLogits:
        """Return the rows that an index picks."""
        return self.with_rows([x[index] for x in self.row_tensors])

    def cast(self, dtype: torch.dtype) -> LinearLogits:
        """Return logits of another dtype."""
        return self._with(dtype=dtype)

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
        parameters = [x for x in self.originals if x[0].is_leaf]  # those of other parts go
        return self._with(hidden=hidden, weight=weight, bias=bias, originals=parameters)

    def by_chunks_of(self, rows: int) -> LinearLogits:
        """Return a copy of this head whose chunks have at most so many rows."""
        return self._with(most_rows=rows)

    def shared_by(self, group: Any) -> LinearLogits:
        """Return a copy of this head whose features have the gradient of all ranks of a group."""
        return self._with(group=group)

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
        return super().materialize()

    def computed(self) -> Tensor:
        """Compute all logits."""
        return self.transform(self.product())

    def product(self) -> Tensor:
        """The product of features and weight, in the wider of their dtypes, whatever autocast."""
        self.unchanged()
        wide = torch.promote_types(self.hidden.dtype, self.weight.dtype)
        hidden = summed_gradient(self.hidden, self.group)
        parts = (None if x is None else x.to(wide) for x in (hidden, self.weight, self.bias))
        # Not as a function that others may see: the mode of a lean head would make it late again.
        with without_autocast(self.hidden), torch._C.DisableTorchFunction():
            return torch.nn.functional.linear(*parts)  # pyright: ignore

    def transform(self, z: Tensor) -> Tensor:
        """Apply the recorded scale and cap to products with the weight, ``(N, some classes)``."""
        scale, cap = self.scale, self.softcap
        if not isinstance(scale, Tensor):
            one = scale == 1.0
            scale = None if one else torch.full((), scale, dtype=torch.float64, device=z.device)
        z = LogitTransform(scale, cap or 0.0)(z)
        return (z / cap if self.capped and cap else z).to(self.dtype)

    def view_of_all(self) -> LinearLogits:
        """Return logits that show the same rows."""
        return self._shows(self._with())

    def compact(self) -> LinearLogits:
        """Return these logits, or a copy where contiguous() would copy a tensor."""
        return self.copy() if self.like_hidden and not self.hidden.is_contiguous() else self

    def copy(self) -> LinearLogits:
        """Return the same logits; operations in place on them leave these alone."""
        return self._with()

    def __repr__(self) -> str:
        """Shape and dtype, if the tensors are there."""
        return super().__repr__() if self.hidden is not None else "LinearLogits"

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a file needs."""
        of_this_process = ("shown", "versions", "originals", "_all")
        return {k: v for k, v in vars(self).items() if k not in of_this_process}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, shown=Shown(), originals=[])
        parts = {"hidden": self.hidden, "weight": self.weight, "bias": self.bias}
        self.versions = {name: version(part) for name, part in parts.items()}

    def constant(self) -> LinearLogits:
        """Return the same logits without a gradient."""
        names = ("hidden", "weight", "bias", "scale", "undivided")
        return self._shows(self._with(**{name: _constant(getattr(self, name)) for name in names}))


_of_init = inspect.signature(LinearLogits.__init__)  # which readers want to see, not `__new__`
LinearLogits.__signature__ = _of_init.replace(  # pyright: ignore
    parameters=list(_of_init.parameters.values())[1:]
)


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


def _are_one(a: Tensor | None, b: Tensor | None) -> bool:
    """True for the same tensor, or for two of the same memory and the same place in the graph."""
    if a is None or b is None or a is b:
        return a is b
    return (
        (a.data_ptr(), a.shape, a.stride(), a.dtype) == (b.data_ptr(), b.shape, b.stride(), b.dtype)
        and a.requires_grad == b.requires_grad
        and a._base is b._base
    )


def _equal(a: float | Tensor, b: float | Tensor) -> bool:
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def _as_tensor(index: Any, device: torch.device) -> Any:
    """A part of an index that holds arrays as a tensor; other parts as they are."""
    return torch.as_tensor(index, device=device) if hasattr(index, "__array__") else index


def _axes(index: Any) -> int:
    """Return the number of axes that one part of an index covers."""
    if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):  # a mask
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
        if type(x) in PLAIN_TENSORS or not is_dtensor(x):
            is_tensor(name, x)
        assert x is not None
        if not x.is_floating_point():
            raise TypeError(f"`{name}` must be floating point, got {x.dtype}; call {name}.float()")
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
