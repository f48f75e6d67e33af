"""Losses of orders: equal to the sums over all pairs and risk sets, at any height of the scores."""

import itertools
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from mpmath import mpf

import xent
from xent.losses import (
    CATALOG,
    cosent_loss,
    cox_loss,
    lists,
    pairwise_logistic_loss,
    plackett_luce_loss,
)

N = 9
RANKING = ("plackett_luce_loss", "cox_loss", "cosent_loss", "pairwise_logistic_loss")
every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def scores(*shape, size=1.0):
    return (size * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def marks(*shape):
    """Return a mask of about two in three, True for the first two of each list."""
    mask = torch.rand(*shape) < 0.7
    mask[..., :2] = True
    return mask


# ---- closed forms: every choice, risk set and pair by itself ------------------------------------


def plackett_luce(s, r, mask=None, top=None, w=None):
    """Return the loss of one list, place by place."""
    kept = [i for i in range(len(s)) if mask is None or mask[i]]
    order = sorted(kept, key=lambda i: -r[i].item())  # Python's sort is stable
    total = s.new_zeros(())
    for k in range(len(order)):
        if top is None or k < top:
            value = s[order[k:]].logsumexp(0) - s[order[k]]
            total = total + (value if w is None else w[k] * value)
    return total


def cox(h, time, event, mask=None, ties="breslow"):
    """Return the loss of each item; Efron's with sums of exponentials from the height of all."""
    there = torch.ones(len(h), dtype=torch.bool) if mask is None else mask
    values, seen = [], {}
    for i in range(len(h)):
        if not (event[i] and there[i]):
            values.append(h.new_zeros(()))
            continue
        risk = there & (time >= time[i])
        tied = there & (time == time[i]) & event.bool()
        rank = seen[time[i].item()] = seen.get(time[i].item(), -1) + 1
        share = rank / int(tied.sum()) if ties == "efron" else 0.0
        weight = 1 - share * tied.to(h.dtype)
        values.append((h + weight.log())[risk].logsumexp(0) - h[i])
    return torch.stack(values)


def above(r, mask=None):
    """Return which item is to be above which, (n, n)."""
    pairs = r[:, None] > r[None]
    return pairs if mask is None else pairs & mask[:, None] & mask[None]


def cosent(x, y, mask=None, scale=20.0):
    gaps = scale * (x[None] - x[:, None])[above(y, mask)]
    return torch.cat([gaps, gaps.new_zeros(1)]).logsumexp(0)


def softplus(x):
    return -F.logsigmoid(-x)  # PyTorch's own softplus is the identity from 20 on


def pairwise(s, r, mask=None):
    return softplus((s[None] - s[:, None])[above(r, mask)]).sum()


def by_list(formula, *tensors, **options):
    return torch.stack([formula(*parts, **options) for parts in zip(*tensors, strict=True)])


def agree(found, expected, *parts, rtol=1e-12):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-13)
    slope = torch.linspace(0.5, 1.5, found.numel(), dtype=found.dtype).view(found.shape)
    for a, b in zip(
        torch.autograd.grad((found * slope).sum(), parts, retain_graph=True),
        torch.autograd.grad((expected * slope).sum(), parts, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item())


def reduced(values, reduction, divisor):
    if reduction == "none":
        return values
    return values.sum() / divisor if reduction == "mean" else values.sum()


@every_reduction
@pytest.mark.parametrize("ties", [True, False])
def test_plackett_luce(reduction, ties):
    s, mask = scores(4, N), marks(4, N)
    r = torch.randint(3, (4, N)) if ties else torch.randn(4, N)
    mask[1] = torch.arange(N) == 3  # a list of one item
    mask[2] = True
    found = plackett_luce_loss(s, r, mask=mask, reduction=reduction)
    values = by_list(plackett_luce, s, r, mask)
    assert values[1] == 0
    agree(found, reduced(values, reduction, 3), s)
    assert torch.equal(
        plackett_luce_loss(s[2], r[2]), plackett_luce_loss(s, r, reduction="none")[2]
    )


def test_the_first_places():
    s, r, mask = scores(3, N), torch.randint(4, (3, N)), marks(3, N)
    for top in (1, 2, N, N + 5):
        found = plackett_luce_loss(s, r, mask=mask, top=top, reduction="none")
        agree(found, by_list(plackett_luce, s, r, mask, top=top), s)
    one = torch.eye(N, dtype=torch.float64)[[2, 0, 5]]
    agree(plackett_luce_loss(s, one, top=1), F.cross_entropy(s, torch.tensor([2, 0, 5])), s)


def test_weights_of_places():
    s, r, mask = scores(3, N), torch.randint(4, (3, N)), marks(3, N)
    w = 2.0 ** torch.arange(N - 1, -1, -1) - 1
    w[1] = 0
    w.requires_grad_()
    found = plackett_luce_loss(s, r, mask=mask, position_weight=w, reduction="none")
    agree(found, by_list(plackett_luce, s, r, mask, w=w.double()), s)
    each = torch.rand(3, N, dtype=torch.float64)
    found = plackett_luce_loss(s, r, mask=mask, position_weight=each, reduction="none")
    expected = [plackett_luce(*parts, w=x) for *parts, x in zip(s, r, mask, each, strict=True)]
    agree(found, torch.stack(expected), s)


@every_reduction
@pytest.mark.parametrize("ties", ["breslow", "efron"])
def test_cox(reduction, ties):
    h, mask = scores(3, 2 * N), marks(3, 2 * N)
    time, event = torch.randint(6, (3, 2 * N)), torch.rand(3, 2 * N) < 0.6
    found = cox_loss(h, time, event, mask=mask, ties=ties, reduction=reduction)
    values = by_list(cox, h, time, event, mask, ties=ties)
    agree(found, reduced(values, reduction, (event & mask).sum()), h)
    numbers = cox_loss(h, time.double(), event.float(), mask=mask, ties=ties, reduction=reduction)
    assert torch.equal(numbers, found)


def test_cox_without_ties_is_plackett_luce():
    h, time = scores(N), torch.randn(N)
    found = cox_loss(h, time, torch.ones(N), reduction="sum")
    agree(found, plackett_luce_loss(h, -time), h)
    assert found == cox_loss(h, time, torch.ones(N), ties="efron", reduction="sum")


@every_reduction
def test_cosent(reduction):
    x, y, mask = scores(4, N), torch.randint(4, (4, N)), marks(4, N)
    y[2], mask[3] = 1, False  # equal labels; no item
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    found = cosent_loss(x, y, mask=mask, scale=scale, reduction=reduction)
    values = by_list(cosent, x, y, mask, scale=scale)
    assert values[2] == values[3] == 0
    agree(found, reduced(values, reduction, 3), x, scale)
    agree(cosent_loss(x[0], y[0] / 4), cosent(x[0], y[0]), x)


@every_reduction
def test_pairwise_logistic(reduction, monkeypatch):
    monkeypatch.setattr(lists, "CHUNK", 40)  # several chunks
    s, r, mask = scores(4, N), torch.randint(4, (4, N)), marks(4, N)
    r[2] = 1
    mask[3] = torch.arange(N) == 3
    w = torch.tensor([1.0, 3, 1, 0.5], dtype=torch.float64)
    found = pairwise_logistic_loss(s, r, mask=mask, row_weight=w, reduction=reduction)
    pairs = torch.stack([above(*x).sum() for x in zip(r, mask, strict=True)])
    values = by_list(pairwise, s, r, mask) * w
    agree(found, reduced(values, reduction, (pairs * w).sum()), s)
    count = pairwise_logistic_loss(s, r, mask=mask, row_weight=w, normalizer="count")
    agree(count, (by_list(pairwise, s, r, mask) * w).sum() / 3, s)


def test_weights_of_pairs(monkeypatch):
    """The weight sees the items: here the change of NDCG, that of LambdaRank."""
    s, r, mask = scores(3, N), torch.randint(4, (3, N)), marks(3, N)

    def change(better, worse):
        gain = 2.0**better.relevance - 2.0**worse.relevance
        return gain * (1 / (2.0 + better.rank).log2() - 1 / (2.0 + worse.rank).log2()).abs()

    values = []
    for x, y, m in zip(s, r, mask, strict=True):
        rank = torch.tensor([((x > a) & m).sum() for a in x])
        gain, cut = 2.0**y, 1 / (2.0 + rank.double()).log2()
        w = (gain[:, None] - gain[None]) * (cut[:, None] - cut[None]).abs()
        values.append((w * softplus(x[None] - x[:, None]))[above(y, m)].sum())
    whole = pairwise_logistic_loss(s, r, mask=mask, weight=change, reduction="none")
    monkeypatch.setattr(lists, "CHUNK", 40)
    found = pairwise_logistic_loss(s, r, mask=mask, weight=change, reduction="none")
    torch.testing.assert_close(whole, found, rtol=1e-14, atol=0)
    agree(found, torch.stack(values), s)


def test_a_table_of_weights_of_pairs():
    s, r, table = scores(N), torch.randn(N), torch.rand(N, N, dtype=torch.float64)
    table[2] = 0
    found = pairwise_logistic_loss(s, r, weight=lambda a, b: table[a.index, b.index])
    values = (table * softplus(s[None] - s[:, None]))[above(r)]
    agree(found, values.mean(), s)


# ---- numbers: heights, digits, memory -----------------------------------------------------------


def textbook_list_mle(s, r):
    """Return ListMLE by a running sum of exponentials, as published code has it."""
    s = s.gather(-1, r.argsort(descending=True))
    s = s - s.max()
    return ((s.exp().flip(-1).cumsum(-1).flip(-1) + 1e-10).log() - s).sum()


def test_list_mle_over_30_nats_keeps_its_digits():
    s = torch.linspace(0, -30, 20, requires_grad=True)
    r = torch.arange(20, 0, -1)
    truth = plackett_luce(s.double(), r)
    (slope,) = torch.autograd.grad(truth, s)
    assert truth.item() == pytest.approx(4.33, abs=0.01)
    assert textbook_list_mle(s, r).item() == pytest.approx(23.6, abs=0.1)
    found = plackett_luce_loss(s, r)
    assert abs(found.item() - truth.item()) <= 1e-6
    (grad,) = torch.autograd.grad(found, s)
    assert (grad - slope).norm() <= 1e-6 * slope.norm()


SIZES = (1.0, 30.0, 1e3, 1e4)


@pytest.mark.parametrize("size", SIZES)
def test_any_height(size):
    s, r, e = scores(40, size=size), torch.randint(9, (40,)), torch.rand(40) < 0.7
    agree(plackett_luce_loss(s, r), plackett_luce(s, r), s, rtol=1e-11)
    agree(pairwise_logistic_loss(s, r, reduction="sum"), pairwise(s, r), s)
    agree(cosent_loss(s, r, scale=1.0), cosent(s, r, scale=1.0), s, rtol=1e-11)
    for ties in ("breslow", "efron"):
        found = cox_loss(s, r, e, ties=ties, reduction="sum")
        agree(found, cox(s, r, e, ties=ties).sum(), s, rtol=1e-11)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_scores(size, dtype):
    s = (size * torch.randn(30)).to(dtype).requires_grad_()
    r, e = torch.randint(9, (30,)), torch.rand(30) < 0.7
    for loss, data in (
        (plackett_luce_loss, (r,)), (cosent_loss, (r,)), (pairwise_logistic_loss, (r,)),
        (cox_loss, (r, e)),
    ):  # fmt: skip
        wide = s.detach().double().requires_grad_()
        found, truth = loss(s, *data), loss(wide, *data)
        assert found.dtype == dtype
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(found.double(), truth, rtol=unit, atol=0)
        grads = [torch.autograd.grad(x, y)[0].double() for x, y in ((found, s), (truth, wide))]
        torch.testing.assert_close(*grads, rtol=unit, atol=unit * grads[1].abs().max().item())


def test_sure_orders_keep_their_digits():
    """The exact loss of two items 60 nats apart is log(1 + e^-60)."""
    s, two = torch.tensor([60.0, 0.0]), torch.tensor([1, 0])
    truth = float(mpmath.log1p(mpmath.exp(mpf(-60))))
    for found in (
        plackett_luce_loss(s, two),
        cox_loss(s, -two, torch.tensor([True, False])),
        cosent_loss(s, two, scale=1.0),
        pairwise_logistic_loss(s, two),
    ):
        assert found.item() == pytest.approx(truth, rel=2**-23)


@pytest.mark.parametrize("ties", ["breslow", "efron"])
def test_cox_in_50_digits(ties):
    h, time = [3.0, -2.0, 25.0, 0.5, -700.0], [1.0, 1.0, 2.0, 1.0, 2.0]
    event = [1, 1, 1, 0, 1]
    with mpmath.workdps(50):
        p, total = [mpmath.exp(mpf(x)) for x in h], mpf(0)
        early, late = p[0] + p[1], p[2] + p[4]
        for k in (0, 1):
            share = mpf(k) / 2 if ties == "efron" else 0
            total += mpmath.log(sum(p) - share * early) + mpmath.log(late - share * late)
        total = float(total - (3 - 2 + 25 - 700))
    found = cox_loss(
        torch.tensor(h).double(),
        torch.tensor(time),
        torch.tensor(event),
        ties=ties,
        reduction="sum",
    )
    assert found.item() == pytest.approx(total, rel=1e-14)


def test_items_that_cannot_be_chosen():
    """A score of -inf that comes last costs nothing; one that comes first, everything."""
    s = torch.tensor([1.0, 2.0, -torch.inf], requires_grad=True)
    value = plackett_luce_loss(s, torch.tensor([2, 1, 0]))
    (grad,) = torch.autograd.grad(value, s)
    assert value.item() == pytest.approx(math.log1p(math.e))
    assert grad.isfinite().all()
    assert plackett_luce_loss(s, torch.tensor([0, 1, 2])) == torch.inf


def test_no_tensor_of_all_pairs():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor):
                    self.numel = max(self.numel, x.numel())
            return out

    n = 1000
    s, r = torch.randn(n, requires_grad=True), torch.randn(n)
    with Largest() as seen:
        pairwise_logistic_loss(s, r).backward()
    assert seen.numel <= lists.CHUNK
    with Largest() as seen:
        for loss in (plackett_luce_loss, cosent_loss):
            loss(s, r).backward()
        cox_loss(s, r, r > 0, ties="efron").backward()
    assert seen.numel <= n + 1


