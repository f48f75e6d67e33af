"""The device of this machine: a GPU, or Triton's interpreter for a rehearsal on tiny shapes."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from .timing import CudaTimer, Timer, Turn, nothing, race

REHEARSAL = not torch.cuda.is_available()
DEVICE = "cpu" if REHEARSAL else "cuda"
ENGINE = "triton" if REHEARSAL else "auto"


def make_timer() -> Timer:
    """Return the timer of the device."""
    return Timer() if REHEARSAL else CudaTimer()


def median(timer: Timer, call: Callable[[], object], rounds: int = 5) -> float:
    """Return the median of the milliseconds of a call, after one call that is not counted."""
    key = "call"
    return statistics.median(race({key: Turn(nothing, call)}, timer, rounds)[key])
