"""Information on distributions, against 50 digits and against identities."""

import doctest
import inspect
import math
from functools import partial

import mpmath
import pytest
import torch
from mpmath import mpf

import xent
import xent.learn
from tests.helpers import worst
from xent import information
from xent.information import (
    combinatorial_entropy,
    cross_entropy_of,
    entropy,
    entropy_from_counts,
    information_content,
    jensen_shannon,
    jensen_shannon_distance,
    kl_divergence,
    perplexity,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

F64 = torch.float64
close = torch.testing.assert_close
PAIRS = {"cross": cross_entropy_of, "kl": kl_divergence, "js": jensen_shannon}
BACK = {"kl_back": lambda p, q, **kw: kl_divergence(q, p, **kw)}


def draws(rows=8, classes=7, seed=0, spread=3.0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, classes, generator=g, dtype=F64) * spread


# ---- truth ----------------------------------------------------------------------------------


def exact_softmax(z):
    e = [mpmath.exp(mpf(v)) if v > -math.inf else mpf(0) for v in z.double().tolist()]
    return [v / mpmath.fsum(e) for v in e]


def exact_normalised(p):
    values = [mpf(v) for v in p.double().tolist()]
    return [v / mpmath.fsum(values) for v in values]


def exact_kl(p, q):
    pairs = [(a, b) for a, b in zip(p, q, strict=True) if a]
    return mpmath.fsum(a * mpmath.log(a / b) if b else mpmath.inf for a, b in pairs)


def exact_entropy(p):
    return -mpmath.fsum(a * mpmath.log(a) for a in p if a)


def exact_js(p, q, w=0.5):
    w = mpf(w)
    m = [w * a + (1 - w) * b for a, b in zip(p, q, strict=True)]
    return w * exact_kl(p, m) + (1 - w) * exact_kl(q, m)


EXACT = {
    "cross": lambda p, q: exact_entropy(p) + exact_kl(p, q),
    "kl": exact_kl,
    "js": exact_js,
    "kl_back": lambda p, q: exact_kl(q, p),
}


def truth(function, read, *rows):
    values = [float(function(*map(read, row))) for row in zip(*rows, strict=True)]
    return torch.tensor(values, dtype=F64)


# ---- figures --------------------------------------------------------------------------------


def test_known_figures():
    coin = torch.tensor([0.99, 0.01], dtype=F64)
    assert entropy(coin, unit="bit").item() == pytest.approx(0.0807931359, abs=1e-10)
    assert entropy(coin).item() == pytest.approx(0.056002, abs=5e-7)
    assert information_content(torch.tensor(0.012, dtype=F64)).item() == pytest.approx(
        4.422848629, abs=1e-9
    )
    assert perplexity(torch.full((8,), 0.125)).item() == 8
    p, q = torch.tensor([0.36, 0.48, 0.16], dtype=F64), torch.full((3,), 1 / 3, dtype=F64)
    assert kl_divergence(p, q).item() == pytest.approx(0.0852996, abs=1e-7)
    assert kl_divergence(q, p).item() == pytest.approx(0.0974550, abs=1e-7)


@pytest.mark.parametrize(
    ("n", "figure"), [(10, 0.690689), (100, 0.846027), (10**4, 0.880607), (10**6, 0.881281)]
)
def test_combinatorial_entropy_approaches_the_entropy_of_the_frequencies(n, figure):
    limit = entropy(torch.tensor([0.3, 0.7], dtype=F64), unit="bit").item()
    value = combinatorial_entropy(n, 3 * n // 10)
    assert value == pytest.approx(figure, abs=5e-7)
    assert limit == pytest.approx(0.881291, abs=5e-7)
    assert value < limit


# ---- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PAIRS, *BACK])
@pytest.mark.parametrize("spread", [0.1, 3.0, 12.0])
def test_two_distributions(name, spread):
    function = {**PAIRS, **BACK}[name]
    p, q = torch.softmax(draws(spread=spread), -1)
    close(function(p, q), truth(EXACT[name], exact_normalised, p, q), rtol=2e-14, atol=0)
    a, b = draws(spread=spread)
    close(
        function(a, b, from_logits=True), truth(EXACT[name], exact_softmax, a, b),
        rtol=2e-14, atol=0,
    )  # fmt: skip
    single = function(a.float(), b.float(), from_logits=True)
    assert worst(single, truth(EXACT[name], exact_softmax, a.float(), b.float())) <= 0.51


@pytest.mark.parametrize("weight", [0.01, 0.5, 0.9])
def test_weighted_jensen_shannon(weight):
    p, q = torch.softmax(draws(), -1)
    exact = truth(lambda a, b: exact_js(a, b, weight), exact_normalised, p, q)
    close(jensen_shannon(p, q, weight=weight), exact, rtol=1e-14, atol=0)
    close(jensen_shannon(q, p, weight=1 - weight), exact, rtol=1e-14, atol=0)


def test_entropy_and_information_content():
    z = draws(spread=12.0)[0]
    p = torch.softmax(z, -1)
    exact = truth(exact_entropy, exact_normalised, p)
    close(entropy(p), exact, rtol=1e-14, atol=0)
    close(entropy(z, from_logits=True), exact, rtol=1e-14, atol=0)
    close(perplexity(z, from_logits=True), exact.exp(), rtol=1e-14, atol=0)
    close(information_content(z, from_logits=True), -torch.log_softmax(z, -1))
    sure = torch.tensor([30.0, 0.0])
    exact = truth(exact_entropy, exact_softmax, sure[None])[0]
    assert worst(entropy(sure, from_logits=True), exact) <= 0.51  # 2.9e-12, not 0
    lost = torch.tensor([1e-20, 1.0], dtype=F64)  # float64 cannot hold 1 - 1e-20
    assert entropy(lost).item() == pytest.approx(1e-20 * (1 + 20 * math.log(10)), rel=1e-14)
    assert cross_entropy_of(torch.tensor([0.0, 1.0], dtype=F64), lost).item() == 1e-20
    surprise = information_content(sure, from_logits=True)[0].item()
    assert surprise == pytest.approx(9.3576e-14, rel=1e-4)


@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-6, 1e-10, 1e-14])
@pytest.mark.parametrize("name", ["kl", "js"])
def test_nearly_equal_distributions_keep_their_digits(size, name):
    a, step = draws(classes=30)
    b = a + size * step
    p, q = torch.softmax(a, -1), torch.softmax(b, -1)
    function, exact = PAIRS[name], EXACT[name]
    # Normalised only up to rounding, whose square remains as the error.
    close(function(p, q), truth(exact, exact_normalised, p, q), rtol=1e-13, atol=5e-31)
    close(
        function(a, b, from_logits=True), truth(exact, exact_softmax, a, b), rtol=1e-13, atol=5e-31
    )
    assert (function(p, q) >= 0).all()
    assert (function(a, b, from_logits=True) >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_equal_distributions_are_at_distance_zero(dtype):
    z = draws(classes=200)[0].to(dtype)
    p = torch.softmax(z, -1)
    for function in (kl_divergence, jensen_shannon, jensen_shannon_distance):
        assert (function(p, p) == 0).all()
        assert (function(z, z, from_logits=True) == 0).all()
        assert function(p, p).dtype == dtype
    near = torch.softmax((z.double() + 1e-3 * draws(classes=200)[1]), -1).to(dtype)
    assert (kl_divergence(p, near) >= 0).all()
    assert (jensen_shannon(p, near) >= 0).all()


def test_logits_far_apart():
    a = torch.tensor([[0.0, 900.0, 1.0], [50.0, 0.0, -50.0], [1e4, 1e4 + 1, 0.0]]).double()
    b = torch.tensor([[900.0, 0.0, 1.0], [-50.0, 0.0, 50.0], [1e4 + 1, 1e4, 0.0]]).double()
    exact = truth(exact_kl, exact_softmax, a, b)
    close(kl_divergence(a, b, from_logits=True), exact, rtol=1e-15, atol=0)
    assert exact[0] == 900  # though probabilities underflow
    assert kl_divergence(torch.softmax(a[0], 0), torch.softmax(b[0], 0)) == math.inf
    close(jensen_shannon(a, b, from_logits=True), truth(exact_js, exact_softmax, a, b))


def test_what_is_impossible():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.25, 0.25])
    z_p, z_q = p.log(), q.log()
    for x, y, options in [(p, q, {}), (z_p, z_q, {"from_logits": True})]:
        assert kl_divergence(x, y, **options).item() == pytest.approx(0.5 * math.log(2))
        assert kl_divergence(y, x, **options) == math.inf
        assert cross_entropy_of(x, y, unit="bit", **options).item() == pytest.approx(1.5)
        assert cross_entropy_of(y, x, **options) == math.inf
        assert cross_entropy_of(x, x, unit="bit", **options) == 1
        assert entropy(x, unit="bit", **options) == 1
        assert kl_divergence(x, x, **options) == 0
        assert jensen_shannon(x, y, **options).isfinite()
        assert perplexity(y, x, **options) == math.inf
    sure = torch.tensor([0.0, 1.0])
    assert entropy(sure).item() == 0
    assert math.copysign(1, entropy(sure).item()) == 1  # not -0
    assert information_content(sure).tolist() == [math.inf, 0]
    assert jensen_shannon(sure, 1 - sure, unit="bit") == 1
    assert jensen_shannon_distance(sure, 1 - sure, unit="bit") == 1
    gone = torch.tensor([-math.inf, -2000.0, 0.0])  # class 1 is barely possible
    masked = torch.tensor([0.0, -math.inf, 0.0])
    assert kl_divergence(gone, masked, from_logits=True) == math.inf


