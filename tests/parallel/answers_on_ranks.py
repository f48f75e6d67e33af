"""PyTorch's functions of a shard, for the ranks of a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

import xent
from xent.parallel import shard

from .on_ranks import heard

Logits = Any  # a tensor, or what stands for one


def results_of(z: Logits, axis: int) -> list[torch.Tensor]:
    """The functions of whole rows, and what softcap and scale change, as plain PyTorch has them."""
    capped = 5.0 * torch.tanh(z / 5.0)
    return [
        torch.logsumexp(z, axis), z.logsumexp((axis,), keepdim=True), (2 * z / 3).logsumexp(axis),
        torch.logsumexp(-z, axis), capped.logsumexp(axis), torch.logsumexp(z.double(), axis),
        *torch.topk(z, 3, axis), *z.topk(4, axis, largest=False), *(z * 0.5).topk(9, dim=axis),
        *z.topk(0, axis),
        torch.argmax(z, axis), z.argmax(dim=axis, keepdim=True), (-z).argmax(axis),
    ]  # fmt: skip


def slope(results: list[torch.Tensor], *leaves: torch.Tensor) -> list[torch.Tensor]:
    """The gradients of a number that each result has a part in."""
    floats = [x for x in results if x.is_floating_point()]
    factors = [torch.arange(1.0, x.numel() + 1).reshape(x.shape) for x in floats]
    parts = [(x * f).sum() for x, f in zip(floats, factors, strict=True)]
    return list(torch.autograd.grad(sum(parts[1:], parts[0]), leaves))


def of_tensor(group: Any, z: torch.Tensor, edges: list[int], class_dim: int) -> list[Any]:
    """The results for logits in a tensor, and the gradient of this rank's logits."""
    rank = dist.get_rank(group)
    own = z.narrow(class_dim, edges[rank], edges[rank + 1] - edges[rank]).clone().requires_grad_()
    results = results_of(shard(own, group, class_dim=class_dim), class_dim)
    return [[x.detach() for x in results], *slope(results, own)]


def of_head(
    group: Any, hidden: torch.Tensor, weight: torch.Tensor, edges: list[int], workspace: int
) -> list[Any]:
    """The results for logits behind a head, and the gradients of features and weight."""
    rank = dist.get_rank(group)
    hidden = hidden.clone().requires_grad_()
    own = weight[edges[rank] : edges[rank + 1]].clone().requires_grad_()
    logits = shard(xent.LinearLogits(hidden, own, max_workspace=workspace), group)
    results = results_of(logits, -1)
    (of_all,) = torch.autograd.grad(logits.gather().square().sum(), hidden)
    return [[x.detach() for x in results], *slope(results, hidden, own), of_all]


def edge_cases(group: Any, rows: torch.Tensor, edges: list[int]) -> list[torch.Tensor]:
    """Class of the largest, and all in order, for rows with ties, masks and NaN."""
    rank = dist.get_rank(group)
    logits = shard(rows[:, edges[rank] : edges[rank + 1]].clone(), group)
    with torch.no_grad():
        everything = logits.topk(rows.shape[1])
        return [
            logits.argmax(-1), logits.logsumexp(-1), *everything, *(logits * 2).topk(2),
            logits.float().argmax(-1),
        ]  # fmt: skip


def out_of_order(group: Any, rows: torch.Tensor) -> torch.Tensor:
    """The class of the largest logit where the last rank has the first classes."""
    rank, count = dist.get_rank(group), dist.get_world_size(group)
    width = rows.shape[1] // count
    start = (count - 1 - rank) * width
    own = rows[:, start : start + width].clone()
    return shard(own, group, start=start, classes=rows.shape[1]).argmax(-1)


def refusals(group: Any) -> dict[str, str]:
    """The errors of what a shard does not do."""
    z = shard(torch.randn(4, 3, requires_grad=True), group)
    learned = torch.ones((), requires_grad=True)
    calls: dict[str, Callable[[], Any]] = {
        "rows": lambda: z.logsumexp(0), "all": lambda: z.argmax(),
        "two": lambda: z.logsumexp((0, 1)), "many": lambda: z.topk(99),
        "learned": lambda: z / learned, "bias": lambda: z + torch.ones(6),
        "per class": lambda: z * torch.ones(6), "softmax": lambda: z.softmax(-1),
        "index": lambda: z[:, 0], "divisor": lambda: 1 / z, "view": lambda: z.view(-1),
        "bool": lambda: bool(z), "in place": lambda: z.mul_(2), "array": lambda: z.numpy(),
        "two shards": lambda: z * z,
        "options": lambda: z.topk(1 + dist.get_rank(group)),
    }  # fmt: skip
    return {name: heard(call) for name, call in calls.items()}


def outline(group: Any) -> tuple[Any, ...]:
    """Shape, dtype and device that a shard tells of all logits, and the like."""
    own = torch.randn(4, 3, 5, requires_grad=True)
    z = shard(own, group, class_dim=1)
    return (
        tuple(z.shape), z.ndim, z.size(1), z.numel(), z.requires_grad, z.detach().requires_grad,
        z.double().dtype == torch.float64, z.is_floating_point(), len(z), str(z.device),
    )  # fmt: skip
