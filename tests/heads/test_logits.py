"""Losses behind a linear head: the numbers of the whole logits, in every use."""

import pytest
import torch
import torch.nn.functional as F

import xent
from tests.helpers import grads, head
from xent.heads import chunks as heads

LOSSES = [
    xent.cross_entropy,
    xent.losses.focal_loss,
    xent.losses.smoothed_cross_entropy,
    xent.losses.brier_loss,
    xent.losses.recall_loss,
    xent.losses.confidence_penalty_loss,
    xent.losses.crammer_singer_loss,
    xent.losses.generalized_cross_entropy,
    xent.losses.mae_loss,
    xent.losses.poly1_loss,
]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
both = pytest.mark.parametrize("engine", ["auto", "reference"])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Make even small problems take several chunks."""
    monkeypatch.setattr(heads, "MAX_ROWS", 8)


@every_loss
@every_reduction
@both
def test_same_as_of_whole_logits(loss, reduction, engine):
    parts = head()
    y = torch.randint(50, (37,))
    y[::3] = -100
    options = {"reduction": reduction, "row_weight": torch.rand(37), "engine": engine}
    lean = loss(xent.LinearLogits(*parts), y, **options)
    whole = loss(F.linear(*parts), y, **options)
    torch.testing.assert_close(lean, whole, rtol=1e-12, atol=1e-13)
    for a, b in zip(grads(lean, parts), grads(whole, parts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@every_reduction
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("inner", [(), (2, 3)])
def test_drop_in_for_torch(reduction, soft, weighted, label_smoothing, inner):
    n, d, c = 9, 5, 7
    h = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    w = torch.randn(c, *inner, d, dtype=torch.float64, requires_grad=True)
    b = torch.randn(c, *inner, dtype=torch.float64, requires_grad=True)
    y = torch.randint(c, (n, *inner))
    y[0] = -100
    target = torch.softmax(torch.randn(n, c, *inner, dtype=torch.float64), 1) if soft else y
    options = {
        "linear_bias": b, "reduction": reduction, "label_smoothing": label_smoothing,
        "weight": torch.rand(c, dtype=torch.float64) if weighted else None,
    }  # fmt: skip
    ours = xent.linear_cross_entropy(h, w, target, **options)
    torchs = F.linear_cross_entropy(h, w, target, **options)
    torch.testing.assert_close(ours, torchs)
    for x, z in zip(grads(ours, (h, w, b)), grads(torchs, (h, w, b)), strict=True):
        torch.testing.assert_close(x, z)


@pytest.mark.skipif(not hasattr(torch.nn, "LinearCrossEntropyLoss"), reason="a newer PyTorch")
@pytest.mark.parametrize("out_features", [(), (2,)])
def test_module(out_features):
    arguments = {"out_features": out_features, "bias": True, "label_smoothing": 0.1}
    ours = xent.nn.LinearCrossEntropyLoss(5, 7, **arguments)
    torchs = torch.nn.LinearCrossEntropyLoss(5, 7, **arguments)
    ours.load_state_dict(torchs.state_dict())
    h, y = torch.randn(9, 5), torch.randint(7, (9, *out_features))
    torch.testing.assert_close(ours(h, y), torchs(h, y))


@every_reduction
@pytest.mark.parametrize("shift", [1, 3])
def test_targets_ahead(reduction, shift):
    """A causal model's targets are its own input, without slices of the features."""
    h, w, b = head(28)
    h, y = h.view(4, 7, 6), torch.randint(50, (4, 7))
    y[1, 2:5] = -1
    weight = torch.rand(4, 7)
    options = {"reduction": reduction, "ignore_index": -1}
    lean = xent.linear_cross_entropy(
        h, w, y, linear_bias=b, shift=shift, row_weight=weight, **options
    )
    z = F.linear(h, w, b)[:, :-shift].movedim(-1, 1)
    whole = xent.cross_entropy(z, y[:, shift:], row_weight=weight[:, shift:], **options)
    torch.testing.assert_close(lean, whole)
    for a, c in zip(grads(lean, (h, w, b)), grads(whole, (h, w, b)), strict=True):
        torch.testing.assert_close(a, c)
    module = xent.nn.LinearCrossEntropyLoss(6, 50, bias=True, shift=shift, **options).double()
    found = module(h, y)
    own = F.linear(h, module.linear.weight, module.linear.bias)[:, :-shift]
    expected = F.cross_entropy(own.movedim(-1, 1), y[:, shift:], **options)
    torch.testing.assert_close(found, expected)


