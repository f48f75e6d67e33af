"""Row statistics form a commutative monoid: any split of the classes merges to the whole."""

import functools
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import xent
from xent import RowStatistics
from xent.extremes import logit_of_exp

FLOATS = ("log_odds", "log_prob", "target", "lse", "mass", "entropy", "mean", "mean_mass")
EXACT = ("support", "top", "top_logit")
EVERYTHING = {"entropy": True, "mean": True, "top": True}

# Integers make ties between classes common; -inf masks a class.
logit = st.one_of(
    st.integers(-3, 3).map(float),
    st.floats(-50, 50, allow_nan=False, width=32),
    st.just(-math.inf),
)


@pytest.fixture
def engine(every_engine):
    """Run on Triton's kernels, too."""
    return every_engine


@st.composite
def split_rows(draw):
    """Return logits (N, V) with an unmasked class in each row, a target, and places to cut."""
    v = draw(st.integers(2, 12))
    n = draw(st.integers(1, 3))
    z = [draw(st.lists(logit, min_size=v, max_size=v)) for _ in range(n)]
    for row in z:
        if max(row) == -math.inf:
            row[draw(st.integers(0, v - 1))] = draw(st.sampled_from([0.0, -7.5]))
    y = draw(st.lists(st.integers(0, v - 1), min_size=n, max_size=n))
    cuts = sorted(draw(st.sets(st.integers(1, v - 1), min_size=1, max_size=3)))
    return torch.tensor(z, dtype=torch.float64), torch.tensor(y), [0, *cuts, v]


def soft_target(z):
    """Return probabilities that are 0 for masked classes, and for class 0 if others are left."""
    q = torch.linspace(1.0, 3.0, z.numel(), dtype=torch.float64).view(z.shape)
    q = q.masked_fill(z == -math.inf, 0)
    q[:, 0] = torch.where((q[:, 1:] > 0).any(-1), 0.0, q[:, 0])
    return q / q.sum(-1, keepdim=True)


def shards(z, target, edges, **options):
    soft = target.is_floating_point()
    return [
        xent.statistics(
            z[:, a:b], target[:, a:b] if soft else target, first_class=a, **options, **EVERYTHING
        )
        for a, b in itertools.pairwise(edges)
    ]