# ---- derivatives, transforms --------------------------------------------------------------------


CALLS = {
    "plackett_luce": lambda s, r, e: plackett_luce_loss(s, r, mask=e, reduction="none"),
    "top": lambda s, r, e: plackett_luce_loss(s, r, top=2, position_weight=r, reduction="none"),
    "breslow": lambda s, r, e: cox_loss(s, r, e),
    "efron": lambda s, r, e: cox_loss(s, r, e, ties="efron", mask=r != 1),
    "cosent": lambda s, r, e: cosent_loss(s, r, mask=e, scale=2.0),
    "pairwise": lambda s, r, e: pairwise_logistic_loss(s, r, mask=e),
}


def data():
    """Return lists with ties and marks: scores, relevances or times, and marks or events."""
    r = torch.tensor([[2, 0, 1, 2, 2], [0, 3, 3, 1, 0]])
    e = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0]]).bool()
    return scores(2, 5), r, e


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("chunk", [2**17, 16])
def test_derivatives(name, chunk, monkeypatch):
    monkeypatch.setattr(lists, "CHUNK", chunk)
    s, r, e = data()
    assert torch.autograd.gradcheck(lambda s: CALLS[name](s, r, e), s)
    assert torch.autograd.gradgradcheck(lambda s: CALLS[name](s, r, e), s)


