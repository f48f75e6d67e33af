"""Logits behind a head with the classes on axis 1, where PyTorch's losses expect them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .log_probs import LinearLogProbs, LinearProbs, OfLogits
from .logits import LinearLogits


class ClassesOnAxis1(OfLogits):
    """Result of ``transpose``, ``permute`` or ``movedim`` of logits ``(N, d1, ..., V)``.

    ``cross_entropy`` and ``nll_loss`` are lean, and so are the functions of this library.

    Args:
        logits: the logits or log-probabilities, with the classes on the last axis.
    """

    lean: ClassVar[dict[Callable[..., Any], Callable[..., Any]]] = {}
    moved = True
    packed = False  # True after contiguous()

    def __init__(self, logits: LinearLogits | LinearLogProbs) -> None:
        super().__init__(logits.view_of_all())

    @property
    def shape(self) -> torch.Size:
        """The shape, ``(N, V, d1, ...)``."""
        first, *others, classes = self.logits.shape
        return torch.Size((first, classes, *others))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the logits."""
        return self.logits.dtype

    def cast(self, dtype: torch.dtype) -> ClassesOnAxis1:
        """Return logits of another dtype."""
        return ClassesOnAxis1(self.logits.cast(dtype))

    def copy(self) -> ClassesOnAxis1:
        """Return the same logits."""
        return ClassesOnAxis1(self.logits.copy())

    def constant(self) -> ClassesOnAxis1:
        """Return the same logits without a gradient."""
        return ClassesOnAxis1(self.logits.constant())

    def compact(self) -> ClassesOnAxis1:
        """Return a copy, which is contiguous as a tensor."""
        other = self.copy()
        other.packed = True
        return other

    def is_contiguous(self) -> bool:
        """False unless made so: the classes are next to each other in memory."""
        return self.packed

    def computed(self) -> Tensor:
        """Compute all the numbers."""
        numbers = self.logits.materialize().movedim(-1, 1)
        return numbers.contiguous() if self.packed else numbers

    def classes_last(self, other: Any) -> Any:
        """Return an argument beside these logits as it is beside those with the classes last."""
        alike = isinstance(other, Tensor) and other.shape == self.shape
        return other.movedim(1, -1) if alike else other


def _permuted(order: Callable[..., Sequence[int]]) -> Callable[..., Any]:
    """The answer to a function that puts the axes into another order."""

    def answer(input: Any, *args: Any, **kwargs: Any) -> Any:
        moved = isinstance(input, ClassesOnAxis1)
        axes = [k % input.ndim for k in order(input.ndim, *args, **kwargs)]
        inner = input.logits if moved else input
        last = input.ndim - 1
        if moved:  # as axes of the logits with the classes last
            axes = [0 if k == 0 else last if k == 1 else k - 1 for k in axes]
        if axes[-1] == last:
            return _rows_in_order(inner, axes)
        if len(axes) > 2 and axes[1] == last:
            return ClassesOnAxis1(_rows_in_order(inner, [axes[0], *axes[2:], last]))
        return NotImplemented

    return answer


def _rows_in_order(z: Any, axes: list[int]) -> Any:
    if axes == sorted(axes):
        return z
    return z.with_rows([x.permute(axes) for x in z.row_tensors])


def _transposed(ndim: int, dim0: int, dim1: int) -> list[int]:
    axes = list(range(ndim))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return axes


def _swapped(ndim: int, axis0: int, axis1: int) -> list[int]:
    return _transposed(ndim, axis0, axis1)


def _given(ndim: int, *given: Any, dims: Any = None) -> list[int]:
    dims = given if dims is None else (dims,)
    return list(dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims)


def _moved(ndim: int, source: Any, destination: Any) -> list[int]:
    # The order that PyTorch gives the axes of an outline of different lengths.
    outline = torch.empty(*range(ndim), dtype=torch.bool, device="meta")
    return list(outline.movedim(source, destination).shape)


ORDERS = {
    "transpose": _transposed, "swapaxes": _swapped, "swapdims": _transposed,
    "permute": _given, "movedim": _moved, "moveaxis": _moved,
}  # fmt: skip

for _kind in (LinearLogits, LinearLogProbs, LinearProbs, ClassesOnAxis1):
    for _name, _order in ORDERS.items():
        for _home in (torch, Tensor):
            _kind.lean[getattr(_home, _name)] = _permuted(_order)


def _log_softmax(
    input: ClassesOnAxis1, dim: int | None = None, *options: Any, **named: Any
) -> ClassesOnAxis1 | Tensor:
    if dim is None or dim % input.ndim != 1:
        return NotImplemented
    answer = LinearLogits.lean[torch.log_softmax]
    return ClassesOnAxis1(answer(input.logits, -1, *options, **named))


for _home in (torch, Tensor, torch.nn.functional):
    ClassesOnAxis1.lean[_home.log_softmax] = _log_softmax
