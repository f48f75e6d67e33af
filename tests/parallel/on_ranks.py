"""Functions for the ranks of a test, in a module of their own: they travel to other processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

import xent
from tests.helpers import Largest
from xent.parallel import shard
from xent.shards import ShardedLogits

NUMBERS = ("log_odds", "log_prob", "target", "lse", "mass")


def heard(call: Callable[[], Any]) -> str:
    """The error of a call, in words."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def own_part(group: Any, z: torch.Tensor, edges: list[int]) -> tuple[torch.Tensor, slice]:
    """The leaf of this rank's logits, and which columns they are."""
    rank = dist.get_rank(group)
    columns = slice(edges[rank], edges[rank + 1])
    return z[:, columns].clone().requires_grad_(), columns


def loss_and_gradient(
    group: Any, name: str, z: torch.Tensor, target: torch.Tensor, edges: list[int],
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """A loss of the shard of this rank, and the gradient of its logits."""
    own, columns = own_part(group, z, edges)
    if target.is_floating_point():
        target = target[:, columns]
    logits = shard(own, group)
    loss = getattr(xent.losses, name)(logits, target, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), own)
    return loss.detach(), gradient


def statistics_of(
    group: Any, z: torch.Tensor, target: torch.Tensor, edges: list[int], options: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """All statistics of the rows, as tensors by name."""
    own, columns = own_part(group, z, edges)
    if target.is_floating_point():
        target = target[:, columns]
    stats = xent.statistics(shard(own, group), target, **options)
    found = {name: getattr(stats, name) for name in (*NUMBERS, *stats.on_request)}
    return {name: x.detach() for name, x in found.items()} | {
        "classes": torch.tensor(stats.classes)
    }


def collectives(
    group: Any, name: str, options: dict[str, Any], soft: bool
) -> list[tuple[str, int]]:
    """The collectives of a call and its backward pass, and how much a rank gives to each."""
    rank, count = dist.get_rank(group), dist.get_world_size(group)
    own = torch.randn(8, 5, requires_grad=True)
    target = torch.full((8, 5), 1 / 5 / count) if soft else torch.arange(8) % 5
    logits = shard(own, group, start=5 * rank, classes=5 * count)
    return counted_of(lambda: getattr(xent.losses, name)(logits, target, **options))


def head_collectives(group: Any, rows: int) -> list[tuple[str, int]]:
    """The collectives of a loss behind a head in chunks of some rows, and its backward pass."""
    rank, count = dist.get_rank(group), dist.get_world_size(group)
    hidden, weight = torch.randn(8, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    own = xent.LinearLogits(hidden, weight, max_workspace=rows * 5 * 4)
    logits = shard(own, group, start=5 * rank, classes=5 * count)
    return counted_of(lambda: xent.cross_entropy(logits, torch.arange(8) % 5))


def counted_of(loss: Callable[[], torch.Tensor]) -> list[tuple[str, int]]:
    """The collectives of a loss and its backward pass."""
    with listed_collectives() as counted:
        value = loss()
        counted.append(("backward", 0))
        value.backward()
    return counted


@contextmanager
def listed_collectives() -> Iterator[list[tuple[str, int]]]:
    """Context that lists collectives, and how many numbers a rank gives to each.

    Records are named as such, as their numbers are whole.
    """
    counted: list[tuple[str, int]] = []
    kinds = ("all_gather_single", "all_gather_into_tensor", "all_reduce", "all_to_all_single")
    before = {kind: getattr(dist, kind) for kind in kinds if hasattr(dist, kind)}

    def counting(kind: str) -> Any:
        def call(first: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            part = first if kind == "all_reduce" else args[0]
            name = kind.removesuffix("_into_tensor").removesuffix("_single")
            counted.append((name if part.is_floating_point() else "record", part.numel()))
            return before[kind](first, *args, **kwargs)

        return call

    for kind in before:
        setattr(dist, kind, counting(kind))
    try:
        yield counted
    finally:
        for kind, function in before.items():
            setattr(dist, kind, function)


def in_two_steps(group: Any, function: Callable[..., Any], *args: Any) -> Any:
    """A function of this module, where no call is small enough for one gather."""
    with mock.patch("xent.shards.ONE_GATHER", 0):
        return function(group, *args)


def message(group: Any, change: dict[int, dict[str, Any]]) -> str:
    """The error on this rank if some ranks change their arguments."""
    rank = dist.get_rank(group)
    given: dict[str, Any] = {
        "rows": 4, "width": 3, "start": 3 * rank, "classes": 3 * dist.get_world_size(group),
        "dtype": torch.float32, "label": 0, "loss": "focal_loss", "options": {},
    } | change.get(rank, {})  # fmt: skip
    own = torch.randn(given["rows"], given["width"], dtype=given["dtype"])
    target = torch.full((given["rows"],), given["label"])
    logits = shard(own, group, start=given["start"], classes=given["classes"])
    loss = getattr(xent.losses, given["loss"])
    return heard(lambda: loss(logits, target, **given["options"]))


def refused(group: Any, name: str) -> str:
    """The error of a function that is given a shard."""
    own = torch.randn(4, 3)
    logits = shard(own, group)
    target = torch.zeros(4, dtype=torch.int64)
    return heard(lambda: getattr(xent.losses, name)(logits, target))


def head_and_gradients(
    group: Any, name: str, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor,
    edges: list[int], workspace: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """A loss behind a head whose weight is split, and the gradients of features and weight."""
    rank = dist.get_rank(group)
    hidden = hidden.clone().requires_grad_()
    own = weight[edges[rank] : edges[rank + 1]].clone().requires_grad_()
    logits: ShardedLogits = shard(xent.LinearLogits(hidden, own, max_workspace=workspace), group)
    loss = getattr(xent.losses, name)(logits, target)
    loss.backward()
    return loss.detach(), hidden.grad, own.grad


def called(
    group: Any, function: str, z: torch.Tensor, args: tuple[Any, ...], edges: list[int],
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """A function of ``xent`` on logits whose classes are last, and the gradient of its sum."""
    rank = dist.get_rank(group)
    own = z[..., edges[rank] : edges[rank + 1]].clone().requires_grad_()
    result = getattr(xent, function)(shard(own, group, class_dim=-1), *args, **options)
    (gradient,) = torch.autograd.grad(result.sum(), own)
    return result.detach(), gradient


def all_logits(group: Any, z: torch.Tensor, edges: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of all ranks, and the gradient of the sum of their squares."""
    own, _ = own_part(group, z, edges)
    whole = shard(own, group).gather()
    (gradient,) = torch.autograd.grad(whole.square().sum(), own)
    return whole.detach(), gradient


def second_derivative(group: Any) -> str:
    """The error of a gradient that is differentiated again."""
    own = torch.randn(4, 3, requires_grad=True)
    loss = xent.cross_entropy(shard(own, group), torch.zeros(4, dtype=torch.int64))
    return heard(lambda: torch.autograd.grad(loss, own, create_graph=True))


def learned_weight(group: Any) -> str:
    """The error for class weights that require a gradient."""
    weight = torch.ones(3 * dist.get_world_size(group), requires_grad=True)
    own = torch.randn(4, 3, requires_grad=True)
    target = torch.zeros(4, dtype=torch.int64)
    return heard(lambda: xent.cross_entropy(shard(own, group), target, weight=weight))


def learned(
    group: Any, parts: list[torch.Tensor], target: torch.Tensor, edges: list[int],
    given: dict[str, torch.Tensor],
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """A loss with options that are learned, and the gradients of these options.

    ``parts`` are all logits, or the features, the weight and the bias of a head.
    """
    rank = dist.get_rank(group)
    columns = slice(edges[rank], edges[rank + 1])
    given = {name: x.clone().requires_grad_() for name, x in given.items()}
    if len(parts) == 1:
        own: Any = parts[0][:, columns].clone().requires_grad_()
    else:
        hidden, weight, bias = (x.clone().requires_grad_() for x in parts)
        own = xent.LinearLogits(hidden, weight[columns], bias[columns])
    loss = xent.cross_entropy(shard(own, group), target, **given)
    return (loss.detach(), *torch.autograd.grad(loss, given.values()))


def signatures(group: Any) -> list[tuple[str, int]]:
    """The collectives of two calls where reading a record would wait for the device."""
    with mock.patch("xent.agreement._reading_waits", return_value=True):
        first = collectives(group, "focal_loss", {"gamma": 1.25}, False)
        return first + collectives(group, "focal_loss", {"gamma": 1.25}, False)


def normalizer(group: Any, targets: list[list[torch.Tensor]], options: dict[str, Any]) -> Any:
    """The divisor over all ranks."""
    return xent.parallel.global_normalizer(*targets[dist.get_rank(group)], group=group, **options)


def shifted(
    group: Any, labels: torch.Tensor, documents: torch.Tensor | None, k: int
) -> torch.Tensor:
    """The moved labels of this rank's piece."""
    rank, count = dist.get_rank(group), dist.get_world_size(group)
    pieces = [x if x is None else x.chunk(count, -1)[rank] for x in (labels, documents)]
    return xent.parallel.shift_labels(pieces[0], group, k, documents=pieces[1])


def executed(group: Any, code: str) -> None:
    """Run the code of a page; the group is that of all ranks."""
    assert dist.get_world_size(group) == dist.get_world_size()
    exec(compile(code, "parallel.md", "exec"), {})


def of_dtensor(
    group: Any, name: str, z: torch.Tensor, target: torch.Tensor, options: dict[str, Any],
    dims: tuple[int, ...], soft: bool,
) -> tuple[torch.Tensor, torch.Tensor, str]:  # fmt: skip
    """A loss of a DTensor, split by rows and classes on a mesh, its gradient, and its placement."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", dims)
    places = [Shard(1)] if len(dims) == 1 else [Shard(0), Shard(1)]
    of_rows = [Replicate() if place == Shard(1) else place for place in places]
    x = distribute_tensor(z, mesh, places).requires_grad_()
    y = distribute_tensor(target, mesh, places if soft else of_rows)
    loss = getattr(xent.losses, name)(x, y, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    return loss.full_tensor().detach(), gradient.full_tensor(), str(tuple(loss.placements))


def refused_dtensor(group: Any, name: str) -> str:
    """The error of a loss for a DTensor whose classes are split."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (4,))
    x = distribute_tensor(torch.randn(4, 8), mesh, [Shard(1)])
    y = distribute_tensor(torch.zeros(4, dtype=torch.int64), mesh, [Replicate()])
    return heard(lambda: getattr(xent.losses, name)(x, y))


def of_dtensor_with_an_error(group: Any) -> str:
    """The error on each rank where one passes an option that DTensors do not take."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (4,))
    x = distribute_tensor(torch.randn(4, 8), mesh, [Shard(1)])
    y = distribute_tensor(torch.zeros(4, dtype=torch.int64), mesh, [Replicate()])
    wrong = dist.get_rank(group) == 2
    return heard(lambda: xent.cross_entropy(x, y, return_stats=wrong))


def beside_a_rank_that_ends(group: Any) -> tuple[str, float]:
    """The error on the other ranks when rank 1 ends before the second call, and its seconds."""
    own, target = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    logits = shard(own, group)
    xent.cross_entropy(logits, target)
    if dist.get_rank(group) == 1:
        os._exit(1)
    start = time.monotonic()
    return heard(lambda: xent.cross_entropy(logits, target)), time.monotonic() - start


@xent.row_loss(needs="entropy")
def own_loss(s: xent.RowStatistics, power: float = 2.0) -> torch.Tensor:
    """A loss of a user."""
    return s.miss**power - s.log_prob + 0.1 * s.entropy


def other_ways(group: Any, z: torch.Tensor, y: torch.Tensor, edges: list[int]) -> list[Any]:
    """A loss of a user, a module, statistics beside a loss, and a gradient over the logits."""
    own, _ = own_part(group, z, edges)
    logits = shard(own * 1, group)
    value, stats = xent.cross_entropy(logits, y, return_stats=True)
    results = [own_loss(logits, y, power=3.0), xent.nn.FocalLoss(gamma=1.5)(logits, y), value]
    written = xent.cross_entropy(shard(own * 1, group), y, inplace_backward=True)
    (gradient,) = torch.autograd.grad(written, own)
    return [x.detach() for x in (*results, stats.log_prob, written)] + [gradient]


def largest_tensors(group: Any) -> tuple[int, int, str]:
    """The largest tensors of the forward and the backward pass on this rank, and the engine."""
    own, target = torch.randn(64, 500, requires_grad=True), torch.arange(64)
    logits = shard(own, group)
    with Largest() as forward:
        loss = xent.cross_entropy(logits, target)
    with Largest() as backward:
        loss.backward()
    return forward.numel, backward.numel, xent.explain(own, target).engine


def transformed(group: Any) -> list[str]:
    """The errors of a loss of a shard under transforms of PyTorch; none where it was right."""
    own, target = torch.randn(4, 3, requires_grad=True), torch.zeros(4, dtype=torch.int64)
    place = {"start": 3 * dist.get_rank(group), "classes": 3 * dist.get_world_size(group)}

    def loss(own: torch.Tensor) -> torch.Tensor:
        return xent.cross_entropy(shard(own, group, **place), target)

    def compiled() -> None:
        function = torch.compile(loss, backend="eager")
        torch.testing.assert_close(function(own), loss(own))
        found, expected = (torch.autograd.grad(f(own), own)[0] for f in (function, loss))
        torch.testing.assert_close(found, expected)

    plain, tangent = own.detach(), torch.ones(4, 3)
    return [
        heard(call)
        for call in (
            lambda: torch.func.grad(loss)(plain),
            lambda: torch.func.vmap(loss)(plain[None]),
            lambda: torch.func.jvp(loss, (plain,), (tangent,)),
            compiled,
        )
    ]


def gathered_in_another_order(group: Any, rows: torch.Tensor) -> torch.Tensor:
    """All logits where the last rank has the first classes."""
    rank, count = dist.get_rank(group), dist.get_world_size(group)
    width = rows.shape[1] // count
    start = width * (count - 1 - rank)
    own = rows[:, start : start + width].clone()
    return shard(own, group, start=start, classes=rows.shape[1]).gather()


def disagreements(group: Any) -> dict[str, str]:
    """The errors on this rank of calls that are other ones on rank 1."""
    here = dist.get_rank(group) == 1
    place = {"start": 3 * dist.get_rank(group), "classes": 3 * dist.get_world_size(group)}
    z, labels = torch.randn(2, 3), torch.tensor([[0, 1, 2]])
    hidden, weight = torch.randn(2, 4, requires_grad=True), torch.randn(3, 4)

    def without_gradient() -> None:
        with torch.set_grad_enabled(not here):
            xent.cross_entropy(
                shard(xent.LinearLogits(hidden, weight), group, **place), labels[0, :2]
            )

    def of_types() -> None:
        products = "float32" if here else "input"
        head = xent.LinearLogits(hidden.bfloat16(), weight.bfloat16(), products=products)
        xent.cross_entropy(shard(head, group, **place), labels[0, :2])

    def dense() -> None:
        loss = xent.losses.sparsemax_loss if here else xent.cross_entropy
        loss(shard(z, group, **place), labels[0, :2])

    calls = {
        "targets": lambda: xent.cross_entropy(
            shard(z, group, **place), torch.tensor([0, 2] if here else [3, 1])
        ),
        "gradient": without_gradient, "products": of_types, "dense": dense,
        "rows": lambda: shard(torch.randn(2 + here, 3), group, **place).gather(),
        "documents": lambda: xent.parallel.shift_labels(
            labels, group, documents=labels if here else None
        ),
    }  # fmt: skip
    return {name: heard(call) for name, call in calls.items()}
