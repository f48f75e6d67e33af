"""The product of a head as logits that are never all in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..engines.modes import PLAIN_TENSORS, autocasts, is_dtensor
from .logits import LinearLogits

__all__ = ["LateProduct"]

LINEAR = torch.nn.functional.linear
PRODUCTS = frozenset(
    (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__, Tensor.__rmatmul__)
)


class LateProduct(TorchFunctionMode):
    """A mode in which products with all classes are :class:`~xent.LinearLogits`.

    The mode is on while a head runs. Whatever the head does before the product, and whoever hooks
    into the head, works on tensors; an adapter scales and adds what comes after the product.

    Args:
        rows: the shape of the rows that go into the head.
        classes: how many results a product with all classes may have.
        options: of the LinearLogits.
        readers: where they note the operations that read all logits.
        original_of: gives what counts the changes of a part of a product, where the part itself
            must not be a view; None elsewhere.
    """

    def __init__(
        self, rows: torch.Size, classes: set[int], options: dict[str, Any], readers: list[str],
        original_of: Callable[[Tensor], Tensor | None],
    ) -> None:  # fmt: skip
        super().__init__()
        self.rows, self.classes, self.options, self.readers = rows, classes, options, readers
        self.original_of = original_of
        self.met = False
        self.obstacle: str | None = None  # why a product with all classes was not taken

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """LinearLogits for a product with all classes, the function itself for anything else."""
        parts = _parts(func, args, kwargs or {})
        if parts is not None and self._of_all_classes(*parts):
            self.obstacle = next(filter(None, map(_obstacle, parts)), None)
            if self.obstacle is None:
                self.met = True
                return self._logits(parts)
        return func(*args, **(kwargs or {}))

    def _logits(self, parts: tuple[Any, Any, Any]) -> LinearLogits:
        given = [None if x is None else _under_autocast(x) for x in parts]
        originals = [None if x is None else self.original_of(x) for x in given]
        some = [
            None if x is None else _in_graph(x, y) for x, y in zip(given, originals, strict=True)
        ]
        logits = LinearLogits(*some, **self.options)  # pyright: ignore
        logits.readers = self.readers
        return logits.stale_with([x for x in originals if x is not None])

    def _of_all_classes(self, hidden: Any, weight: Any, bias: Any) -> bool:
        if not (isinstance(hidden, Tensor) and isinstance(weight, Tensor)):
            return False
        if weight.ndim != 2 or weight.shape[0] not in self.classes:
            return False
        joined = is_dtensor(hidden) and hidden.ndim == len(self.rows) + 1  # pieces of the rows
        return joined or hidden.shape[:-1] == self.rows


def _parts(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, Any, Any] | None:
    """Features, weight ``(V, D)`` and bias of a product; None for other functions."""
    if func is LINEAR:
        named = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs)
        return named["input"], named["weight"], named.get("bias")
    if func in PRODUCTS and len(args) == 2 and not kwargs:
        hidden, factor = args[::-1] if func is Tensor.__rmatmul__ else args
        if isinstance(factor, Tensor) and factor.ndim == 2:
            return hidden, factor.T, None
    return None


def _obstacle(part: Tensor | None) -> str | None:
    """Say why a part of a product cannot go into LinearLogits; None if it can."""
    if part is None:
        return None
    if type(part) not in PLAIN_TENSORS and not is_dtensor(part):
        return f"its product is one of a {type(part).__name__}"
    if not part.is_floating_point():
        return f"its product is one of numbers of {part.dtype}"
    return None


def _under_autocast(part: Tensor) -> Tensor:
    """A part of a product in the type in which autocast would multiply it."""
    if autocasts(part) and part.dtype != torch.float64:
        return part.to(torch.get_autocast_dtype(part.device.type))
    return part


def _in_graph(part: Tensor, original: Tensor | None) -> Tensor:
    """A part with a place in the graph, and no view where something else counts its changes.

    DistributedDataParallel looks for the parameters that a result needs in the graph behind the
    tensors of the result, where a parameter itself is none. FSDP warns of views.
    """
    if not (part.requires_grad and torch.is_grad_enabled()):
        return part
    if original is not None:
        return cast(Tensor, _Same.apply(part))
    return part.view_as(part) if part.is_leaf else part


class _Same(torch.autograd.Function):
    """The numbers of a tensor, in the same memory, as a tensor that is no view."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.data

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]
