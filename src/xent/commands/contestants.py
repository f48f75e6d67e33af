"""The contestants of ``xent bench``, each in a worker process of its own.

    parent --(method, arguments)--> pipe --> worker: one contestant on one cell
           <------ the answer -----

One process each: what an allocator keeps, and how warm it is, should be a contestant's own doing;
JAX must be told its threads before it is imported; and who runs out of memory takes nobody along.
The parent asks the workers in turn, so only one of them computes while anything is timed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engines import core
from ..losses import cross_entropy

MODES = ("both", "forward")  # forward+backward, and forward alone without a graph
CONFIDENCE = 20.0  # nats between the target and all the rest in the confident batch
ERROR_ELEMENTS = 1 << 23  # logits that errors are found on; the float64 reference stays small


class Cell(NamedTuple):
    """One problem: logits of ``(rows, classes)`` in a dtype, named as in torch."""

    rows: int
    classes: int
    dtype: str

    @property
    def logit_bytes(self) -> int:
        """Size of the logits."""
        return self.rows * self.classes * getattr(torch, self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.rows} x {self.classes} {self.dtype}"


# -- The contestants -------------------------------------------------------------------------------


class Task(NamedTuple):
    """A contestant with its inputs in place: what is timed, and what is checked.

    Attributes:
        both: computes loss and gradient, and frees both.
        forward: computes the loss; it is called under ``torch.no_grad()``.
        evaluate: returns loss and gradient.
    """

    both: Callable[[], object]
    forward: Callable[[], object] | None = None
    evaluate: Callable[[], tuple[Tensor, Tensor]] | None = None


class Contestant(NamedTuple):
    """A way to compute the loss.

    Attributes:
        build: makes the task for logits and target.
        needs: packages that must be installed.
        what: the call in words.
    """

    build: Callable[[Tensor, Tensor], Task]
    needs: tuple[str, ...]
    what: str

    def unavailable(self) -> str | None:
        """Why it cannot take part here, or None."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else None


def _torch_task(loss: Callable[[Tensor, Tensor], Any], logits: Tensor, target: Tensor) -> Task:
    leaf = logits.requires_grad_()

    def both() -> None:
        loss(leaf, target).backward()
        leaf.grad = None  # so that every call pays for a fresh gradient, and for freeing it

    def evaluate() -> tuple[Tensor, Tensor]:
        value = loss(leaf, target)
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach(), gradient

    return Task(both, lambda: loss(leaf, target), evaluate)


def _xent(logits: Tensor, target: Tensor) -> Task:
    return _torch_task(cross_entropy, logits, target)


def _eager(logits: Tensor, target: Tensor) -> Task:
    return _torch_task(F.cross_entropy, logits, target)


def _call_of_torch(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target)


def _compiled(logits: Tensor, target: Tensor) -> Task:
    return _torch_task(torch.compile(_call_of_torch, dynamic=False), logits, target)


