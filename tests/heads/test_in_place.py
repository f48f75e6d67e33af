"""Changes in place: those that are recorded, and those that need all the numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import xent
from xent.heads.late import Late
from xent.heads.stand_in import Lean

ROWS, CLASSES = (3, 4), 7


def logits():
    torch.manual_seed(0)
    shapes = (*ROWS, 5), (CLASSES, 5), (CLASSES,)
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return xent.LinearLogits(*parts), parts


def late():
    with torch.no_grad():
        z, parts = logits()
    return Late(z), parts


def add_elsewhere(z):
    z[torch.tensor([0, 2])] += torch.arange(56.0).double().view(2, 4, 7)


CHANGES = {
    "clamp": lambda z: z.clamp_(-1, 1),
    "function": lambda z: torch.relu_(z),
    "inplace": lambda z: F.relu(z, inplace=True),
    "a tensor added": lambda z: z.add_(torch.arange(84.0).double().view(3, 4, 7)),
    "a tensor times": lambda z: z.mul_(torch.arange(84.0).double().view(3, 4, 7)),
    "some rows": lambda z: z.__setitem__(0, 0.0),
    "some logits": lambda z: z.__setitem__((0, 1, 2), 9.0),
    "a mask": lambda z: z.__setitem__(torch.eye(12, 7).view(3, 4, 7).bool(), -5.0),
    "a mask of rows": lambda z: z.masked_fill_(torch.eye(12, 1).view(3, 4, 1).bool(), 2.0),
    "values": lambda z: z.__setitem__((..., slice(2)), torch.ones(3, 4, 2).double()),
    "scatter": lambda z: z.scatter_(-1, torch.zeros(3, 4, 1).long(), 3.0),
    "a picture of a class": lambda z: z[..., 0].fill_(-50.0),
    "select": lambda z: z.select(-1, 2).mul_(3.0),
    "rows elsewhere": add_elsewhere,
    "recorded": lambda z: z.div_(2.0),
    "recorded after a look": lambda z: (z.sinh(), z.div_(2.0)),
}
USES = {
    "view": lambda z: z.view(-1, CLASSES)[:5],
    "log_softmax": lambda z: z.log_softmax(-1).gather(-1, torch.ones(3, 4, 1).long()),
    "loss": lambda z: F.cross_entropy(z.reshape(-1, CLASSES), torch.arange(12) % 7),
    "float": lambda z: z.float().argmax(-1),
    "sum": lambda z: (z * 2).sum(-1),
    "joined": lambda z: torch.cat([z, z], 1),
}


def materialized(x):
    return x.materialize() if isinstance(x, Lean) else x + 0


@pytest.mark.filterwarnings("ignore:.*needs all")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", [logits, late], ids=["logits", "late"])
def test_what_is_changed_is_seen(kind, change):
    for use in USES.values():
        z, parts = kind()
        whole = F.linear(*parts)
        CHANGES[change](whole)
        CHANGES[change](z)
        torch.testing.assert_close(materialized(use(z)), use(whole))


@pytest.mark.filterwarnings("ignore:.*needs all")
def test_gradients_behind_a_change():
    def loss(z):
        z[0, 1, 2] = 3.0
        z += torch.ones(3, 4, 7).double()
        return F.cross_entropy(z.view(-1, CLASSES), torch.arange(12) % 7)

    z, parts = logits()
    found, truth = (torch.autograd.grad(loss(x), parts) for x in (z, F.linear(*parts)))
    torch.testing.assert_close(found, truth)


@pytest.mark.filterwarnings("ignore:.*needs all")
def test_two_names_of_one():
    z, parts = logits()
    other = z
    other += torch.ones(3, 4, 7).double()
    torch.testing.assert_close(materialized(z), F.linear(*parts) + 1)


STALE = "changed in place through other logits"


@pytest.mark.filterwarnings("ignore:.*needs all")
@pytest.mark.parametrize("kind", [logits, late], ids=["logits", "late"])
@pytest.mark.parametrize(
    "change",
    [
        lambda z: z.div_(2),
        lambda z: z.clamp_(0, 1),
        lambda z: z.__setitem__((..., 0), -50.0),
        lambda z: z.__isub__(z.amax(-1, keepdim=True)),
        lambda z: z.__setitem__(z < z.amax(-1, keepdim=True), -torch.inf),
        lambda z: z.transpose(-1, -2).mul_(100) if z.ndim > 2 else z.mul_(100),
    ],
)
def test_a_change_that_others_would_miss(kind, change):
    """Who changed the rows goes on with them; who shows the rows of before says so when used."""
    for whose, other in ((lambda z: z[:, -1], lambda z: z), (lambda z: z, lambda z: z[0])):
        z, parts = kind()
        kept, changed = other(z), whose(z)
        truth = whose(F.linear(*parts))
        change(truth)
        through_others = changed.ndim > 2 and "transpose" in change.__code__.co_names
        change(changed)
        for use in (lambda z: z + 0, lambda z: z.argmax(-1), lambda z: z[..., :3] * 2):
            with pytest.raises(RuntimeError, match=STALE):
                use(kept)
        if not through_others:
            torch.testing.assert_close(
                materialized(changed.reshape(-1, CLASSES)), truth.reshape(-1, CLASSES)
            )


@pytest.mark.filterwarnings("ignore:.*needs all")
def test_what_was_read_before_a_change():
    z, _ = logits()
    moved = z.transpose(1, 2)
    moved.std()
    z.div_(2)
    with pytest.raises(RuntimeError, match=STALE):
        moved.std()
    with pytest.raises(RuntimeError, match=STALE):
        xent.cross_entropy(moved, torch.zeros(ROWS).long())


@pytest.mark.filterwarnings("ignore:.*needs all")
@pytest.mark.parametrize("change", CHANGES)
def test_gradients_of_what_is_changed_without_a_record(change):
    z, parts = logits()
    whole = F.linear(*parts)
    with torch.no_grad():
        CHANGES[change](z)
        CHANGES[change](whole)
    found, truth = ((x.reshape(-1, CLASSES) ** 2).sum() for x in (z, whole))
    torch.testing.assert_close(torch.autograd.grad(found, parts), torch.autograd.grad(truth, parts))


def test_axes_in_place():
    z, parts = logits()
    z.unsqueeze_(1)
    assert z.shape == (3, 1, 4, CLASSES)
    torch.testing.assert_close(z.squeeze_(1).materialize(), F.linear(*parts))
    assert not z.detach_().requires_grad
    with pytest.raises(TypeError, match="use the result"):
        z.transpose_(0, 1)


WITHOUT_A_RECORD = {
    "log_softmax": lambda z: z.log_softmax(-1),
    "softmax": lambda z: F.softmax(z, -1),
    "quotient": lambda z: z / 2,
    "numbers": lambda z: z + torch.ones(CLASSES).double(),
    "rows": lambda z: z[:, 1:],
    "view": lambda z: z.view(-1, CLASSES),
    "clone": lambda z: z.clone(),
    "cat": lambda z: torch.cat([z, z]),
    "transpose": lambda z: z.transpose(1, 2),
    "float": lambda z: z.float(),
}


@pytest.mark.filterwarnings("ignore:.*needs all")
@pytest.mark.parametrize("name", WITHOUT_A_RECORD)
def test_what_is_made_without_a_record_has_no_gradient(name):
    z, parts = logits()
    with torch.no_grad():
        constant = WITHOUT_A_RECORD[name](z)
        assert z.contiguous() is z
    assert not constant.requires_grad
    assert not (constant * 2).requires_grad
    assert torch.autograd.grad(z.logsumexp(-1).sum(), parts)


@pytest.mark.filterwarnings("ignore:.*needs all")
def test_functions_of_the_library_refuse_logits_that_are_no_longer_those_of_a_head():
    target = torch.zeros(ROWS).long()
    for z in (logits()[0], late()[0]):
        rows = z[:, 1:]
        z[..., 0].fill_(-50.0)
        for use in (
            lambda z=z: xent.cross_entropy(z, target),
            lambda z=z: xent.token_log_probs(z, target),
            lambda rows=rows: rows.argmax(-1) + 0,  # the rows show no change
        ):
            with pytest.raises(RuntimeError, match="changed in place"):
                use()


@pytest.mark.filterwarnings("ignore:.*needs all")
def test_what_was_picked_by_a_list_is_a_copy():
    z, parts = logits()
    some = z[[0, 1]]
    some.div_(2)
    z *= 3
    whole = F.linear(*parts)
    torch.testing.assert_close(some.materialize(), whole[[0, 1]] / 2)
    torch.testing.assert_close(z.materialize(), whole * 3)
    torch.testing.assert_close(z[np.array([2, 0])].materialize(), whole[[2, 0]] * 3)


@pytest.mark.parametrize(
    "copied",
    [
        lambda z: z[:, :-1].contiguous(),
        lambda z: z[:, :-1].reshape(-1, CLASSES),
        lambda z: z.flip(0),
        lambda z: z.transpose(1, 2).contiguous().transpose(1, 2),
        lambda z: z.log_softmax(-1).clone(),
    ],
)
def test_copies_are_apart(copied):
    z, parts = logits()
    whole = F.linear(*parts)
    some, truth = copied(z), copied(whole)
    kept = z.log_softmax(-1)
    if isinstance(some, xent.LinearLogits):
        some /= 4
        truth /= 4
    torch.testing.assert_close(materialized(some), truth)
    torch.testing.assert_close(z.logsumexp(-1), whole.logsumexp(-1))
    torch.testing.assert_close(kept.materialize(), whole.log_softmax(-1))


@pytest.mark.filterwarnings("ignore:.*needs all")
def test_in_inference_mode():
    with torch.inference_mode():
        z = Late(logits()[0])
        whole = z.clone() + 0
        z[..., 0].fill_(-50.0)
        whole[..., 0].fill_(-50.0)
        assert torch.equal(z.argmax(-1) + 0, whole.argmax(-1))
        assert torch.equal(z.view(-1, CLASSES) + 0, whole.view(-1, CLASSES))


@pytest.mark.filterwarnings("ignore:.*needs all")
def test_axes_that_are_not_there():
    z, _ = logits()
    for use in (
        lambda: z.unsqueeze(9),
        lambda: z.unsqueeze(-6),
        lambda: z.argmax(5),
        lambda: z.logsumexp(3),
        lambda: z.select(7, 0),
    ):
        with pytest.raises(IndexError):
            use()
    with pytest.raises(RuntimeError, match="only one dimension can be inferred"):
        z.view(-1, -1)