@pytest.mark.parametrize("name", CALLS)
def test_equal_scores(name):
    s, r, e = data()
    flat = torch.zeros_like(s).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: CALLS[name](s, r, e), flat)
    assert torch.autograd.gradgradcheck(lambda s: CALLS[name](s, r, e), flat)


@pytest.mark.parametrize("name", CALLS)
def test_second_derivatives_of_sure_orders(name):
    """Second derivatives are 0, not NaN, thousands of nats away."""
    _, r, e = data()
    far = (1e4 * r * (-1 if name in ("breslow", "efron") else 1)).double().requires_grad_()
    (grad,) = torch.autograd.grad(CALLS[name](far, r, e).sum(), far, create_graph=True)
    (again,) = torch.autograd.grad(grad.square().sum(), far)
    assert grad.isfinite().all()
    assert again.isfinite().all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", CALLS)
def test_transforms(name):
    s, r, e = data()
    value = CALLS[name](s, r, e)
    (grad,) = torch.autograd.grad(value.sum(), s)
    found = torch.func.grad(lambda s: CALLS[name](s, r, e).sum())(s.detach())
    torch.testing.assert_close(found, grad)
    _, tangent = torch.func.jvp(lambda s: CALLS[name](s, r, e).sum(), (s.detach(),), (grad,))
    torch.testing.assert_close(tangent, grad.square().sum())
    many = torch.vmap(lambda s: CALLS[name](s, r, e))(torch.stack([s.detach(), -s.detach()]))
    torch.testing.assert_close(many[0], value.detach())


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", CALLS)
def test_an_order_compiles(name):
    s, r, e = data()
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[name], backend="aot_eager")
    agree(compiled(s, r, e), CALLS[name](s, r, e), s)