def assert_same(a: RowStatistics, b: RowStatistics, scale: float = 1.0) -> None:
    """Assert equality within some roundings of the terms, which are as large as the logits."""
    for name in FLOATS:
        x, y = getattr(a, name), getattr(b, name)
        if name == "log_odds" and a.soft:  # logit(exp(log_prob)), whose slope is 1 / (1 - prob)
            slope = -1 / torch.expm1(a.log_prob)
            close = (x - y).abs() <= 3e-14 * scale * (1 + slope.abs())
            assert bool((close | (x == y) | (x.isnan() & y.isnan())).all()), (x, y)
            continue
        torch.testing.assert_close(
            x, y, rtol=1e-14, atol=3e-14 * scale, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name in EXACT:
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def height(z):
    """Return the size of the numbers that are added up."""
    return 1 + z[z.isfinite()].abs().max().item()


def check_whole(z, target, edges, engine, **options):
    whole = xent.statistics(z, target, engine=engine, **options, **EVERYTHING)
    parts = shards(z, target, edges, engine=engine, **options)
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    backwards = parts[-1]
    for part in parts[-2::-1]:
        backwards = backwards.merge(part)
    assert_same(merged, whole, height(z))
    assert_same(backwards, whole, height(z))
    assert_same(parts[0].merge(parts[1]), parts[1].merge(parts[0]), height(z))
    if len(parts) > 2:
        a, b, c = parts[:3]
        assert_same(a.merge(b).merge(c), a.merge(b.merge(c)), height(z))
    if not target.is_floating_point():  # for soft targets log_odds is a function of log_prob
        reachable = whole.target > -math.inf
        torch.testing.assert_close(
            merged.rest[reachable], whole.rest[reachable], rtol=1e-14, atol=1e-12
        )


@given(rows=split_rows())
def test_any_split_of_the_classes_merges_to_the_whole(engine_name, rows):
    z, y, edges = rows
    check_whole(z, y, edges, engine_name)


@given(rows=split_rows())
def test_any_split_of_soft_targets(engine_name, rows):
    z, _, edges = rows
    check_whole(z, soft_target(z), edges, engine_name)


@given(rows=split_rows())
def test_any_split_with_ignored_rows(engine_name, rows):
    z, y, edges = rows
    y[0] = -100
    whole = xent.statistics(z, y, engine=engine_name)
    a, *rest = shards(z, y, edges, engine=engine_name)
    for part in rest:
        a = a.merge(part)
    assert a.mass[0] == whole.mass[0] == 0
    assert a.log_prob[0] == whole.log_prob[0] == 0


@pytest.fixture(scope="module", params=["native", "reference"])
def engine_name(request):
    """Give the engine to hypothesis, which needs fixtures that outlive one example."""
    if request.param == "native" and not xent.engines.core.available():
        pytest.skip("the compiled core is not installed")
    return request.param


@pytest.mark.float64
@pytest.mark.parametrize("soft", [False, True])
def test_the_identity_changes_nothing(engine, soft):
    z = torch.randn(3, 5, dtype=torch.float64)
    y = torch.softmax(torch.randn(3, 5).double(), -1) if soft else torch.tensor([0, 4, 2])
    s = xent.statistics(z, y, engine=engine, **EVERYTHING)
    nothing = RowStatistics.identity((3,), soft=soft, **EVERYTHING)
    assert_same(s.merge(nothing), s)
    assert_same(nothing.merge(s), s)
    assert_same(nothing.merge(nothing), nothing)


@pytest.mark.parametrize("soft", [False, True])
def test_classes_that_are_masked_come_before_no_classes(soft):
    z = torch.full((1, 3), -torch.inf, dtype=torch.float64)
    y = torch.full((1, 3), 1 / 3, dtype=torch.float64) if soft else torch.tensor([8])
    s = xent.statistics(z, y, first_class=4, top=True)
    nothing = RowStatistics.identity((1,), soft=soft, top=True)
    for merged in (s.merge(nothing), nothing.merge(s)):
        assert merged.top.tolist() == [4]
        assert merged.top_logit.tolist() == [-torch.inf]


def test_the_identity_is_on_the_given_device():
    nothing = RowStatistics.identity((2,), device="meta", squares=True, cubes=True, **EVERYTHING)
    tensors = [x for x in vars(nothing).values() if isinstance(x, torch.Tensor)]
    for x in (*tensors, *nothing.on_request.values()):
        assert x.is_meta
        assert x.dtype in (torch.float64, torch.int64)
        assert x.shape == (2,)


def test_certainty_has_a_slope():
    """A log-probability rounded to 0 has infinite log-odds, and a gradient without NaN."""
    x = torch.tensor([0.0, 1e-300, -1.0, -800.0], dtype=torch.float64, requires_grad=True)
    d = logit_of_exp(x)
    (slope,) = torch.autograd.grad(d.sum(), x)
    assert d[:2].tolist() == [torch.inf] * 2
    assert slope[:2].tolist() == [0.0] * 2
    truth = [-math.log(math.e - 1), -800.0]
    torch.testing.assert_close(d[2:].tolist(), truth, rtol=1e-15, atol=0)
    torch.testing.assert_close(
        slope[2:].tolist(), [1 / (1 - math.exp(-1)), 1.0], rtol=1e-14, atol=0
    )


@pytest.mark.float64
@pytest.mark.parametrize("edges", [[0, 3, 7], [0, 1, 2, 6, 7]])
def test_what_is_asked_of_the_rest_merges_to_its_formula(engine, edges):
    """Powers of probabilities and the runner-up, compared with the softmax of all classes."""
    z = torch.randn(5, 7, dtype=torch.float64) * 2
    z[1, :3] = -math.inf  # a part with all classes masked
    y = torch.tensor([0, 6, 3, 2, 5])
    asked = {"top": True, "squares": True, "cubes": True}
    parts = [
        xent.statistics(z[:, a:b], y, first_class=a, engine=engine, **asked)
        for a, b in itertools.pairwise(edges)
    ]
    rest = torch.ones_like(z).scatter(1, y[:, None], 0)
    p = torch.softmax(z, 1) * rest
    others = z.masked_fill(rest == 0, -math.inf)
    nothing = RowStatistics.identity((5,), **asked)
    for order in (parts, parts[::-1], [nothing, *parts], [*parts, nothing]):
        merged = functools.reduce(RowStatistics.merge, order)
        torch.testing.assert_close(merged.rest_squares, (p**2).sum(1), rtol=1e-14, atol=0)
        torch.testing.assert_close(merged.rest_cubes, (p**3).sum(1), rtol=1e-14, atol=0)
        assert torch.equal(merged.rest_top_logit, others.amax(1))
        assert torch.equal(merged.rest_top, others.argmax(1))
        assert torch.equal(merged.top_logit, z.amax(1))
        assert torch.equal(merged.top, z.argmax(1))
        assert merged.classes == 7
    for name, field in (("squares", "rest_squares"), ("cubes", "rest_cubes")):
        s = xent.statistics(z, y, engine=engine, **{name: True})
        empty = RowStatistics.identity((5,), **{name: True})
        assert torch.equal(getattr(s.merge(empty), field), getattr(s, field))
        assert not getattr(empty, field).any()


@pytest.mark.float64
@pytest.mark.parametrize("soft", [False, True])
def test_a_shard_whose_classes_are_all_masked(engine, soft):
    z = torch.tensor([[-torch.inf, -torch.inf, 1.0, 2.0]], dtype=torch.float64)
    y = torch.tensor([[0.0, 0.0, 0.25, 0.75]]).double() if soft else torch.tensor([3])
    check_whole(z, y, [0, 2, 4], engine)


@pytest.mark.parametrize("soft", [False, True])
def test_a_masked_target_among_masked_classes_keeps_its_mass(engine, soft):
    z = torch.tensor([[-torch.inf, -torch.inf, 1.0, 2.0]])
    y = torch.tensor([[0.0, 0.5, 0.0, 0.5]]) if soft else torch.tensor([1])
    w = torch.tensor([2.0, 3.0, 1.0, 5.0])
    a, b = (
        xent.statistics(
            z[:, cut], y[:, cut] if soft else y, weight=w[cut], first_class=cut.start, engine=engine
        )
        for cut in (slice(0, 2), slice(2, 4))
    )
    assert a.mass.tolist() == [1.5 if soft else 3.0]
    assert a.merge(b).mass.tolist() == [4.0 if soft else 3.0]
    assert a.merge(b).nll.tolist() == [torch.inf]


@pytest.mark.parametrize("soft", [False, True])
def test_top_is_the_global_class(engine, soft):
    z = torch.tensor([[1.0, 2.0, 5.0, 5.0]])
    y = torch.full((1, 4), 0.25) if soft else torch.tensor([10])
    s = xent.statistics(z, y, first_class=10, top=True, engine=engine)
    assert s.top.tolist() == [12]


def test_top_breaks_ties_by_the_lowest_class(engine):
    z = torch.tensor([[7.0, 7.0, 7.0, 1.0, 7.0]])
    y = torch.tensor([3])
    for edges in ([0, 5], [0, 1, 5], [0, 3, 4, 5]):
        parts = shards(z, y, edges, engine=engine)
        for order in (parts, parts[::-1]):
            merged = order[0]
            for part in order[1:]:
                merged = merged.merge(part)
            assert merged.top.tolist() == [0]


@pytest.mark.float64
def test_class_weights_split_with_the_classes(engine):
    z = torch.randn(4, 6, dtype=torch.float64)
    w = torch.rand(6, dtype=torch.float64)
    for y in (torch.tensor([0, 5, 3, 2]), torch.softmax(torch.randn(4, 6).double(), -1)):
        soft = y.is_floating_point()
        whole = xent.statistics(z, y, weight=w, engine=engine, **EVERYTHING)
        left, right = (
            xent.statistics(
                z[:, cut], y[:, cut] if soft else y, weight=w[cut], first_class=cut.start,
                engine=engine, **EVERYTHING,
            )
            for cut in (slice(0, 2), slice(2, 6))
        )  # fmt: skip
        assert_same(left.merge(right), whole)


@pytest.mark.float64
@pytest.mark.parametrize("soft", [False, True])
def test_merge_is_differentiable(engine, soft):
    z = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    y = torch.softmax(torch.randn(3, 6).double(), -1) if soft else torch.tensor([0, 5, 3])

    def loss(s):
        return (
            s.lse.square() - s.log_prob * s.entropy + s.mean.tanh() + s.log_odds.sigmoid()
        ).sum()

    (whole,) = torch.autograd.grad(loss(xent.statistics(z, y, engine=engine, **EVERYTHING)), z)
    a, b, c = shards(z, y, [0, 1, 4, 6], engine=engine)
    (parts,) = torch.autograd.grad(loss(a.merge(b).merge(c)), z)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)


