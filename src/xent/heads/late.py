"""Tensors whose numbers are computed when something reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from .stand_in import Lean

__all__ = ["Late", "in_evaluation"]

# True while :func:`xent.evaluate` runs a model: then logits may always be late.
in_evaluation = ContextVar("in_evaluation", default=False)

# What the outline tells: no number is read. Code that is not Python asks for no more.
OF_THE_OUTLINE = frozenset(
    ("size", "dim", "ndimension", "numel", "nelement", "stride", "element_size", "__len__",
     "is_floating_point", "is_complex", "is_contiguous", "is_inference")
)  # fmt: skip
OF_THE_NUMBERS = frozenset(("data", "T", "mT", "H", "mH", "real", "imag"))  # among the attributes


class Late(Tensor):
    """Passes for a tensor of logits, or of log-probabilities, that is not in memory.

    Code of an evaluation asks for tensors: Trainer pads, gathers and detaches what a model returns.
    A function with a lean answer leaves the tensor late. Any other function gets the numbers, which
    are computed once. The functions of this library look through a late tensor to the head.

    Args:
        content: the logits or log-probabilities, without a gradient.
    """

    content: Lean
    settled: bool

    @staticmethod
    def __new__(cls, content: Lean) -> Late:
        """Make the outline of a tensor."""
        # PyTorch asks for the device before it reads memory, even where it asks no subclass, as in
        # DLPack: `__torch_dispatch__` then puts the numbers into place.
        late = Tensor._make_wrapper_subclass(
            cls, content.shape, dtype=content.dtype, device=content.device, dispatch_device=True
        )
        content.silent = True  # an evaluation may read the numbers
        late.content, late.settled = content, False
        return late

    def __iter__(self) -> Iterator[Tensor]:
        """Iterate over the first axis."""
        return iter(self.unbind(0))

    def now(self, operation: str = "an operator") -> Tensor:
        """Compute the numbers, once, for an operation, and return them."""
        return self.content.materialize_for(operation)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """A late answer where there is a lean one, else the function of the numbers."""
        given: Any = args, dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            return args[0]._attribute(func)
        if name in OF_THE_OUTLINE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **given[1])
        if name == "requires_grad_":  # a leaf is a tensor
            return func(args[0].now(name), *args[1:], **given[1])
        args, options = tree_map_only(Late, lambda x: x.content, given)
        result = _answer(func, args, options)
        for x in tree_leaves(given):
            if isinstance(x, Late) and x.content.is_same(result):  # as of a function in place
                return x
        return tree_map_only(Lean, lambda x: x if x.requires_grad else Late(x), result)

    def _attribute(self, getter: Any) -> Any:
        """Return an attribute of the outline, or of the numbers where it shows these."""
        name = getter.__self__.__name__
        if name == "device":
            return self.content.device
        if name in OF_THE_NUMBERS:
            return getattr(self.now(name), name)
        with torch._C.DisableTorchFunctionSubclass():
            return getter(self)

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The operator of the numbers."""
        if func is torch.ops.prim.device.default:
            return args[0]._settle().device
        given: Any = args, dict(kwargs or {})
        args, options = tree_map_only(Late, Late.now, given)
        return func(*args, **options)

    def _settle(self) -> Tensor:
        """Put the numbers into the memory of this tensor itself, and return them."""
        numbers = self.now()
        if not self.settled:
            self.settled = True
            with torch._C.DisableTorchFunctionSubclass(), torch._C._DisableTorchDispatch():
                self.set_(
                    numbers.untyped_storage(), numbers.storage_offset(), numbers.shape,
                    numbers.stride(),
                )  # fmt: skip
        return numbers


def _answer(func: Callable[..., Any], args: Any, options: Any) -> Any:
    """The result of a function of stand-ins; of their numbers where a loss refuses stand-ins."""
    lean = next(x for x in tree_leaves((args, options)) if isinstance(x, Lean))
    if not hasattr(func, "__overridable__"):  # of PyTorch
        return lean.__torch_function__(func, (), args, options)
    try:
        return func(*args, **options)
    except (TypeError, ValueError):
        name = func.__name__
        args, options = tree_map_only(Lean, lambda x: x.materialize_for(name), (args, options))
        return func(*args, **options)
