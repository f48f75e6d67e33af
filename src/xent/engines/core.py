"""The compiled core: whether it is installed, its instruction sets, threads and memory."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .modes import obstacle
from .pool import SMALLEST, Pool, bound_in_environment

if TYPE_CHECKING:
    from .. import _core
else:
    try:
        if os.environ.get("XENT_NO_CORE"):
            raise ImportError("XENT_NO_CORE is set")
        from .. import _core
    except ImportError:  # a pure-Python installation: the reference engine does everything
        _core = None

TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# Rows in memory: (address, type, outer step, inner count, inner step, class step).
Matrix = tuple[int, int, int, int, int, int]
NO_MATRIX: Matrix = (0, 0, 0, 1, 0, 1)  # where no matrix is given


def available() -> bool:
    """True if the compiled core is installed."""
    return _core is not None


def isas() -> list[str]:
    """The instruction sets that this machine can run, best last."""
    return _core.isas() if _core is not None else []


def set_isa(name: str) -> None:
    """Choose one of :func:`isas`; for tests and measurements."""
    global isa, fast
    if _core is None:
        raise RuntimeError("the compiled core of xent is not installed")
    _core.set_isa(name)
    isa, fast = _core.isa(), _fast_arithmetic()


def _fast_arithmetic() -> frozenset[torch.dtype]:
    """The types in which the kernels compute faster than plain operations of PyTorch.

    A fused multiply-add that is emulated costs float32 a factor of four, and float64, where it is
    a call for each number, a factor of a hundred.
    """
    if _core is None:
        return frozenset()
    return frozenset(TYPES if _core.fused() else set(TYPES) - {torch.float64})


# The instruction set in use, and the types that it is fast in. Constants and not calls, because
# torch.compile cannot trace calls into the core.
isa = _core.isa() if _core is not None else "none"
fast = _fast_arithmetic()

# The types of 16 bits that the processor multiplies in hardware, with sums in float32.
products = frozenset(getattr(torch, name) for name in _core.products()) if _core else frozenset()


# Huge pages are cleared ten times as fast, and written up to twice as fast.
pool = Pool(bound_in_environment(), _core.prefer_huge_pages if _core is not None else None)
if hasattr(os, "register_at_fork"):
    # A child would copy each page at its first write, which takes longer than a fresh page.
    os.register_at_fork(after_in_child=pool.clear)


def use_threads_of_torch() -> bool:
    """Run rows on torch's own thread pool, so that torch.set_num_threads rules here too.

    Its C entry is part of torch's stable interface; without it one thread does the work.
    """
    if _core is None:
        return False
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        try:
            entry = ctypes.CDLL(str(folder / name)).torch_parallel_for
        except (OSError, AttributeError):
            continue
        _core.set_parallel_for(ctypes.cast(entry, ctypes.c_void_p).value or 0)
        return True
    return False


threaded = use_threads_of_torch()


def obstacle_of(tensors: Sequence[Tensor | None]) -> str | None:
    """Return why no kernel can read these tensors, or None if one can."""
    if _core is None:
        return "the compiled core is not installed (see `xent info`)"
    return obstacle(tensors, ("cpu",))


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a gradient of ``x``, or for values of ``dtype``, in the layout of ``x``."""
    dtype = dtype or x.dtype
    if x.numel() * dtype.itemsize < SMALLEST or not x.is_cpu:
        return torch.empty_like(x, dtype=dtype)
    strides = () if x.is_contiguous() else torch.empty_like(x, device="meta").stride()
    return empty(x.shape, dtype, strides)


def still_fitting(gradient: Tensor | None, logits: Tensor) -> Tensor | None:
    """The gradient if it has the strides of the logits, else None.

    Hooks on saved tensors may give back logits of another layout than the gradient was made for.
    """
    alike = gradient is not None and gradient.stride() == logits.stride()
    return gradient if alike else None


def empty(shape: Sequence[int], dtype: torch.dtype, strides: Sequence[int] = ()) -> Tensor:
    """Dense memory, contiguous without ``strides``; if it is large, from the pool."""
    size = math.prod(shape) * dtype.itemsize
    if size < SMALLEST:
        return torch.empty(shape, dtype=dtype, device="cpu")
    storage = pool.take(size)
    return torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, shape, strides)


def matrix(x: Tensor, axis: int, may_copy: bool = True) -> tuple[Matrix, Tensor | None]:
    """A tensor as rows: (address, type, outer step, inner count, inner step, class step).

    Rows of (N, C, d1, ...) are addressed in place if d1, ... step evenly, which holds for
    contiguous and channels-last tensors and slices of a batch. Others are copied; the copy is the
    second value. With ``may_copy=False`` it is left uninitialised, to be copied back from.
    """
    copy = None
    if x.ndim > 3:
        shape = (*x.shape[:2], math.prod(x.shape[2:]))  # a -1 is not known of empty tensors
        try:
            flat = x.view(shape)
        except RuntimeError:
            copy = (
                x.contiguous()
                if may_copy
                else torch.empty_like(x, memory_format=torch.contiguous_format)
            )
            flat = copy.view(shape)
    else:
        flat = x
    step = flat.stride()
    kind = TYPES[x.dtype]
    if flat.ndim == 2:
        return (flat.data_ptr(), kind, step[0], 1, 0, step[1]), copy
    if x.ndim == 1:
        return (flat.data_ptr(), kind, 0, 1, 0, step[0]), copy
    return (flat.data_ptr(), kind, step[0], flat.shape[2], step[2], step[1]), copy
