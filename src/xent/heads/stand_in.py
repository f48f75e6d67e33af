"""Stand-ins for tensors that do not hold the numbers."""

from __future__ import annotations

import functools
import inspect
import math
import sys
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ..engines.modes import compiling, version


class Shown:
    """Record that logits share which show the same rows, as the views of a tensor share memory.

    Attributes:
        changed: True once one of them was changed in place, which the others do not show.
        read: those whose numbers were read, and may be changed in place.
    """

    def __init__(self) -> None:
        self.changed = False
        self.read: list[weakref.ref[Lean]] = []


class Lean:
    """Stands for a tensor of ``(..., V)`` numbers that are never all in memory at once.

    PyTorch functions and methods of tensors either have a lean answer, registered in ``lean``, or
    get all the numbers: once, with a warning that says which operation needs them. An answer that
    does not know the case returns NotImplemented. If somebody changes the numbers in place, the
    numbers count from then on.
    """

    lean: ClassVar[dict[Callable[..., Any], Callable[..., Any]]]

    shape: Any
    dtype: torch.dtype
    hidden: Tensor
    whole = "materialize"  # the method that gives all the numbers
    moved = False  # True for logits whose classes were moved to axis 1
    normalised = False  # True for probabilities and their logarithms
    silent = False  # True where the numbers may be read without a warning
    readers: list[str] | None = None  # where to note the operations that read all the numbers
    shown: Shown
    _all: tuple[Tensor, int | None] | None = None  # the numbers, and their version at first

    def materialize(self) -> Tensor:
        """All the numbers as a tensor."""
        if self._all is not None and self.overwritten:
            return self._all[0]
        return self.computed()

    def computed(self) -> Tensor:
        """Compute all the numbers."""
        raise NotImplementedError

    def materialize_for(self, operation: str) -> Tensor:
        """Materialise once, keep the result, and warn which operation needed it, unless silent."""
        if self._all is not None:
            self.refuse_if_stale()
            return self._all[0]
        if self.readers is not None and operation not in self.readers:
            self.readers.append(operation)
        if not (self.silent or compiling()):
            warnings.warn(
                f"{operation} needs all {self.numel():,} logits of {self!r} at once",
                stacklevel=_level_of_caller(),
            )
        # Without a gradient now, they may need one later; and in inference mode they would not
        # count their changes in place.
        off = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
        with off, torch.set_grad_enabled(self.requires_grad):
            numbers = self.materialize()
        self._all = numbers, version(numbers)
        self.shown.read.append(weakref.ref(self))
        return numbers

    # ---- changes in place -----------------------------------------------------------------------

    @property
    def is_read(self) -> bool:
        """True if something has read all the numbers, which are kept since."""
        return self._all is not None

    def is_same(self, x: Any) -> bool:
        """True for the stand-in itself, and for the tensor of all the numbers that is kept."""
        return x is self or (self._all is not None and x is self._all[0])

    @property
    def overwritten(self) -> bool:
        """True if the tensor of all the numbers was changed in place after it was computed."""
        if self._all is None:
            return False
        before, now = self._all[1], version(self._all[0])
        return None not in (before, now) and before != now

    def refuse_if_stale(self) -> None:
        """Raise if other logits for the same rows were changed in place."""
        read = [ref() for ref in self.shown.read]
        if self.shown.changed or any(
            x.overwritten for x in read if x is not None and x is not self
        ):
            raise RuntimeError(
                f"{self!r} show rows that were changed in place through other logits, and do not "
                f"show the change. Use those, or change a copy: z = z.clone()"
            )

    def part(self) -> None:
        """Show rows that no other stand-in shows, as before a change in place."""
        self.refuse_if_stale()
        self.shown.changed, self.shown = True, Shown()
        if self.is_read:
            self.shown.read.append(weakref.ref(self))

    # ---- what it shares with a tensor -----------------------------------------------------------

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def device(self) -> torch.device:
        """The device of the numbers."""
        return self.hidden.device

    @property
    def layout(self) -> torch.layout:
        """Dense, as every product of matrices."""
        return torch.strided

    @property
    def is_leaf(self) -> bool:
        """False: they come from hidden and weight."""
        return False

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return self.dtype.itemsize

    def dim(self) -> int:
        """The number of axes."""
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or the length of one axis."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """Return how many numbers there are."""
        return math.prod(self.shape)

    def stride(self, dim: int | None = None) -> Any:
        """Return the strides of the materialised tensor, or that of one axis."""
        strides = tuple(math.prod(self.shape[k + 1 :]) for k in range(self.ndim))
        return strides if dim is None else strides[dim]

    def element_size(self) -> int:
        """Bytes of one number."""
        return self.itemsize

    def is_inference(self) -> bool:
        """True for features of inference mode."""
        return self.hidden.is_inference()

    def is_floating_point(self) -> bool:
        """True: logits are."""
        return True

    def is_complex(self) -> bool:
        """False."""
        return False

    def is_contiguous(self) -> bool:
        """True: the materialised tensor is."""
        return True

    def __bool__(self) -> bool:
        raise RuntimeError(f"the truth of {self!r} is ambiguous")

    __hash__ = object.__hash__  # of the object, since == compares the numbers

    def __len__(self) -> int:
        """The length of the first axis."""
        return self.shape[0]

    def __iter__(self) -> Any:
        """Iterate over the first axis."""
        return iter(self._call(torch.Tensor.unbind, 0))

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        """All the numbers as an array."""
        return self.materialize_for("an array").__array__(*arguments, **options)

    def __repr__(self) -> str:
        """Shape and dtype, since the numbers are not there."""
        return f"{type(self).__name__}({tuple(self.shape)}, {self.dtype}, {self.device})"

    def __getattr__(self, name: str) -> Any:
        """Any other attribute of a tensor, except those that would change or watch a copy."""
        of_one_tensor = name.startswith(("_", "register_", "retain_", "record_", "data", "grad"))
        member = None if of_one_tensor else getattr(Tensor, name, None)
        if member is None:
            raise AttributeError(f"{type(self).__name__} have no attribute {name!r}")
        if name.startswith("new_"):
            return functools.partial(getattr(self.hidden, name), dtype=self.dtype)
        if name == "get_device" or (name.startswith("is_") and not callable(member)):
            return getattr(self.hidden, name)
        if name == "mT":
            return self._call(Tensor.transpose, -2, -1)
        if callable(member):
            return functools.partial(self._call, member)
        return getattr(self.materialize_for(name), name)

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.__torch_function__(function, (type(self),), (self, *args), kwargs)

    @classmethod
    def answer_to(
        cls, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Callable[..., Any] | None:
        """The lean answer to a function with these arguments, or None."""
        answer = cls.lean.get(func)
        if answer is None or kwargs.get("out") is not None or not _fits(answer, args, kwargs):
            return None
        given = tree_leaves((args, kwargs))
        return None if any(isinstance(x, Lean) and x.overwritten for x in given) else answer

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """A lean answer where there is one; the function of all the numbers elsewhere."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", str(func))
        if isinstance(kwargs.get("out"), Lean) or name in OF_SHAPES:
            raise TypeError(f"{name} changes a tensor, and {cls.__name__} are none; use the result")
        answer = cls.answer_to(func, args, kwargs)
        result = NotImplemented if answer is None else answer(*args, **kwargs)
        if result is not NotImplemented:
            return result if torch.is_grad_enabled() else _constants(result, args)
        if works_in_place(name) and isinstance(args[0], Lean):
            args[0].part()
        given: Any = args, kwargs
        whole: Any = tree_map_only(Lean, lambda x: x.materialize_for(name.strip("_")), given)
        return func(*whole[0], **whole[1])