def test_nan_stays_in_its_row():
    p = torch.tensor([[0.5, 0.5], [math.nan, 0.5]])
    q = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    for options in ({}, {"from_logits": True}):
        assert entropy(p, **options).isnan().tolist() == [False, True]
        for function in PAIRS.values():
            assert function(p, q, **options).isnan().tolist() == [False, True]


# ---- identities -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"from_logits": True}])
def test_identities(options):
    a, b = draws()
    p, q = torch.softmax(a, -1), torch.softmax(b, -1)
    x, y = (a, b) if options else (p, q)
    close(cross_entropy_of(x, y, **options), entropy(x, **options) + kl_divergence(x, y, **options))
    close(perplexity(x, y, **options).log(), cross_entropy_of(x, y, **options))
    for w in (0.2, 0.5):
        mixed = entropy(w * p + (1 - w) * q)
        js = jensen_shannon(x, y, weight=w, **options)
        close(js, mixed - w * entropy(p) - (1 - w) * entropy(q))
        assert (js <= entropy(torch.tensor([w, 1 - w], dtype=F64))).all()
    close(jensen_shannon_distance(x, y, **options).square(), jensen_shannon(x, y, **options))
    uniform = torch.full_like(p, 1 / 7)
    close(kl_divergence(p, uniform), math.log(7) - entropy(p))


