"""Behind a linear head of 16 bits: which products are taken, why, and how exact the results are."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import xent
from tests.heads.linear_heads import exact_gradients, grads, within
from tests.heads.test_gradients import SHAPES, both_gradients, confident, ordinary, spread
from tests.helpers import same_bits
from xent.engines import core
from xent.heads import chunks

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
SWITCHED_OFF = SimpleNamespace(enabled=False, is_available=lambda: True)


@pytest.fixture
def able(monkeypatch):
    """Stand in for a processor, and a PyTorch, that multiply 16 bits in hardware."""
    monkeypatch.setattr(core, "products", frozenset({BF16, F16}))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)


@pytest.fixture
def unable(monkeypatch):
    monkeypatch.setattr(core, "products", frozenset())


def types_of(monkeypatch, call):
    """The types of the products that a call takes."""
    found = set()

    def watched(multiply):
        def function(*args, **options):
            found.add(args[-1].dtype)
            return multiply(*args, **options)

        return function

    with monkeypatch.context() as patch:
        for name in ("mm", "addmm"):
            patch.setattr(torch, name, watched(getattr(torch, name)))
        call()
    return found


def one_hot(z, y):
    return F.one_hot(y, z.shape[-1]).to(z.dtype)


SUMS = {
    "mean": lambda z, y: xent.cross_entropy(z, y),
    "sum": lambda z, y: xent.cross_entropy(z, y, reduction="sum"),
    "focal": lambda z, y: xent.losses.focal_loss(z, y),
    "z_loss": lambda z, y: xent.cross_entropy(z, y, z_loss=0.1, label_smoothing=0.1),
    "softcap": lambda z, y: xent.cross_entropy(z, y, softcap=5.0),
    "soft targets": lambda z, y: xent.cross_entropy(z, one_hot(z, y)),
    "class weights": lambda z, y: xent.cross_entropy(z, y, torch.linspace(0, 1, 100).to(z.dtype)),
    "row weights": lambda z, y: xent.cross_entropy(z, y, row_weight=torch.linspace(0, 1, len(y))),
    "binary": lambda z, y: xent.binary_cross_entropy_with_logits(z, one_hot(z, y)),
    "ignored": lambda z, y: xent.cross_entropy(z, y.clone().index_fill(0, y[:1] % 60, -100)),
    "PyTorch": F.cross_entropy,
}
VALUES = {
    "none": lambda z, y: xent.cross_entropy(z, y, reduction="none"),
    "tokens": lambda z, y: xent.token_log_probs(z, y),
    "entropy": lambda z, y: xent.entropy(z),
    "statistics": lambda z, y: xent.statistics(z, y).lse,
    "logsumexp": lambda z, y: z.logsumexp(-1),
}


# ---- which products -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*SUMS, *VALUES])
def test_sums_take_those_of_the_processor_and_values_of_rows_float32(kind, able, monkeypatch):
    parts, y = ordinary(60, 32, 100, BF16)
    unless_named, loss = BF16 if kind in SUMS else F32, {**SUMS, **VALUES}[kind]

    def step(name):
        loss(xent.LinearLogits(*parts, products=name), y).double().sum().backward()

    for name, expected in ((None, unless_named), ("float32", F32), ("input", BF16)):
        assert types_of(monkeypatch, lambda name=name: step(name)) == {expected}, name


CONTRASTIVE = {
    "info_nce": (xent.losses.info_nce_loss, BF16),
    "clip": (xent.losses.clip_loss, BF16),
    "nt_xent": (xent.losses.nt_xent_loss, F32),
    "sampled": (
        lambda a, b, **options: xent.losses.sampled_cross_entropy(
            a, b, torch.arange(30), torch.arange(20), **options
        ),
        F32,
    ),
}


@pytest.mark.parametrize("kind", CONTRASTIVE)
def test_contrastive_losses_take_what_is_asked_for(kind, able, monkeypatch):
    loss, unless_named = CONTRASTIVE[kind]
    a, b = (torch.randn(30, 16, dtype=BF16, requires_grad=True) for _ in range(2))
    for name, expected in ((None, unless_named), ("float32", F32), ("input", BF16)):
        step = lambda name=name: loss(a, b, products=name).backward()  # noqa: E731
        assert types_of(monkeypatch, step) == {expected}, name


@pytest.mark.parametrize("kind", ["mean", "sum", "focal", "binary"])
def test_float16_for_sums_without_a_gradient(kind, able, monkeypatch):
    """A gradient that is taken before the scale of the loss is known would lose small numbers."""
    parts, y = ordinary(60, 32, 100, F16)
    z, constant = xent.LinearLogits(*parts), xent.LinearLogits(*(x.detach() for x in parts))
    assert types_of(monkeypatch, lambda: SUMS[kind](z, y).backward()) == {F32}
    assert types_of(monkeypatch, lambda: SUMS[kind](constant, y)) == {F16}


@pytest.mark.parametrize("kind", SUMS)
def test_other_processors_take_float32(kind, unable, monkeypatch):
    parts, y = ordinary(60, 32, 100, BF16)
    z = xent.LinearLogits(*parts)
    assert types_of(monkeypatch, lambda: SUMS[kind](z, y).backward()) == {F32}


def test_both_heads_of_a_distillation_take_float32(able, monkeypatch):
    (h, w, b), _ = ordinary(60, 32, 100, BF16)
    loss = xent.losses.distillation_loss
    for name, expected in ((None, F32), ("float32", F32), ("input", BF16)):
        student = xent.LinearLogits(h, w, b, products=name)
        teacher = xent.LinearLogits(h.detach(), w.detach(), products=name)
        pair = student, teacher
        assert types_of(monkeypatch, lambda pair=pair: loss(*pair).backward()) == {expected}


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jensen_shannon"])
def test_a_student_near_its_teacher(divergence, able):
    """With products in 16 bits the loss is off by a quarter, and its gradient has no digit."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 32, generator=g).to(BF16)
    teacher = torch.randn(512, 32, generator=g).div(3).to(BF16)
    change = 1 + 0.01 * torch.randn(512, 32, generator=g)
    weight = (teacher * change).to(BF16).requires_grad_()
    exact = weight.detach().double().requires_grad_()

    def loss(student, teacher):
        options = {"divergence": divergence, "reduction": "sum"}
        return xent.losses.distillation_loss(student, teacher, **options)

    truth = loss(hidden.double() @ exact.T, hidden.double() @ teacher.double().T)
    truth.backward()
    value = loss(xent.LinearLogits(hidden, weight), xent.LinearLogits(hidden, teacher))
    value.backward()
    torch.testing.assert_close(value.double(), truth, rtol=2**-8, atol=0)
    error = (weight.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 2**-7


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z[5:],
        lambda z: z[:, 3:],
        lambda z: z.reshape(6, 10, 100).flatten(0, 1),
        lambda z: z.float(),
        lambda z: z * 2.0,
        lambda z: 5 * torch.tanh(z / 5),
        lambda z: z + torch.ones(100, dtype=BF16),
        lambda z: z + z,
        lambda z: torch.log_softmax(z, -1).logits,
    ],
)
@pytest.mark.parametrize("name", ["float32", "input"])
def test_a_named_type_stays_with_the_logits(change, name):
    parts, _ = ordinary(60, 32, 100, BF16)
    assert change(xent.LinearLogits(*parts, products=name)).products == name


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        (lambda p: p.setattr(core, "products", frozenset()), "no instructions"),
        (lambda p: p.setattr(torch.backends.mkldnn, "is_available", lambda: False), "oneDNN"),
        (lambda p: p.setattr(torch.backends, "mkldnn", SWITCHED_OFF), "oneDNN"),
        (lambda p: p.setenv("ONEDNN_MAX_CPU_ISA", "avx2"), "ONEDNN_MAX_CPU_ISA"),
    ],
)
def test_explain_tells_what_stands_in_the_way(obstacle, reason, able, monkeypatch):
    parts, y = ordinary(60, 32, 100, BF16)
    z = xent.LinearLogits(*parts)
    assert "torch.bfloat16 for sums" in str(xent.explain(z, y))
    with monkeypatch.context() as patch:
        obstacle(patch)
        assert xent.explain(z, y).products.startswith("in torch.float32: ")
        assert reason in xent.explain(z, y).products
        assert types_of(monkeypatch, lambda: xent.cross_entropy(z, y)) == {F32}