def test_one_row_and_many_axes():
    h, w, b = head(24, 5, 7)
    y = torch.randint(7, (2, 3, 4))
    deep = xent.losses.focal_loss(xent.LinearLogits(h.view(2, 3, 4, 5), w, b), y, reduction="none")
    flat = xent.losses.focal_loss(F.linear(h, w, b), y.view(-1), reduction="none")
    torch.testing.assert_close(deep, flat.view(2, 3, 4))
    one = xent.linear_cross_entropy(h[0], w, y[0, 0, 0], linear_bias=b)
    torch.testing.assert_close(one, F.cross_entropy(F.linear(h[0], w, b), y[0, 0, 0]))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(
    "loss", [xent.cross_entropy, xent.losses.focal_loss], ids=["plain", "focal"]
)
def test_autograd(loss):
    h, w, b = head(9, 3, 5)
    y = torch.randint(5, (9,))
    y[2] = -100

    def f(*parts):
        return loss(xent.LinearLogits(*parts), y)

    assert torch.autograd.gradcheck(f, (h, w, b))
    assert torch.autograd.gradgradcheck(f, (h, w, b))
    plain = [x.detach() for x in (h, w, b)]
    whole = loss(F.linear(h, w, b), y)
    expected = grads(whole, (h, w, b), 1.0)
    for k in range(3):
        torch.testing.assert_close(torch.func.grad(f, k)(*plain), expected[k])
    tangents = [torch.randn_like(x) for x in plain]
    _, moved = torch.func.jvp(f, tuple(plain), tuple(tangents))
    slope = sum((g * t).sum() for g, t in zip(expected, tangents, strict=True))
    torch.testing.assert_close(moved, slope)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(h, w, b), whole)


def test_backward_again_and_again():
    h, w, b = head()
    loss = xent.cross_entropy(xent.LinearLogits(h, w, b), torch.randint(50, (37,)))
    first = torch.autograd.grad(loss, (h, w, b), torch.tensor(3.0), retain_graph=True)
    again = torch.autograd.grad(loss, (h, w, b), torch.tensor(3.0), retain_graph=True)
    none = torch.autograd.grad(loss, (h, w, b), torch.tensor(0.0))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(bool(g.any()) for g in none)


def test_backward_again_after_a_change_is_refused():
    h, w, _ = head()
    loss = xent.cross_entropy(xent.LinearLogits(h, w), torch.randint(50, (37,)))
    torch.autograd.grad(loss, w, retain_graph=True)
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, w)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_memory_that_was_given_back_is_refused_before_a_product(mode):
    h, w, _ = head()
    target = torch.randint(50, (37,))
    with mode():
        if mode is torch.inference_mode:
            h, w = h.clone(), w.clone()
        logits = xent.LinearLogits(h, w)
        values = xent.cross_entropy(logits, target, reduction="none")
        w.untyped_storage().resize_(0)
        for use in (lambda: xent.cross_entropy(logits, target), logits.materialize):
            with pytest.raises(RuntimeError, match=r"weight behind .* is no longer in memory"):
                use()
    if values.requires_grad:
        with pytest.raises(RuntimeError, match=r"weight behind .* is no longer in memory"):
            values.sum().backward()


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_part_has_no_gradient(frozen, monkeypatch):
    parts = list(head())
    parts[frozen] = parts[frozen].detach()
    made = []
    add = heads.Head.add
    monkeypatch.setattr(heads.Head, "add", lambda g, *a: (made.append(g), add(g, *a)))
    xent.cross_entropy(xent.LinearLogits(*parts), torch.randint(50, (37,))).backward()
    assert made
    assert all(g.gradients[frozen] is None for g in made)
    assert parts[1 - frozen].grad is not None