def _level_of_caller() -> int:
    """The level, for a warning, of the first frame outside of this library and PyTorch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(("xent.", "torch.")):
        level, frame = level + 1, frame.f_back
    return level


def works_in_place(name: str) -> bool:
    """True for the name of a function that changes the numbers of its first argument."""
    named = name.endswith("_") and not name.startswith("__") and name != "requires_grad_"
    return name in IN_PLACE or named


def _constants(result: Any, args: Any) -> Any:
    """A result without a gradient, as under no_grad; arguments stay as they are."""
    return tree_map_only(
        Lean,
        lambda x: x.constant() if x.requires_grad and all(x is not y for y in args) else x,
        result,
    )


def _fits(answer: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """True if an answer takes these arguments."""
    try:
        inspect.signature(answer).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _operator(name: str) -> Callable[..., Any]:
    member = getattr(torch.Tensor, name)

    def operate(self: Lean, *args: Any, **kwargs: Any) -> Any:
        return self._call(member, *args, **kwargs)

    operate.__name__ = name
    operate.__doc__ = f"As :meth:`torch.Tensor.{name}`."
    return operate


IN_PLACE = (
    "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__",
    "__setitem__",
)  # fmt: skip
# These change the shape of a tensor in place.
OF_SHAPES = ("transpose_", "swapaxes_", "swapdims_", "t_", "resize_", "resize_as_", "set_")
for _name in (
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow", "neg", "abs",
    "matmul", "floordiv", "mod", "eq", "ne", "lt", "le", "gt", "ge", "getitem",
):  # fmt: skip
    setattr(Lean, f"__{_name}__", _operator(f"__{_name}__"))
for _name in (
    *IN_PLACE, "reshape", "view", "flatten", "contiguous", "detach", "clone", "to", "type", "cpu",
    "float", "double", "half", "bfloat16",
):  # fmt: skip
    setattr(Lean, _name, _operator(_name))