def test_parts_of_different_types(able, monkeypatch):
    """A learned scale makes the features float32, which 16 bits would round for a row alike."""
    parts, y = ordinary(60, 32, 100, BF16)
    scale = torch.tensor(2.0, requires_grad=True)
    z = xent.LinearLogits(*parts)
    step = lambda: xent.cross_entropy(z, y, logit_scale=scale).backward()  # noqa: E731
    assert types_of(monkeypatch, step) == {F32}


def test_explain_other_heads():
    (h, w, _), y = ordinary(60, 32, 100, BF16)
    for name, text in (("float32", "in torch.float32"), ("input", "in torch.bfloat16")):
        explained = xent.explain(xent.LinearLogits(h, w, products=name), y)
        assert explained.products == f"{text}, as asked"
    wide = xent.explain(xent.LinearLogits(h.float(), w.float()), y)
    assert wide.products == "in torch.float32, the type of the weight"
    assert xent.explain(torch.randn(60, 100), y).products == ""


def test_unknown_products():
    (h, w, _), y = ordinary(6, 4, 10, BF16)
    for call in (
        lambda: xent.LinearLogits(h, w, products="bfloat16"),
        lambda: xent.linear_cross_entropy(h, w, y, products=torch.float32),
        lambda: xent.nn.LinearCrossEntropyLoss(4, 10, products="wide")(h.float(), y),
    ):
        with pytest.raises(ValueError, match="`products` must be one of 'float32', 'input'"):
            call()


