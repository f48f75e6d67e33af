"""Every function of the library that takes logits or probabilities, with inputs that suit it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import xent
from xent.information import cross_entropy_of, entropy, kl_divergence

from .family import ENTRIES
from .records import Entry

ROWS, CLASSES = 6, 9


@dataclass(frozen=True)
class Call:
    """A function of tensors, and inputs for it."""

    name: str
    function: Callable[..., Tensor]
    inputs: Callable[[int], tuple[Any, ...]]

    def __str__(self) -> str:
        return self.name


def _member(entry: Entry) -> Call:
    name, tree = entry.name, entry.more_logits
    settings = entry.arguments(CLASSES - tree)
    tensors = {name: value for name, value in settings.items() if isinstance(value, Tensor)}

    def function(*data: Any) -> Tensor:
        count = len(data) - len(tensors)
        own = dict(zip(tensors, data[count:], strict=True))
        return entry.function(*data[:count], **{**settings, **own})

    def inputs(rows: int) -> tuple[Any, ...]:
        return (*of_the_call(rows), *tensors.values())

    def of_the_call(rows: int) -> tuple[Any, ...]:
        z = torch.randn(rows, CLASSES)
        if name == "binary_cross_entropy":
            return z.sigmoid(), torch.rand(rows, CLASSES)
        if name == "nll_loss":
            return torch.log_softmax(z, 1), torch.randint(CLASSES, (rows,))
        if name == "kl_div":
            return torch.log_softmax(z, 1), torch.softmax(torch.randn(rows, CLASSES), 1)
        if entry.labels:
            return z, (torch.rand(rows, CLASSES) > 0.5).float()
        if entry.member.targets == "soft":
            return entry.data(z, torch.softmax(torch.randn(rows, CLASSES), 1))
        if name == "cumulative_link_loss":
            return z[:, 0], torch.linspace(-1, 1, 4), torch.randint(5, (rows,))
        return entry.data(z, torch.randint(CLASSES - 2 * max(tree, 0), (rows,)))

    return Call(name, function, inputs)


def _labels(rows: int) -> tuple[Any, ...]:
    return torch.randn(rows, CLASSES), torch.randint(CLASSES, (rows,))


def _soft(rows: int) -> tuple[Any, ...]:
    return torch.randn(rows, CLASSES), torch.softmax(torch.randn(rows, CLASSES), 1)


def _head(rows: int) -> tuple[Any, ...]:
    return torch.randn(rows, 4), torch.randn(CLASSES, 4), torch.randint(CLASSES, (rows,))


def _distributions(rows: int) -> tuple[Any, ...]:
    z = torch.randn(2, rows, CLASSES)
    p, q = torch.softmax(z, -1)
    return p, q


def _with_options(z: Tensor, y: Tensor) -> Tensor:
    return xent.cross_entropy(
        z, y, torch.linspace(0.5, 2, CLASSES, dtype=z.dtype, device=z.device), ignore_index=0,
        label_smoothing=0.1, z_loss=1e-3, logit_scale=1.5, softcap=20.0,
    )  # fmt: skip


def _sampled(rows: int) -> tuple[Any, ...]:
    return *_head(rows), torch.tensor([3, 1, 3, 8, 8])


def _behind_a_head(hidden: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    return xent.losses.focal_loss(xent.LinearLogits(hidden, weight), y)


def _statistics(z: Tensor, y: Tensor) -> Tensor:
    s = xent.statistics(z, y, entropy=True, mean=True, top=True, squares=True)
    return s.log_prob + s.entropy + s.mean + s.rest_squares + s.rest_top_logit


def _batch(rows: int) -> tuple[Any, ...]:
    return torch.randn(rows, 4), torch.arange(rows) % 3


def _labelled_pairs(rows: int) -> tuple[Any, ...]:
    return torch.randn(rows, 4), torch.randn(7, 4), torch.arange(rows) % 3


def _labelled(query: Tensor, key: Tensor, y: Tensor) -> Tensor:
    of_keys = torch.tensor([0, 1, 2, 0, 1, 2, 5], device=y.device)
    return xent.losses.info_nce_loss(query, key, labels=y, key_labels=of_keys)


def _grouped(z: Tensor, y: Tensor) -> Tensor:
    groups = torch.arange(z.shape[-1], device=z.device) // 2
    return xent.losses.set_cross_entropy(z, y // 2, groups=groups)


def _of_centers(z: Tensor, y: Tensor) -> Tensor:
    return xent.losses.cosface_loss(
        torch.tanh(z), y % 3, scale=4.0, centers=3, center_temperature=0.5
    )


CALLS = [
    *(_member(entry) for entry in ENTRIES if not entry.apart),
    Call("cross_entropy of distributions", xent.cross_entropy, _soft),
    Call("cross_entropy with options", _with_options, _labels),
    Call("cross_entropy by row", lambda *x: xent.cross_entropy(*x, reduction="none"), _labels),
    Call("linear_cross_entropy", xent.linear_cross_entropy, _head),
    Call("sampled_cross_entropy", xent.losses.sampled_cross_entropy, _sampled),
    Call("focal_loss behind a head", _behind_a_head, _head),
    Call("token_log_probs", xent.token_log_probs, _labels),
    Call("entropy", lambda z, y: xent.entropy(z), _labels),
    Call("statistics", _statistics, _labels),
    Call("softmax", lambda z, y: xent.softmax(z), _labels),
    Call("log_softmax", lambda z, y: xent.log_softmax(z), _labels),
    Call("softmax_jacobian", lambda z, y: xent.softmax_jacobian(z), _labels),
    Call("entmax", lambda z, y: xent.entmax(z), _labels),
    Call("tempered_softmax", lambda z, y: xent.tempered_softmax(z), _labels),
    Call(
        "info_nce_loss", xent.losses.info_nce_loss, lambda n: (torch.randn(n, 4), torch.randn(n, 4))
    ),
    Call("info_nce_loss of labels", _labelled, _labelled_pairs),
    Call("supcon_loss", xent.losses.supcon_loss, _batch),
    Call("nca_loss", xent.losses.nca_loss, _batch),
    Call("multi_similarity_loss", xent.losses.multi_similarity_loss, _batch),
    Call("set_cross_entropy of groups", _grouped, _labels),
    Call("cosface_loss of centers", _of_centers, _labels),
    Call("information.entropy", lambda p, q: entropy(p), _distributions),
    Call("information.kl_divergence", kl_divergence, _distributions),
    Call("information.cross_entropy_of", cross_entropy_of, _distributions),
]


def gradient_of(call: Call, inputs: tuple) -> tuple[Tensor, Tensor]:
    """Return the value, and the gradient of its sum by the first input."""
    x = inputs[0].detach() if isinstance(inputs[0], Tensor) else inputs[0]
    x.requires_grad_()
    value = call.function(x, *inputs[1:])
    (grad,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), grad


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-7)
