"""Statistics that a loss may request: values, gradients and edge cases, on both engines."""

import math

import mpmath
import pytest
import torch

import xent
from tests.helpers import nats_below_top, same_bits, ulps, value_and_grad, widest, worst
from tests.registry import REQUESTING, Loss

every_loss = pytest.mark.parametrize("loss", REQUESTING, ids=lambda loss: loss.name)
REQUESTS = {"entropy": True, "mean": True, "top": True, "squares": True, "cubes": True}
EACH = [{name: True} for name in REQUESTS] + [REQUESTS]


@pytest.fixture
def engine(every_engine):
    """Run on Triton's kernels, too."""
    return every_engine


def both(loss, z, y, **options):
    return value_and_grad(loss, z, y, reduction="none", **options)


@pytest.mark.sample(30)
@every_loss
@pytest.mark.parametrize("v", [2, 9, 50, 3000])  # one other; a panel; several rows a block; blocks
def test_value_and_gradient_are_those_of_the_formula(loss: Loss, engine, v):
    if loss.name == "target_table" and v > 50:
        pytest.skip("a table of nine million entries")
    z, y = torch.randn(20, v, dtype=widest(engine)) * 2, torch.randint(v, (20,))
    value, grad = both(loss, z, y, engine=engine)
    leaf = z.double().requires_grad_()
    truth = loss.truth(leaf, y)
    (slope,) = torch.autograd.grad(truth.sum(), leaf)
    if engine == "triton":  # float32: some roundings of terms of a few units; slopes per nat
        torch.testing.assert_close(value.double(), truth.detach(), rtol=2e-6, atol=1e-6)
        torch.testing.assert_close(grad.double(), slope, rtol=4e-6, atol=1e-6)
        return
    torch.testing.assert_close(value, truth.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(grad, slope, rtol=1e-12, atol=1e-14)


@pytest.mark.sample(8)
@pytest.mark.float64
@every_loss
def test_derivatives(loss: Loss, engine):
    z, y = torch.randn(3, 4, dtype=torch.float64), torch.tensor([1, -100, 3])
    call = lambda x: loss(x, y, engine=engine)  # noqa: E731
    assert torch.autograd.gradcheck(call, z.requires_grad_())
    assert torch.autograd.gradgradcheck(call, z)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("v", [9, 100, 3000])
def test_engines_agree(loss: Loss, core, dtype, v):
    if loss.name == "target_table" and v > 100:
        pytest.skip("a table of nine million entries")
    z, y = (torch.randn(24, v) * 3).to(dtype), torch.randint(v, (24,))
    y[2] = -100
    z[3, y[3]] = z[3].max() + 9  # sure and right
    z[4, (y[4] + 1) % v] = z[4].max() + 9  # sure and wrong
    if loss.name != "target_table":  # its table needs every class
        z[5] = z[5].masked_fill((torch.arange(v) % 3 == 0) & (torch.arange(v) != y[5]), -math.inf)
    (a, da), (b, db) = (both(loss, z, y, engine=e) for e in ("native", "reference"))
    eps = torch.finfo(dtype).eps
    # The subtracted terms are as large as the logits, not as the loss.
    size = z.float().nan_to_num(neginf=0).abs().amax(1) * torch.finfo(torch.float32).eps
    assert bool(((a - b).abs() <= 4 * eps * b.abs() + 8 * size).all())
    # Multiples of the probabilities cancel, each with the conditioning of its exp, and are of the
    # size of the loss where it multiplies what was asked for.
    factor = 2 * (1 + b.double().abs()).unsqueeze(1)
    terms = db.double().abs() + factor * torch.softmax(z.double(), 1) + 4 / v
    error = (da.double() - db.double()).abs()
    assert bool((error <= (nats_below_top(z).nan_to_num(posinf=0) + 8) * eps * terms).all())


@pytest.mark.sample(12)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("margin", [-80.0, -16.0, 0.0, 16.0, 40.0])
@pytest.mark.parametrize("classes", [3, 40, 2500])  # a panel; several rows a block; blocks
def test_power_sums_keep_their_digits(engine, dtype, margin, classes):
    z = torch.randn(4, classes).to(dtype)
    y = torch.randint(classes, (4,))
    others = z.scatter(1, y[:, None], -math.inf).amax(1)
    z = z.scatter(1, y[:, None], (others + margin)[:, None])
    s = xent.statistics(z, y, squares=True, cubes=True, engine=engine)
    for row in range(4):
        e = [mpmath.exp(mpmath.mpf(v)) for v in z[row].double().tolist()]
        total = mpmath.fsum(e)
        rest = [v / total for j, v in enumerate(e) if j != y[row]]
        for power, found in ((2, s.rest_squares[row]), (3, s.rest_cubes[row])):
            truth = float(mpmath.fsum(v**power for v in rest))
            nats = power * nats_below_top(z[row]).max().item()
            bound = (8 + nats / 2) * torch.finfo(dtype).eps
            assert abs(found.item() - truth) <= bound * truth + 1e-300


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e4, -3e6])  # 2^20 and more is swept another way
@pytest.mark.parametrize("classes", [3, 40, 2500])
def test_the_mean_is_that_of_the_unmasked_classes(engine, dtype, offset, classes):
    z = (torch.randn(6, classes) * 8).mul(4).round().div(4).to(dtype) + offset
    z[1, 0], z[2, 1:], z[3, 1:] = -math.inf, -math.inf, -1e30
    y = torch.tensor([0, 1, 0, 2, 1, 2])
    s = xent.statistics(z, y, mean=True, engine=engine)
    wide = z.double()
    seen = wide > -math.inf
    truth = torch.where(seen, wide, 0).sum(1) / seen.sum(1)
    assert torch.equal(s.support, seen.sum(1).double())
    size = torch.where(seen, wide - wide.amax(1, keepdim=True), 0).abs().amax(1)
    # A lane adds up 128 numbers, here of one size and often equal, which rounds some way or other.
    bound = 16 * torch.finfo(dtype).eps * size + 4e-16 * truth.abs()
    assert bool(((s.mean - truth).abs() <= bound).all())