@pytest.mark.parametrize(
    "function", [entropy, *PAIRS.values(), information_content, entropy_from_counts]
)
def test_units_and_axes(function):
    x = torch.softmax(draws(), -1)
    x = tuple(x) if function in PAIRS.values() else (x[0],)
    close(function(*x, unit="bit") * math.log(2), function(*x))
    turned = function(*(t.T for t in x), 0)
    close(turned.T if function is information_content else turned, function(*x))
    with pytest.raises(ValueError, match="`unit` must be one of 'nat', 'bit'"):
        function(*x, unit="ban")


def test_chain_rule():
    joint = torch.softmax(draws(classes=12)[0].flatten(), 0).view(8, 12)
    first = joint.sum(1)
    within = joint / first[:, None]
    close(entropy(joint.flatten()), entropy(first) + (first * entropy(within)).sum())
    other = torch.softmax(draws(classes=12)[1].flatten(), 0).view(8, 12)
    first_o = other.sum(1)
    inner = (first * kl_divergence(within, other / first_o[:, None])).sum()
    close(kl_divergence(joint.flatten(), other.flatten()), kl_divergence(first, first_o) + inner)


def test_the_distance_is_a_metric():
    p, q = torch.softmax(draws(rows=200), -1)
    r = p.roll(1, 0)
    d = jensen_shannon_distance
    assert (d(p, r) <= d(p, q) + d(q, r)).all()
    close(d(p, q), d(q, p), rtol=1e-14, atol=0)


# ---- gradients ------------------------------------------------------------------------------


def gradients(function, *inputs, **options):
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*leaves, **options).sum(), leaves)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-8, 1e-12])
def test_gradients_keep_their_digits(size):
    a, step = draws()
    b = a + size * step
    p, q = torch.softmax(a, -1), torch.softmax(b, -1)

    def of(formula):
        values = [formula(mpf(a), mpf(b)) for a, b in zip(*map(flat, (p, q)), strict=True)]
        return torch.tensor(list(map(float, values)), dtype=F64).view_as(p)

    def flat(x):
        return x.flatten().tolist()

    tolerance = {"rtol": 1e-13, "atol": 1e-30}
    dp, dq = gradients(kl_divergence, p, q)
    close(dp, of(lambda a, b: mpmath.log(a / b)), **tolerance)
    close(dq, of(lambda a, b: (b - a) / b), **tolerance)
    dp, dq = gradients(jensen_shannon, p, q)
    close(dp, of(lambda a, b: mpmath.log(2 * a / (a + b)) / 2), **tolerance)
    close(dq, of(lambda a, b: mpmath.log(2 * b / (a + b)) / 2), **tolerance)
    dp, dq = gradients(cross_entropy_of, p, q)
    close(dp, of(lambda a, b: -mpmath.log(b)), rtol=1e-14, atol=1e-15)
    close(dq, of(lambda a, b: -a / b), rtol=1e-14, atol=1e-15)
    (dp,) = gradients(entropy, p)
    close(dp, of(lambda a, b: -mpmath.log(a) - 1), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-8, 1e-12])
