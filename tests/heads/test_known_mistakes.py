"""Mistakes of other libraries' fused heads, one test for each: xent must make none of them.

A docstring with "Elsewhere" says what another library does. The oracle is float64 PyTorch on the
whole logits. Every way into the head is tried, in chunks of eight rows.
"""

import pytest
import torch
import torch.nn.functional as F

import xent
from tests.heads.linear_heads import (
    LISTED,
    TEACHER,
    UNIT,
    D,
    N,
    V,
    every_reduction,
    every_sum,
    every_way,
    exact_gradients,
    grads,
    head,
    labels,
    lean,
    log_p,
    logit_error,
    near,
    two_classes,
    whole,
    within,
)  # fmt: skip
from xent.heads import chunks as heads


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(heads, "MAX_ROWS", 8)
    torch._dynamo.reset()


# ---- gradients that are silently wrong ----------------------------------------------------------

SLOPES = {
    "ones": lambda: torch.ones(N),
    "any": lambda: torch.randn(N),
    "only the last": lambda: torch.eye(N)[-1],
    "not the first": lambda: torch.arange(N) / 3.0,
    "none": lambda: torch.zeros(N),
}


@every_way
@pytest.mark.parametrize("slope", SLOPES)
def test_rows_share_the_slope_of_the_first_row(way, slope):
    """Elsewhere "none" takes grad_output[0] for all, ignores it, or gives a scalar."""
    parts, y, slope = head(), labels(), SLOPES[slope]().double()
    a, b = lean(way, parts, y, "none"), whole(way, parts, y, "none")
    near(a, b)
    near(grads(a, parts, slope), grads(b, parts, slope))


@every_way
@every_sum
def test_the_scale_from_above_is_dropped_or_compounds(way, reduction):
    """Elsewhere loss scaling is lost, or a second backward scales what is scaled already."""
    parts, y = head(), labels()
    loss = lean(way, parts, y, reduction)
    truth = grads(whole(way, parts, y, reduction), parts)
    for scale in (1.0, 0.0, 0.5, -3.0, 2.0**16):
        above = torch.tensor(scale, dtype=loss.dtype)
        found = grads(loss, parts, above, retain_graph=True)
        near(found, tuple(scale * g for g in truth), atol=1e-12 * max(1, scale))


@every_way
@every_reduction
def test_a_second_backward_adds_four_times_the_gradient(way, reduction):
    parts, y = head(), labels()
    loss = lean(way, parts, y, reduction).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    truth = grads(2 * whole(way, parts, y, reduction).sum(), parts)
    near(tuple(x.grad for x in parts), truth)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


READ = {
    "labels": lambda z, x: xent.cross_entropy(z, x, reduction="none"),
    "labels of tokens": xent.token_log_probs,
    "class bias": lambda z, x: xent.losses.focal_loss(z, y0(), class_bias=x, reduction="none"),
    "class weights": lambda z, x: xent.cross_entropy(z, y0(), x, reduction="none"),
    "teacher": lambda z, x: xent.losses.distillation_loss(z, x, reduction="none"),
    "list": lambda z, x: xent.losses.sparse_cross_entropy(
        z, x, LISTED.double().expand(N, 2), reduction="none"
    ),
    "weights, second backward": lambda z, x: xent.cross_entropy(z, y0(), x),
    "rows, second backward": lambda z, x: xent.cross_entropy(z, y0(), row_weight=x),
}


def y0():
    return torch.arange(N)