def _optax(logits: Tensor, target: Tensor) -> Task:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    def mean_loss(x: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()

    dtype = str(logits.dtype).removeprefix("torch.")
    x = jnp.asarray(logits.float().numpy()).astype(dtype)  # NumPy has no bfloat16; this is exact
    y = jnp.asarray(target.int().numpy())
    forward, both = jax.jit(mean_loss), jax.jit(jax.value_and_grad(mean_loss))

    def evaluate() -> tuple[Tensor, Tensor]:
        value, gradient = (torch.from_numpy(np.array(a, dtype=np.float32)) for a in both(x, y))
        return value, gradient

    return Task(
        lambda: jax.block_until_ready(both(x, y)),
        lambda: jax.block_until_ready(forward(x, y)),
        evaluate,
    )


def _copy(logits: Tensor, target: Tensor) -> Task:
    out = torch.empty_like(logits)
    return Task(lambda: out.copy_(logits))


CONTESTANTS = {
    "xent": Contestant(_xent, (), "xent.cross_entropy"),
    "torch": Contestant(_eager, (), "torch.nn.functional.cross_entropy"),
    "compile": Contestant(_compiled, (), "torch.compile of it, inductor"),
    "optax": Contestant(
        _optax, ("jax", "optax"), "jitted optax.softmax_cross_entropy_with_integer_labels().mean()"
    ),
    "copy": Contestant(_copy, (), "a plain copy of the logits into existing memory"),
}


# -- Inputs and the truth --------------------------------------------------------------------------


def make_inputs(cell: Cell, *, confident: bool = False) -> tuple[Tensor, Tensor]:
    """Normal logits and uniform targets; ``confident`` puts each target far above the rest."""
    random = torch.Generator().manual_seed(cell.rows + cell.classes)
    logits = torch.randn(cell.rows, cell.classes, generator=random)
    target = torch.randint(cell.classes, (cell.rows,), generator=random)
    if confident:
        column = target[:, None]
        rest = logits.scatter(1, column, -torch.inf).logsumexp(1, keepdim=True)
        logits.scatter_(1, column, rest + CONFIDENCE)
    return logits.to(getattr(torch, cell.dtype)), target


def truth(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss and gradient in float64, without the subtraction ``lse - z_y`` or ``p - 1``."""
    z, column = logits.double(), target[:, None]
    odds = torch.exp(z - z.gather(1, column)).scatter_(1, column, 0.0)  # p_j / p_y
    rest = odds.sum(1, keepdim=True)  # (1 - p_y) / p_y
    gradient = odds.scatter_(1, column, -rest).div_(1 + rest).div_(len(z))
    return rest.log1p().mean(), gradient


def errors(
    evaluate: Callable[[], tuple[Tensor, Tensor]], logits: Tensor, target: Tensor
) -> dict[str, float]:
    """Errors of loss and gradient against :func:`truth`.

    Returns:
        ``loss_ulps`` in units in the last place of the logits' dtype, ``gradient`` relative to the
        largest true entry, and ``target_entry``, the worst relative error at a target.
    """
    loss, gradient = evaluate()
    true_loss, true_gradient = truth(logits.detach(), target)
    ulp = torch.finfo(logits.dtype).eps * true_loss.log2().floor().exp2()
    column = target[:, None]
    true_entry = true_gradient.gather(1, column)
    largest = true_gradient.abs().max()
    wrong = true_gradient.neg_().add_(gradient).abs_()
    return {
        "loss_ulps": ((loss.double() - true_loss).abs() / ulp).item(),
        "gradient": (wrong.max() / largest).item(),
        "target_entry": (wrong.gather(1, column) / true_entry.abs()).max().item(),
    }


# -- Memory ----------------------------------------------------------------------------------------


def _release_memory() -> None:
    """Hand freed memory back to the system, so that it is not taken for memory in use."""
    gc.collect()
    core.trim()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _resident(field: str) -> int:
    """A field of ``/proc/self/status`` in bytes: VmRSS now, VmHWM at the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def peak_beyond_now(call: Callable[[], object]) -> int:
    """Bytes by which the process grows at most during a call."""
    _release_memory()
    try:
        # Linux can reset the peak. `ru_maxrss` cannot be reset, and a child inherits its parent's.
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - before)
    except OSError:
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit


# -- The worker process ----------------------------------------------------------------------------


class Workbench:
    """The worker's side: one contestant, and the cell it works on."""

    def __init__(self, contestant: Contestant):
        self.contestant = contestant
        self.cell = Cell(0, 0, "float32")
        self.calls: dict[str, Callable[[], object]] = {}

    def prepare(self, cell: Cell, modes: tuple[str, ...]) -> tuple[str, ...]:
        """Make the inputs and compile; return the modes that the contestant has."""
        self.cell = cell
        self.calls.clear()  # the last cell's inputs go before the next ones come
        if "torch._dynamo" in sys.modules:  # importing it for nothing takes seconds
            torch.compiler.reset()  # else every call looks through the code of earlier cells
        task = self.contestant.build(*make_inputs(cell))
        for mode in modes:
            if getattr(task, mode) is not None:
                self.calls[mode] = getattr(task, mode)
                self.seconds(mode, 1)
        return tuple(self.calls)

    def seconds(self, mode: str, calls: int) -> float:
        """Seconds per call of one turn."""
        call = self.calls[mode]
        gc.disable()
        with torch.set_grad_enabled(mode == "both"):
            if calls > 1:  # short ones: wake the thread pool and fetch the inputs, untimed
                call()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            elapsed = time.perf_counter() - start
        gc.enable()
        return elapsed / calls

    def errors(self) -> dict[str, dict[str, float]]:
        """Errors on the random and on the confident batch, of no more rows than needed."""
        rows = max(1, min(self.cell.rows, ERROR_ELEMENTS // self.cell.classes))
        found = {}
        for batch in ("random", "confident"):
            inputs = make_inputs(self.cell._replace(rows=rows), confident=batch == "confident")
            evaluate = self.contestant.build(*inputs).evaluate
            if evaluate is not None:
                found[batch] = errors(evaluate, *inputs)
        return found

    def cpu_seconds(self) -> float:
        """CPU time of this process so far."""
        return time.process_time()

    def memory(self) -> dict[str, int]:
        """Bytes that each mode needs at its peak beyond the inputs; the gradient counts."""
        found = {}
        for mode, call in self.calls.items():
            with torch.set_grad_enabled(mode == "both"):
                found[mode] = peak_beyond_now(call)
        return found


def _serve(pipe: Connection, name: str, threads: int) -> None:
    """Answer requests until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["NPROC"] = str(threads)  # XLA sizes its thread pool by it
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
        with contextlib.suppress(ConnectionError):  # the next request tells that the parent is gone
            pipe.send(answer)


def in_one_line(error: Exception) -> str:
    """What went wrong, without what follows the first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}"[:200] if lines else type(error).__name__


class ContestantError(Exception):
    """A contestant could not do what it was asked; the message is the reason."""


class Worker:
    """The parent's side of one contestant. Its process starts with the first request."""

    def __init__(self, name: str, threads: int):
        self.name, self.threads = name, threads
        self._process: Any = None

    def send(self, method: str, *arguments: Any) -> None:
        """Ask without waiting for the answer."""
        if self._process is None:
            self._start()
        # Of a process that has died, `receive` tells how.
        with contextlib.suppress(OSError):
            self._pipe.send((method, arguments))

    def receive(self) -> Any:
        """The answer to the request sent last; raises :class:`ContestantError`."""
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
        """CPU time of the process so far; 0 if it has died."""
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
        theirs.close()  # else the end of the worker would go unnoticed
