"""Tensors whose numbers are computed when something reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from .stand_in import Lean, SharedRowsError

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

    content: Lean | Tensor  # the numbers as a tensor, once something has read them
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
        if isinstance(self.content, Lean):
            self.content = self.content.materialize_for(operation)
        return self.content

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
        late = [x for x in tree_leaves(given) if isinstance(x, Late)]
        args, options = tree_map_only(Late, _content, given)
        lean = next((x for x in tree_leaves((args, options)) if isinstance(x, Lean)), None)
        try:
            result = _lean_answer(func, lean, args, options)
        except SharedRowsError:
            raise
        except (TypeError, ValueError):  # the function of the numbers knows better
            result = NotImplemented
        if result is NotImplemented:
            args, options = tree_map_only(Late, lambda x: x.now(name.strip("_")), given)
            result = func(*args, **options)
        for x in late:
            if result is x.content:  # of a function that works in place
                return x
        return tree_map_only(Lean, Late, result)

    def _attribute(self, getter: Any) -> Any:
        """Return an attribute of the outline, or of the numbers where it shows these."""
        name = getter.__self__.__name__
        if isinstance(self.content, Lean):
            if name == "device":
                return self.content.device
            if name not in OF_THE_NUMBERS:
                with torch._C.DisableTorchFunctionSubclass():
                    return getter(self)
        return getattr(self.now(name), name)

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


def _content(x: Late) -> Lean | Tensor:
    return x.content


def _lean_answer(func: Callable[..., Any], lean: Lean | None, args: Any, options: Any) -> Any:
    """The result without the numbers, NotImplemented where there is none."""
    if lean is None:
        return NotImplemented
    own = hasattr(func, "__overridable__")  # of this library
    answer = func if own else lean.answer_to(func, args, options)
    return NotImplemented if answer is None else answer(*args, **options)
