"""A process for each contestant of ``xent bench``.

    parent --(method, arguments)--> pipe --> worker: one contestant on one cell
           <------ the answer -----

Each contestant has a process of its own for three reasons. The memory that an allocator keeps must
not count for other contestants; JAX must know its threads before it is imported; and a process that
runs out of memory then ends alone. The parent asks the workers in turn, so only one of them
computes while anything is timed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from .contestants import CONTESTANTS, ERROR_ELEMENTS, Cell, Contestant, errors, make_inputs
from .memory import peak_beyond_now
from .race import ContestantError
from .report import in_one_line
from .timing import seconds_per_call


class Workbench:
    """The worker's side: one contestant, and the cell that is measured."""

    def __init__(self, contestant: Contestant):
        self.contestant = contestant
        self.cell = Cell(0, 0, "float32")
        self.calls: dict[str, Callable[[], object]] = {}

    def prepare(self, cell: Cell, modes: tuple[str, ...]) -> tuple[str, ...]:
        """Make inputs and compile; return the modes that the contestant has."""
        self.cell = cell
        self.calls.clear()  # frees the inputs of the last cell before the next
        if "torch._dynamo" in sys.modules:  # an import without need takes seconds
            torch.compiler.reset()  # otherwise each call checks the code of all earlier cells
        task = self.contestant.build(*make_inputs(cell))
        for mode in modes:
            if getattr(task, mode) is not None:
                self.calls[mode] = getattr(task, mode)
                self.seconds(mode, 1)
        return tuple(self.calls)

    def seconds(self, mode: str, calls: int) -> float:
        """Time one turn; return seconds per call."""
        with torch.set_grad_enabled(mode == "both"):
            return seconds_per_call(self.calls[mode], calls)

    def errors(self) -> dict[str, dict[str, float]]:
        """Measure errors on the random and the confident batch, on no more rows than needed."""
        rows = max(1, min(self.cell.rows, ERROR_ELEMENTS // self.cell.classes))
        found = {}
        for batch in ("random", "confident"):
            inputs = make_inputs(self.cell._replace(rows=rows), confident=batch == "confident")
            evaluate = self.contestant.build(*inputs).evaluate
            if evaluate is not None:
                found[batch] = errors(evaluate, *inputs)
        return found

    def cpu_seconds(self) -> float:
        """Return the CPU time of this process so far."""
        return time.process_time()

    def memory(self) -> dict[str, int]:
        """Measure the bytes of each mode at its peak beyond the inputs; the gradient counts."""
        found = {}
        for mode, call in self.calls.items():
            with torch.set_grad_enabled(mode == "both"):
                found[mode] = peak_beyond_now(call)
        return found


def _serve(pipe: Connection, name: str, threads: int) -> None:
    """Answer requests until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["NPROC"] = str(threads)  # the size of the thread pool of XLA
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of compilers in the background
    torch.set_num_threads(threads)
    bench = Workbench(CONTESTANTS[name])
    while True:
        try:
            method, arguments = pipe.recv()
        except (EOFError, ConnectionError):
            return
        try:
            answer = (True, getattr(bench, method)(*arguments))
        except Exception as error:
            answer = (False, in_one_line(error))
        with contextlib.suppress(ConnectionError):  # the next request shows whether the parent left
            pipe.send(answer)


class Worker:
    """The parent's side of one contestant. Its process starts with the first request."""

    def __init__(self, name: str, threads: int):
        self.name, self.threads = name, threads
        self._process: Any = None

    def send(self, method: str, *arguments: Any) -> None:
        """Ask without waiting for the answer."""
        if self._process is None:
            self._start()
        # If the process has died, `receive` says so.
        with contextlib.suppress(OSError):
            self._pipe.send((method, arguments))

    def receive(self) -> Any:
        """Wait for the answer to the last request; raise :class:`ContestantError` if it failed."""
        try:
            done, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code, self._process = self._process.exitcode, None
            hint = " (out of memory?)" if code == -9 else ""
            raise ContestantError(f"the process died with exit code {code}{hint}") from None
        if not done:
            raise ContestantError(answer)
        return answer

    def ask(self, method: str, *arguments: Any) -> Any:
        """Ask and wait."""
        self.send(method, *arguments)
        return self.receive()

    def cpu_seconds(self) -> float:
        """Return the CPU time of the process so far; 0 if the process has died."""
        try:
            return self.ask("cpu_seconds")
        except ContestantError:
            return 0.0

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._pipe.close()
            self._process.join(timeout=5)
            self._process.kill()
            self._process = None

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would inherit broken thread pools
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(
            target=_serve, args=(theirs, self.name, self.threads), daemon=True
        )
        self._process.start()
        theirs.close()  # otherwise the parent would not notice the end of the worker
