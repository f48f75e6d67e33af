"""Host time of a small call on a GPU, up to the driver: ``python -m benchmarks.host_cost``.

No GPU is needed, and none is used. Triton compiles the kernels for an NVIDIA GPU of compute
capability 9.0, and their launches do nothing. The tensors lie in the memory of the CPU, where an
operation of PyTorch on a few numbers takes 1 to 2 us; on a GPU it takes 3 to 5. So the operations
are counted, too. Times are microseconds of the thread, because other programs may share the
machine: the least of several rounds, in which the calls take turns.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget

import xent

from .harness.internals import take_for_gpu
from .harness.options import positive
from .harness.report import aligned
from .harness.stand_in import compile_for, count_launches

ROWS, CLASSES = 64, 64
CALLS = 30  # of one kind in a round
# Operations that compute nothing.
FREE = (
    "view", "detach", "select", "slice", "alias", "unsqueeze", "expand", "as_strided", "unbind",
    "empty", "permute", "transpose", "t.default",
)  # fmt: skip
Loss = Callable[[], Tensor]


@triton.jit
def nothing(x, count, BLOCK: tl.constexpr):
    """Do nothing."""


class Operations(TorchDispatchMode):
    """Counts the operations of PyTorch that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation, and do it."""
        name = func.__name__
        if not name.startswith(("_unsafe_view", *FREE)):
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


class Batch:
    """Logits whose gradient is wanted, targets and weights."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.z = torch.randn(ROWS, CLASSES, generator=g).bfloat16().requires_grad_()
        self.y = torch.randint(CLASSES, (ROWS,), generator=g)
        self.q = torch.softmax(torch.randn(ROWS, CLASSES, generator=g), 1).bfloat16()
        self.rows = torch.rand(ROWS, generator=g) + 0.5


def calls(b: Batch) -> dict[str, Loss]:
    """Return the calls to measure, by name."""
    loss, family = xent.cross_entropy, xent.losses
    return {
        "F.cross_entropy": lambda: F.cross_entropy(b.z, b.y),
        "mean": lambda: loss(b.z, b.y),
        "sum": lambda: loss(b.z, b.y, reduction="sum"),
        "none": lambda: loss(b.z, b.y, reduction="none"),
        "row_weight": lambda: loss(b.z, b.y, row_weight=b.rows),
        "z_loss": lambda: loss(b.z, b.y, z_loss=1e-4),
        "label_smoothing": lambda: loss(b.z, b.y, label_smoothing=0.1),
        "soft target": lambda: loss(b.z, b.q),
        "focal_loss": lambda: family.focal_loss(b.z, b.y),
        "poly1_loss": lambda: family.poly1_loss(b.z, b.y),
    }


class Cost(NamedTuple):
    """The cost of one call, forward or forward and backward."""

    us: float
    kernels: int
    operations: int


def forward(loss: Loss, _: Batch) -> None:
    """Compute a loss alone."""
    with torch.no_grad():
        loss()


def both(loss: Loss, b: Batch) -> None:
    """Compute a loss and its gradient."""
    value = loss()
    torch.autograd.grad(value, b.z, torch.ones_like(value) if value.ndim else None)


def microseconds(call: Callable[[], object]) -> float:
    """Return the time of a call, the mean of a round."""
    start = time.thread_time()
    for _ in range(CALLS):
        call()
    return (time.thread_time() - start) / CALLS * 1e6


def counted(call: Callable[[], object], launches: list[str]) -> tuple[int, Counter[str]]:
    """Return how many kernels a call launches, and its operations of PyTorch."""
    launches.clear()
    with Operations() as operations:
        call()
    return len(launches), operations.names


def measure(rounds: int, launches: list[str], verbose: bool) -> dict[str, tuple[Cost, Cost]]:
    """Measure all calls, forward and both ways."""
    b = Batch()
    empty: Any = nothing
    turns: dict[tuple[str, Any], Callable[[], object]] = {
        (name, way): (lambda way=way, loss=loss: way(loss, b))
        for name, loss in calls(b).items()
        for way in (forward, both)
    }
    turns["one empty launch", forward] = lambda: empty[(1,)](b.y, ROWS, BLOCK=128)
    best = dict.fromkeys(turns, float("inf"))
    for call in turns.values():
        call()  # compiles
    for _ in range(rounds):
        for key, call in turns.items():
            best[key] = min(best[key], microseconds(call))
    result: dict[str, Any] = {}
    for (name, way), call in turns.items():
        kernels, operations = counted(call, launches)
        if verbose and way is both:
            print(name, dict(operations), launches)
        result.setdefault(name, []).append(Cost(best[name, way], kernels, operations.total()))
    return result


def text(costs: dict[str, Any]) -> str:
    """Return the table."""
    lines: list[tuple[str, ...]] = [
        ("call", "forward us", "kernels", "operations", "both us", "kernels", "operations")
    ]
    for name, ways in costs.items():
        cells = [(f"{c.us:.0f}", str(c.kernels), str(c.operations)) for c in ways]
        lines.append((name, *[x for cell in (*cells, ("",) * 3)[:2] for x in cell]))
    return aligned(lines)


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host_cost", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=positive, default=15, help="default: %(default)s")
    parser.add_argument("--verbose", action="store_true", help="name the operations")
    args = parser.parse_args()
    torch.set_num_threads(1)
    compile_for(GPUTarget("cuda", 90, 32))
    launches = count_launches()
    with take_for_gpu():
        print(text(measure(args.rounds, launches, args.verbose)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
