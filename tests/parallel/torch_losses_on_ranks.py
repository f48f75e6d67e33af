"""PyTorch's losses in the context of ``loss_parallel``, for the ranks of a test."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import loss_parallel as of_torch

from xent.parallel import loss_parallel

from .on_ranks import heard, listed_collectives

OF_EACH_FUNCTION = ["mean", "soft none", "of tensors", "entropy", "nll", "kl"]


def losses(x: Any, y: Any, q: Any, weight: Any) -> dict[str, Callable[[], Any]]:
    """Calls by name; each is made of PyTorch's functions alone."""
    nn = torch.nn
    return {
        "mean": lambda: F.cross_entropy(x, y),
        "sum": lambda: F.cross_entropy(x, y.clamp(0), reduction="sum", ignore_index=0),
        "none": lambda: F.cross_entropy(x, y, weight, reduction="none"),
        "flags": lambda: F.cross_entropy(x, y, size_average=False),
        "weighted": lambda: F.cross_entropy(x, y, weight=weight),
        "smoothed": lambda: F.cross_entropy(x, y, weight, label_smoothing=0.1),
        "soft": lambda: F.cross_entropy(x, q, weight),
        "soft none": lambda: F.cross_entropy(x, q, reduction="none", label_smoothing=0.2),
        "module": lambda: nn.CrossEntropyLoss(weight, label_smoothing=0.1)(x, y),
        "log_softmax": lambda: F.log_softmax(x, 1),
        "of torch": lambda: torch.log_softmax(x, dim=1),
        "of tensors": lambda: x.log_softmax(-1 if x.ndim == 2 else 1),
        "dtype": lambda: F.log_softmax(x.float(), 1, dtype=torch.float64),
        "squares": lambda: F.log_softmax(x, 1).square().sum(),
        "entropy": lambda: -(F.log_softmax(x, 1).exp() * F.log_softmax(x, 1)).sum(),
        "nll": lambda: F.nll_loss(nn.LogSoftmax(1)(x), y),
        "nll of all": lambda: F.nll_loss(x, y, weight, reduction="none"),
        "nll weighted": lambda: nn.NLLLoss(weight, ignore_index=0)(x.log_softmax(1), y.clamp(0)),
        "nll flags": lambda: F.nll_loss(x.log_softmax(1), y, reduce=False),
        "kl": lambda: F.kl_div(x.log_softmax(1), q, reduction="batchmean"),
        "kl sum": lambda: F.kl_div(x.log_softmax(1), q.log(), reduction="sum", log_target=True),
        "kl mean": lambda: F.kl_div(x.log_softmax(1), q),
        "kl none": lambda: nn.KLDivLoss(reduction="none")(x.log_softmax(1), q),
    }


def slopes(calls: dict[str, Callable[[], Any]], *leaves: Any) -> dict[str, list[torch.Tensor]]:
    """Each value, and the gradients of the sum of its squares."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of flags that are deprecated, and of means of elements
        for name, call in calls.items():
            value = call()
            gradients = torch.autograd.grad(value.square().sum(), leaves, allow_unused=True)
            parts = [value.detach(), *gradients]
            found[name] = [
                x.full_tensor() if hasattr(x, "full_tensor") else x for x in parts if x is not None
            ]
    return found


def distributed(
    group: Any, x: torch.Tensor, y: torch.Tensor, q: torch.Tensor, square: bool = False,
    class_axis: int = 1,
) -> tuple[Any, ...]:  # fmt: skip
    """The tensors as DTensors, whose classes are split over a group.

    In a square mesh of four ranks the first dimension splits the rows, the second the classes.
    """
    mesh = init_device_mesh("cpu", (2, 2)) if square else DeviceMesh.from_group(group, "cpu")
    by_classes = [Shard(0), Shard(class_axis)] if square else [Shard(class_axis)]
    by_rows = [Shard(0), Replicate()] if square else [Replicate()]
    leaves = [distribute_tensor(z, mesh, by_classes).requires_grad_() for z in (x, q)]
    return leaves[0], distribute_tensor(y, mesh, by_rows), leaves[1]


def in_context(
    group: Any, x: torch.Tensor, y: torch.Tensor, q: torch.Tensor, weight: torch.Tensor,
    square: bool,
) -> dict[str, list[torch.Tensor]]:  # fmt: skip
    """Values and gradients in the context."""
    x, y, q = distributed(group, x, y, q, square)
    with loss_parallel():
        return slopes(losses(x, y, q, weight), x, q)


def last_axis(x: Any, q: Any) -> dict[str, Callable[[], Any]]:
    """Calls on classes on the last of three axes, as language models have them."""
    return {
        "log_softmax": lambda: F.log_softmax(x, -1).square().sum(),
        "kl": lambda: F.kl_div(F.log_softmax(x, -1), q, reduction="sum"),
    }


def of_language(group: Any, x: torch.Tensor, q: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """Values and gradients for classes on the last axis."""
    x, _, q = distributed(group, x, torch.zeros(len(x)), q, True, 2)
    with loss_parallel():
        return slopes(last_axis(x, q), x, q)


def beside_torch(
    group: Any, x: torch.Tensor, y: torch.Tensor, q: torch.Tensor, weight: torch.Tensor
) -> list[dict[str, list[torch.Tensor]]]:
    """Code for PyTorch's context: in that one, in ours, and in both, one inside the other."""
    plain = y.clamp(0)  # PyTorch's fails on class weights beside ignored rows
    x, y, q = distributed(group, x, y, q)
    right = {
        name: call
        for name, call in losses(x, plain, q, weight).items()
        if name in ("mean", "weighted", "sum", "flags")
    }
    found = []
    with of_torch():
        found.append(slopes(right, x))
    with loss_parallel():
        found.append(slopes(right, x))
    calls = losses(x, y, q, weight)
    some = {name: calls[name] for name in OF_EACH_FUNCTION}
    with of_torch(), loss_parallel():
        found.append(slopes(some, x, q))
    with loss_parallel(), of_torch():
        found.append(slopes(some, x, q))
    return found


