"""Every entry of the library that takes logits or probabilities, with inputs that suit it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import xent
from xent.information import cross_entropy_of, entropy, kl_divergence
from xent.losses import CATALOG

from .catalog_cases import case

ROWS, CLASSES = 6, 9


@dataclass(frozen=True)
class Entry:
    """A function of tensors, and inputs for it."""

    name: str
    function: Callable[..., Tensor]
    inputs: Callable[[int], tuple[Any, ...]]

    def __str__(self) -> str:
        return self.name


def _member(name: str) -> Entry:
    of = case(name)
    tree = name == "wordtree_cross_entropy"
    settings = of.settings(CLASSES - tree)
    tensors = {name: value for name, value in settings.items() if isinstance(value, Tensor)}

    def function(*data: Any) -> Tensor:
        count = len(data) - len(tensors)
        own = dict(zip(tensors, data[count:], strict=True))
        return of.member.function(*data[:count], **{**settings, **own})

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
        if of.labels:
            return z, (torch.rand(rows, CLASSES) > 0.5).float()
        if of.member.targets == "soft":
            return of.data(z, torch.softmax(torch.randn(rows, CLASSES), 1))
        return of.data(z, torch.randint(CLASSES - 2 * tree, (rows,)))

    return Entry(name, function, inputs)


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


ENTRIES = [
    *(_member(name) for name in CATALOG if name != "yolo_loss"),  # a sum of others
    Entry("cross_entropy of distributions", xent.cross_entropy, _soft),
    Entry("cross_entropy with options", _with_options, _labels),
    Entry("cross_entropy by row", lambda *x: xent.cross_entropy(*x, reduction="none"), _labels),
    Entry("linear_cross_entropy", xent.linear_cross_entropy, _head),
    Entry("sampled_cross_entropy", xent.losses.sampled_cross_entropy, _sampled),
    Entry("focal_loss behind a head", _behind_a_head, _head),
    Entry("token_log_probs", xent.token_log_probs, _labels),
    Entry("entropy", lambda z, y: xent.entropy(z), _labels),
    Entry("statistics", _statistics, _labels),
    Entry("softmax", lambda z, y: xent.softmax(z), _labels),
    Entry("log_softmax", lambda z, y: xent.log_softmax(z), _labels),
    Entry("softmax_jacobian", lambda z, y: xent.softmax_jacobian(z), _labels),
    Entry("entmax", lambda z, y: xent.entmax(z), _labels),
    Entry("tempered_softmax", lambda z, y: xent.tempered_softmax(z), _labels),
    Entry(
        "info_nce_loss", xent.losses.info_nce_loss, lambda n: (torch.randn(n, 4), torch.randn(n, 4))
    ),
    Entry("information.entropy", lambda p, q: entropy(p), _distributions),
    Entry("information.kl_divergence", kl_divergence, _distributions),
    Entry("information.cross_entropy_of", cross_entropy_of, _distributions),
]


def gradient_of(entry: Entry, inputs: tuple) -> tuple[Tensor, Tensor]:
    """The value, and the gradient of its sum by the first input."""
    x = inputs[0].detach() if isinstance(inputs[0], Tensor) else inputs[0]
    x.requires_grad_()
    value = entry.function(x, *inputs[1:])
    (grad,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), grad


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-7)
