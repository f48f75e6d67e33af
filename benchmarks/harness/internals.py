"""The only module of the benchmarks that reads private modules of xent.

All other modules use public names, as the program of a user does. The functions here have no public
counterpart, because only measurements need them.
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
    core.pool.clear()


@contextmanager
def launch_sizes(**sizes: int) -> Iterator[None]:
    """Launch the kernels for GPUs with other sizes, such as ``TILE=4096``, within the block."""
    from xent.engines.triton import launch  # imports Triton, so not at the top

    before = {name: getattr(launch, name) for name in sizes}  # fails if there is no such name
    try:
        for name, size in sizes.items():
            setattr(launch, name, size)
        yield
    finally:
        for name, size in before.items():
            setattr(launch, name, size)
