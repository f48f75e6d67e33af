"""Jobs in processes that are forked after the import of PyTorch and pytest."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# The imports of the tests, without the library itself, which changes.
PRELOADED = ("mpmath", "numpy", "pytest", "torch")
LATE = "late"
BROKEN = 70  # the exit code of a job that has raised
PATIENCE = 20  # how much longer than its seconds of the processor a job may take by the clock

Work = Callable[[], int]


def each(jobs: Iterable[tuple[Any, Work, int]], count: int) -> Iterator[tuple[Any, int | str]]:
    """Run jobs, ``count`` at a time; give the name and exit code of each as it ends.

    Args:
        jobs: name, what to do, which returns an exit code, and after how many seconds of the
            processor it is late: on a busy machine those of a clock would tell nothing.
        count: how many processes at a time.

    Yields:
        Name and exit code, negative after a signal, or ``"late"``.

    Raises:
        RuntimeError: if a job raises; what it has raised is where it writes.
    """
    for name in PRELOADED:
        __import__(name)
    context, queue = multiprocessing.get_context("fork"), iter(jobs)
    running: dict[BaseProcess, tuple[Any, float]] = {}
    try:
        while True:
            while len(running) < count and (job := next(queue, None)) is not None:
                name, work, seconds = job
                process = context.Process(target=_alone, args=(work, seconds))
                process.start()
                running[process] = name, time.monotonic() + PATIENCE * seconds
            if not running:
                return
            wait([process.sentinel for process in running], timeout=0.5)
            for process, (name, deadline) in list(running.items()):
                late = process.is_alive() and time.monotonic() > deadline
                if late or not process.is_alive():
                    _end(process)
                    del running[process]
                    if (code := process.exitcode) == BROKEN:
                        raise RuntimeError(f"{name} could not be run")
                    yield name, LATE if late or code == -signal.SIGXCPU else code
    finally:
        for process in running:
            _end(process)


def _end(process: BaseProcess) -> None:
    """End a process, if it has not ended, and the processes that its tests have started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def _alone(work: Work, seconds: int) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    code = BROKEN
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    os._exit(code)  # threads that a test has left behind are not waited for


def written_to(log: Path) -> None:
    """Send what this process and its children write to a file."""
    with log.open("wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