@pytest.mark.parametrize("asked", EACH, ids=lambda asked: "+".join(asked))
@pytest.mark.parametrize("classes", [9, 100, 5000])
def test_ties_and_masks(engine, asked, classes):
    z = torch.zeros(4, classes, dtype=widest(engine))
    z[1, 2:] = -math.inf
    z[2, 1:] = -math.inf  # the only class allowed
    y = torch.tensor([0, 1, 0, classes - 1])
    s = xent.statistics(z, y, engine=engine, **asked)
    count = torch.tensor([classes, 2, 1, classes], dtype=torch.float64)
    p = 1 / count
    expected = {
        "entropy": count.log(),
        "mean": torch.zeros(4),
        "support": count,
        "top": torch.zeros(4),
        "rest_top": torch.tensor([1.0, 0, 0, 0]),
        "rest_squares": (count - 1) * p**2,
        "rest_cubes": (count - 1) * p**3,
    }
    for name, value in expected.items():
        if name in s.on_request:
            torch.testing.assert_close(getattr(s, name).double(), value.double(), msg=name)


@pytest.mark.sample(12)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("place", [0, 2100, 4999])  # the first, a middle and the last block
@pytest.mark.parametrize("margin", [20.0, 60.0, 80.0])
def test_entropy_of_a_sure_and_wrong_row_over_several_blocks(engine, dtype, place, margin):
    z = torch.randn(2, 5000).to(dtype)
    z[:, place] = z.amax(1) + margin
    s = xent.statistics(z, torch.tensor([7, 4000]), entropy=True, mean=True, engine=engine)
    for row in range(2):
        values = [mpmath.mpf(v) for v in z[row].double().tolist()]
        top = max(values)
        others = [(mpmath.exp(v - top), v) for j, v in enumerate(values) if j != place]
        small = mpmath.fsum(e for e, _ in others)
        lse = top + mpmath.log1p(small)
        total = lse - top + mpmath.fsum(e * (lse - v) for e, v in others)
        truth = float(total / (1 + small))
        bound = (4 + nats_below_top(z[row]).max().item() / 2) * torch.finfo(dtype).eps
        assert abs(s.entropy[row].item() - truth) <= bound * truth


@pytest.mark.sample(24)
@pytest.mark.parametrize("asked", EACH, ids=lambda asked: "+".join(asked))
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("classes", [5, 100, 5000])
def test_a_bad_row_poisons_only_itself(engine, asked, bad, classes):
    z = torch.randn(3, classes)
    y = torch.tensor([1, 0, 3])
    clean = xent.statistics(z, y, engine=engine, **asked)
    z[1, classes - 1] = bad
    s = xent.statistics(z, y, engine=engine, **asked)
    keep = torch.tensor([0, 2])
    assert s.log_prob[1].isnan()
    for name, value in clean.on_request.items():
        assert same_bits(getattr(s, name)[keep], value[keep]), name