# ---- how exact ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SUMS)
def test_the_loss_is_that_of_the_logits_in_16_bits(kind, able):
    """As one chunk takes the product that F.linear takes, and float32 logits tell 1e-5 apart."""
    parts, y = ordinary(60, 32, 100, BF16)
    behind = SUMS[kind](xent.LinearLogits(*parts).float(), y)
    given = SUMS[kind](F.linear(*parts).float(), y)
    torch.testing.assert_close(behind, given, rtol=3e-7, atol=0)


def test_the_price_of_rounded_logits(able):
    """The figures of the documentation, at a loss of 10."""
    h, w = torch.randn(1024, 64).to(BF16), (torch.randn(8000, 64) / 8).to(BF16)
    y = torch.randint(8000, (1024,))
    exact = xent.cross_entropy(h.double() @ w.double().T, y).item()

    def error(products):
        z = xent.LinearLogits(h, w, products=products).double()
        return abs(xent.cross_entropy(z, y).item() - exact)

    assert error("float32") <= 1e-7
    assert 1e-7 < error(None) <= 3e-4


@pytest.mark.parametrize("rows", [7, 2048])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("margin", [None, 8])
def test_every_entry_of_the_gradient(rows, shape, margin, monkeypatch):
    """Each is within the bound of its roundings; all together are no worse than PyTorch's.

    Of the gradient of the weight PyTorch rounds one product to 16 bits, and chunks one each.
    """
    monkeypatch.setattr(chunks, "MAX_ROWS", rows)
    parts, y = ordinary(*shape, BF16) if margin is None else confident(*shape, BF16, margin)
    ours, theirs = both_gradients(parts, y, 1.0, products="input")
    exact = exact_gradients(*parts, y, products="input")
    several = 1.0, 2**0.5 if rows < shape[0] else 1.0, 1.0
    for a, t, (truth, most), factor in zip(ours, theirs, exact, several, strict=True):
        assert a.dtype == BF16
        within(a, truth, most)
        assert spread(a, truth) <= factor * spread(t, truth)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float16_holds_the_gradient_of_a_mean(shape):
    """The mean over the rows is taken last: its gradient has numbers that float16 rounds to 0."""
    parts, y = ordinary(*shape, F16)
    scale = 2.0**10
    ours, _ = both_gradients(parts, y, scale, products="input")
    exact = exact_gradients(*parts, y, scale, products="input")
    h, w, _ = (x.detach().double().abs() for x in parts)
    # Half of the smallest number of float16, in each entry of the gradient of the logits.
    least = 2.0**-25 * scale / len(h)
    lost = w.sum(0, keepdim=True), h.sum(0, keepdim=True), float(len(h))
    for a, (truth, most), x in zip(ours, exact, lost, strict=True):
        within(a, truth, most + least * x)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 1), (1, 2)])
