"""Labels of every integer type, in every function that takes labels; and invalid labels."""

import numpy as np
import pytest
import torch

import xent
from tests.registry import APART, REGISTRY
from xent.learn import find_label_issues, fit_mixture_weights
from xent.losses import CATALOG
from xent.targets import class_rows

TYPES = [
    torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip
Y = torch.tensor([0, 1, 2, 3, 1, 0])
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(3)).double()
P = torch.softmax(X, 1)
CLASSES = [n for n, m in CATALOG.items() if m.targets == "classes" and n not in APART]

CALLS = {
    **{
        name: lambda y, name=name: CATALOG[name].function(0.5 * X, y, **REGISTRY[name].arguments(4))
        for name in CLASSES
    },
    "mixup_cross_entropy": lambda y: xent.losses.mixup_cross_entropy(
        X, y, Y.flip(0).to(y.dtype), 0.3
    ),
    "sparse_cross_entropy": lambda y: xent.losses.sparse_cross_entropy(X, y[:, None], P[:, :1]),
    "hardest_loss": lambda y: xent.losses.hardest_loss(X, y),
    "wordtree_cross_entropy": lambda y: xent.losses.wordtree_cross_entropy(X, y, [-1, -1, 0, 0]),
    "nll_loss": lambda y: xent.nll_loss(P.log(), y),
    "linear_cross_entropy": lambda y: xent.linear_cross_entropy(X, X[:4], y),
    "several heads": lambda y: xent.linear_cross_entropy(
        X, X[None, :].expand(4, 6, 4), y[:, None].expand(6, 6)
    ),
    "token_log_probs": lambda y: xent.token_log_probs(X, y),
    "shift_labels": lambda y: xent.shift_labels(y),
    "shifted": lambda y: xent.token_log_probs(X, y, shift=1),
    "statistics": lambda y: xent.statistics(X, y).log_prob,
    "distillation_loss": lambda y: xent.losses.distillation_loss(X, X + 1, y),
    "info_nce_loss": lambda y: xent.losses.info_nce_loss(X, X, y),
    "labels of queries": lambda y: xent.losses.info_nce_loss(X, X, labels=y, key_labels=Y),
    "labels of keys": lambda y: xent.losses.info_nce_loss(X, X, labels=Y, key_labels=y),
    "supcon_loss": lambda y: xent.losses.supcon_loss(X, y),
    "nca_loss": lambda y: xent.losses.nca_loss(X, y),
    "groups of rows": lambda y: xent.losses.set_cross_entropy(X, y, groups=Y[:4]),
    "groups of classes": lambda y: xent.losses.set_cross_entropy(X, Y % 2, groups=y[:4]),
    "sampled_cross_entropy": lambda y: xent.losses.sampled_cross_entropy(X, X[:4], y, y[:2]),
    "group_advantages": lambda y: xent.policy.group_advantages(X[:, 0], y),
    "flip_labels": lambda y: xent.losses.flip_labels(y, torch.eye(4).double()),
    "find_label_issues": lambda y: find_label_issues(P, y),
    "fit_mixture_weights": lambda y: fit_mixture_weights(X[None].expand(2, 6, 4), y).weights,
    "report": lambda y: torch.tensor(xent.information.report(0.25, y).label_entropy),
    "diagnose": lambda y: torch.tensor(len(xent.diagnose(X, y))),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_integer_type(name):
    expected = CALLS[name](Y)
    for dtype in TYPES:
        found = CALLS[name](Y.to(dtype))
        assert torch.equal(found, expected), dtype


@pytest.mark.parametrize("name", [n for n in CALLS if n not in {"diagnose"}])
def test_no_other_type(name):
    for wrong in (Y.bool(), Y.double(), Y.to(torch.complex64)):
        with pytest.raises((TypeError, ValueError)):
            CALLS[name](wrong)


@pytest.mark.parametrize("dtype", TYPES)
def test_no_type_wraps_around(every_engine, dtype):
    """255 as int8 would be -1; a mark of -1 as uint8 would be 255."""
    x, y = X.float(), Y.to(dtype)
    assert xent.cross_entropy(x, y, ignore_index=2**31, engine=every_engine) == xent.cross_entropy(
        x, Y, engine=every_engine
    )
    most = torch.iinfo(dtype).max
    marked = torch.cat([torch.from_numpy(np.array([most], str(dtype)[6:])), y[1:]])
    if dtype is not torch.int64:  # of which PyTorch's own compares the mark with
        with pytest.raises(IndexError, match="`target`"):
            xent.cross_entropy(x, marked, ignore_index=-1, engine=every_engine)
    if dtype is not torch.uint64:
        value = xent.cross_entropy(x, marked, ignore_index=most, engine=every_engine)
        assert value == xent.cross_entropy(x[1:], Y[1:], engine=every_engine)


@pytest.mark.parametrize("bad", [4, -1])
def test_under_transforms(bad):
    """A label that does not exist raises as it does elsewhere, and as in PyTorch."""
    y = torch.where(Y == 2, bad, Y)
    per_row = torch.func.vmap(lambda a, b: xent.cross_entropy(a, b))
    for call in (
        lambda t: per_row(X, t),
        lambda t: torch.func.vmap(torch.func.grad(lambda a, b: xent.losses.focal_loss(a, b)))(X, t),
        lambda t: torch.func.grad(lambda a: xent.cross_entropy(a, t))(X),
        lambda t: torch.func.vmap(lambda a, b: xent.losses.sparsemax_loss(a, b))(X, t),
        lambda t: torch.func.vmap(lambda a, b: xent.nll_loss(a, b))(P.log(), t),
    ):  # fmt: skip
        with pytest.raises(IndexError, match="out of bounds"):
            call(y)
        call(Y)
    torch.testing.assert_close(
        torch.func.vmap(lambda a, b: xent.cross_entropy(a, b, ignore_index=bad, empty="zero"))(
            X, y
        ),
        xent.cross_entropy(X, y, ignore_index=bad, reduction="none"),
    )


def test_numpy_labels_of_any_type():
    y = torch.from_numpy(np.array([0, 1, 2, 3, 1, 0], dtype=np.int32))
    assert xent.cross_entropy(X, y) == xent.cross_entropy(X, Y)


# ---- rows and classes for metrics ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_rows_that_count_and_their_classes(dtype):
    z = torch.arange(24.0).reshape(2, 3, 4)  # (N, C, d1)
    mark = 200 if dtype == torch.uint8 else 99
    y = torch.tensor([[0, 2, mark, 1], [mark, 1, 0, 0]]).to(dtype)
    rows, classes = class_rows(z, y, ignore_index=mark)
    assert rows.tolist() == [
        [0.0, 4.0, 8.0], [1.0, 5.0, 9.0], [3.0, 7.0, 11.0],
        [13.0, 17.0, 21.0], [14.0, 18.0, 22.0], [15.0, 19.0, 23.0],
    ]  # fmt: skip
    assert (classes.dtype, classes.tolist()) == (torch.int64, [0, 2, 1, 1, 0, 0])
    rows, classes = class_rows(z[0, :, 0], torch.tensor(2).to(dtype))
    assert (rows.tolist(), classes.tolist()) == ([[0.0, 4.0, 8.0]], [2])


def test_rows_without_a_class_are_refused():
    z = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="makes it probabilities"):
        class_rows(z, z)
    with pytest.raises(IndexError, match="out of bounds"):
        class_rows(z, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="batch_size"):
        class_rows(z, torch.tensor([0, 1, 2]))
    assert class_rows(z, torch.tensor([-100, -100]))[0].shape == (0, 3)