@pytest.mark.parametrize("name", [name for name in RANKING if name != "cox_loss"])
def test_scores_behind_a_head(name, recwarn):
    loss = CATALOG[name].function
    query, document, r = scores(4, 3), scores(N, 3), torch.randint(3, (4, N))
    agree(loss(xent.LinearLogits(query, document), r), loss(query @ document.T, r), query, document)
    assert not recwarn.list


# ---- what does not count ------------------------------------------------------------------------


def test_cosent_of_a_similarity_of_minus_infinity():
    """Last by its label it costs nothing; above another one, everything, without a NaN."""
    x = torch.tensor([2.0, 1.0, -torch.inf], dtype=torch.float64, requires_grad=True)
    found = cosent_loss(x, torch.tensor([2, 1, 0]))
    short = cosent_loss(x[:2], torch.tensor([2, 1]))
    agree(found, short, x)
    for label in ([0, 1, 2], [0, 2, 1], [1, 0, 1]):
        found = cosent_loss(x, torch.tensor(label))
        assert found == torch.inf
        assert torch.autograd.grad(found, x)[0].isfinite().all()


@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize("fill", [math.nan, math.inf, -math.inf])
def test_masked_items_leave_no_trace(name, fill):
    loss = CATALOG[name].function
    s, r, mask = scores(2, N), torch.randn(2, N), marks(2, N)
    more = (torch.ones(2, N),) if name == "cox_loss" else ()
    parts = zip(mask, s, r, *more, strict=True)
    expected = [loss(*(x[m] for x in tensors), reduction="sum") for m, *tensors in parts]
    dirty = [torch.where(mask, x, fill) for x in (s, r, *more)]
    found = loss(*dirty, mask=mask, reduction="sum")
    agree(found, sum(expected), s)