def test_ignored_rows_are_not_multiplied(monkeypatch):
    h, w, b = head()
    y = torch.randint(50, (37,))
    y[5:] = -100
    with torch.no_grad():
        h[5:] = torch.nan  # nor do they leave a trace
    seen = []
    hidden = heads.Head.hidden
    monkeypatch.setattr(heads.Head, "hidden", lambda g, i: (seen.append(x := hidden(g, i)), x)[1])
    loss = xent.losses.focal_loss(xent.LinearLogits(h, w, b), y)
    loss.backward()
    assert {x.shape[0] for x in seen} == {5}
    assert all(bool(x.grad.isfinite().all()) for x in (h, w, b))
    torch.testing.assert_close(loss, xent.losses.focal_loss(F.linear(h[:5], w, b), y[:5]))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_any_class_may_mark_what_is_ignored(reduction):
    parts, shift = head(), torch.rand(50, dtype=torch.float64)
    y = torch.randint(50, (37,))
    y[::3] = 7
    for loss in (xent.cross_entropy, by_table):
        options = {"ignore_index": 7, "reduction": reduction}
        options |= {} if loss is xent.cross_entropy else {"shift": shift}
        lean = loss(xent.LinearLogits(*parts), y, **options)
        torch.testing.assert_close(lean, loss(F.linear(*parts), y, **options))
    stats = xent.statistics(xent.LinearLogits(*parts), y, ignore_index=7)
    assert not stats.complete


@xent.row_loss(own={"target_table": lambda shift: torch.diag(1 + shift)})
def by_table(s, shift):
    """Return a soft target for each class, of another mass."""
    return 1 - s.log_prob


def test_nothing_kept():
    h, w, b = head()
    y = torch.full((37,), -100)
    assert xent.cross_entropy(xent.LinearLogits(h, w, b), y).isnan()
    loss = xent.cross_entropy(xent.LinearLogits(h, w, b), y, empty="zero")
    assert loss.item() == 0
    assert not any(bool(g.any()) for g in grads(loss, (h, w, b)))


def test_what_is_recorded():
    h, w, b = head(12, 5, 7)
    z = xent.LinearLogits(h.view(3, 4, 5), w, b)
    whole = F.linear(h, w, b).view(3, 4, 7)
    y = torch.randint(7, (3, 3))
    lean = xent.cross_entropy((30 * torch.tanh(z[:, 1:] * 2 / 30)).float().contiguous(), y)
    capped = 30 * torch.tanh(whole[:, 1:] * 2 / 30)
    expected = xent.cross_entropy(capped.reshape(-1, 7), y.reshape(-1)).float()
    assert lean.dtype == torch.float32
    torch.testing.assert_close(lean, expected)
    per_row = torch.rand(3, 4, dtype=torch.float64) + 0.5
    lean = xent.cross_entropy(z, torch.ones(3, 4, dtype=torch.int64), logit_scale=per_row)
    scaled = (whole * per_row[..., None]).reshape(-1, 7)
    torch.testing.assert_close(lean, F.cross_entropy(scaled, torch.ones(12, dtype=torch.int64)))
    flat = z.view(-1, 7)
    assert flat.shape == (12, 7)
    target = torch.randint(7, (12,))
    torch.testing.assert_close(
        F.cross_entropy(flat, target), F.cross_entropy(F.linear(h, w, b), target)
    )


