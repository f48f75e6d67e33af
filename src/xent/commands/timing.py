"""What the benchmarks share."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")
PAUSE_SECONDS = 0.01  # threads of OpenMP keep spinning for up to 6 ms after a turn


def positive(text: str) -> int:
    """A whole number above 0 from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def shape(text: str) -> tuple[int, int]:
    """Rows and classes from the command line."""
    rows, comma, classes = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"{text!r} is not N,V as in 1024,1000")
    return positive(rows), positive(classes)


def summary(times: list[float]) -> dict[str, Any]:
    """Median and quartiles, with all the times they come from."""
    enough = times * 2 if len(times) == 1 else times  # quartiles of one time are that time
    low, middle, high = statistics.quantiles(enough, n=4, method="inclusive")
    return {"ms": middle, "ms_quartiles": [low, high], "ms_all": times}
