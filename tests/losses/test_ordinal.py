"""Losses of ordered classes and discrete times: equal to sums over decisions, and exact."""

import math

import mpmath
import pytest
import torch
from mpmath import mpf

import xent
from tests.helpers import same_bits
from xent._series import log1mexp
from xent.heads import chunks as heads
from xent.losses import continuation_loss, cumulative_link_loss, cumulative_loss

N, C = 12, 6
every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def numbers(*shape, size=1.0):
    return (size * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def reduced(values, reduction, divisor):
    if reduction == "none":
        return values
    return values.sum() / divisor if reduction == "mean" else values.sum()


def agree(found, expected, *parts, rtol=1e-12):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-13)
    slope = torch.linspace(0.5, 1.5, found.numel(), dtype=found.dtype).view(found.shape)
    for a, b in zip(
        torch.autograd.grad((found * slope).sum(), parts, retain_graph=True),
        torch.autograd.grad((expected * slope).sum(), parts, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item())


# ---- closed forms -------------------------------------------------------------------------------


def cumulative(z, y):
    """Return one value per row: minus the logarithms of all decisions."""
    above = y[:, None] > torch.arange(z.shape[1])
    return -torch.where(above, torch.sigmoid(z), torch.sigmoid(-z)).log().sum(1)


def continuation(z, y, event=None):
    """Return minus the log-probability of the class, or of all classes above it."""
    on = torch.cat([torch.ones_like(z[:, :1]), torch.sigmoid(z).cumprod(1)], 1)
    end = torch.cat([torch.sigmoid(-z), torch.ones_like(z[:, :1])], 1)
    at = y[:, None]
    exact = -(on * end).gather(1, at)[:, 0].log()
    beyond = -on.gather(1, (at + 1).clamp(max=z.shape[1]))[:, 0].log()
    return exact if event is None else torch.where(event.bool(), exact, beyond)


def link(s, c, y):
    """Return minus the logarithm of a difference of probabilities."""
    edges = torch.cat([c.new_full((1,), -torch.inf), c, c.new_full((1,), torch.inf)])
    return -(torch.sigmoid(edges[y + 1] - s) - torch.sigmoid(edges[y] - s)).log()


def classes(*shape):
    y = torch.randint(C, shape)
    y.view(-1)[:C] = torch.arange(C)
    return y


@every_reduction
def test_cumulative(reduction):
    z, y, w = numbers(N, C - 1), classes(N), torch.rand(N, dtype=torch.float64)
    agree(cumulative_loss(z, y, reduction=reduction), reduced(cumulative(z, y), reduction, N), z)
    y[3], w[5] = -100, 0
    kept = (y >= 0) & (w > 0)
    dirty = torch.where(kept[:, None], z, math.nan)
    found = cumulative_loss(dirty, y, row_weight=w, reduction=reduction)
    values = torch.where(kept, cumulative(z, y.clamp(min=0)) * w, 0)
    agree(found, reduced(values, reduction, w[kept].sum()), z)
    counted = cumulative_loss(dirty, y, row_weight=w, normalizer="count")
    agree(counted, values.sum() / 11, z)


@every_reduction
@pytest.mark.parametrize("censored", [True, False])
def test_continuation(reduction, censored):
    z, y = numbers(N, C - 1), classes(N)
    event = torch.arange(N) % 5 != 0 if censored else None  # rows of the first and last class, too
    y[4] = -100
    kept = y >= 0
    values = torch.where(kept, continuation(z, y.clamp(min=0), event), 0)
    found = continuation_loss(z, y, event, reduction=reduction)
    agree(found, reduced(values, reduction, kept.sum()), z)
    if event is not None:
        dirty = torch.where(y == -100, math.nan, event.double())
        assert same_bits(continuation_loss(z, y, dirty, reduction=reduction), found)


def test_a_hazard_is_the_probability_of_ending():
    """The likelihood of discrete times: density of an event, survival of a censored row's bin."""
    z = numbers(1, 4)
    hazard = torch.sigmoid(-z[0])
    for k in range(5):
        before = -(1 - hazard[:k]).log().sum()
        survived = -(1 - hazard[: k + 1]).log().sum()
        died = before - hazard[k].log() if k < 4 else before
        y = torch.tensor([k])
        agree(continuation_loss(z, y, torch.tensor([0])), survived, z)
        agree(continuation_loss(z, y, torch.tensor([1])), died, z)


@every_reduction
def test_cumulative_link(reduction):
    s, y = numbers(N), classes(N)
    c = torch.tensor([-2.0, -1.5, 0.0, 0.1, 3.0], dtype=torch.float64, requires_grad=True)
    agree(
        cumulative_link_loss(s, c, y, reduction=reduction),
        reduced(link(s, c, y), reduction, N),
        s,
        c,
    )
    y[3] = -100
    kept = y >= 0
    dirty = torch.where(kept, s, math.nan)
    values = torch.where(kept, link(s, c, y.clamp(min=0)), 0)
    found = cumulative_link_loss(dirty, c, y, reduction=reduction)
    agree(found, reduced(values, reduction, N - 1), s, c)


def test_two_classes_are_binary_cross_entropy():
    z, y = numbers(N), torch.randint(2, (N,))
    truth = xent.binary_cross_entropy_with_logits(z, y)
    for found in (
        cumulative_loss(z[:, None], y), continuation_loss(z[:, None], y),
        cumulative_link_loss(z, torch.zeros(1, dtype=torch.float64), y),
    ):  # fmt: skip
        torch.testing.assert_close(found, truth)


# ---- digits -------------------------------------------------------------------------------------


def textbook_coral(z, above):
    """Return CORAL as published code has it, with the logarithm of 1 - p as a difference."""
    log_p = torch.nn.functional.logsigmoid(z)
    return -(log_p * above + (log_p - z) * (1 - above)).sum()


def test_a_gradient_that_published_code_loses():
    z = torch.tensor([[-20.0]], requires_grad=True)
    (theirs,) = torch.autograd.grad(textbook_coral(z, torch.zeros(1, 1)), z)
    (grad,) = torch.autograd.grad(cumulative_loss(z, torch.tensor([0])), z)
    assert theirs.item() == 0
    assert grad.item() == pytest.approx(1 / (1 + math.exp(20)), rel=2**-22)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_logits(size, dtype):
    z, y = (size * torch.randn(N, C - 1)).to(dtype).requires_grad_(), classes(N)
    s, c = z[:, 0].detach().requires_grad_(), torch.linspace(-3, 3, C - 1).to(dtype)
    for loss, x, *more in (
        (cumulative_loss, z),
        (continuation_loss, z),
        (cumulative_link_loss, s, c),
    ):
        wide = [a.detach().double().requires_grad_() for a in (x, *more)]
        found, truth = loss(x, *more, y), loss(*wide, y)
        assert found.dtype == dtype
        unit = max(torch.finfo(dtype).eps, 2e-6 if dtype == torch.float32 else 0)
        torch.testing.assert_close(found.double(), truth, rtol=unit, atol=0)
        grads = [torch.autograd.grad(a, b)[0].double() for a, b in ((found, x), (truth, wide[0]))]
        torch.testing.assert_close(*grads, rtol=unit, atol=1e-30)


@pytest.mark.parametrize("s", [-1000.0, -40.0, -3.0, 0.0, 0.4, 20.0, 36.0, 700.0])
@pytest.mark.parametrize("edges", [(-1.0, 1.0), (-1e-6, 1e-6), (-50.0, 60.0), (5.0, 5.5)])
def test_cumulative_link_in_many_digits(s, edges):
    x = torch.tensor([s], dtype=torch.float64, requires_grad=True)
    c = torch.tensor(edges, dtype=torch.float64, requires_grad=True)

    def exact(y, s, *edges):
        above = [mpf(0), *(1 / (1 + mpmath.exp(s - edge)) for edge in edges), mpf(1)]
        return -mpmath.log(above[y + 1] - above[y])

    with mpmath.workdps(900):
        point = [mpf(v) for v in (s, *edges)]
        for y in range(3):
            value = cumulative_link_loss(x, c, torch.tensor([y]))
            truth = exact(y, *point)
            assert value.item() == pytest.approx(float(truth), rel=1e-14)
            grads = torch.cat(torch.autograd.grad(value, (x, c)))
            for k, grad in enumerate(grads.tolist()):
                h = mpf(10) ** -200
                up, down = (
                    exact(y, *(v + sign * h * (i == k) for i, v in enumerate(point)))
                    for sign in (1, -1)
                )
                slope = float((up - down) / (2 * h))
                assert grad == pytest.approx(slope, rel=1e-11, abs=1e-290)


def test_the_textbook_form_is_infinite_at_a_score_of_20():
    s, c, y = torch.tensor([40.0]), torch.tensor([-1.0, 1.0]), torch.tensor([0])
    naive = -torch.log(torch.sigmoid(c[1] - s) - torch.sigmoid(c[0] - s))
    truth = 39.0 - math.log1p(-math.exp(-2))
    assert link(-torch.tensor([20.0]), c, y + 1) == torch.inf
    assert cumulative_link_loss(s, c, y + 1).item() == pytest.approx(truth, rel=1e-6)
    assert naive.isfinite()
    assert cumulative_link_loss(-s, c, y + 1).item() == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("x", [1e-300, 1e-17, 1e-3, 0.69, 0.7, 30.0, 800.0])
def test_log1mexp(x):
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    with mpmath.workdps(400):
        truth = float(mpmath.log(-mpmath.expm1(-mpf(x))))
        slope = float(1 / mpmath.expm1(mpf(x)))
    value = log1mexp(at)
    (grad,) = torch.autograd.grad(value, at)
    assert value.item() == pytest.approx(truth, rel=1e-15, abs=1e-307)
    assert grad.item() == pytest.approx(slope, rel=1e-15, abs=1e-307)


# ---- behind a head, axes, derivatives -----------------------------------------------------------


@every_reduction
@pytest.mark.parametrize("loss", [cumulative_loss, continuation_loss])
@pytest.mark.parametrize("shape", [(N,), (3, 4)])
def test_behind_a_head(loss, reduction, shape, monkeypatch, recwarn):
    monkeypatch.setattr(heads, "MAX_ROWS", 5)
    h, w, b = numbers(*shape, 7), numbers(C - 1, 7), numbers(C - 1)
    y, weight = classes(*shape), torch.rand(shape, dtype=torch.float64)
    y.view(-1)[3], weight.view(-1)[5] = -100, 0
    more = (torch.rand(shape) < 0.5,) if loss is continuation_loss else ()
    options = {"row_weight": weight, "reduction": reduction}
    h_dirty = torch.where((y == -100).unsqueeze(-1), math.nan, h)
    lean = loss(xent.LinearLogits(h_dirty, w, b), y, *more, **options)
    z = torch.nn.functional.linear(h, w, b)
    dense = loss(z, y, *more, class_dim=-1, **options)
    agree(lean, dense, h, w, b)
    assert not recwarn.list


def test_no_logits_of_all_rows():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor):
                    self.numel = max(self.numel, x.numel())
            return out

    h, w = torch.randn(4000, 2, requires_grad=True), torch.randn(20, 2)
    y = torch.randint(21, (4000,))
    for loss in (cumulative_loss, continuation_loss):
        with Largest() as seen:
            loss(xent.LinearLogits(h, w), y).backward()
        assert seen.numel < 4000 * 20 / 4