@pytest.mark.parametrize("extra", [(7,), (1, 7), (1, 1, 7)])
def test_a_number_for_each_class_joins_the_bias(extra):
    h, w, b = head(12, 5, 7)
    added, y = torch.randn(extra, dtype=torch.float64, requires_grad=True), torch.randint(7, (12,))
    for bias in (None, b):
        z = xent.LinearLogits(h.view(3, 4, 5), w, bias)
        whole = F.cross_entropy((F.linear(h, w, bias).view(3, 4, 7) + added).view(-1, 7), y)
        expected = grads(whole, (h, w, added))
        for lean in (z + added, added + z, torch.add(z, added)):
            loss = F.cross_entropy(lean.view(-1, 7), y)
            torch.testing.assert_close(loss, whole)
            torch.testing.assert_close(grads(loss, (h, w, added)), expected)
    for other in (1.0, torch.randn(12, 7), torch.randn(12, 1), torch.randn(1, 1, 7)):
        for logits in (3 * torch.tanh(xent.LinearLogits(h, w) / 3), xent.LinearLogits(h, w)):
            with pytest.warns(UserWarning, match="add needs all"):
                torch.testing.assert_close(logits + other, logits.materialize() + other)


def test_a_sum_of_two_heads_is_a_head():
    (h, w, b), (g, v, _) = head(12, 5, 7), head(12, 3, 7)
    y = torch.randint(7, (12,))
    lean = F.cross_entropy(2 * xent.LinearLogits(h, w, b) + xent.LinearLogits(g, v) * 0.5, y)
    whole = F.cross_entropy(2 * F.linear(h, w, b) + F.linear(g, v) * 0.5, y)
    torch.testing.assert_close(lean, whole)
    torch.testing.assert_close(*(grads(x, (h, w, b, g, v)) for x in (lean, whole)))


def test_a_slice_of_the_classes():
    h, w, b = head(12, 5, 7)
    y = torch.randint(3, (3, 2))
    lean = xent.cross_entropy(xent.LinearLogits(h.view(3, 4, 5), w, b)[:, 1:3, 2:5], y)
    whole = F.cross_entropy(F.linear(h, w, b).view(3, 4, 7)[:, 1:3, 2:5].reshape(-1, 3), y.view(-1))
    torch.testing.assert_close(lean, whole)
    torch.testing.assert_close(*(grads(x, (h, w, b)) for x in (lean, whole)))
    z = xent.LinearLogits(h, w, b)
    assert torch.equal(z[..., 1:4].materialize(), F.linear(h, w[1:4], b[1:4]))
    assert z[..., :].weight is w


def test_methods_of_a_tensor():
    h, w, b = head(3, 5, 7)
    z, whole = xent.LinearLogits(h, w, b), F.linear(h, w, b)
    with pytest.warns(UserWarning, match="transpose needs all 21 logits"):
        assert torch.equal(z.transpose(0, 1), whole.T)
    for name in ("register_hook", "_version", "grad", "no_such_thing"):
        with pytest.raises(AttributeError, match=name):  # a change of a copy would be lost
            getattr(z, name)


def learned(*shape):
    return (0.5 + torch.rand(shape, dtype=torch.float64)).requires_grad_()


LEARNED = {
    "temperature": {"logit_scale": learned()},
    "of each row": {"logit_scale": learned(12), "bias": None},
    "under a cap": {"logit_scale": learned(), "softcap": 1.5},
    "class bias": {"class_bias": learned(7)},
    "both": {"logit_scale": learned(), "class_bias": learned(7)},
    "beside a scale": {"logit_scale": 3.0, "class_bias": learned(7)},
}