@pytest.mark.parametrize("name", RANKING)
def test_nan_is_passed_on_within_its_list(name):
    loss = CATALOG[name].function
    s, r = scores(2, N), torch.arange(2 * N).view(2, N)
    more = (torch.ones(2, N),) if name == "cox_loss" else ()
    dirty = torch.where(torch.arange(N) == 4, torch.tensor([[math.nan], [0.0]]), s.detach())
    values = loss(dirty, r, *more, reduction="none")
    assert values[0].isnan().any()
    assert values[1].isfinite().all()


@pytest.mark.parametrize("name", [name for name in RANKING if name != "cox_loss"])
def test_a_list_of_weight_0_is_not_read(name):
    loss = CATALOG[name].function
    s, r, w = scores(3, N), torch.randn(3, N), torch.tensor([2.0, 0.0, 1.0])
    dirty = torch.where(w[:, None] == 0, math.nan, s)
    found = loss(dirty, r, row_weight=w)
    kept = torch.tensor([0, 2])
    agree(found, loss(s[kept], r[kept], row_weight=w[kept]), s)
    counted = loss(dirty, r, row_weight=w, normalizer="count")
    agree(counted, loss(s[kept], r[kept], row_weight=w[kept], reduction="sum") / 3, s)


@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 3)])
def test_nothing_to_order(name, shape):
    loss = CATALOG[name].function
    s = scores(*shape)
    more = (torch.zeros(shape),) if name == "cox_loss" else ()
    options = {"mask": torch.zeros(shape, dtype=torch.bool)} if shape == (2, 3) else {}
    given = (s, torch.zeros(shape), *more)
    assert loss(*given, **options).isnan()
    value = loss(*given, empty="zero", **options)
    assert value == loss(*given, reduction="sum", **options) == 0
    (grad,) = torch.autograd.grad(value, s)
    assert torch.equal(grad, torch.zeros_like(s))
    none = loss(*given, reduction="none", **options)
    assert none.shape == (shape if name == "cox_loss" else shape[:-1])
    assert (none == 0).all()


