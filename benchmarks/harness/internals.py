"""The only module of the benchmarks that reads private modules of xent.

Everything else here is written as a user's program, with public names. What stands here has no
public name, since it serves measurements only.
"""

from __future__ import annotations

from xent.engines import core


def instruction_set() -> str:
    """Return the instruction set of the kernels for CPUs; ``"none"`` without the compiled core."""
    return core.isa


def release_memory() -> None:
    """Free the memory that the library keeps for the next large gradient."""
    core.trim()