@pytest.mark.parametrize("name", LEARNED)
@every_reduction
def test_learned_scales_and_biases(name, reduction):
    """Learned scale and bias become part of the head; no warning comes, so the loss stays lean."""
    options = {"reduction": reduction, **LEARNED[name]}
    h, w, b = head(12, 5, 7)
    b = options.pop("bias", b)
    y = torch.randint(7, (12,))
    extra = [x for x in options.values() if isinstance(x, torch.Tensor)]
    parts = [x for x in (h, w, b, *extra) if x is not None]
    lean = xent.losses.focal_loss(xent.LinearLogits(h, w, b), y, **options)
    z = F.linear(h, w, b)
    scale = options.get("logit_scale", 1.0)
    z = z * (scale.unsqueeze(-1) if isinstance(scale, torch.Tensor) and scale.ndim else scale)
    z = options["softcap"] * torch.tanh(z / options["softcap"]) if "softcap" in options else z
    log_p = torch.log_softmax(z + options.get("class_bias", 0), -1).gather(-1, y[:, None])[:, 0]
    whole = -((1 - log_p.exp()) ** 2) * log_p
    whole = getattr(whole, reduction)() if reduction != "none" else whole
    for a, c in zip(grads(lean, parts), grads(whole, parts), strict=True):
        torch.testing.assert_close(a, c)


def test_a_temperature_of_each_row_beside_a_bias_needs_the_logits():
    h, w, b = head(12, 5, 7)
    y, t = torch.randint(7, (12,)), learned(12)
    with pytest.warns(UserWarning, match="a gradient of targets, scales"):
        lean = xent.cross_entropy(xent.LinearLogits(h, w, b), y, logit_scale=t)
    whole = F.cross_entropy(F.linear(h, w, b) * t.unsqueeze(-1), y)
    for a, c in zip(grads(lean, (h, w, b, t)), grads(whole, (h, w, b, t)), strict=True):
        torch.testing.assert_close(a, c)


def test_what_needs_the_logits_says_so():
    h, w, b = head(3, 5, 7)
    z = xent.LinearLogits(h, w, b)
    with pytest.warns(UserWarning, match="sigmoid needs all 21 logits"):
        p = torch.sigmoid(z)
    torch.testing.assert_close(p, torch.sigmoid(F.linear(h, w, b)))
    assert torch.equal(z.exp(), F.linear(h, w, b).exp())  # computed by now, after a warning
    for index in ((..., 2), (0, 1), (slice(None), torch.tensor([1, 2])), (..., None)):
        z = xent.LinearLogits(h, w, b)
        with pytest.warns(UserWarning, match="getitem needs all"):
            assert torch.equal(z[index], F.linear(h, w, b)[index])
    rows = (0, slice(1), (slice(None), slice(None)), (..., slice(None)), torch.tensor([1]), ())
    for index in rows:
        assert z[index].shape == F.linear(h, w, b)[index].shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_types_are_rounded_once(dtype):
    parts = head(40, 16, 60, dtype)
    y = torch.randint(60, (40,))
    lean = xent.cross_entropy(xent.LinearLogits(*parts, products="float32"), y)
    wide = [x.detach().double().requires_grad_() for x in parts]
    truth = F.cross_entropy(F.linear(*wide), y)
    assert abs(lean.item() - truth.item()) <= torch.finfo(dtype).eps * truth.item()
    for a, c in zip(grads(lean, parts, 1.0), grads(truth, wide, 1.0), strict=True):
        assert a.dtype == dtype
        error = (a.double() - c).abs()
        # Half a unit of the type, and float32 sums of forty or sixty products.
        bound = torch.finfo(dtype).eps * c.abs() / 2 + 1e-5 * c.abs().max()
        assert bool((error <= bound + torch.finfo(dtype).smallest_normal).all())