@pytest.mark.parametrize("margin", [0.0, 40.0])
def test_gradients_towards_logits_keep_their_digits(size, margin):
    a, step = draws()
    a[:, 0] += margin
    b = a + size * step
    da, db = gradients(kl_divergence, a, b, from_logits=True)
    for n in range(len(a)):
        p, q = exact_softmax(a[n]), exact_softmax(b[n])
        kl = exact_kl(p, q)
        pairs = list(zip(p, q, strict=True))
        exact_a = [float(x * (mpmath.log(x / y) - kl)) for x, y in pairs]
        exact_b = [float(y - x) for x, y in pairs]
        # Entries differ in sign and sum to 0, so errors are relative to the largest of the row.
        for ours, exact in ((da[n], exact_a), (db[n], exact_b)):
            exact = torch.tensor(exact, dtype=F64)
            assert (ours - exact).abs().max() <= 2e-13 * exact.abs().max()


def through_softmax(function, *options):
    return lambda *z: function(*(torch.softmax(x, -1) for x in z))


CASES = {
    "entropy": (through_softmax(entropy), 1),
    "entropy of logits": (partial(entropy, from_logits=True), 1),
    "distance": (through_softmax(jensen_shannon_distance), 2),
    "perplexity": (through_softmax(perplexity), 2),
    "skew js": (partial(jensen_shannon, weight=0.2, from_logits=True), 2),
    **{name: (through_softmax(f), 2) for name, f in PAIRS.items()},
    **{f"{name} of logits": (partial(f, from_logits=True), 2) for name, f in PAIRS.items()},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [1.0, 0.01])
def test_derivatives(case, size):
    function, sides = CASES[case]
    a, step = draws(rows=1, classes=3, spread=1.0)
    z = [a, a + size * step][:sides]
    leaves = [x.clone().requires_grad_() for x in z]
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True)
    if size == 1:  # smaller differences are lost in rounding
        assert torch.autograd.gradgradcheck(function, leaves)
    close(torch.func.vmap(function)(*z), function(*z))
    tangents = tuple(torch.ones_like(x) * torch.arange(3) for x in z)
    _, forward = torch.func.jvp(function, tuple(z), tangents)
    backward = torch.autograd.grad(function(*leaves).sum(), leaves)
    along = sum((g * t).sum() for g, t in zip(backward, tangents, strict=True))
    close(forward.sum(), along)


def test_gradients_at_the_border():
    z = torch.tensor([1.0, -math.inf, 0.5, -2000.0], dtype=F64)
    other = torch.tensor([0.0, -math.inf, 1.0, -1.0], dtype=F64)
    for case, (function, sides) in CASES.items():
        a, b = z.clone().requires_grad_(), other.clone().requires_grad_()
        for grad in torch.autograd.grad(function(*(a, b)[:sides]), (a, b)[:sides]):
            assert grad.isfinite().all(), case
            assert grad[1] == 0, case
    p = torch.tensor([0.5, 0.5], requires_grad=True)
    (grad,) = torch.autograd.grad(jensen_shannon_distance(p, torch.tensor([0.5, 0.5])), p)
    assert grad.tolist() == [0, 0]


def test_compiles():
    a, b = draws(rows=3)
    compiled = torch.compile(
        lambda a, b: kl_divergence(a, b, from_logits=True), backend="aot_eager", fullgraph=True
    )
    close(compiled(a, b), kl_divergence(a, b, from_logits=True))


# ---- checks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 1000, 128_256])
def test_what_softmax_returns_is_a_distribution(dtype, classes):
    g = torch.Generator().manual_seed(0)
    z = torch.randn(3, classes, generator=g, dtype=F64)
    for scale in (0.0, 1.0, 50.0):
        p = torch.softmax((scale * z).to(dtype), -1)
        assert entropy(p).isfinite().all()
        if dtype in (torch.float64, torch.float32):
            assert entropy(torch.log_softmax((scale * z).to(dtype), -1).exp()).isfinite().all()


