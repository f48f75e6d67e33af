"""Stand-ins for tensors that do not hold the numbers."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engines.modes import compiling


class NotRecordedError(TypeError):
    """An operation that would have to change numbers that are not there."""


class SharedRowsError(TypeError):
    """A change in place that other stand-ins for the same rows would miss."""


class Lean:
    """Stands for a tensor of ``(..., V)`` numbers that are never all in memory at once.

    PyTorch functions and methods of tensors either have a lean answer, registered in ``lean``, or
    get all the numbers: once, with a warning that says which operation needs them.
    """

    lean: ClassVar[dict[Callable[..., Any], Callable[..., Any]]]

    shape: Any
    dtype: torch.dtype
    hidden: Tensor
    moved = False  # True for logits whose classes were moved to axis 1
    silent = False  # True where the numbers may be read without a warning
    readers: list[str] | None = None  # where to note the operations that read all the numbers
    _all: tuple[bool, Tensor] | None = None  # whether grad was on, and all the numbers

    def materialize(self) -> Tensor:
        """All the numbers as a tensor."""
        raise NotImplementedError

    def materialize_for(self, operation: str) -> Tensor:
        """Materialise once, keep the result, and warn which operation needed it, unless silent."""
        if self._all is not None and self._all[0] == torch.is_grad_enabled():
            return self._all[1]
        if self.readers is not None and operation not in self.readers:
            self.readers.append(operation)
        if not (self.silent or compiling()):
            warnings.warn(
                f"{operation} needs all {self.numel():,} logits of {self!r} at once", stacklevel=3
            )
        self._all = torch.is_grad_enabled(), self.materialize()
        return self._all[1]

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
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        """True: logits are."""
        return True

    def is_complex(self) -> bool:
        """False."""
        return False

    def is_contiguous(self) -> bool:
        """True: the materialised tensor is."""
        return True

    def contiguous(self, *_: Any, **__: Any) -> Any:
        """Itself."""
        return self

    def float(self) -> Any:
        """Convert to float32."""
        return self.to(torch.float32)

    def double(self) -> Any:
        """Convert to float64."""
        return self.to(torch.float64)

    def half(self) -> Any:
        """Convert to float16."""
        return self.to(torch.float16)

    def bfloat16(self) -> Any:
        """Convert to bfloat16."""
        return self.to(torch.bfloat16)

    def type(self, dtype: Any = None, non_blocking: bool = False) -> Any:
        """Convert to a dtype; without one, return the name of the type."""
        if dtype is None or not isinstance(dtype, torch.dtype):
            outline = torch.empty(0, dtype=self.dtype, device=self.device)
            return outline.type() if dtype is None else self.to(outline.type(dtype).dtype)
        return self.to(dtype)

    def cpu(self) -> Any:
        """Itself on the CPU; raises elsewhere."""
        return self.to("cpu")

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Any:
        """Flatten some axes of rows. With the axis of the classes all numbers are needed."""
        start, end = start_dim % self.ndim, end_dim % self.ndim
        if end == self.ndim - 1 and start < end:
            return self.materialize_for("flatten").flatten(start, end)
        return self.reshape(*self.shape[:start], -1, *self.shape[end + 1 :])

    def __bool__(self) -> bool:
        raise RuntimeError(f"the truth of {self!r} is ambiguous")

    __hash__ = object.__hash__  # of the object, since == compares the numbers

    def __len__(self) -> int:
        """The length of the first axis."""
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        """Some of the numbers."""
        return self._call(Tensor.__getitem__, index)

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
        return answer if answer is not None and _fits(answer, args, kwargs) else None

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
        if kwargs.get("out") is not None:
            raise TypeError(
                f"{name}(out=) writes a tensor, and {cls.__name__} are none; leave out `out`"
            )
        answer = cls.answer_to(func, args, kwargs)
        if answer is not None:
            return answer(*args, **kwargs)
        if name.endswith("_") and not name.startswith("__"):
            raise NotRecordedError(
                f"{name} works in place, and {cls.__name__} have no place; use {name[:-1]}"
            )
        name = name.strip("_")

        def there(x: Any) -> Any:
            if isinstance(x, (list, tuple)) and any(isinstance(y, Lean) for y in x):
                return type(x)(map(there, x))
            return x.materialize_for(name) if isinstance(x, Lean) else x

        return func(*map(there, args), **{k: there(v) for k, v in kwargs.items()})


def _fits(answer: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """True if an answer takes these arguments."""
    try:
        inspect.signature(answer).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _operator(name: str) -> Callable[..., Any]:
    member = getattr(torch.Tensor, name)

    def operate(self: Lean, *other: Any) -> Any:
        return self._call(member, *other)

    operate.__name__ = name
    operate.__doc__ = "The operator of tensors."
    return operate


for _name in (
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow", "neg", "abs",
    "matmul", "floordiv", "mod", "eq", "ne", "lt", "le", "gt", "ge",
    "iadd", "isub", "imul", "itruediv", "setitem",
):  # fmt: skip
    setattr(Lean, f"__{_name}__", _operator(f"__{_name}__"))
