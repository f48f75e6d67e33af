"""Changes in place: those that are recorded, and those that need all the numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import xent
from xent.heads.late import Late

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
    return x.materialize() if isinstance(x, xent.LinearLogits) else x + 0


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


def test_a_change_that_others_would_miss():
    for z in (logits()[0], late()[0]):
        rows = z[0]
        for change in (
            lambda z=z: z.div_(2),
            lambda rows=rows: rows.div_(2),
            lambda z=z: z.clamp_(0, 1),
            lambda z=z: z.__setitem__((..., 0), -50.0),
        ):
            with pytest.raises(TypeError, match="other logits show the same rows"):
                change()
        del rows
        assert z.div_(2) is z


@pytest.mark.filterwarnings("ignore:.*needs all")
def test_functions_of_the_library_refuse_logits_that_are_no_longer_those_of_a_head():
    target = torch.zeros(ROWS).long()
    for z in (logits()[0], late()[0]):
        rows = z[:, 1:]
        z[..., 0].fill_(-50.0)
        for use in (
            lambda z=z: xent.cross_entropy(z, target),
            lambda z=z: xent.token_log_probs(z, target),
            lambda rows=rows: rows.argmax(-1) + 0,
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
