"""Median and quartiles of repeated times, and notes about progress."""

from __future__ import annotations

import statistics
import sys
from typing import Any

PAUSE_SECONDS = 0.01  # threads of OpenMP keep spinning for up to 6 ms after a turn


def summary(times: list[float]) -> dict[str, Any]:
    """Median and quartiles, with all the times they come from."""
    enough = times * 2 if len(times) == 1 else times  # quartiles of one time are that time
    low, middle, high = statistics.quantiles(enough, n=4, method="inclusive")
    return {"ms": middle, "ms_quartiles": [low, high], "ms_all": times}


def announce(done: int, total: int, what: object) -> None:
    """Print to stderr what is measured next."""
    print(f"{done + 1} of {total}: {what}", file=sys.stderr, flush=True)
