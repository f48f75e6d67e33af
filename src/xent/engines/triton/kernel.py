"""One kernel with its constants: compiled at its first launch, and then launched in a few steps.

``kernel[grid](...)`` looks at every argument at every launch, to find out for which types,
alignments and numbers the kernel must be compiled: 15 us for the arguments of this library, 2 us
for what is left here. Whoever holds a :class:`Kernel` knows that they stay the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from .memory import KernelArguments, Strided

# Stand for numbers that change from call to call, so that no number of rows is compiled anew:
# Triton would compile for 1 and for multiples of 16. Numbers beyond 31 bits are of another type.
_SOME, _MANY = 17, 2**31 + 17


class Pointer:
    """Stands for a tensor of a type, for the compiler, at an address that 8 or 16 divides.

    Triton would also ask a tensor whether its memory has less than 2 GiB, and compile for that.
    """

    def __init__(self, dtype: torch.dtype, address: int = 8) -> None:
        self.dtype, self.address = dtype, address

    def data_ptr(self) -> int:
        """Return the address."""
        return self.address


class Kernel:
    """A kernel and its constants on one device, for arguments whose types stay the same.

    Numbers of rows, and all other numbers outside of a :class:`KernelArguments` or another record,
    may change, also those of a tuple. So may the addresses of tensors outside of
    :class:`KernelArguments` and :class:`Strided`; those inside keep what they have in common with
    16 bytes.
    """

    def __init__(
        self, function: Any, device: torch.device, num_warps: int = 4, num_ctas: int = 1,
        **constants: Any,
    ) -> None:  # fmt: skip
        # a * b + c is fused where a kernel says fma and nowhere else: same bits everywhere
        self.options = {
            **constants, "num_warps": num_warps, "num_ctas": num_ctas, "enable_fp_fusion": False
        }  # fmt: skip
        self.constants = [constants[n] for n in function.arg_names if n in constants]
        self.function, self.device, self.compiled = function, device, None

    def __call__(self, programs: int, *arguments: Any) -> None:
        """Launch, whatever the current device is."""
        if not isinstance(self.function, JITFunction):  # Triton's interpreter runs it
            self.function[(programs,)](*arguments, **self.options)
            return
        active: Any = driver.active
        current = active.get_current_device()
        if self.device.index not in (None, current):
            with torch.get_device_module(self.device).device(self.device):
                return self(programs, *arguments)
        compiled, stream = self.compiled, active.get_current_stream(current)
        if compiled is None:
            some = map(_neutral, arguments)
            compiled = self.compiled = self.function.warmup(*some, grid=(1,), **self.options)
            if compiled is None:  # a hook of Triton's cache launches the kernel itself
                self.function[(programs,)](*arguments, **self.options)
                return
        enter, leave, told = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, None
        if _listens(enter) or _listens(leave):  # a profiler
            told = compiled.launch_metadata((programs, 1, 1), stream, *arguments, *self.constants)
        else:
            enter = leave = None
        compiled.run(
            programs, 1, 1, stream, compiled.function, compiled.packed_metadata, told, enter, leave,
            *arguments, *self.constants,
        )  # fmt: skip


def _listens(hook: Any) -> bool:
    """Return True if somebody is to be told of launches; a chain of hooks may be empty."""
    return bool(getattr(hook, "calls", hook))


def _neutral(x: Any) -> Any:
    """Return an argument without what may change from launch to launch."""
    if isinstance(x, Tensor):
        return Pointer(x.dtype)
    if isinstance(x, int):
        return _SOME if -(2**31) <= x < 2**31 else _MANY
    if isinstance(x, KernelArguments):
        changing = {name: _neutral(getattr(x, name)) for name in ("rows", "inner_rows", "labels")}
        return _with_pointers(x)._replace(**changing)
    if type(x) is tuple:
        return tuple(map(_neutral, x))
    if isinstance(x, tuple) and not isinstance(x, Strided):
        return type(x)(*[_neutral(n) if isinstance(n, Tensor) else n for n in x])
    return _with_pointers(x)


def _with_pointers(x: Any) -> Any:
    """Return an argument with pointers for its tensors; 16 divides them where it divides theirs."""
    if isinstance(x, Tensor):
        return Pointer(x.dtype, 8 if x.data_ptr() % 16 else 16)
    return type(x)(*map(_with_pointers, x)) if isinstance(x, tuple) else x
