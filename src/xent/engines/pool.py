"""Memory of large tensors, kept for later calls: faults of fresh pages cost as much as a loss.

malloc gives a large block back to the system when the block is freed, or as soon as much of the
heap is free. Some programs get into a state where it does so at every call. Then every call waits
until the system has cleared the same pages again. The pool keeps blocks, with their pages.

A block is a storage of PyTorch to which the pool refers, too. As soon as nothing else does, the
next tensor of about the same size gets it. So whoever keeps a tensor of the pool has memory like
any other of PyTorch, which can be resized, shared and saved, and freed by any thread at any time.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

import torch

SMALLEST = 256 << 10  # bytes of a block; malloc itself keeps smaller ones
MOST_BLOCKS = 16  # so that a search takes microseconds, however many tensors a program keeps
IDLE_SECONDS = 60.0
DEFAULT_MIB = 1024

# Counts the references to a storage, one for all of Python's names together.
_references: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)


class Block:
    """A storage, and what it was when the pool made it."""

    __slots__ = ("address", "size", "storage", "used")

    def __init__(self, size: int):
        self.storage = torch.empty(size, dtype=torch.uint8, device="cpu").untyped_storage()
        self.size, self.address, self.used = size, self.storage.data_ptr(), 0.0

    def is_free(self) -> bool:
        """True if only the pool refers to the storage: no tensor, and no other name in Python."""
        assert _references is not None
        cdata = self.storage._cdata
        # A name of another thread may become a tensor between two checks, so the first is repeated.
        alone = _references(cdata) == 1 and sys.getrefcount(self.storage) == 2
        return alone and _references(cdata) == 1

    def is_ours(self) -> bool:
        """False if the storage was resized, or moved into memory that other processes may read."""
        return self.storage.nbytes() == self.size and self.storage.data_ptr() == self.address


class Pool:
    """Blocks of at most ``bound`` bytes together, those in use included; the last is the latest.

    Args:
        bound: bytes; larger blocks are not kept.
        prepare: called with address and size of a new block, before anything is written there.
    """

    def __init__(self, bound: int, prepare: Callable[[int, int], object] | None = None):
        self.bound = bound if _can_count() else 0
        self._prepare = prepare
        self.clear()

    def clear(self) -> None:
        """Let go of all blocks. Those in use are freed by their users."""
        self._blocks: list[Block] = []
        self._lock = threading.Lock()  # a new one: a forked process may inherit a lock that is held

    @property
    def held(self) -> int:
        """The bytes of all blocks, those in use included."""
        return sum(block.size for block in self._blocks)

    def take(self, size: int) -> torch.UntypedStorage:
        """Return a storage of ``size`` bytes, or up to an eighth more, with any content."""
        # Who finds the pool busy does not wait. So nothing can hang: neither another thread nor a
        # destructor that computes a loss in the middle of this.
        lock = self._lock
        if size > self.bound or not lock.acquire(blocking=False):
            return self._new(size).storage
        try:
            now, blocks = time.monotonic(), self._blocks
            block = self._fitting(size)
            if block is None or now > blocks[0].used + IDLE_SECONDS:
                kept = [b for b in blocks if b is not block and now <= b.used + IDLE_SECONDS]
                room = self.bound - (block.size if block else size)
                self._blocks = blocks = _latest([b for b in kept if b.is_ours()], room)
                block = block or self._new(size)  # after the others have made room
                blocks.append(block)
            elif block is not blocks[-1]:
                blocks.remove(block)
                blocks.append(block)
            block.used = now
            return block.storage
        finally:
            lock.release()

    def _fitting(self, size: int) -> Block | None:
        """Return the smallest free block of this size or slightly more; the latest of several."""
        found, limit = None, size + size // 8 + 1
        for block in reversed(self._blocks):
            if size <= block.size < limit and block.is_free() and block.is_ours():
                found, limit = block, block.size
                if limit == size:
                    break
        return found

    def _new(self, size: int) -> Block:
        block = Block(size)
        if self._prepare is not None:
            self._prepare(block.address, size)
        return block


def _latest(blocks: list[Block], bytes: int) -> list[Block]:
    """Return the latest blocks that fit into ``bytes``, and are few enough for one more."""
    first = max(0, len(blocks) + 1 - MOST_BLOCKS)
    total = sum(block.size for block in blocks[first:])
    while total > bytes:
        total -= blocks[first].size
        first += 1
    return blocks[first:]


def _can_count() -> bool:
    """True if this PyTorch counts the references to a storage as the pool takes for granted."""
    if _references is None:
        return False
    storage = torch.empty(1, dtype=torch.uint8, device="cpu").untyped_storage()
    alone = _references(storage._cdata)
    tensor = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
    together = _references(storage._cdata)
    del tensor
    return (alone, together) == (1, 2)


def bound_in_environment() -> int:
    """Return the bound in bytes, which the variable XENT_POOL_MIB sets."""
    text = os.environ.get("XENT_POOL_MIB", str(DEFAULT_MIB))
    if not text.isdecimal():
        raise ValueError(
            f"XENT_POOL_MIB must be a whole number of MiB, 0 for no pool, got {text!r}"
        )
    return int(text) << 20