@pytest.mark.parametrize("rows", [7, 2048])
def test_gradients_of_some_parts(needed, rows, able, monkeypatch):
    monkeypatch.setattr(chunks, "MAX_ROWS", rows)
    parts, y = ordinary(60, 32, 100, BF16)
    every = grads(xent.cross_entropy(xent.LinearLogits(*parts), y), parts)
    some = [x if k in needed else x.detach() for k, x in enumerate(parts)]
    found = grads(xent.cross_entropy(xent.LinearLogits(*some), y), [parts[k] for k in needed])
    for k, gradient in zip(needed, found, strict=True):
        assert same_bits(gradient, every[k])


@pytest.mark.parametrize("rows", [7, 2048])
def test_backward_again_and_twice(rows, able, monkeypatch):
    monkeypatch.setattr(chunks, "MAX_ROWS", rows)
    parts, y = ordinary(60, 32, 100, BF16)
    loss = xent.cross_entropy(xent.LinearLogits(*parts), y)
    first, second = (grads(loss, parts, retain_graph=True) for _ in range(2))
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    again = grads(loss, parts, create_graph=True)
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b, rtol=3e-2, atol=1e-2 * a.abs().max().item())
    again[0].float().square().sum().backward()
    assert bool(parts[1].grad.isfinite().all())


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("rows", [7, 2048])
def test_autocast_changes_no_product(rows, dtype, able, monkeypatch):
    monkeypatch.setattr(chunks, "MAX_ROWS", rows)
    parts, y = ordinary(60, 32, 100, BF16)
    plain = grads(xent.cross_entropy(xent.LinearLogits(*parts), y), parts)
    with torch.autocast("cpu", dtype):
        found = grads(xent.cross_entropy(xent.LinearLogits(*parts), y), parts)
    assert all(same_bits(a, b) for a, b in zip(found, plain, strict=True))


def test_a_bias_of_another_type_with_products_as_asked():
    """A sum of logits and a vector has the bias in float32; the first call teaches the second."""
    (h, w, b), y = ordinary(60, 32, 100, BF16)
    for _ in range(2):
        xent.cross_entropy(xent.LinearLogits(h, w, b, products="input"), y)
        loss = xent.cross_entropy((xent.LinearLogits(h, w, products="input") + b).to(BF16), y)
        truth = xent.cross_entropy(F.linear(h, w, b), y)
        torch.testing.assert_close(loss, truth, rtol=1e-2, atol=0)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no list of what the processor has")
@pytest.mark.skipif(not core.available(), reason="the compiled core asks the processor")
def test_the_processor_is_asked():
    """Linux keeps a list of what the processor has and the system lets programs use."""
    words = set(Path("/proc/cpuinfo").read_text().split())
    wide = "avx512vl" in words
    known = {
        BF16: (wide and bool(words & {"avx512_bf16", "amx_bf16"})) or "bf16" in words,
        F16: wide and bool(words & {"avx512_fp16", "amx_fp16"}),
    }
    assert core.products == {dtype for dtype, has in known.items() if has}
