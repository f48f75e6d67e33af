"""Classes over ranks on one machine: ``python -m benchmarks.over_ranks``.

Loss and gradient behind a head whose classes are split over ranks of gloo, each with one thread,
beside the three bare products with the rank's own part of the weight. The two take turns, all ranks
at once, and a turn takes as long as its slowest rank. Memory is that at the peak on rank 0, beyond
inputs and gradients. A last line gives the time of merging the numbers of 64 ranks.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import xent

from .harness.internals import merge, packed
from .harness.linear_contestants import both, products
from .harness.machine import describe_machine
from .harness.memory import peak_beyond_now
from .harness.options import head_shape, output_file, positive, write_json
from .harness.report import aligned, digits, machine_text

PARTS, ROWS_OF_MERGE = 64, 4096


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.over_ranks")
    parser.add_argument("--ranks", type=positive, default=2, metavar="P")
    parser.add_argument(
        "--shape", type=head_shape, default=(1024, 512, 32000), metavar="N,D,V",
        help="rows, features and classes of all ranks (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=positive, default=15, metavar="K")
    parser.add_argument("--json", type=output_file, metavar="PATH")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.pt"
        mp.spawn(  # pyright: ignore[reportPrivateImportUsage]
            _on_rank, (args.ranks, args.shape, args.rounds, file), nprocs=args.ranks
        )
        found = torch.load(file, weights_only=True)
    found["merge"] = merge_milliseconds(args.rounds)
    result = {"machine": describe_machine(1), "shape": args.shape, "ranks": args.ranks, **found}
    print(text(result))
    if args.json:
        write_json(args.json, result)


def text(result: dict[str, Any]) -> str:
    """The result in words."""
    rows, features, classes = result["shape"]
    medians = {name: statistics.median(times) for name, times in result["ms"].items()}
    own = 4 * rows * classes / result["ranks"]
    lines = [["", "ms", "x products"]]
    lines += [[n, digits(ms), f"{ms / medians['products']:.2f}"] for n, ms in medians.items()]
    return "\n".join([
        f"{machine_text(result['machine'])} a rank",
        f"{result['ranks']} ranks, {rows} rows, {features} features, {classes} classes, float32",
        aligned(lines),
        f"memory of xent on a rank: {result['memory'] / 2**20:.1f} MiB; its own logits would be "
        f"{own / 2**20:.1f} MiB",
        f"merge of {PARTS} parts of {ROWS_OF_MERGE} rows: {digits(result['merge'])} ms",
    ])  # fmt: skip


def _on_rank(rank: int, ranks: int, shape: tuple[int, int, int], rounds: int, file: Path) -> None:
    """Measure on a rank; rank 0 saves what all have found."""
    torch.set_num_threads(1)
    store = file.with_name("store")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    contestants = _contestants(rank, ranks, shape)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order = random.Random(0)  # the same on all ranks
    for _ in range(rounds + 1):
        for name in order.sample(list(contestants), len(contestants)):
            seconds[name].append(_seconds(contestants[name]))
    dist.barrier()
    memory = peak_beyond_now(contestants["xent over ranks"])
    slowest = torch.tensor([times[1:] for times in seconds.values()], dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    if rank == 0:
        ms = {name: (1e3 * times).tolist() for name, times in zip(seconds, slowest, strict=True)}
        torch.save({"ms": ms, "memory": memory}, file)
    dist.destroy_process_group()


def _contestants(
    rank: int, ranks: int, shape: tuple[int, int, int]
) -> dict[str, Callable[[], None]]:
    """The calls of a rank by name."""
    rows, features, classes = shape
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, features, generator=generator)
    target = torch.randint(classes, (rows,), generator=generator)
    part = (torch.randn(classes, features, generator=generator) / features**0.5).chunk(ranks)[rank]
    h, weight = hidden.requires_grad_(), part.clone().requires_grad_()

    def loss(h: Tensor, weight: Tensor, target: Tensor) -> Any:
        return xent.cross_entropy(xent.parallel.shard(xent.LinearLogits(h, weight)), target)

    return {
        "products": lambda: products(h.detach(), weight.detach()),
        "xent over ranks": lambda: both(loss, h, weight, target),
    }


def _seconds(call: Callable[[], None]) -> float:
    """Seconds of a call that all ranks begin together."""
    dist.barrier()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def merge_milliseconds(rounds: int) -> float:
    """Median milliseconds of merging the numbers of 64 ranks, on one thread."""
    like = xent.statistics(torch.randn(ROWS_OF_MERGE, 10), torch.arange(ROWS_OF_MERGE) % 10)
    own = packed(like)
    table = torch.randn(PARTS, *own.shape, dtype=own.dtype)
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        merge(table, like)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
