"""Times of calls on a GPU, beside the bytes that they move and a plain copy.

:class:`CudaTimer` takes times from the GPU. Its base :class:`Timer` has the same methods for a CPU,
and takes times from the clock, so that everything but the GPU itself can be tried without a GPU.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from ..harness.timing import summary

FLUSH_BYTES = 2 << 30  # far more than any cache; an H200 writes them in half a millisecond
WARM_UP = 3  # untimed calls at first: they compile and tune
CELL_SECONDS, MIN_ROUNDS = 2.0, 5  # no round begins later; at least so many rounds

# Sweeps over the bytes of the logits that a loss needs: "forward" reads once; "backward" reads once
# and writes the gradient; "both" is their sum. With the gradient in the forward pass, it is two.
SWEEPS = {"forward": 1, "backward": 2, "both": 3}
COPY_SWEEPS = 2

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Turn(NamedTuple):
    """A call to time, and a call to make before each time."""

    ready: Callable[[], object]
    call: Callable[[], object]


def nothing() -> None:
    """Do nothing, before a call that needs no preparation."""


class Timer:
    """A timer by the clock, for tensors on a CPU."""

    device = "cpu"
    calls = 2  # in a burst

    def describe(self) -> str:
        """Return the name of the device."""
        return "TRITON'S INTERPRETER ON A CPU: THE TIMES MEAN NOTHING"

    def flush(self) -> None:
        """Empty the caches, and keep the device busy while the next calls are queued."""

    def wait(self) -> None:
        """Wait until the device is done."""

    def release(self) -> None:
        """Give unused memory back."""

    def milliseconds(self, turn: Turn) -> float:
        """Time one call, from flushed caches."""
        turn.ready()
        self.flush()
        start = time.perf_counter()
        turn.call()
        return 1e3 * (time.perf_counter() - start)

    def burst(self, call: Callable[[], object]) -> float:
        """Time many calls in a row by the clock; return milliseconds per call."""
        call()
        self.wait()
        start = time.perf_counter()
        for _ in range(self.calls):
            call()
        self.wait()
        return 1e3 * (time.perf_counter() - start) / self.calls

    def peak(self, turn: Turn) -> int | None:
        """Return the bytes by which memory grows during a call; None where this is not known."""
        return None

    def captured(self, call: Callable[[], object]) -> Callable[[], object]:
        """Return the call as a graph to replay; the call itself where there are no graphs."""
        return call


class CudaTimer(Timer):
    """A timer by events around a call; the flush before lasts until the call is queued."""

    device = "cuda"
    calls = 200

    def __init__(self) -> None:
        self.ballast = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=self.device)
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def describe(self) -> str:
        """Return the card, its driver and CUDA."""
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
            driver = answer.stdout.split()[0]
        except (OSError, subprocess.SubprocessError, IndexError):
            driver = "unknown"
        return f"{torch.cuda.get_device_name()}, driver {driver}, CUDA {torch.version.cuda}"

    def flush(self) -> None:
        """Write more than the caches hold."""
        self.ballast.zero_()

    def wait(self) -> None:
        """Wait for all streams."""
        torch.cuda.synchronize()

    def release(self) -> None:
        """Give memory that PyTorch keeps, but does not use, back to the driver."""
        torch.cuda.empty_cache()

    def milliseconds(self, turn: Turn) -> float:
        """Time one call, from event to event; the host waits after the second only."""
        turn.ready()
        self.flush()
        self.start.record()
        turn.call()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end)

    def peak(self, turn: Turn) -> int | None:
        """Return the bytes that PyTorch's allocator counts."""
        turn.ready()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        turn.call()
        return torch.cuda.max_memory_allocated() - before

    def captured(self, call: Callable[[], object]) -> Callable[[], object]:
        """Return the call as a CUDA graph, warmed up on a stream of its own."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay


def race(turns: Mapping[K, Turn], timer: Timer, rounds: int) -> dict[K, list[float]]:
    """Time all calls in turn, round after round; return milliseconds of each."""
    found: dict[K, list[float]] = {key: [] for key in turns}
    deadline = time.monotonic() + CELL_SECONDS
    for done in range(-1, rounds):  # the first one is for warming up
        if done >= MIN_ROUNDS and time.monotonic() > deadline:
            break
        for key, turn in turns.items():
            ms = timer.milliseconds(turn)
            if done >= 0:
                found[key].append(ms)
    return found


# ---- measures of times ---------------------------------------------------------------------------


def gigabytes_per_second(sweeps: int, logit_bytes: int, ms: float) -> float:
    """Return the rate at which so many sweeps move the bytes of the logits; a giga is 10^9."""
    return sweeps * logit_bytes / ms / 1e6


def figures(mode: str, times: list[float], logit_bytes: int, copy_ms: float) -> dict[str, Any]:
    """Return median and quartiles of milliseconds, and their measures beside a copy.

    Returns:
        The entries of ``summary``, and: ``gb_s`` by :data:`SWEEPS`; ``of_copy``, that rate in
        percent of the rate of a copy; ``copies``, the time divided by that of a copy; and
        ``one_pass``, the rate of one read and one write in that time, in percent of a copy.
    """
    found = summary(times)
    copy_rate = gigabytes_per_second(COPY_SWEEPS, logit_bytes, copy_ms)
    rate = gigabytes_per_second(SWEEPS[mode], logit_bytes, found["ms"])
    copies = found["ms"] / copy_ms
    shares = {"of_copy": 100 * rate / copy_rate, "copies": copies, "one_pass": 100 / copies}
    return found | {"gb_s": rate} | shares


class Budget(Generic[T]):
    """Seconds for all steps together, and the steps that found no time."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds
        self.left_out: list[T] = []

    def within(self, steps: Iterable[T]) -> Iterator[T]:
        """Yield the steps that end in time if each takes as long as the longest so far."""
        longest = 0.0
        for step in steps:
            start = time.monotonic()
            if start + longest > self.end:
                self.left_out.append(step)
                continue
            yield step
            longest = max(longest, time.monotonic() - start)
