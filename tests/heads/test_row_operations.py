"""Operations on logits behind a head that are recorded, beside the same on a tensor."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import xent

ROWS, FEATURES, CLASSES = (2, 1, 3), 4, 7
MASK = torch.arange(CLASSES) >= 5
PER_CLASS = torch.linspace(0.5, 2, CLASSES, dtype=torch.float64)
PER_ROW = torch.linspace(0.5, 2, 6, dtype=torch.float64).view(*ROWS, 1)
KEPT = torch.tensor([[[True, False, True]], [[False, False, True]]])


def scaled_in_place(z):
    z = z.clone()
    assert z.div_(0.7) is z
    z *= 2
    z /= PER_ROW
    return z


def padded_in_place(z):
    z = z.clone()
    z[..., 5:] = -torch.inf
    z[..., MASK.flip(0)] = 1.5
    return z


def filled_in_place(z):
    return z.clone().masked_fill_(MASK, -3.0)


RECORDED = {
    "split": lambda z: z.split(1, dim=2)[2],
    "split with sizes": lambda z: torch.split(z, [1, 2], 2)[1],
    "split of flat rows": lambda z: z.reshape(-1, CLASSES).split(4)[1],
    "chunk": lambda z: torch.chunk(z, 2, dim=-2)[1],
    "tensor_split": lambda z: z.tensor_split(2, 0)[0],
    "unbind": lambda z: z.unbind(2)[1],
    "iteration": lambda z: list(z)[1],
    "squeeze": lambda z: z.squeeze(),
    "squeeze of an axis": lambda z: torch.squeeze(z, 1),
    "squeeze of none": lambda z: z.squeeze(0),
    "unsqueeze": lambda z: z.unsqueeze(0),
    "unsqueeze of another": lambda z: torch.unsqueeze(z, -3),
    "index_select": lambda z: z.index_select(2, torch.tensor([2, 0, 2])),
    "narrow": lambda z: z.narrow(-2, 1, 2),
    "select": lambda z: z.select(2, 1),
    "cat": lambda z: torch.cat([z, z.flip(0)], dim=2),
    "cat of slices": lambda z: torch.cat((z[:1], z[1:])),
    "stack": lambda z: torch.stack([z, z], 1),
    "expand": lambda z: z.expand(2, 5, 3, -1),
    "expand_as": lambda z: z.expand_as(torch.empty(2, 5, 3, CLASSES)),
    "repeat": lambda z: z.repeat(2, 1, 2, 1),
    "repeat_interleave": lambda z: z.repeat_interleave(2, dim=0),
    "roll": lambda z: z.roll(1, 2),
    "roll of two": lambda z: torch.roll(z, (1, 1), dims=(0, 2)),
    "flip": lambda z: z.flip(0, 2),
    "flip of a list": lambda z: torch.flip(z, [0]),
    "unflatten": lambda z: z.unflatten(2, (3, 1)),
    "flatten": lambda z: z.flatten(0, 2),
    "view": lambda z: z.view(-1, CLASSES),
    "reshape": lambda z: torch.reshape(z, (6, CLASSES)),
    "view_as": lambda z: z.view_as(torch.empty(3, 2, CLASSES)),
    "transpose of rows": lambda z: z.transpose(0, 2),
    "permute of rows": lambda z: z.permute(2, 0, 1, 3),
    "movedim of rows": lambda z: torch.movedim(z, 2, 0),
    "there and back": lambda z: z.movedim(-1, 1).movedim(1, -1),
    "mask of rows": lambda z: z[KEPT],
    "rows by number": lambda z: z[torch.tensor([1, 0, 1])],
    "new axes": lambda z: z[None, ..., :1, :],
    "clone": lambda z: z.clone(),
    "contiguous": lambda z: z.contiguous(),
    "half": lambda z: z.half(),
    "bfloat16": lambda z: z.bfloat16(),
    "type": lambda z: z.type(torch.float32),
}
OF_LOGITS = {
    "cat with a scale per row": lambda z: torch.cat([z / PER_ROW, z]),
    "scale": lambda z: 2 * z,
    "scale per row": lambda z: z / PER_ROW,
    "scale per row, then of some rows": lambda z: (z * PER_ROW)[:, 0, 1:].flatten(0, 1),
    "scale of sequences": lambda z: z / torch.tensor([0.5, 2.0]).double()[:, None, None, None],
    "scale per class": lambda z: z * PER_CLASS,
    "scale per class and less a bias": lambda z: (PER_CLASS - 1) * (z - PER_CLASS),
    "sum of two": lambda z: z * PER_CLASS[None] + 0.5 * z,
    "difference": lambda z: PER_CLASS - z,
    "negative": lambda z: -z,
    "softcap": lambda z: 3 * torch.tanh(z / 3),
    "softcap of rows": lambda z: (3 * torch.tanh(z / PER_ROW / 3)).transpose(0, 2),
    "mask": lambda z: z.masked_fill(MASK, -torch.inf),
    "mask with a number": lambda z: z.masked_fill(MASK[None], 2.5),
    "mask of scaled logits": lambda z: torch.masked_fill(z / 2, MASK, 2.5),
    "in place": scaled_in_place,
    "padding in place": padded_in_place,
    "filled in place": filled_in_place,
    "pad": lambda z: F.pad(z, (0, 0, 1, 2)),
}
NUMBERS = {
    "amax": lambda z: z.amax(-1),
    "max": lambda z: z.max(-1, keepdim=True).values,
    "softmax and gather": lambda z: z.softmax(-1).gather(-1, torch.zeros(*ROWS, 2).long()),
    "softmax of rows": lambda z: F.softmax(z[0], -1).squeeze(0).argmax(-1),
    "mean": lambda z: z.mean(-1),
    "sum of some rows": lambda z: torch.sum(z[KEPT], dim=-1, keepdim=True),
    "mean of all": lambda z: z.mean(),
    "entropy": lambda z: -(torch.exp(log_p := z.log_softmax(-1)) * log_p).sum(-1),
    "cross_entropy on axis 1": lambda z: F.cross_entropy(
        z.permute(0, 3, 1, 2), torch.arange(6).view(ROWS), label_smoothing=0.1
    ),
    "cross_entropy of transposed": lambda z: F.cross_entropy(
        z.squeeze(1).transpose(1, 2), torch.arange(6).view(2, 3), reduction="none"
    ),
    "cross_entropy of soft targets": lambda z: F.cross_entropy(
        z.movedim(-1, 1), torch.ones(2, CLASSES, 1, 3, dtype=z.dtype) / CLASSES
    ),
    "nll_loss on axis 1": lambda z: F.nll_loss(
        F.log_softmax(z.squeeze(1).transpose(1, 2), 1), torch.arange(6).view(2, 3)
    ),
    "nll_loss of transposed": lambda z: F.nll_loss(
        z.squeeze(1).log_softmax(-1).mT, torch.arange(6).view(2, 3)
    ),
    "focal_loss on axis 1": lambda z: xent.losses.focal_loss(
        z.movedim(-1, 1), torch.arange(6).view(ROWS)
    ),
}


def head(*, bias=True):
    torch.manual_seed(0)
    shapes = (*ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,)
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return parts if bias else parts[:2]


def beside_a_tensor(function, lean, whole, parts, monkeypatch):
    """Compare values and gradients, and assert that all logits were made at the end only."""
    expected = function(whole)
    with warnings.catch_warnings(), monkeypatch.context() as patch:
        warnings.simplefilter("error")
        patch.setattr(xent.LinearLogits, "materialize", None)
        found = function(lean)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if not isinstance(found, torch.Tensor):
        found = found.materialize()
    torch.testing.assert_close(found, expected)
    if expected.requires_grad:
        slope = torch.linspace(-1, 1, expected.numel()).view(expected.shape).to(expected.dtype)
        kept = expected.isfinite()
        grads = [
            torch.autograd.grad(torch.where(kept, x, 0).mul(slope).sum(), parts, allow_unused=True)
            for x in (found, expected)
        ]
        tolerance = {} if expected.dtype == torch.float64 else {"rtol": 0.02, "atol": 0.02}
        torch.testing.assert_close(*grads, **tolerance)


@pytest.mark.parametrize("kind", ["logits", "scaled", "log_probs", "probs"])
@pytest.mark.parametrize("name", RECORDED)
def test_rows(name, kind, monkeypatch):
    parts = head()
    lean, whole = xent.LinearLogits(*parts), F.linear(*parts)
    change = {
        "logits": lambda z: z,
        "scaled": lambda z: z / PER_ROW / 2,
        "log_probs": lambda z: -z.log_softmax(-1),
        "probs": lambda z: z.softmax(-1),
    }[kind]
    beside_a_tensor(RECORDED[name], change(lean), change(whole), parts, monkeypatch)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_logits(name, monkeypatch):
    parts = head(bias=name != "pad")
    lean, whole = xent.LinearLogits(*parts), F.linear(*parts)
    beside_a_tensor(OF_LOGITS[name], lean, whole, parts, monkeypatch)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name, monkeypatch):
    parts = head()
    lean, whole = xent.LinearLogits(*parts), F.linear(*parts)
    beside_a_tensor(NUMBERS[name], lean, whole, parts, monkeypatch)


def test_losses_of_recorded_logits():
    parts, target = head(), torch.arange(6).view(ROWS) % 5
    for name, function in OF_LOGITS.items():
        z = function(F.linear(*parts))
        if name == "pad" or z.shape[:-1] != ROWS:
            continue
        loss = xent.cross_entropy(function(xent.LinearLogits(*parts)), target)
        torch.testing.assert_close(loss, F.cross_entropy(z.movedim(-1, 1), target))


@pytest.mark.parametrize(
    "call",
    [
        lambda z: z.split(3, -1)[0], lambda z: z.unsqueeze(-1), lambda z: z.flip(-1),
        lambda z: z.roll(1), lambda z: z.repeat(1, 1, 1, 2), lambda z: torch.cat([z, z], -1),
        lambda z: F.pad(z, (0, 0, 1, 0)), lambda z: F.pad(z, (1, 0)), lambda z: z.movedim(-1, 0),
        lambda z: z.masked_fill(KEPT.unsqueeze(-1), 0.0), lambda z: z * PER_CLASS * PER_ROW,
        lambda z: z * (PER_CLASS * PER_ROW), lambda z: z.div(2, rounding_mode="floor"),
        lambda z: z.transpose(1, 3).exp(),
    ],
)  # fmt: skip
def test_what_reads_the_classes_says_so_once(call):
    parts = head()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = call(xent.LinearLogits(*parts))
    recorded = not isinstance(found, torch.Tensor)
    torch.testing.assert_close(found.materialize() if recorded else found, call(F.linear(*parts)))
    assert len(told) == 1 - recorded


@pytest.mark.parametrize(
    "call",
    [
        lambda x, z: torch.div(x, z), lambda x, z: x.masked_fill(z > 0, 1.0),
        lambda x, z: x.clone().add_(z), lambda x, z: x.clone().div_(z), lambda x, z: x / z,
        lambda x, z: torch.div(x, other=z),
    ],
)  # fmt: skip
def test_logits_in_the_second_place(call):
    parts = [x.detach() for x in head()]
    x, z = torch.rand(*ROWS, CLASSES).double(), F.linear(*parts)
    with pytest.warns(UserWarning, match="needs all 42 logits"):
        found = call(x, xent.LinearLogits(*parts))
    torch.testing.assert_close(found, call(x, z))


def test_other_heads_are_joined_as_tensors():
    parts, others = head(), [x.detach() + 1 for x in head()]
    with pytest.warns(UserWarning, match="cat needs all 42 logits"):
        found = torch.cat([xent.LinearLogits(*parts), xent.LinearLogits(*others)])
    assert torch.equal(found, torch.cat([F.linear(*parts), F.linear(*others)]))


def test_an_array_is_one_product(monkeypatch):
    parts = [x.detach() for x in head()]
    made, product = [], xent.LinearLogits.product
    monkeypatch.setattr(xent.LinearLogits, "product", lambda z: (made.append(z), product(z))[1])
    with pytest.warns(UserWarning, match="an array needs all"):
        array = np.asarray(xent.LinearLogits(*parts))
    np.testing.assert_allclose(array, F.linear(*parts).numpy())
    assert len(made) == 1


def test_copies_and_files():
    parts = [x.detach() for x in head()]
    z = xent.LinearLogits(*parts) / PER_ROW
    for again in (copy.deepcopy(z), pickle.loads(pickle.dumps(z))):
        assert torch.equal(again.materialize(), z.materialize())
        again.div_(2)
    torch.testing.assert_close(z.materialize(), F.linear(*parts) / PER_ROW)


def test_log_probabilities_stay_when_the_logits_change_in_place():
    parts, index = head(), torch.zeros(*ROWS, 1).long()
    z, whole = xent.LinearLogits(*parts), F.linear(*parts)
    log_p, p = z.log_softmax(-1), z.softmax(-1)
    z /= 0.5
    torch.testing.assert_close(log_p.gather(-1, index), whole.log_softmax(-1).gather(-1, index))
    torch.testing.assert_close(p.gather(-1, index), whole.softmax(-1).gather(-1, index))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_factors_and_numbers_of_other_types(dtype):
    h, w = torch.randn(8, 16, dtype=dtype), torch.randn(40, 16, dtype=dtype)
    b, row, target = torch.randn(40), 1 + torch.rand(8, 1), torch.arange(8)
    for change in (
        lambda z: 2 * z + b,
        lambda z: z.float() / 0.7 + b,
        lambda z: z * row + b,
        lambda z: z + z * row,
        lambda z: z * b.double().abs(),
        lambda z: (z / 2).masked_fill(b > 0, torch.finfo(dtype).min),
    ):
        wide = change(F.linear(h.double(), w.double()))
        loss = F.cross_entropy(change(xent.LinearLogits(h, w)), target)
        expected = F.cross_entropy(wide.double(), target)
        torch.testing.assert_close(loss.double(), expected, rtol=0.05, atol=0)


def test_masked_classes_under_a_cap_and_a_negative_factor():
    parts = [x.detach() for x in head()]
    mask = torch.arange(CLASSES) == 2
    z, whole = xent.LinearLogits(*parts), F.linear(*parts)
    for change in (
        lambda z: 3 * torch.tanh(z.masked_fill(mask, -torch.inf) / 3),
        lambda z: 1 - z.masked_fill(mask, -torch.inf),
        lambda z: -z.masked_fill(mask, -torch.inf),
    ):
        with pytest.warns(UserWarning, match="needs all"):
            found = change(z)
        torch.testing.assert_close(found, change(whole))


def test_log_probabilities_take_every_type_in_turn():
    log_p = xent.LinearLogits(*head()).log_softmax(-1)
    for dtype in (torch.float16, torch.float64, torch.float32):
        log_p = log_p.to(dtype)
        assert log_p.dtype == log_p.materialize().dtype == dtype


def test_changed_weights_are_found_in_every_operand():
    h, w, b = (x.detach() for x in head())
    old = xent.LinearLogits(h, w, b)
    w += 1
    new = xent.LinearLogits(h, w, b)
    for use in (lambda: torch.cat([new, old]), lambda: new - old, lambda: torch.stack([new, old])):
        with pytest.raises(RuntimeError, match=r"weight behind .* was changed"):
            use()


SPELLINGS = [
    lambda z: z.permute(dims=(2, 0, 1, 3)), lambda z: torch.permute(z, dims=(0, 2, 1, 3)),
    lambda z: torch.swapaxes(z, axis0=0, axis1=2), lambda z: z.tile(2, 1, 1, 1),
    lambda z: torch.cat([torch.zeros(1, 1, 3, CLASSES).double(), z]), lambda z: z.roll(1, ()),
    lambda z: z.movedim(-1, 1)[:, :, :, :2], lambda z: z.squeeze(-3), lambda z: z / 0.0,
    lambda z: torch.max(z, torch.zeros(CLASSES).double()), lambda z: z.to(torch.float64, copy=True),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*needs all")
@pytest.mark.parametrize("call", SPELLINGS)
def test_other_spellings(call):
    parts = [x.detach() for x in head()]
    found = call(xent.LinearLogits(*parts))
    found = found if isinstance(found, torch.Tensor) else found.materialize()
    torch.testing.assert_close(found, call(F.linear(*parts)))