def test_a_target_of_no_mass_on_a_shard_has_its_slope():
    z, q = torch.randn(3, 5).double(), torch.tensor([[0.0, 0.0, 0.2, 0.3, 0.5]] * 3).double()
    q.requires_grad_()
    left = xent.statistics(z[:, :2], q[:, :2], first_class=0)
    right = xent.statistics(z[:, 2:], q[:, 2:], first_class=2)
    (slope,) = torch.autograd.grad(left.merge(right).log_prob.sum(), q)
    torch.testing.assert_close(slope, torch.log_softmax(z, 1))


@pytest.mark.float64
@pytest.mark.parametrize("margin", [20.0, 60.0, 200.0])  # beyond float32, beyond float64, far out
def test_a_sure_prediction_keeps_its_digits_when_split(engine, margin):
    z = torch.zeros(1, 4, dtype=torch.float64)
    z[0, 2] = margin
    a, b = shards(z, torch.tensor([2]), [0, 1, 4], engine=engine)
    expected = math.log1p(3 * math.exp(-margin))
    assert -a.merge(b).log_prob.item() == pytest.approx(expected, rel=1e-14)


def test_unlike_statistics_are_refused():
    z, y = torch.randn(2, 3), torch.tensor([0, 1])
    s = xent.statistics(z, y)
    with pytest.raises(ValueError, match="soft"):
        s.merge(xent.statistics(z, torch.softmax(z, -1)))
    with pytest.raises(ValueError, match="entropy"):
        s.merge(xent.statistics(z, y, entropy=True))


@pytest.mark.float64
def test_a_row_of_nothing_but_its_target_merges_with_a_gradient(engine):
    z = torch.tensor([[0.5, -torch.inf, -torch.inf, -torch.inf]], dtype=torch.float64)
    z.requires_grad_()
    y = torch.tensor([0])
    a, b = (
        xent.statistics(z[:, i:j], y, first_class=i, engine=engine) for i, j in ((0, 2), (2, 4))
    )
    (gradient,) = torch.autograd.grad(a.merge(b).nll.sum(), z)
    assert gradient.tolist() == [[0.0] * 4]


@pytest.mark.float64
@pytest.mark.parametrize("ignored", [-100, 7])
def test_an_ignored_row_stays_a_row_that_is_certain(engine, ignored):
    z, y = torch.randn(2, 6, dtype=torch.float64), torch.tensor([ignored, 1])
    options = {"ignore_index": ignored, "engine": engine, **EVERYTHING}
    whole = xent.statistics(z, y, **options)
    a, b, c = (xent.statistics(z[:, i : i + 2], y, first_class=i, **options) for i in (0, 2, 4))
    assert_same(a.merge(b).merge(c), whole)
    assert a.merge(b).merge(c).lse[0] == 0