def test_an_ignored_row_has_nothing_to_add(engine):
    z, y = torch.randn(3, 5), torch.tensor([1, -100, 3])
    z[1] = math.nan
    s = xent.statistics(z, y, engine=engine, **REQUESTS)
    for name in ("entropy", "mean", "mean_mass", "rest_squares", "rest_cubes"):
        assert getattr(s, name)[1] == 0, name
    assert s.support[1] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_of_the_runner_up(engine, dtype):
    z = (torch.randn(20, 60) * 3).to(dtype)
    y = torch.randint(60, (20,))
    x = z.clone().requires_grad_()
    s = xent.statistics(x, y, top=True, engine=engine)
    (grad,) = torch.autograd.grad((s.rest_top_logit - 0.25 * s.log_prob).sum(), x)
    slope = torch.softmax(z.double(), 1)
    slope.scatter_add_(1, y[:, None], torch.full((20, 1), -1.0).double())
    slope *= 0.25
    slope.scatter_add_(1, s.rest_top[:, None], torch.ones(20, 1).double())
    at_top = slope.gather(1, s.rest_top[:, None])
    # p - 1 at the target loses digits in this oracle, not at the runner-up
    assert bool((ulps(grad.gather(1, s.rest_top[:, None]), at_top) <= 1).all())
    rest = torch.ones_like(slope, dtype=torch.bool).scatter(1, y[:, None], False)
    assert worst(grad[rest], slope[rest], nats_below_top(z)[rest]) <= 4


def test_scales_of_the_classes_keep_masks(engine):
    z = torch.tensor([[1.0, -math.inf, 2.0, 0.5]], dtype=widest(engine))
    scale = torch.tensor([0.5, 1.0, 2.0, 1.5], dtype=torch.float64)
    for cap in (None, 3.0):
        s = xent.statistics(z, torch.tensor([2]), class_scale=scale, softcap=cap, engine=engine)
        seen = z[:, [0, 2, 3]].double()
        seen = seen if cap is None else cap * torch.tanh(seen / cap)
        expected = torch.logsumexp(seen * scale[[0, 2, 3]], 1)
        rtol = 1e-14 if z.dtype == torch.float64 else 4e-7
        torch.testing.assert_close(s.lse, expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])  # would unmask -inf, or turn it round
def test_scales_of_the_classes_are_positive(bad):
    scale = torch.tensor([1.0, bad, 1.0])
    with pytest.raises(ValueError, match=r"`class_scale` must be positive"):
        xent.statistics(torch.randn(2, 3), torch.tensor([0, 1]), class_scale=scale)


