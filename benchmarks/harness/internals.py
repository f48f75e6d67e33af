"""The only module of the benchmarks that reads private modules of xent.

Everything else here is written as a user's program, with public names. What stands here has no
public name, since it serves measurements only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xent.engines import core


def instruction_set() -> str:
    """Return the instruction set of the kernels for CPUs; ``"none"`` without the compiled core."""
    return core.isa


def release_memory() -> None:
    """Free the memory that the library keeps for the next large gradient."""
    core.trim()


@contextmanager
def launch_sizes(**sizes: int) -> Iterator[None]:
    """Launch the kernels for GPUs with other sizes, such as ``TILE=4096``, within the block."""
    from xent.engines.triton import launch  # which imports Triton

    before = {name: getattr(launch, name) for name in sizes}  # fails for names that are gone
    try:
        for name, size in sizes.items():
            setattr(launch, name, size)
        yield
    finally:
        for name, size in before.items():
            setattr(launch, name, size)
