"""Heads whose weight is a DTensor: the loss, the digits and the gradients of one process."""

import pytest
import torch

import xent

from . import heads_on_ranks
from .pool import values

pytestmark = pytest.mark.slow


def parts_of(classes, bias=True, dtype=torch.float64):
    g = torch.Generator().manual_seed(classes)
    hidden = torch.randn(5, 7, 4, generator=g, dtype=dtype)
    weight = torch.randn(classes, 4, generator=g, dtype=dtype)
    y = torch.randint(classes, (5, 7), generator=g)
    y[:, ::3] = -100
    y[0, 1:5] = -100
    return [hidden, weight, torch.randn(classes, generator=g, dtype=dtype) if bias else None], y


def of_one_process(parts, target, calls):
    found = []
    for name, options in calls:
        leaves = [x.clone().requires_grad_() for x in parts if x is not None]
        z = torch.nn.functional.linear(*leaves)
        loss = getattr(xent.losses, name)(z, target, class_dim=-1, **options)
        found.append((loss.detach(), *torch.autograd.grad(loss.sum(), leaves)))
    return found


def calls_for(classes, soft):
    weight = torch.linspace(0.5, 2, classes).double()
    return [
        ("cross_entropy", {}),
        ("cross_entropy", {"reduction": "sum"} if soft else {"reduction": "sum", "weight": weight}),
        ("cross_entropy", {"label_smoothing": 0.1, "weight": weight, "z_loss": 1e-3}),
        ("cross_entropy", {"reduction": "none", "softcap": 9.0, "logit_scale": 0.7}),
        ("focal_loss", {"gamma": 1.5}) if not soft else ("cross_entropy", {}),
    ]


# Where features, weight and targets lie, on a mesh of these dimensions.
PLACES = [
    ((4,), ["-", "0", "-"]),
    ((4,), ["1", "0", "-"]),  # sequence parallelism
    ((2,), ["0", "0", "-"]),
    ((2, 2), ["0 -", "- 0", "0 -"]),
    ((2, 2), ["1 0", "- 0", "1 -"]),  # pieces of sequences, and features split once more
    ((2, 2), ["- 1", "0 -", "- 1"]),
    ((2, 2), ["0 1", "- -", "0 1"]),  # the weight on every rank
    ((2, 2), ["- -", "- 0", "- -"]),
]


@pytest.mark.parametrize(("dims", "places"), PLACES, ids=str)
@pytest.mark.parametrize("classes", [97, 3])
@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_of_one_process(ranks, dims, places, classes, soft):
    parts, y = parts_of(classes, bias=not soft)
    target = torch.randn(5, 7, classes, dtype=torch.float64).softmax(-1) if soft else y
    calls = calls_for(classes, soft)
    expected = of_one_process(parts, target, calls)
    count = torch.Size(dims).numel()
    for found in values(
        ranks.run(heads_on_ranks.losses, count, dims, parts, target, places, calls, 2000)
    ):
        for (loss, placed, *gradients), (whole, *slopes) in zip(found, expected, strict=True):
            torch.testing.assert_close(loss, whole, rtol=1e-12, atol=1e-12)
            for gradient, slope in zip(gradients, slopes, strict=True):
                torch.testing.assert_close(gradient, slope, rtol=1e-11, atol=1e-12)