@pytest.mark.parametrize("table_dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [3, 200])  # fewer rows than lines, and more
def test_a_table_is_the_target_it_looks_up(engine, table_dtype, n):
    v = 70
    table = torch.randn(v, v).to(table_dtype)  # of any sum and sign
    z, y = torch.randn(n, v, 2), torch.randint(v, (n, 2))
    y[1] = -100
    weight = torch.rand(v)

    @xent.row_loss(needs="entropy", own={"target_table": lambda: table.t()})
    def loss(s):
        return -s.log_prob - 0.1 * s.entropy

    @xent.row_loss(needs="entropy")
    def dense(s):
        return -s.log_prob - 0.1 * s.entropy

    value, grad = both(loss, z, y, weight=weight, engine=engine)
    q = table.t()[y.clamp(min=0)].movedim(-1, 1).double()
    of_table = {"weight": weight, "engine": "reference", "class_dim": 1}
    expected, slope = both(dense, z.double(), q, **of_table)
    ignored = (y == -100)[:, None].expand_as(z)
    assert not value[1].any()
    assert not grad[1].any()
    scale = q.abs().sum(1).amax() * 1e-6
    assert (value - expected)[~(y == -100)].abs().max() <= scale * 10
    assert (grad - slope)[~ignored].abs().max() <= scale * 10


def test_requests_are_swept_natively(core):
    z, y = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    for loss in REQUESTING:
        loss(z, y, engine="native")  # raises where it cannot


@every_loss
@pytest.mark.parametrize("v", [4, 30, 2500])  # panels, several rows a block, blocks
@pytest.mark.parametrize("slope", [1.0, -1.0, 2e-36])  # of the loss; the last: subnormal gradients
def test_any_neighbours(loss: Loss, core, v, slope):
    # A difficult row of a strip (masked, ignored, underflowing) must not change other rows.
    if loss.name == "target_table" and v > 30:
        pytest.skip("a table of six million entries")
    z, y = torch.randn(32, v), torch.randint(1, v, (32,))
    weight = torch.full((32,), slope)
    alone = value_and_grad(loss, z, y, reduction="none", row_weight=weight, engine="native")
    y[11] = -100
    z[17] *= 60
    if loss.name != "target_table":
        z[13, 0] = -math.inf
    beside = value_and_grad(loss, z, y, reduction="none", row_weight=weight, engine="native")
    kept = torch.ones(32, dtype=torch.bool)
    kept[[11, 13, 17]] = False
    assert all(same_bits(a[kept], b[kept]) for a, b in zip(alone, beside, strict=True))


NOT_NUMBERS = [[5, math.nan, 3], [1, math.nan, math.nan], [math.inf, 0, 3]]


@pytest.mark.parametrize("row", NOT_NUMBERS, ids=str)
def test_what_is_not_a_number_is_not_passed_over(engine, row):
    z, y = torch.tensor([row, [1.0, 2.0, 3.0]]), torch.tensor([0, 0])
    s = xent.statistics(z, y, engine=engine, **REQUESTS)
    for name in ("log_prob", "top_logit", "rest_squares", "rest_cubes", "entropy"):
        assert getattr(s, name).isnan().tolist() == [True, False], name
    value, grad = value_and_grad(
        xent.losses.crammer_singer_loss, z, y, reduction="none", engine=engine
    )
    assert value.isnan().tolist() == [True, False]
    assert bool(grad[1].isfinite().all())


def test_a_masked_class_takes_no_part_in_the_mean(engine):
    z = torch.tensor([[-math.inf, 0.0, 3.0, 1.0]], requires_grad=True)
    s = xent.statistics(z, torch.tensor([0]), mean=True, engine=engine)
    (grad,) = torch.autograd.grad(s.mean.sum(), z)
    torch.testing.assert_close(grad, torch.tensor([[0, 1, 1, 1]]) / 3)


def test_a_masked_shard_adds_nothing_to_the_gradient(engine):
    z = torch.cat([torch.randn(2, 4), torch.full((2, 4), -math.inf)], 1).requires_grad_()
    y = torch.tensor([0, 3])
    a, b = (
        xent.statistics(part, y, mean=True, first_class=4 * k, engine=engine)
        for k, part in enumerate(z.split(4, 1))
    )
    merged = a.merge(b)
    (grad,) = torch.autograd.grad((merged.mean - merged.log_prob).sum(), z)
    assert bool(grad.isfinite().all())
    assert not bool(grad[:, 4:].any())


def test_certain_soft_targets(engine):
    z = torch.randn(1, 3, requires_grad=True)  # a target without mass
    s = xent.statistics(z, torch.zeros(1, 3), engine=engine)
    (grad,) = torch.autograd.grad((s.log_odds.clamp(max=9) - s.log_miss.clamp(min=-9)).sum(), z)
    assert s.log_odds.item() == math.inf
    assert not bool(grad.any())
    z = torch.tensor([[0.0, 730.0]], dtype=widest(engine))
    s = xent.statistics(z, torch.tensor([[0.0, 1.0]]).to(z), engine=engine)
    # The miss is subnormal, with 21 bits left.
    assert s.log_odds.item() == pytest.approx(730, abs=2.0**-20)


def test_a_table_of_another_size():
    loss = xent.row_loss(own={"target_table": lambda: torch.eye(3)})(lambda s: -s.log_prob)
    with pytest.raises(ValueError, match="row for each class"):
        loss(torch.randn(2, 6), torch.tensor([0, 1]))


# ---- what statistics know beside numbers ------------------------------------------------------


def test_numbers_of_the_target_class(engine):
    z, y = torch.randn(4, 3), torch.tensor([0, 2, -1, 1])
    s = xent.statistics(z, y, ignore_index=-1, engine=engine)
    values = torch.tensor([5.0, 7.0, 11.0], requires_grad=True)
    found = s.of_label(values)
    assert found.dtype == s.mass.dtype
    assert found.tolist() == [5.0, 11.0, 0.0, 7.0]
    assert torch.autograd.grad(found.sum(), values)[0].tolist() == [1.0, 1.0, 1.0]
    assert s.of_label(values[:2]).tolist() == [5.0, 0.0, 0.0, 7.0]  # a class that has no number
    assert s.of_label(values[:1]).tolist() == [5.0, 0.0, 0.0, 0.0]
    soft = xent.statistics(z, torch.softmax(z, 1), engine=engine)
    with pytest.raises(ValueError, match="soft targets have no single class"):
        soft.of_label(values)


@pytest.mark.parametrize("soft", [False, True])
def test_what_is_constant_has_no_gradient(engine, soft):
    z = torch.randn(4, 3, requires_grad=True)
    y = torch.softmax(torch.randn(4, 3), 1) if soft else torch.tensor([0, 2, 1, 1])
    s = xent.statistics(z, y, weight=torch.rand(3), mean=True, top=True, engine=engine)
    assert not any(x.requires_grad for x in (s.mass, s.mean_mass, s.support))
    assert s.top_logit.requires_grad is not soft
    assert s.top.dtype == torch.int64
    assert s.classes == 3
    assert s.soft is soft
    if not soft:
        assert s.rest_top.dtype == torch.int64
        assert torch.equal(s.label, y)


def test_statistics_take_the_shape_of_the_rows():
    s = xent.statistics(torch.randn(6, 3), torch.arange(6) % 3, **REQUESTS).reshape((2, 3))
    own = [x for x in vars(s).values() if isinstance(x, torch.Tensor)]
    assert len(own) == 6  # with the label
    assert all(x.shape == (2, 3) for x in (*own, *s.on_request.values()))