@pytest.mark.parametrize(
    ("p", "message"),
    [
        (torch.tensor([0.5, 0.6]), r"`p` must sum to 1 along `dim`, got 1.1.*p.sum\(dim, keepdim"),
        (torch.tensor([0.33, 0.33, 0.33]).double(), "sum to 1"),
        (torch.tensor([0.1, 0.2, 0.7001]).double(), "in the precision it is used in"),
        (torch.tensor([2.0, -1.0]), r"`p` holds -1, which is no probability.*from_logits=True"),
        (torch.tensor([0.5, 0.6], dtype=torch.bfloat16), "sum to 1"),
        (torch.zeros(3, 0), "sum to 1"),
        (torch.tensor(1.0), "`dim` must name the axis"),
    ],
)
def test_what_is_no_distribution_is_refused(p, message):
    with pytest.raises(ValueError, match=message):
        entropy(p)


@pytest.mark.parametrize(
    "call",
    [
        entropy,
        lambda p: information.cross_entropy_of(p, p),
        lambda p: information.cross_entropy_of(torch.full_like(p, 0.5), p),
        lambda p: information.kl_divergence(p, p),
        lambda p: information.jensen_shannon(p, p),
        lambda p: xent.losses.sparsemax_loss(torch.zeros(p.shape), p),
    ],
)
def test_the_first_row_that_is_no_distribution_is_named(call):
    rows = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.5, 0.75], [0.5, 0.5], [0.25, 0.5]])
    with pytest.raises(ValueError, match=r"row 2\b.* sum .*1\.25\b"):
        call(rows)


def test_a_row_on_several_axes_is_named_by_its_place():
    rows = torch.full((2, 3, 2), 0.5)
    rows[1, 0, 0] = 0.25
    with pytest.raises(ValueError, match=r"row 1, 0, whose sum is 0\.75"):
        entropy(rows)
    with pytest.raises(ValueError, match=r"row 1, 0, whose sum is 0\.75"):
        entropy(rows.movedim(-1, 0), dim=0)


def test_one_tolerance_for_what_sums_to_1():
    """Numbers of float32 kept as float64 pass; a real mistake passes nowhere."""
    z, y = torch.zeros(1, 3).double(), torch.tensor([0])
    third = torch.tensor([0.1, 0.2, 0.7])
    for p, passes in ((third.double(), True), (third.double() * (1 + 1e-4), False)):
        rows, matrix = p.expand(1, 3), torch.stack([p, p.roll(1), p.roll(2)])
        for call in (
            lambda p=p: entropy(p),
            lambda p=p: kl_divergence(p, p),
            lambda rows=rows: xent.losses.sparsemax_loss(z, rows),
            lambda rows=rows: xent.losses.sparse_cross_entropy(z, torch.tensor([[0, 1, 2]]), rows),
            lambda m=matrix: xent.losses.structured_cross_entropy(z, y, table=m),
            lambda m=matrix: xent.losses.forward_corrected_cross_entropy(z, y, matrix=m),
            lambda p=p: xent.learn.mixture_log_prob(torch.zeros(3), p),
            lambda p=p: xent.learn.quantize(p),
            lambda p=p: xent.learn.Categorical(p[None]),
            lambda m=matrix: xent.learn.label_quality(m, torch.arange(3)),
        ):
            if passes:
                call()
            else:
                with pytest.raises(ValueError, match="sum to"):
                    call()


def test_other_bad_input():
    p = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match=r"same shape, got \(2,\) and \(1, 2\).*expand"):
        kl_divergence(p, p[None])
    with pytest.raises(ValueError, match="`q` holds -1"):
        kl_divergence(p, torch.tensor([2.0, -1.0]))
    with pytest.raises(TypeError, match="entropy_from_counts"):
        entropy(torch.tensor([1, 2]))
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor, got str"):
        entropy("0.5, 0.5")
    with pytest.raises(ValueError, match="got 1"):
        entropy(p, 1)
    for weight in (0.0, 1.0, 2.0, math.nan):
        with pytest.raises(ValueError, match="`weight`"):
            jensen_shannon(p, p, weight=weight)
    for value in (-0.1, 1.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            information_content(torch.tensor([value]))


# ---- the package ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", information.__all__)
def test_public_names_explain_themselves(name):
    thing = getattr(information, name)
    if inspect.isfunction(thing):
        assert doctest.DocTestParser().get_examples(thing.__doc__ or "")
        for part in ("Args:", "Returns:", "Raises:", *inspect.signature(thing).parameters):
            assert part in (thing.__doc__ or ""), part


def test_what_sums_to_nearly_1_is_divided_by_its_sum():
    for off in (4e-7, -4e-7):
        p = torch.tensor([0.2, 0.3, 0.5 + off], dtype=torch.float64)
        q = p / p.sum()
        truth = -(q * q.log()).sum()
        torch.testing.assert_close(information.entropy(p), truth, rtol=1e-15, atol=0)