@pytest.mark.parametrize("name", READ)
def test_what_changed_since_forward_is_used_in_backward(name):
    """A changed buffer of labels, or an optimiser step: the gradient is right or refused."""
    parts = head()
    tensors = {
        "labels": y0(), "labels of tokens": y0(), "teacher": TEACHER.clone(),
        "list": two_classes(y0()), "rows, second backward": torch.rand(N, dtype=torch.float64),
    }  # fmt: skip
    x = tensors.get(name, torch.rand(V, dtype=torch.float64))
    loss = READ[name](xent.LinearLogits(*parts), x)
    truth = grads(READ[name](xent.LinearLogits(*parts), x.clone()).sum(), parts)
    if loss.ndim == 0:  # the gradient was computed in forward
        x.mul_(2)
        near(grads(loss, parts, retain_graph=True), truth)
    else:
        x.copy_(x.flip(0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grads(loss.sum(), parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_log_probabilities_are_positive(dtype, temperature):
    """Elsewhere lse and logit round apart, so confident tokens get a probability above 1."""
    h = torch.randn(200, 64).to(dtype)
    w = torch.randn(30, 64).to(dtype)
    h[:100] += w[torch.arange(100) % 30]
    z, y = xent.LinearLogits(h, w), torch.arange(200) % 30
    log_prob, entropy = xent.token_log_probs(z, y, temperature=temperature, entropy=True)
    assert bool((log_prob <= 0).all())
    assert bool((entropy >= 0).all())
    truth = log_p(F.linear(h.double(), w.double()) / temperature, y)[:, 0]
    most = 2 * logit_error(h, w, torch.zeros(30)).amax(-1) / temperature
    within(log_prob, truth, most + 4 * UNIT * truth.abs())


@pytest.mark.parametrize("rows", [128, 8, 1])
def test_more_chunks_round_the_weight_gradient_more_often(rows, monkeypatch):
    """Elsewhere each chunk rounds a bfloat16 sum: seven times the error at 1024 chunks."""
    monkeypatch.setattr(heads, "MAX_ROWS", 1000)
    h, w, b = parts = head(128, torch.bfloat16)
    y = torch.randint(V, (128,))
    z = xent.LinearLogits(h, w, b, max_workspace=rows * V * 4 * 2, products="float32")
    assert len(list(heads.Chunks((z,), None))) == 128 // rows
    found = grads(xent.cross_entropy(z, y), parts)
    for actual, (exact, most) in zip(found, exact_gradients(h, w, b, y), strict=True):
        within(actual, exact, most)


def test_a_quarter_million_classes_drift():
    """Elsewhere a narrow accumulator loses what so many small terms add up to."""
    h, w, b = torch.randn(3, 2), torch.randn(262_147, 2), torch.randn(262_147)
    y = torch.tensor([0, 250_000, 262_146])
    parts = [x.requires_grad_() for x in (h, w, b)]
    ours = xent.linear_cross_entropy(h, w, y, linear_bias=b)
    truth = F.cross_entropy(F.linear(h.double(), w.double(), b.double()), y)
    assert abs(ours.item() - truth.item()) <= 2 * logit_error(h, w, b).max() + UNIT * truth
    for actual, (exact, most) in zip(grads(ours, parts), exact_gradients(h, w, b, y), strict=True):
        within(actual, exact, most)


@every_way
@pytest.mark.parametrize("chunk", [1, 5, 37])
def test_the_mean_is_that_of_chunks(way, chunk, monkeypatch):
    """Elsewhere a loss is the sum of the means of chunks, or the mean of uneven means."""
    monkeypatch.setattr(heads, "MAX_ROWS", chunk)
    parts, y = head(), labels()
    y[:20] = -100
    near(lean(way, parts, y), whole(way, parts, y))
    near(grads(lean(way, parts, y), parts), grads(whole(way, parts, y), parts))


@every_reduction
def test_a_target_of_another_mass_has_the_gradient_of_mass_one(reduction):
    """Elsewhere the gradient is p - q; right is p times the mass of q, less q."""
    parts, q = head(), torch.rand(N, V, dtype=torch.float64)
    ours = xent.linear_cross_entropy(*parts[:2], q, linear_bias=parts[2], reduction=reduction)
    truth = F.cross_entropy(F.linear(*parts), q, reduction=reduction)
    near(ours, truth)
    near(grads(ours.sum(), parts), grads(truth.sum(), parts))


@every_reduction
def test_an_option_is_dropped_on_the_fast_path(reduction):
    """Elsewhere bias, logit scale or softcap are lost without a word."""
    parts, y, weight = head(), labels(), torch.rand(V, dtype=torch.float64)
    row_weight = torch.rand(N, dtype=torch.float64)
    ours = xent.linear_cross_entropy(
        *parts[:2], y, linear_bias=parts[2], weight=weight, reduction=reduction,
        label_smoothing=0.1, row_weight=row_weight, z_loss=0.01, logit_scale=2.0, softcap=3.0,
    )  # fmt: skip
    z, kept = 3 * torch.tanh(2 * F.linear(*parts) / 3), y != -100
    rows = F.cross_entropy(z, y, weight, label_smoothing=0.1, reduction="none")
    mass = torch.where(kept, weight[y.clamp(min=0)], 0)
    rows = row_weight * (rows + 0.01 * mass * torch.logsumexp(z, -1) ** 2)
    divisor = {"mean": (mass * row_weight).sum()}.get(reduction, 1.0)
    truth = (rows if reduction == "none" else rows.sum()) / divisor
    near(ours, truth)
    near(grads(ours.sum(), parts), grads(truth.sum(), parts))


@pytest.mark.parametrize("tied", [False, True])
def test_training_leaves_the_path_of_the_plain_loss(tied):
    """Elsewhere losses agree and gradients do not; with tied weights a part is lost."""

    def train(loss):
        torch.manual_seed(1)
        embedding = torch.nn.Embedding(V, D, dtype=torch.float64)
        layer = torch.nn.Linear(D, D, dtype=torch.float64)
        out = embedding if tied else torch.nn.Embedding(V, D, dtype=torch.float64)
        parameters = {*embedding.parameters(), *layer.parameters(), *out.parameters()}
        step, x = torch.optim.SGD(parameters, 0.5, momentum=0.9), torch.randint(V, (N,))
        seen = []
        out.weight.register_hook(lambda g: seen.append(g.norm()))
        for _ in range(20):
            step.zero_grad()
            loss(torch.tanh(layer(embedding(x))), out.weight, (x * 7) % V).backward()
            step.step()
        return torch.cat([torch.stack(seen), out.weight.detach().flatten()])

    near(train(xent.linear_cross_entropy), train(lambda h, w, y: F.cross_entropy(h @ w.T, y)), 1e-9)


# ---- nothing to learn from ----------------------------------------------------------------------


@every_way
@every_reduction
def test_ignored_rows_count(way, reduction):
    parts, y = head(), labels()
    with torch.no_grad():
        parts[0][y == -100] = 1e6
    some = (parts[0][y != -100], *parts[1:])
    loss = lean(way, parts, y, reduction)
    if way != "distilled":  # its teacher has a row for each class
        few = lean(way, some, y[y != -100], reduction)
        near(loss if reduction != "none" else loss[y != -100], few)
    found = grads(loss.sum(), parts)
    near(found, grads(whole(way, parts, y, reduction).sum(), parts))
    assert not bool(found[0][y == -100].any())


@every_way
@every_reduction
@pytest.mark.parametrize("n", [0, N])
def test_a_batch_without_labels_spoils_the_weights(way, reduction, n):
    """The mean is NaN as in PyTorch; the gradient, as there, is 0 and no NaN."""
    parts, y = head(n), torch.full((n,), -100)
    loss = lean(way, parts, y, reduction)
    assert bool(loss.isnan()) if reduction == "mean" else not bool(loss.any())
    assert not any(bool(g.any()) for g in grads(loss.sum(), parts))
    if way in ("focal", "smoothed"):
        loss = xent.losses.focal_loss(xent.LinearLogits(*parts), y, empty="zero")
        assert loss.item() == 0
        assert not any(bool(g.any()) for g in grads(loss, parts))


@every_way
@every_reduction
def test_the_loss_of_constants_is_zero(way, reduction):
    """Elsewhere a loss without gradients, as in evaluation, is not computed."""
    parts, y = head(), labels()
    truth = whole(way, parts, y, reduction).detach()
    near(lean(way, [x.detach() for x in parts], y, reduction), truth)
    with torch.no_grad():
        near(lean(way, parts, y, reduction), truth)


# ---- the divisor over micro-batches -------------------------------------------------------------


@pytest.mark.parametrize("divisor", [float, int, torch.tensor])
@pytest.mark.parametrize("loss", ["function", "focal", "distilled"])
def test_micro_batches_weigh_alike_whatever_they_hold(divisor, loss):
    """Elsewhere a mean of means gives rows of short batches more weight."""
    parts, y = head(), labels()
    y[:15] = -100
    y[3] = 1
    options = {"normalizer": divisor(int((y != -100).sum()))}
    for part in torch.arange(N).split([9, 1, 14, 13]):
        h, target = parts[0][part], y[part]
        if loss == "function":
            value = xent.linear_cross_entropy(h, parts[1], target, linear_bias=parts[2], **options)
        elif loss == "focal":
            value = xent.losses.focal_loss(xent.LinearLogits(h, *parts[1:]), target, **options)
        else:
            value = xent.losses.distillation_loss(
                xent.LinearLogits(h, *parts[1:]), TEACHER[part], temperature=2.0,
                row_mask=target != -100, **options,
            )  # fmt: skip
        value.backward()
    near(tuple(x.grad for x in parts), grads(whole(loss, parts, y), parts))


# ---- class weights, smoothing and masks together ------------------------------------------------


@every_reduction
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_masked_class_has_its_share_of_the_smoothing(reduction, soft, label_smoothing):
    """In PyTorch smoothing makes that infinite, and a probability of 0 makes it NaN."""
    parts, y = head(), labels() % 40
    y[1::3] = 0 if soft else -100
    mask = torch.zeros(V, dtype=torch.float64)
    mask[40:] = -torch.inf
    q = torch.softmax(torch.randn(N, 40, dtype=torch.float64), -1) if soft else y
    target = F.pad(q, (0, 10)) if soft else y
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    ours = xent.cross_entropy(xent.LinearLogits(*parts), target, class_bias=mask, **options)
    truth = F.cross_entropy(F.linear(*parts)[:, :40], q, **options)
    near(ours, truth)
    near(grads(ours.sum(), parts), grads(truth.sum(), parts))


def by_teacher(z, x, y):
    pair = (z.log_softmax(-1), x.log_softmax(-1))
    return F.kl_div(*pair, log_target=True, reduction="none").sum(-1)[y != -100].mean()


BESIDE = {
    "teacher": (
        lambda z, x, y: xent.losses.distillation_loss(z, x, row_mask=y != -100),
        by_teacher,
    ),
    "weight": (
        lambda z, x, y: xent.cross_entropy(z, y, x, reduction="sum"),
        lambda z, x, y: -(x[y.clamp(min=0)] * log_p(z, y)[:, 0])[y >= 0].sum(),
    ),
    "row weight": (
        lambda z, x, y: xent.cross_entropy(z, y, row_weight=x, reduction="sum"),
        lambda z, x, y: (x * F.cross_entropy(z, y, reduction="none")).sum(),
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_wants_a_gradient_beside_the_head_has_none(name):
    """Other tensors get a gradient; if that takes all logits at once, a warning says so."""
    parts, y, (loss, oracle) = head(), labels(), BESIDE[name]
    x = {"teacher": TEACHER, "weight": torch.rand(V), "row weight": torch.rand(N)}[name]
    x = x.double().clone().requires_grad_()
    z = xent.LinearLogits(*parts)
    if name == "row weight":
        ours = loss(z, x, y)
    else:
        with pytest.warns(UserWarning, match="needs all 1,850 logits .* at once"):
            ours = loss(z, x, y)
    near(grads(ours, (*parts, x)), grads(oracle(F.linear(*parts), x, y), (*parts, x)))
