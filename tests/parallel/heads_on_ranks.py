"""Functions for the ranks of a test: heads whose weight is a DTensor."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

import xent
from xent.heads.distributed import DistributedLogits

from .on_ranks import heard


@functools.cache
def mesh_of(dims: tuple[int, ...], group: Any) -> Any:
    """A mesh over the ranks of a group."""
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

    if len(dims) > 1:
        return init_device_mesh("cpu", dims, mesh_dim_names=("rows", "classes"))
    return DeviceMesh.from_group(group, "cpu")


def placements(words: str) -> list[Any]:
    """Placements in short: ``0`` and ``1`` for that axis, ``-`` for every rank."""
    from torch.distributed.tensor import Replicate, Shard

    return [Replicate() if word == "-" else Shard(int(word)) for word in words.split()]


def head_of(mesh: Any, parts: list[torch.Tensor | None], places: list[str], **options: Any) -> Any:
    """Logits behind a head of DTensors, and these leaves."""
    from torch.distributed.tensor import distribute_tensor

    leaves = [
        None if x is None else distribute_tensor(x, mesh, placements(words)).requires_grad_()
        for x, words in zip(parts, (places[0], places[1], places[1]), strict=True)
    ]
    return xent.LinearLogits(*leaves, **options), [x for x in leaves if x is not None]


def losses(
    group: Any, dims: tuple[int, ...], parts: list[Any], target: torch.Tensor, places: list[str],
    calls: list[tuple[str, dict[str, Any]]], workspace: int,
) -> list[tuple[torch.Tensor, ...]]:  # fmt: skip
    """The whole of each loss, and of the gradients of features, weight and bias."""
    from torch.distributed.tensor import DTensor, Partial, distribute_tensor

    mesh, found = mesh_of(dims, group), []
    for name, options in calls:
        logits, leaves = head_of(mesh, parts, places, max_workspace=workspace)
        soft = target.is_floating_point()
        rows = placements(places[2])
        y = distribute_tensor(target, mesh, logits.placements if soft else rows)
        loss = getattr(xent.losses, name)(logits, y, **options)
        assert isinstance(loss, DTensor)
        gradients: Any = torch.autograd.grad(loss.sum(), leaves)
        assert [x.shape for x in gradients] == [x.shape for x in leaves]
        sums = [p if p.is_replicate() else Partial() for p in rows]
        assert list(loss.placements) == (rows if options.get("reduction") == "none" else sums)
        found.append((loss.full_tensor().detach(), *(g.full_tensor() for g in gradients)))
    return found


def collectives(
    group: Any, parts: list[torch.Tensor], y: torch.Tensor, place: str, workspace: int
) -> list[dict[str, int]]:
    """Counts of each collective: in making the head, in a loss, and in its backward pass."""
    from torch.distributed.tensor.debug import CommDebugMode

    mesh, found, before = mesh_of((dist.get_world_size(group),), group), [], {}
    _, leaves = head_of(mesh, parts, [place, "0"])
    with CommDebugMode() as spoken:

        def count() -> None:
            now = {str(op).rpartition(".")[2].strip("_"): n for op, n in spoken.comm_counts.items()}
            new = {op: n - before.get(op, 0) for op, n in now.items()}
            found.append({op: n for op, n in new.items() if n})
            before.update(now)

        logits = xent.LinearLogits(*leaves, max_workspace=workspace)
        count()
        loss = xent.losses.focal_loss(logits, y)
        count()
        loss.backward()
        count()
    return found


class Head(torch.nn.Linear):
    """A layer that a plan of tensor parallelism splits, whose product is late."""

    def forward(self, input: torch.Tensor) -> Any:
        """Logits that are not there."""
        return xent.LinearLogits(input, self.weight, self.bias)


def in_a_plan(
    group: Any, parts: list[torch.Tensor], y: torch.Tensor, gathers: bool, local: bool
) -> list[torch.Tensor]:
    """PyTorch's loss of logits that a plan has handled, and its gradients."""
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh, (hidden, weight, bias) = mesh_of((dist.get_world_size(group),), group), parts
    head = Head(weight.shape[1], len(weight), dtype=weight.dtype)
    head.load_state_dict({"weight": weight, "bias": bias})
    layouts = Replicate() if gathers else Shard(-1)
    parallelize_module(head, mesh, ColwiseParallel(output_layouts=layouts, use_local_output=local))
    hidden = hidden.clone().requires_grad_()
    logits = head(hidden)
    assert type(logits) is DistributedLogits
    assert logits.shape == (*hidden.shape[:-1], len(weight))
    # As the loss of a causal model does.
    flat = (logits.float() * 0.5)[:, :-1].reshape(-1, logits.shape[-1])
    loss: Any = torch.nn.functional.cross_entropy(flat, y[:, 1:].flatten())
    loss.backward()
    assert isinstance(loss, DTensor) != local
    loss = loss if local else loss.full_tensor()
    grads: list[Any] = [head.weight.grad, head.bias.grad]
    return [loss.detach(), hidden.grad, *(x.full_tensor() for x in grads)]


