"""The only module of the benchmarks that reads private modules of xent.

All other modules use public names, as the program of a user does. The functions here have no public
counterpart, because only measurements need them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import xent
from xent import row_merge
from xent.commands.trainer import peak_memory
from xent.engines import core, triton
from xent.plot.canvas import rendered

__all__ = [
    "instruction_set", "launch_sizes", "merge", "packed", "peak_memory", "release_memory",
    "rendered", "runs_here", "take_for_gpu",
]  # fmt: skip


def instruction_set() -> str:
    """Return the instruction set of the kernels for CPUs; ``"none"`` without the compiled core."""
    return core.isa


def runs_here(engine: str) -> bool:
    """Return True if an engine can run on this machine."""
    if engine == "triton":
        return triton.INTERPRETED or torch.cuda.is_available()
    return engine != "native" or core.available()


def release_memory() -> None:
    """Free the memory that the library keeps for the next large gradient."""
    core.pool.clear()


def packed(stats: xent.RowStatistics) -> Tensor:
    """The numbers of the rows that a rank sends, ``(K, N)``."""
    return row_merge.packed(stats)


def merge(table: Tensor, like: xent.RowStatistics) -> xent.RowStatistics:
    """Statistics of all classes from the numbers of all ranks, ``(P, K, N)``."""
    return row_merge.read(row_merge.joined(table, like), like)


@contextmanager
def launch_sizes(**sizes: int) -> Iterator[None]:
    """Launch the kernels for GPUs with other sizes, such as ``TILE=4096``, within the block."""
    from xent.engines.triton import plans  # imports Triton, so not at the top

    before = {name: getattr(plans, name) for name in sizes}  # fails if there is no such name
    plans.PLANS.clear()
    try:
        for name, size in sizes.items():
            setattr(plans, name, size)
        yield
    finally:
        plans.PLANS.clear()
        for name, size in before.items():
            setattr(plans, name, size)


@contextmanager
def take_for_gpu() -> Iterator[None]:
    """Take tensors of the CPU for those of a GPU within the block, where no kernel may run.

    Nobody looks at their numbers, and the engine is the one for GPUs.
    """
    replaced: list[tuple[Any, str, Any]] = [(triton, "DEVICES", (*triton.DEVICES, "cpu"))]
    for module in [m for name, m in sys.modules.items() if name.startswith("xent")]:
        replaced += [
            (module, name, lambda *_: False)
            for name in ("in_cpu_memory", "can_look_at")
            if name in vars(module)
        ]
        if "check_labels_of" in vars(module):
            replaced.append((module, "check_labels_of", lambda _: None))
    before = [getattr(module, name) for module, name, _ in replaced]
    try:
        for module, name, stand_in in replaced:
            setattr(module, name, stand_in)
        yield
    finally:
        for (module, name, _), value in zip(replaced, before, strict=True):
            setattr(module, name, value)