@pytest.mark.parametrize("loss", [cumulative_loss, continuation_loss])
def test_axes(loss):
    z, y = numbers(2, C - 1, 3, 4), classes(2, 3, 4)
    flat = loss(z.movedim(1, -1).reshape(-1, C - 1), y.flatten(), reduction="none")
    torch.testing.assert_close(loss(z, y, reduction="none"), flat.view(2, 3, 4))
    last = z.movedim(1, -1)
    torch.testing.assert_close(loss(last, y, class_dim=-1, reduction="none"), flat.view(2, 3, 4))
    one = loss(z[0, :, 0, 0], y[0, 0, 0], reduction="none")
    torch.testing.assert_close(one, flat[0])


@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize("loss", [cumulative_loss, continuation_loss])
def test_engines(loss, engine, core):
    z, y = numbers(N, C - 1), classes(N)
    agree(loss(z, y, engine=engine), loss(z, y), z)


CALLS = {
    "cumulative": lambda z, y, c: cumulative_loss(z, y),
    "continuation": lambda z, y, c: continuation_loss(z, y, y != 3),
    "link": lambda z, y, c: cumulative_link_loss(z[:, 0], c, y),
}


@pytest.mark.parametrize("name", CALLS)
def test_derivatives(name):
    z, y, c = numbers(6, 3), torch.tensor([0, 1, 2, 3, -100, 3]), numbers(3)
    c = c.detach().sort().values.requires_grad_()
    parts = (z, c) if name == "link" else (z,)
    call = lambda z, c=c: CALLS[name](z, y, c)  # noqa: E731
    assert torch.autograd.gradcheck(call, parts)
    assert torch.autograd.gradgradcheck(call, parts)


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", CALLS)
def test_ordered_classes_compile(name):
    z, y, c = numbers(6, 3), torch.tensor([0, 1, 2, 3, -100, 3]), torch.arange(3.0)
    torch._dynamo.reset()
    agree(torch.compile(CALLS[name], backend="aot_eager")(z, y, c), CALLS[name](z, y, c), z)


