"""Steps of each optimiser of PyTorch, also of those that compute the loss more than once."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from tests.learn.networks.test_training import blobs, fit, linear
from xent.learn import SoftmaxRegression, train_classifier


def least_loss(x, y, C):
    """Return the least loss of softmax regression with a penalty, as weight decay adds it."""
    model = SoftmaxRegression(C=C, tol=1e-10).fit(x.double().numpy(), y.numpy())
    return model.history_[-1]


def penalised(model, C, rows):
    def loss(z, y):
        penalty = model.weight.square().sum() / (2 * C * rows)
        return nn.functional.cross_entropy(z, y) + penalty

    return loss


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_finds_the_minimum(search):
    x, y = blobs()
    model = linear().double()
    optimizer = partial(torch.optim.LBFGS, line_search_fn=search, max_iter=50)
    record = fit(
        model, (x.double(), y), penalised(model, 1.0, 150), optimizer=optimizer, batch_size=150
    )
    assert record.epochs[-1]["loss"] == pytest.approx(least_loss(x, y, 1.0), abs=1e-8)
    assert record.epochs[0]["loss"] > record.epochs[-1]["loss"] + 0.1  # a step's first loss counts


def closures():
    """Return each optimiser of PyTorch that takes a list of parameters of a linear map."""
    skipped = {"Optimizer", "SparseAdam", "Muon"}  # no optimiser, sparse gradients, matrices only
    found = {name: getattr(torch.optim, name) for name in dir(torch.optim)}
    return [
        pytest.param(kind, id=name)
        for name, kind in found.items()
        if isinstance(kind, type) and name not in skipped
    ]


@pytest.mark.parametrize("optimizer", closures())
def test_every_optimizer_learns(optimizer):
    x, y = blobs()
    record = fit(linear(), (x, y), optimizer=partial(optimizer, lr=0.1), batch_size=150, epochs=5)
    assert record.epochs[-1]["loss"] < record.epochs[0]["loss"]


class Sharpness(torch.optim.Optimizer):
    """Sharpness-aware steps: climb, compute the loss again, and descend from the old place."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.told = []

    def step(self, closure=None):
        assert closure is not None
        ps = [p for group in self.param_groups for p in group["params"]]
        self.told.append([float(closure())])
        up = [0.1 * p.grad for p in ps]
        with torch.no_grad():
            for p, u in zip(ps, up, strict=True):
                p.add_(u)
        self.told[-1].append(float(closure()))
        with torch.no_grad():
            for p, u in zip(ps, up, strict=True):
                p.sub_(u).sub_(p.grad, alpha=self.param_groups[0]["lr"])


def test_an_optimizer_that_computes_the_loss_twice_gets_the_same_loss():
    """Dropout would change the loss by more than the small climb; rows count once."""
    made = []

    def optimizer(parameters, lr):
        made.append(Sharpness(parameters, lr))
        return made[-1]

    x, y = blobs(32)
    model = nn.Sequential(nn.Dropout(0.5), linear())
    record = fit(model, (x, y), optimizer=optimizer, batch_size=32, lr=0.0, epochs=8)
    assert len(made[0].told) == 8
    for first, again in made[0].told:
        assert first < again < first + 0.05
    assert [e["loss"] for e in record.epochs] == pytest.approx([t[0] for t in made[0].told])
    assert len({t[0] for t in made[0].told}) == 8  # each batch draws new random numbers


def test_a_step_without_a_closure():
    class Plain(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        def step(self):
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.sub_(p.grad, alpha=self.param_groups[0]["lr"])

    x, y = blobs()
    ours, theirs = linear(), linear()
    one, other = (
        fit(model, (x, y), optimizer=kind, lr=0.1)
        for model, kind in ((ours, Plain), (theirs, torch.optim.SGD))
    )
    assert [e["loss"] for e in one.epochs] == [e["loss"] for e in other.epochs]
    assert torch.equal(ours.weight, theirs.weight)


def test_whose_step_size_is_taken():
    sizes = []

    def spy(kind):
        class Spy(kind):
            def __init__(self, params, **options):
                super().__init__(params, **options)
                sizes.append(self.param_groups[0]["lr"])

        return Spy

    data = blobs()
    for optimizer, lr in (
        (spy(torch.optim.SGD), None), (partial(spy(torch.optim.SGD), lr=0.3), None),
        (partial(spy(torch.optim.SGD), lr=0.3), 0.2), (spy(torch.optim.LBFGS), None),
        (spy(torch.optim.LBFGS), 0.5),
    ):  # fmt: skip
        train_classifier(linear(), data, optimizer=optimizer, lr=lr, epochs=1, quiet=True)
        sizes.append("|")
    last = [before for before, bar in pairwise(sizes) if bar == "|"]
    assert last == [1e-3, 0.3, 0.2, 1, 0.5]


def test_a_step_to_nan_is_reported():
    x, y = blobs()
    model = linear()

    def loss(z, y):
        return nn.functional.cross_entropy(z, y) * torch.where(model.weight.norm() > 2, math.nan, 1)

    with pytest.raises(ValueError, match=r"nan in one step of LBFGS.*strong_wolfe"):
        fit(model, (x, y), loss, optimizer=torch.optim.LBFGS, batch_size=150, lr=100.0)


def test_rows_without_a_target_are_no_step():
    x, y = blobs(8)
    y[:4] = -100
    model = linear()
    record = fit(model, (x, y), optimizer=torch.optim.LBFGS, batch_size=2, epochs=1)
    assert np.isfinite(record.epochs[0]["loss"])