def test_no_event():
    h, time, event = scores(N), torch.randn(N), torch.zeros(N)
    assert cox_loss(h, time, event).isnan()
    assert cox_loss(h, time, event, empty="zero") == 0
    assert cox_loss(h, time, event, normalizer=3.0) == 0


def test_equal_relevances_keep_the_order_given():
    s = scores(N)
    expected = sum(s[k:].logsumexp(0) - s[k] for k in range(N))
    agree(plackett_luce_loss(s, torch.zeros(N)), expected, s)


# ---- facts of the catalog -----------------------------------------------------------------------


def risk(loss, truth, s):
    """Return the expected loss of scores for rankings of the model with the scores ``truth``."""
    total = s.new_zeros(())
    for order in itertools.permutations(range(len(s))):
        r = torch.tensor([-order.index(i) for i in range(len(s))])
        p = torch.exp(-plackett_luce(truth, r))
        total = total + p * loss(s, r)
    return total


@pytest.mark.parametrize("name", RANKING)
def test_proper(name):
    """The slope of the expected loss at the true scores is 0, or not."""
    loss = CATALOG[name].function
    if name == "cox_loss":
        loss = lambda s, r: cox_loss(s, -r, torch.ones(len(s)))  # noqa: E731
    truth = torch.tensor([0.7, -0.4, 0.1, 0.9], dtype=torch.float64)
    s = truth.clone().requires_grad_()
    (slope,) = torch.autograd.grad(risk(loss, truth, s), s)
    if CATALOG[name].proper:
        assert slope.abs().max() < 1e-14
        for _ in range(5):
            other = truth + torch.randn(4, dtype=torch.float64)
            assert risk(loss, truth, other) > risk(loss, truth, truth) + 1e-6
    else:
        assert slope.abs().max() > 0.01