@pytest.mark.parametrize("name", CALLS)
def test_transforms(name):
    z, y, c = numbers(6, 3), torch.tensor([0, 1, 2, 3, -100, 3]), torch.arange(3.0)
    (grad,) = torch.autograd.grad(CALLS[name](z, y, c), z)
    found = torch.func.grad(lambda z: CALLS[name](z, y, c))(z.detach())
    torch.testing.assert_close(found, grad)
    many = torch.vmap(lambda z: CALLS[name](z, y, c))(torch.stack([z.detach(), -z.detach()]))
    torch.testing.assert_close(many[0], CALLS[name](z, y, c).detach())


# ---- no rows, errors ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("rows", [0, 4])
def test_nothing_kept(name, rows):
    z, y, c = numbers(rows, 3), torch.full((rows,), -100), torch.arange(3.0)
    function = {
        "cumulative": cumulative_loss, "continuation": continuation_loss,
        "link": lambda z, y, **options: cumulative_link_loss(z[:, 0], c, y, **options),
    }[name]  # fmt: skip
    dirty = z * math.nan
    assert function(dirty, y).isnan()
    value = function(torch.where(torch.tensor(True), z, dirty.detach()), y, empty="zero")
    assert value == function(dirty, y, reduction="sum") == 0
    (grad,) = torch.autograd.grad(value, z)
    assert torch.equal(grad, torch.zeros_like(z))
    assert torch.equal(function(dirty, y, reduction="none"), torch.zeros(rows).double())


