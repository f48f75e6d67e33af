"""The time of a call, median and quartiles of repeated times, and notes about progress."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

PAUSE_SECONDS = 0.01  # threads of OpenMP keep spinning for up to 6 ms after a turn


def seconds_per_call(call: Callable[[], object], calls: int) -> float:
    """Seconds of one of so many calls in a row."""
    gc.disable()
    try:
        if calls > 1:  # short calls: one untimed call wakes threads and fetches inputs
            call()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls
    finally:
        gc.enable()


def summary(times: list[float]) -> dict[str, Any]:
    """Median and quartiles, with all the times they come from."""
    enough = times * 2 if len(times) == 1 else times  # quartiles of one time are that time
    low, middle, high = statistics.quantiles(enough, n=4, method="inclusive")
    return {"ms": middle, "ms_quartiles": [low, high], "ms_all": times}


def announce(done: int, total: int, what: object) -> None:
    """Print to stderr what is measured next."""
    print(f"{done + 1} of {total}: {what}", file=sys.stderr, flush=True)