def other_functions(
    group: Any, parts: list[torch.Tensor], y: torch.Tensor, y_all: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Functions of logits of a split head by name, and what is refused."""
    from torch.distributed.tensor import Replicate, Shard

    warnings.simplefilter("ignore")  # some need all logits
    mesh = mesh_of((dist.get_world_size(group),), group)
    logits, leaves = head_of(mesh, parts, ["1", "0"])
    local = logits.to_local()
    assert logits.redistribute(placements=[Replicate()]).placements == logits.placements
    assert logits.redistribute(placements=[Shard(-1)]).hidden.placements == (Replicate(),)
    both = xent.token_log_probs(local, y, entropy=True)
    loss, stats = xent.cross_entropy(local, y, return_stats=True)
    found = {
        "token_log_probs": both.log_prob, "entropy": xent.entropy(local),
        "entropy too": both.entropy,
        "statistics": xent.statistics(local, y).log_prob, "stats": stats.log_prob, "loss": loss,
        "moved": torch.nn.functional.cross_entropy(logits.to_local().transpose(1, 2), y),
        "moved back": xent.token_log_probs(local.transpose(1, 2).transpose(1, 2), y),
        "materialize": logits.materialize().full_tensor(),
        "materialize, local": local.materialize(),
        "full_tensor": logits.full_tensor(),
        "argmax": local.argmax(-1), "log_softmax": torch.log_softmax(local, -1),
        "classes": local[..., 1:3] + 0, "masked": local.masked_fill(y_all[0] > 0, -9.0) + 0,
    }  # fmt: skip
    for name in ("materialize", "materialize, local"):
        grads = torch.autograd.grad(found[name].square().sum(), leaves)
        found |= {f"{name} {k}": g.full_tensor() for k, g in enumerate(grads)}
    refused: dict[str, Callable[[], Any]] = {
        "no DTensors": lambda: xent.token_log_probs(logits, y),
        "no DTensors, statistics": lambda: xent.statistics(logits, y),
        "dense": lambda: xent.losses.sparsemax_loss(local, y),
        "dense, of DTensors": lambda: xent.losses.sparsemax_loss(logits, y),
        "shard": lambda: xent.parallel.shard(logits, group),
        "rows": lambda: logits.redistribute(placements=[Shard(0)]),
        "teacher": lambda: xent.losses.distillation_loss(torch.zeros(5, 7, 10).double(), logits),
        "return_stats": lambda: xent.cross_entropy(logits, y, return_stats=True),
    }
    return {k: x.detach() for k, x in found.items()}, {k: heard(f) for k, f in refused.items()}


def bad_heads(group: Any) -> dict[str, str]:
    """The errors of heads that are no heads, or whose weight is not there."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    mesh = mesh_of((dist.get_world_size(group),), group)
    hidden, weight = torch.randn(6, 4), torch.randn(8, 4)
    h = distribute_tensor(hidden, mesh, [Replicate()])
    w = distribute_tensor(weight, mesh, [Shard(0)])
    y = torch.arange(6)
    unit: Any = fully_shard(Head(4, 8), mesh=mesh, reshard_after_forward=True)
    late = unit(hidden)  # FSDP has freed the weight by now
    summed = DTensor.from_local(weight, mesh, [Partial()])
    return {
        name: heard(call)
        for name, call in {
            "plain features": lambda: xent.LinearLogits(hidden, w),
            "plain features of the function": lambda: xent.linear_cross_entropy(hidden, w, y),
            "plain features of a unit": lambda: xent.LinearLogits(hidden, unit.weight),
            "plain weight": lambda: xent.LinearLogits(h, weight),
            "plain bias": lambda: xent.LinearLogits(h, w, torch.zeros(8)),
            "no tensor": lambda: xent.LinearLogits(None, w),
            "split features": lambda: xent.LinearLogits(h, w.redistribute(placements=[Shard(1)])),
            "partial weight": lambda: xent.LinearLogits(h, summed),
            "freed": lambda: xent.cross_entropy(late, y),
            "freed, torch": lambda: torch.nn.functional.cross_entropy(late, y),
            "freed, argmax": lambda: late.argmax(-1),
            "other labels": lambda: xent.cross_entropy(
                xent.LinearLogits(h, w).to_local(), y + dist.get_rank(group)
            ),
        }.items()
    }


def gathered_head(
    group: Any, hidden: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Gradients of features and own weight of the logits of all ranks of a shard."""
    rank, count = dist.get_rank(group), dist.get_world_size(group)
    leaves = [hidden.clone().requires_grad_(), weight.chunk(count)[rank].clone().requires_grad_()]
    whole = xent.parallel.shard(xent.LinearLogits(*leaves), group).gather()
    return torch.autograd.grad(whole.square().sum(), leaves)
