"""Processes that are started once, and run functions on some or all of their ranks of gloo."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 4
PATIENCE = 120  # seconds until a collective gives up
# Imported once, by the process that the ranks are copies of: an import takes seconds.
IMPORTED = ["xent", "torch._dynamo", "torch.distributed.tensor", "transformers", "trl"]


class Pool:
    """Runs a function of a module on some ranks, and returns the results in their order."""

    def __init__(self, folder: Path, ranks: int = RANKS) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        ends = [context.Pipe() for _ in range(ranks)]
        self.pipes = [ours for ours, _ in ends]
        self.workers = [
            context.Process(
                target=_work, args=(rank, ranks, theirs, str(folder / "store")), daemon=True
            )
            for rank, (_, theirs) in enumerate(ends)
        ]
        for worker in self.workers:
            worker.start()

    def run(self, function: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
        """Results of ``function(group, *args)`` on each rank; an exception, where it raises."""
        for pipe in self.pipes[:ranks]:
            pipe.send((function, ranks, args))
        return [pipe.recv() for pipe in self.pipes[:ranks]]

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.send(None)
        for worker in self.workers:
            worker.join(timeout=20)


def _work(rank: int, count: int, pipe: Connection, store: str) -> None:
    """Run what comes through the pipe, until None comes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count,
        timeout=timedelta(seconds=PATIENCE),
    )  # fmt: skip
    groups = {n: dist.new_group(range(n)) for n in range(1, count + 1)}
    while (task := pipe.recv()) is not None:
        function, ranks, args = task
        torch.manual_seed(0)
        try:
            pipe.send(function(groups[ranks], *args))
        except Exception as error:
            traceback.print_exc()  # an exception loses its traceback on the way
            pipe.send(error)
    dist.destroy_process_group()


def values(results: list[Any]) -> list[Any]:
    """The results; raises the first exception among them."""
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