@pytest.mark.parametrize("name", RANKING)
def test_other_facts(name):
    facts, loss = CATALOG[name], CATALOG[name].function
    r, more = torch.randint(4, (200, N)), ()
    if name == "cox_loss":
        more = (torch.rand(200, N) < 0.7,)
    a, b = scores(200, N, size=4.0), scores(200, N, size=4.0)
    of = lambda s: loss(s, r, *more, reduction="none")  # noqa: E731
    sag = of((a + b) / 2) - (of(a) + of(b)) / 2
    assert facts.convex
    assert sag.max() <= 1e-12
    assert not facts.bounded
    assert loss(1e4 * torch.arange(3.0), torch.tensor([2, 1, 0]) * (-1 if more else 1),
                *(torch.ones(3) for _ in more)) > 1e3  # fmt: skip
    assert not facts.symmetric


# ---- errors -------------------------------------------------------------------------------------

S, R, B = torch.zeros(3), torch.zeros(3), torch.ones(3, dtype=torch.bool)
BAD = {
    "score of integers": (
        lambda: plackett_luce_loss(R.long(), R), TypeError, r"call score\.float\(\)",
    ),
    "score of bool": (lambda: cosent_loss(B, R), TypeError, "`similarity` must be floating point"),
    "a number": (lambda: pairwise_logistic_loss(S[0], R[0]), ValueError, "must hold lists"),
    "no tensor": (lambda: plackett_luce_loss("1", R), TypeError, "`score` must be a torch"),
    "shape": (lambda: plackett_luce_loss(S, R[:2]), ValueError, "`relevance` must have the shape"),
    "complex": (lambda: plackett_luce_loss(S, R * 1j), TypeError, "`relevance` must hold real"),
    "NaN": (lambda: cosent_loss(S, R / 0), ValueError, "`label` holds NaN"),
    "mask": (lambda: plackett_luce_loss(S, R, mask=S), TypeError, "`mask` must be bool"),
    "mask's shape": (lambda: cox_loss(S, R, B, mask=B[:2]), ValueError, "`mask` must have"),
    "top": (lambda: plackett_luce_loss(S, R, top=0), ValueError, "`top` must be at least 1"),
    "top of a half": (lambda: plackett_luce_loss(S, R, top=0.5), TypeError, "must be an integer"),
    "weights": (
        lambda: plackett_luce_loss(S, R, position_weight=torch.ones(2)),
        ValueError,
        "`position_weight` must broadcast to the shape of `score`",
    ),
    "event": (lambda: cox_loss(S, R, 2 * B), ValueError, "`event` must hold"),
    "time": (lambda: cox_loss(S, R / 0, B), ValueError, "`time` holds NaN"),
    "ties": (lambda: cox_loss(S, R, B, ties="exact"), ValueError, "`ties` must be one of"),
    "scale": (lambda: cosent_loss(S, R, scale=torch.ones(2)), ValueError, "`scale` must be"),
    "weight": (
        lambda: pairwise_logistic_loss(S, torch.arange(3), weight=lambda a, b: 1.0),
        TypeError,
        "`weight` must return a tensor",
    ),
    "row_weight": (
        lambda: plackett_luce_loss(S, R, row_weight=torch.ones(3)), ValueError, "`row_weight`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_modules():
    s, r, mask = scores(2, N), torch.randn(2, N), marks(2, N)
    module = xent.nn.PlackettLuceLoss(top=3)
    assert torch.equal(module(s, r, mask=mask), plackett_luce_loss(s, r, mask=mask, top=3))
    assert repr(xent.nn.CoSENTLoss(scale=5.0)) == "CoSENTLoss(scale=5.0)"
    event = torch.rand(2, N) < 0.5
    found = xent.nn.CoxLoss(ties="efron")(s, r, event)
    assert torch.equal(found, cox_loss(s, r, event, ties="efron"))
