"""The C++ engine: hands addresses of CPU tensors to the kernel pair of ``csrc/``."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._check import label_out_of_range
from ..modes import obstacle
from .problem import Problem

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
POOLED_BYTES = 32 << 20  # below, malloc keeps what it was given back
BEYOND = 32  # zeros after a vector of the classes that is read by whole cache lines
_NO_MATRIX = (0, 0, 0, 1, 0, 1)


def available() -> bool:
    """Whether the compiled core is installed."""
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
    isa, fast = _core.isa(), _core.fused()


# The instruction set in use, and whether it beats plain PyTorch: not without fused multiply-add.
# Constants rather than calls, for the sake of torch.compile, which cannot look into the core.
isa = _core.isa() if _core is not None else "none"
fast = _core is not None and _core.fused()


def trim() -> None:
    """Give back the memory that is kept for the next large gradient."""
    if _core is not None:
        _core.trim()


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
    """Why no kernel can read these tensors, or None if one can."""
    if _core is None:
        return "the compiled core is not installed (see `xent info`)"
    return obstacle(tensors, ("cpu",))


def row_statistics(problem: Problem) -> tuple[Tensor, bool]:
    """The table of statistics, (fields, N...) in float64, and whether no row was ignored."""
    table = torch.empty(problem.table_shape, dtype=torch.float64, device=problem.logits.device)
    arguments, keep = _arguments(problem)
    arguments += [table.data_ptr(), problem.mask]
    kept, has_bad_label, bad_label = _core.row_statistics(*arguments)
    del keep
    if has_bad_label:
        raise label_out_of_range(bad_label, problem.classes, problem.target.ignore_index)
    return table, kept == problem.rows.numel()


def row_gradient(
    problem: Problem,
    table: Tensor,
    partials: Sequence[Tensor | None],
    out: Tensor | None = None,
) -> Tensor:
    """The gradient with respect to the logits of the sum of every field times its partial.

    ``out``, which may be the logits themselves, receives it.
    """
    if out is None:
        out = empty_like(problem.logits)
    table = table.contiguous()
    arguments, keep = _arguments(problem)
    matrix, whole = _matrix(out, problem.axis, may_copy=False)
    slopes = [_slopes(partial, keep) for partial in partials]
    arguments += [table.data_ptr(), problem.mask, slopes, matrix]
    _core.row_gradient(*arguments)
    del keep
    if whole is not None:
        out.copy_(whole)
    return out


def empty_like(x: Tensor) -> Tensor:
    """Memory for a gradient of ``x``, laid out like it."""
    return empty(x.shape, x.dtype) if x.is_contiguous() else torch.empty_like(x)


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory; much of it from the core's buffer, which spares the page faults."""
    size = math.prod(shape) * dtype.itemsize
    if size < POOLED_BYTES or _core is None:
        return torch.empty(shape, dtype=dtype, device="cpu")
    buffer = _core.Buffer(size)
    view = (ctypes.c_char * size).from_address(buffer.address)
    setattr(view, "owner", buffer)  # noqa: B010 - lives as long as the tensor's storage
    storage = torch.frombuffer(view, dtype=dtype).untyped_storage()
    strides = torch.empty(shape, dtype=dtype, device="meta").stride()
    return torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, torch.Size(shape), strides)


def _slopes(partial: Tensor | None, keep: list[Tensor]) -> tuple[int, int]:
    """The address of one number per row, and the step between them; (0, 0) for zeros."""
    if partial is None:
        return (0, 0)
    if not any(partial.stride()):  # one number for all rows, expanded
        return (partial.data_ptr(), 0)
    keep.append(partial.contiguous())
    return (keep[-1].data_ptr(), 1)


def _arguments(problem: Problem) -> tuple[list[Any], list[Tensor]]:
    """The problem as numbers, and the tensors that must live as long as the addresses are used."""
    p, keep = problem, []

    sweep = torch.float64 if p.logits.dtype == torch.float64 else torch.float32

    def address(tensor: Tensor | None, dtype: torch.dtype = sweep, beyond: int = 0) -> int:
        if tensor is None:
            return 0
        tensor = tensor.detach().to(dtype).contiguous()
        keep.append(torch.nn.functional.pad(tensor, (0, beyond)) if beyond else tensor)
        return keep[-1].data_ptr()

    logits, copy = _matrix(p.logits, p.axis)
    soft, soft_copy = _NO_MATRIX, None
    if p.target.table is not None:
        table = p.target.table
        table = table.to(sweep) if table.dtype == torch.float64 else table
        keep.append(table)
        soft, soft_copy = _matrix(table, 1)
    elif p.target.soft:
        soft, soft_copy = _matrix(p.target.values, p.axis)
    keep += [t for t in (copy, soft_copy) if t is not None]
    labels = address(p.target.values, torch.int64) if p.target.labelled else 0
    scale = p.transform.scale
    transform = (
        address(scale, torch.float64),
        scale is not None and scale.ndim > 0,
        p.transform.softcap,
        address(p.transform.class_scale, beyond=BEYOND),
        address(p.transform.class_bias),
    )
    weights = (address(p.class_weight), address(p.mean_weight, beyond=BEYOND))
    rows = p.rows.numel()
    target = (labels, p.target.ignore_index, p.target.first_class, p.target.sharded)
    return [logits, rows, p.classes, target, soft, transform, weights], keep


def _matrix(x: Tensor, axis: int, may_copy: bool = True) -> tuple[tuple, Tensor | None]:
    """A tensor as rows: (address, type, outer step, inner count, inner step, class step).

    Rows of (N, C, d1, ...) are addressed in place if d1, ... step evenly, which holds for
    contiguous and channels-last tensors and slices of a batch. Others are copied; the copy is the
    second value. With ``may_copy=False`` it is left uninitialised, to be copied back from.
    """
    copy = None
    if x.ndim > 3:
        try:
            flat = x.view(*x.shape[:2], -1)
        except RuntimeError:
            copy = (
                x.contiguous()
                if may_copy
                else torch.empty_like(x, memory_format=torch.contiguous_format)
            )
            flat = copy.view(*x.shape[:2], -1)
    else:
        flat = x
    step = flat.stride()
    kind = TYPES[x.dtype]
    if x.ndim == 1:
        return (flat.data_ptr(), kind, 0, 1, 0, step[0]), copy
    if flat.ndim == 2:
        return (flat.data_ptr(), kind, step[0], 1, 0, step[1]), copy
    return (flat.data_ptr(), kind, step[0], flat.shape[2], step[2], step[1]), copy


def plain_loss(
    logits: Tensor, labels: Tensor, ignore_index: int, mean: bool
) -> tuple[Tensor, _core.PlainTable]:
    """Mean or sum of ``-log p`` over contiguous (N, V) rows, and what its gradient needs."""
    rows, classes = logits.shape
    loss = logits.new_empty(())
    table = _core.plain_loss(
        logits.data_ptr(), TYPES[logits.dtype], rows, classes,
        labels.data_ptr(), ignore_index, mean, loss.data_ptr(),
    )  # fmt: skip
    if isinstance(table, int):
        raise label_out_of_range(table, classes, ignore_index)
    return loss, table


def plain_gradient(
    table: _core.PlainTable, logits: Tensor, labels: Tensor, slope: Tensor
) -> Tensor:
    """The gradient of :func:`plain_loss` times ``slope``, a number as a 0-d tensor."""
    gradient = empty_like(logits)
    _core.plain_gradient(
        table, logits.data_ptr(), labels.data_ptr(), slope.data_ptr(), gradient.data_ptr()
    )
    return gradient
