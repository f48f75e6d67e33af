"""The family behind a linear head: each loss equals that of the whole logits."""

import functools

import pytest
import torch
import torch.nn.functional as F

import xent
from tests.helpers import grads, head
from tests.registry import APART, REGISTRY
from xent.heads import chunks as heads

every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Make even small problems take several chunks."""
    monkeypatch.setattr(heads, "MAX_ROWS", 8)


def listed(z, y, **options):
    classes = torch.stack([y, (y + 1) % 50], -1)
    return xent.losses.sparse_cross_entropy(
        z, classes, torch.tensor([0.6, 0.3]).expand(*y.shape, 2), **options
    )


def mixed(z, y, **options):
    lam = torch.linspace(0.1, 0.9, y.numel()).view(y.shape)
    return xent.losses.mixup_cross_entropy(z, y, (y + 1) % 50, lam, **options)


WHOLE_ROWS = {
    "sparsemax": xent.losses.sparsemax_loss,
    "bi-tempered": functools.partial(xent.losses.bi_tempered_loss, t1=0.8, t2=1.3),
    "listed": listed,
    "tail": functools.partial(listed, tail="mass"),
    "renormalized": functools.partial(listed, tail="renormalize"),
    "mixed": mixed,
}


@pytest.mark.parametrize("name", WHOLE_ROWS)
@every_reduction
def test_losses_of_whole_rows(name, reduction):
    """Such losses need all logits of a row, but not all rows."""
    h, w, b = parts = head(36)
    y = torch.randint(50, (36,))
    options = {"reduction": reduction, "row_weight": torch.rand(36), "softcap": 3.0}
    lean = WHOLE_ROWS[name](xent.LinearLogits(*parts), y, **options)
    whole = WHOLE_ROWS[name](F.linear(*parts), y, **options)
    torch.testing.assert_close(lean, whole, rtol=1e-12, atol=1e-13)
    for a, c in zip(grads(lean, parts), grads(whole, parts), strict=True):
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-12)
    options = {"reduction": reduction}
    folded = WHOLE_ROWS[name](xent.LinearLogits(h.view(4, 9, 6), w, b), y.view(4, 9), **options)
    flat = WHOLE_ROWS[name](F.linear(*parts), y, **options)
    torch.testing.assert_close(folded, flat.view(folded.shape))


DISTILLATIONS = {
    "forward": {"temperature": 2.0},
    "reverse": {"divergence": "reverse", "temperature": 0.7},
    "between": {"divergence": "jensen_shannon", "beta": 0.3},
    "labels": {"alpha": 0.2, "temperature": 3.0},
    "skew": {"divergence": "skew"},
    "total variation": {"divergence": "total_variation"},
    "centre": {
        "teacher_temperature": 0.5, "center": torch.linspace(-1, 1, 20, dtype=torch.float64)
    },
}  # fmt: skip


@pytest.mark.parametrize("sides", ["both", "student", "teacher"])
@pytest.mark.parametrize("name", DISTILLATIONS)
@every_reduction
def test_student_and_teacher(name, sides, reduction):
    """Neither holds all logits at once; a teacher that is a tensor is read by chunks."""
    student, teacher = head(36, 6, 20), head(36, 4, 20)
    options = {"reduction": reduction, "row_mask": torch.rand(4, 9) < 0.7, **DISTILLATIONS[name]}
    if name == "labels":
        options["target"] = torch.randint(20, (4, 9))
    learning = (
        [student, teacher] if sides == "both" else [student if sides == "student" else teacher]
    )
    parts = [x for group in learning for x in group]

    def logits(lean, h, w, b):
        h = h.view(4, 9, -1)
        made = xent.LinearLogits(h, w, b) if lean else F.linear(h, w, b)
        return 2 * made if h.shape[-1] == 6 else 4 * torch.tanh(made / 4)

    def pair(lean):
        made = [logits(lean, *student), logits(lean, *teacher)]
        if sides == "student":
            made[1] = logits(False, *(x.detach() for x in teacher))
        if sides == "teacher":
            made[0] = logits(False, *(x.detach() for x in student))
        return made

    lean = xent.losses.distillation_loss(*pair(True), **options)
    whole = xent.losses.distillation_loss(*pair(False), class_dim=-1, **options)
    torch.testing.assert_close(lean, whole, rtol=1e-11, atol=1e-13)
    for a, c in zip(grads(lean, parts), grads(whole, parts), strict=True):
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-12)


def test_a_teacher_without_gradient():
    student, teacher = head(12), head(12)
    with torch.no_grad():
        constant = xent.LinearLogits(*teacher)
    assert not constant.requires_grad
    xent.losses.distillation_loss(xent.LinearLogits(*student), constant).backward()
    assert teacher[0].grad is None
    assert student[0].grad is not None
    loss = xent.losses.distillation_loss(xent.LinearLogits(*student), constant)
    slope = torch.autograd.grad(loss, student, create_graph=True)
    whole = xent.losses.distillation_loss(F.linear(*student), F.linear(*teacher).detach())
    expected = torch.autograd.grad(whole, student, create_graph=True)
    for a, c in zip(slope, expected, strict=True):
        torch.testing.assert_close(a, c)
    twice = torch.autograd.grad(sum(x.square().sum() for x in slope), student)
    expected = torch.autograd.grad(sum(x.square().sum() for x in expected), student)
    for a, c in zip(twice, expected, strict=True):
        torch.testing.assert_close(a, c)


MEMBERS = sorted(REGISTRY.keys() - APART)


@pytest.mark.parametrize("name", MEMBERS)
def test_every_loss_of_the_catalog(name):
    """The mean with its gradient; no warning comes, so the loss went by chunks."""
    entry = REGISTRY[name]
    h, w, b = parts = head(24, 5, entry.width(7))
    y = torch.randint(5, (24,))
    bits = F.one_hot(y % 2, 2).double()[:, : entry.labels]
    target = bits if entry.labels else y
    settings = entry.arguments(7)

    def loss(logits, z):
        return entry.function(logits, *entry.data(z, target)[1:], **settings)

    z = F.linear(h, w, b)
    lean = loss(xent.LinearLogits(*parts), z.detach())
    whole = loss(z, z.detach())
    torch.testing.assert_close(lean, whole, rtol=1e-12, atol=1e-13)
    for a, c in zip(grads(lean, parts), grads(whole, parts), strict=True):
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-12)


OF_LABELS = {
    "binary": xent.binary_cross_entropy_with_logits,
    "focal": functools.partial(xent.losses.sigmoid_focal_loss, gamma=1.5),
    "asymmetric": xent.losses.asymmetric_loss,
    "labels": xent.losses.multilabel_cross_entropy,
    "mean of labels": functools.partial(xent.losses.multilabel_cross_entropy, labels="mean"),
    "zlpr": xent.losses.zlpr_loss,
}


@pytest.mark.parametrize("name", OF_LABELS)
@every_reduction
def test_sigmoid_losses(name, reduction):
    """Each class is a decision of its own; a chunk of rows at a time."""
    parts = head(36)
    y = (torch.rand(4, 9, 50) < 0.2).double()
    y[1, 2:5] = -1
    y[2, 3:6, 10:30] = -1  # rows that keep some labels
    options = {"reduction": reduction, "ignore_value": -1}
    by_row = name in ("labels", "mean of labels", "zlpr")
    weight = torch.rand(36, dtype=torch.float64)
    if by_row:
        options["row_weight"] = weight.view(4, 9)
    elif name == "binary":
        options |= {
            "weight": torch.rand(50),
            "pos_weight": torch.rand(9, 1),
            "normalizer": "weight",
        }
        if reduction != "mean":
            del options["normalizer"]
    h = parts[0].view(4, 9, 6)
    lean_logits = 3 * torch.tanh(xent.LinearLogits(h, *parts[1:]) / 3)
    if reduction == "none" and not by_row:
        with pytest.warns(UserWarning, match="a loss of each of them"):
            lean = OF_LABELS[name](lean_logits, y, **options)
    else:
        lean = OF_LABELS[name](lean_logits, y, **options)
    z = 3 * torch.tanh(F.linear(h, *parts[1:]) / 3)
    if by_row:
        z, y = z.view(36, 50), y.view(36, 50)
        options["row_weight"] = weight
    whole = OF_LABELS[name](z, y, **options).view(lean.shape)
    torch.testing.assert_close(lean, whole, rtol=1e-11, atol=1e-13)
    for a, c in zip(grads(lean, parts), grads(whole, parts), strict=True):
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-12)


def test_hyperparameters_of_each_element_need_the_logits():
    scaled = xent.element_loss(lambda e, scale: scale * e.nll)
    parts, y = head(6), (torch.rand(6, 50) < 0.2).double()
    options = {"scale": torch.rand(6, 50, dtype=torch.float64), "ignore_value": -1}
    values = options["scale"] * F.binary_cross_entropy_with_logits(
        F.linear(*parts), y, reduction="none"
    )
    y[2, 3:9] = -1
    values = torch.where(y == -1, 0, values)
    for more, expected in (
        ({"normalizer": 7}, values.sum() / 7),
        ({"reduction": "sum"}, values.sum()),
        ({"reduction": "none"}, values),
    ):
        with pytest.warns(UserWarning, match="needs all 300"):
            lean = scaled(xent.LinearLogits(*parts), y, **options, **more)
        torch.testing.assert_close(lean, expected, rtol=1e-12, atol=1e-14)
    with pytest.warns(UserWarning, match="needs all 300"):
        lean = scaled(xent.LinearLogits(*parts), torch.full_like(y, -1), empty="zero", **options)
    assert lean == 0


def test_dtypes_of_sigmoid_losses():
    parts, y = head(36, dtype=torch.float32), (torch.rand(36, 50) < 0.2).float()
    for loss in (xent.binary_cross_entropy_with_logits, xent.losses.multilabel_cross_entropy):
        for reduction in ("mean", "sum"):
            assert loss(xent.LinearLogits(*parts), y, reduction=reduction).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:a gradient of .* needs all 600 logits")
def test_learned_row_weights_of_a_dense_loss():
    parts, y = head(12), torch.randint(50, (12,))
    weight = torch.rand(12, dtype=torch.float64, requires_grad=True)
    for reduction in ("mean", "sum", "none"):
        whole = xent.losses.sparsemax_loss(
            F.linear(*parts), y, row_weight=weight, reduction=reduction
        )
        logits = xent.LinearLogits(*parts)
        lean = xent.losses.sparsemax_loss(logits, y, row_weight=weight, reduction=reduction)
        torch.testing.assert_close(lean, whole, rtol=1e-12, atol=1e-14)
        for a, b in zip(grads(lean, (*parts, weight)), grads(whole, (*parts, weight)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_learned_weights_of_labels_need_the_logits():
    parts, y = head(12), (torch.rand(12, 50) < 0.2).double()
    weight = torch.rand(50, dtype=torch.float64, requires_grad=True)
    for loss in (xent.binary_cross_entropy_with_logits, xent.losses.multilabel_cross_entropy):
        with pytest.warns(UserWarning, match="needs all 600"):
            lean = loss(xent.LinearLogits(*parts), y, weight)
        whole = loss(F.linear(*parts), y, weight)
        torch.testing.assert_close(lean, whole)
        torch.testing.assert_close(grads(lean, (*parts, weight)), grads(whole, (*parts, weight)))


def test_the_sigmoid_family_has_the_dtype_of_the_logits():
    h, w = torch.randn(4, 3), torch.randn(5, 3)
    z = xent.LinearLogits(h, w).to(torch.bfloat16)
    loss = xent.binary_cross_entropy_with_logits(z, torch.rand(4, 5).bfloat16())
    assert z.dtype == loss.dtype == torch.bfloat16