def test_products_in_16_bits_add_up_in_float32(monkeypatch):
    """As on devices with such products; a sum in 16 bits would stop growing after some chunks."""
    narrow = heads.Plan(torch.bfloat16, 8, 1000)
    monkeypatch.setattr(heads, "plan", lambda source, count=1: narrow)
    parts, y = head(4096, 4, 6, torch.bfloat16), torch.zeros(4096, dtype=torch.int64)
    parts[0].data.abs_()  # so that all chunks pull the same way
    lean = xent.cross_entropy(xent.LinearLogits(*parts), y, reduction="sum")
    wide = [x.detach().double().requires_grad_() for x in parts]
    z = F.linear(*wide)
    dz = torch.softmax(z, -1) - F.one_hot(y, 6)
    # Logits, their gradient and each product are rounded, all relative to what is added up.
    size = (dz.abs() + torch.softmax(z, -1) * z.abs()).T @ wide[0].abs()
    error = grads(lean, parts, 1.0)[1].double() - dz.T @ wide[0]
    assert bool((error.abs() <= 2 * torch.finfo(torch.bfloat16).eps * size).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("max_workspace", [1, 1000, 10**9])
def test_any_workspace(dtype, max_workspace, monkeypatch):
    monkeypatch.setattr(heads, "MAX_ROWS", 1000)
    parts, y = head(40, 16, 60, dtype), torch.randint(60, (40,))
    small, large = (
        xent.cross_entropy(xent.LinearLogits(*parts, max_workspace=size, products="float32"), y)
        for size in (max_workspace, 10**9)
    )
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(small, large, rtol=2 * eps, atol=0)
    for a, b in zip(grads(small, parts), grads(large, parts), strict=True):
        torch.testing.assert_close(a, b, rtol=2 * eps, atol=1e-6)


def test_statistics_and_explain():
    h, w, b = head()
    y = torch.randint(50, (37,))
    z = xent.LinearLogits(h, w, b)
    lean, whole = (xent.statistics(x, y, entropy=True, top=True) for x in (z, F.linear(h, w, b)))
    for name in ("log_prob", "lse", "entropy", "top_logit", "rest_top_logit"):
        torch.testing.assert_close(getattr(lean, name), getattr(whole, name))
    assert torch.equal(lean.top, whole.top)
    assert "by chunks of 8 rows" in xent.explain(z, y).gradient
    deep = xent.LinearLogits(h[:36].view(3, 12, -1), w, b) * 0.5
    stats = xent.statistics(deep, y[:36].view(3, 12))
    expected = xent.statistics(F.linear(h[:36], w, b) * 0.5, y[:36])
    torch.testing.assert_close(stats.log_prob, expected.log_prob.view(3, 12))


BAD = {
    "dtype": ((torch.randn(3, 4), torch.randn(5, 4).double()), TypeError, "make them one"),
    "integers": ((torch.ones(3, 4).long(), torch.ones(5, 4).long()), TypeError, "floating point"),
    "features": ((torch.randn(3, 4), torch.randn(5, 3)), ValueError, "agree in D"),
    "bias": ((torch.randn(3, 4), torch.randn(5, 4), torch.randn(4)), ValueError, r"shape \(5,\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    arguments, error, words = BAD[name]
    with pytest.raises(error, match=words):
        xent.LinearLogits(*arguments)


def test_bad_calls():
    z = xent.LinearLogits(torch.randn(3, 4), torch.randn(5, 4))
    with pytest.raises(ValueError, match="target"):
        xent.cross_entropy(z, torch.tensor([0, 1]))
    with pytest.raises(IndexError, match="out of bounds"):
        xent.cross_entropy(z, torch.tensor([0, 1, 5]))
    with pytest.raises(ValueError, match="max_workspace"):
        xent.LinearLogits(z.hidden, z.weight, max_workspace=0)
    with pytest.warns(UserWarning, match="view needs all"):
        assert z.view(5, 3).shape == (5, 3)
    with pytest.raises(ValueError, match="half a softcap"):
        xent.cross_entropy(torch.tanh(z / 3), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="softcap already"):
        xent.cross_entropy(torch.tanh(z / 3) * 3, torch.tensor([0, 1, 2]), softcap=2.0)
    h, w = z.hidden, z.weight
    with pytest.raises(ValueError, match=r"`shift` must be 0 to 3 places"):
        xent.linear_cross_entropy(h, w, torch.tensor([0, 1, 2]), shift=4)
    with pytest.raises(ValueError, match="`shift` moves class indices"):
        xent.linear_cross_entropy(h, w, torch.rand(3, 5), shift=1)