Z, Y, CUTS = torch.zeros(4, 3), torch.tensor([0, 1, 2, 3]), torch.arange(3.0)
BAD = {
    "integers": (lambda: cumulative_loss(Z.long(), Y), TypeError, r"call \w+\.float\(\)"),
    "bool": (lambda: continuation_loss(Z > 0, Y), TypeError, "`input` must be floating point"),
    "soft": (lambda: cumulative_loss(Z, Y.float()), TypeError, "`target` must hold integers"),
    "shape": (lambda: cumulative_loss(Z, Y[:2]), ValueError, r"shape \(4,\); got shape \(2,\)"),
    "a number": (lambda: cumulative_loss(Z[0, 0], Y[0]), ValueError, "must have an axis"),
    "class": (lambda: cumulative_loss(Z, Y + 1), ValueError, "class index 4.*for 4 classes"),
    "event": (lambda: continuation_loss(Z, Y, Y), ValueError, "`event` must hold True and False"),
    "event's shape": (
        lambda: continuation_loss(Z, Y, Y[:2]), ValueError, "`event` must have the shape",
    ),
    "cutpoints": (
        lambda: cumulative_link_loss(Z[:, 0], -CUTS, Y), ValueError, "`cutpoints` must increase",
    ),
    "equal cutpoints": (
        lambda: cumulative_link_loss(Z[:, 0], 0 * CUTS, Y), ValueError, "`cutpoints` must increase",
    ),
    "NaN": (lambda: cumulative_link_loss(Z[:, 0], CUTS / 0, Y), ValueError, "must increase"),
    "no cutpoints": (
        lambda: cumulative_link_loss(Z[:, 0], CUTS[:0], Y), ValueError, "at least one",
    ),
    "a class more": (
        lambda: cumulative_link_loss(Z[:, 0], CUTS[:2], Y), ValueError, "for 3 classes",
    ),
    "score": (lambda: cumulative_link_loss(Y, CUTS, Y), TypeError, "`score` must be floating"),
    "scores": (lambda: cumulative_link_loss(Z, CUTS, Y), ValueError, "each row of `score`"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_link_facts():
    """Proper, convex in the score, without a bound."""
    facts = xent.losses.CATALOG["cumulative_link_loss"]
    c = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    s, t = numbers(500, size=5.0), numbers(500, size=5.0)
    y = torch.randint(4, (500,))
    of = lambda s: cumulative_link_loss(s, c, y, reduction="none")  # noqa: E731
    assert facts.convex
    assert (of((s + t) / 2) - (of(s) + of(t)) / 2).max() <= 1e-12
    assert not facts.bounded
    assert of(1e4 + 0 * s).max() > 1e3
    assert facts.proper
    true = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    each = cumulative_link_loss(true.expand(4), c, torch.arange(4), reduction="none")
    (slope,) = torch.autograd.grad(((-each).exp().detach() * each).sum(), true)
    assert slope.abs() < 1e-15
    assert not facts.symmetric
