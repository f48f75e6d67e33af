"""Work on the rows of a data set, shared out to threads.

A product of many rows with few coefficients takes as long as reading the rows. The libraries of
linear algebra leave cores idle there: 20,000 rows of 784 features times 10 coefficients each take
1.4 to 1.7 times as long as when each core multiplies its own share of the rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, lru_cache
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

WORTH = 10_000_000  # products of two numbers from which on a second thread saves time

Item = TypeVar("Item")
Result = TypeVar("Result")


def shares_of(rows: int) -> list[slice]:
    """Return slices of about equal length, one for each thread of PyTorch."""
    step = max(1, -(-rows // torch.get_num_threads()))
    return [slice(k, min(k + step, rows)) for k in range(0, rows, step)]


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return the results of a function of NumPy for each item, one item per thread."""

    def quietly(item: Item) -> Result:
        with np.errstate(all="ignore"):  # each thread has its own state
            return function(item)

    if len(items) == 1:
        return [quietly(items[0])]
    return list(_executor(os.getpid(), len(items)).map(quietly, items))


@lru_cache(maxsize=1)
def _executor(process: int, threads: int) -> ThreadPoolExecutor:
    """Return the threads of this process; a fork has none of its parent's."""
    return ThreadPoolExecutor(threads, f"xent-rows-{process}")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let a product of NumPy or SciPy take one thread.

    The threads of these libraries wait for work by spinning, and between products would take the
    cores from PyTorch. The number of threads is one for the whole process. So of several fits that
    overlap in time, the last to end restores it.
    """
    _blas.enter()
    try:
        yield
    finally:
        _blas.leave()


class _Blas:
    """The limit of the libraries of linear algebra, and how many fits need it now."""

    def __init__(self) -> None:
        self.lock, self.fits = Lock(), 0
        self.limit: Any = None

    def enter(self) -> None:
        with self.lock:
            if self.fits == 0:
                self.limit = _thread_pools().limit(limits={"libscipy_openblas": 1})
            self.fits += 1

    def leave(self) -> None:
        with self.lock:
            self.fits -= 1
            if self.fits == 0:
                self.limit.restore_original_limits()


_blas = _Blas()


@cache
def _thread_pools() -> ThreadpoolController:
    """Return the thread pools of the libraries that are loaded; looking for them takes time."""
    return ThreadpoolController()