def context(group: Any) -> dict[str, Any]:
    """Traces of the context, its errors, and the calls that it lets pass."""
    x = distributed(group, torch.randn(4, 8), torch.zeros(4), torch.rand(4, 8))[0]
    y = torch.zeros(
        4, dtype=torch.int64
    )  # PyTorch refuses it beside a DTensor, without the context
    ours = "mixed torch.Tensor and DTensor"

    def off() -> bool:
        return ours in heard(lambda: F.cross_entropy(x, y))

    found: dict[str, Any] = {"off before": off()}
    with loss_parallel():
        with loss_parallel():
            found["on inside"] = not off()
        found["on after the inner one"] = not off()
        elsewhere: list[bool] = []
        thread = threading.Thread(target=lambda: elsewhere.append(off()))
        thread.start()
        thread.join()
        found["off in another thread"] = elsewhere == [True]
        z, t = torch.randn(3, 5), torch.tensor([0, 1, 2])
        plain = F.cross_entropy(z, t), F.log_softmax(z, 1), F.nll_loss(z, t)
        rows = distribute_tensor(torch.ones(4, 8), x.device_mesh, [Shard(0)])
        found["rows"] = F.log_softmax(rows, 1).placements == (Shard(0),)
        found["errors"] = {
            "out": heard(lambda: torch.log_softmax(x, 1, out=x)),
            "reduction": heard(lambda: F.kl_div(x, x, reduction="avg")),
            "target": heard(lambda: F.kl_div(x, torch.ones(4, 8))),
            "label": heard(lambda: F.nll_loss(x, y + 8)),
            "weight": heard(lambda: F.cross_entropy(x, y, torch.ones(2))),
            "positive": heard(lambda: F.kl_div(x.detach().square(), x)),
            "second": heard(
                lambda: torch.autograd.grad(
                    F.log_softmax(x, 1).square().sum(), x, create_graph=True
                )
            ),
        }
    found["plain"] = all(
        torch.equal(a, b)
        for a, b in zip(
            plain, (F.cross_entropy(z, t), F.log_softmax(z, 1), F.nll_loss(z, t)), strict=True
        )
    )
    try:
        with loss_parallel():
            raise KeyError
    except KeyError:
        found["off after an error"] = off()

    @loss_parallel()
    def decorated() -> Any:
        return F.cross_entropy(x, y)

    square = distributed(group, torch.randn(8, 8), torch.arange(8), torch.rand(8, 8), True)
    weight = torch.arange(1.0, 9.0)
    everywhere = distribute_tensor(weight, square[0].device_mesh, [Replicate()] * 2)
    with loss_parallel():  # as many rows as classes
        pair = [F.cross_entropy(*square[:2], w).full_tensor() for w in (weight, everywhere)]
    found["weights in a DTensor"] = torch.equal(*pair)
    found["decorator"] = heard(decorated) == "no error" == heard(decorated) and off()
    return found


def collectives(group: Any) -> list[list[tuple[str, int]]]:
    """The collectives of log-probabilities with their gradient, and of a loss of them."""
    x = distributed(group, torch.randn(8, 8), torch.zeros(8), torch.rand(8, 8))[0]
    y = torch.arange(8)
    with loss_parallel():
        with listed_collectives() as of_log_probs:
            torch.autograd.grad(F.log_softmax(x, 1).square().sum(), x)
        with listed_collectives() as of_loss:
            torch.autograd.grad(F.nll_loss(x, y), x)
        with listed_collectives() as of_elements:
            torch.autograd.grad(F.kl_div(-x.square(), -x.exp(), log_target=True), x)
    return [of_log_probs, of_loss, of_elements]


def narrow(group: Any, z: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Log-probabilities of logits of another type."""
    x = distributed(group, z.to(dtype), torch.zeros(len(z)), z)[0]
    with loss_parallel():
        return F.log_softmax(x, 1).full_tensor().detach()
