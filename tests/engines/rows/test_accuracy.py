"""Losses and gradients against 50 digits: 4 ulp, and half an ulp per nat for the gradient."""

import math

import mpmath
import pytest
import torch

import xent
from tests.helpers import (
    HALF,
    exact,
    exact_row,
    nats_below_top,
    spacing,
    ulps,
    value_and_grad,
    worst,
)

LOSS_ULPS = GRAD_ULPS = 4
# No wider type than float64 hides these errors: exp (1 ulp), a sum over lanes and its folding (3),
# sigmoid (2) and three products (1.5) add up.
GRAD_ULPS_FLOAT64 = 8
# The kernels for GPUs multiply by log2(e) to 24 digits: an eighth of an ulp per nat beside the half
# of the product's rounding, which their instruction for powers of two does not allow to avoid.
CONSTANT = 1.25


@pytest.fixture
def engine(every_engine):
    """Run on Triton's kernels, too."""
    return every_engine


def check(z, y, engine):
    """Assert that losses and gradients of every row are within the bounds of the contract."""
    loss, grad = value_and_grad(xent.cross_entropy, z, y, reduction="none", engine=engine)
    truth, slope = exact(z, y)
    grad_nats = nats_below_top(z) * (CONSTANT if engine == "triton" else 1)
    assert worst(loss, truth) <= LOSS_ULPS
    bound = GRAD_ULPS_FLOAT64 if z.dtype == torch.float64 else GRAD_ULPS
    assert worst(grad, slope, grad_nats) <= bound


# From hopeless (the loss is the margin) to so confident that 1 - p underflows; first in float32.
MARGINS = torch.tensor(
    [-700, -300, -100, -88, -30, -16.7, -5, -0.5, 0, 0.5, 5, 12, 16.7, 18, 25, 36.9, 60, 80, 87,
     100, 200, 300, 450, 600, 700, 720], dtype=torch.float64,
)  # fmt: skip


def at_margins(classes, dtype):
    """Return rows whose targets have these margins, and the targets."""
    z = torch.randn(len(MARGINS), classes, dtype=torch.float64) * 2
    y = torch.randint(classes, (len(MARGINS),))
    others = z.scatter(1, y[:, None], -math.inf).amax(1)
    return z.scatter(1, y[:, None], (others + MARGINS)[:, None]).to(dtype), y


@pytest.mark.sample(4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [2, 3, 10, 1000])  # one other; a few; a lane block; many
def test_every_margin(engine, dtype, classes):
    check(*at_margins(classes, dtype), engine)


@pytest.mark.parametrize("classes", [2, 10, 100])  # one other; a panel; rows
def test_every_margin_on_every_instruction_set(core, classes):
    z, y = at_margins(classes, torch.float64)
    truth, _ = exact(z, y)
    chosen = core.isa
    try:
        for isa in core.isas():
            core.set_isa(isa)
            loss = xent.cross_entropy(z, y, reduction="none", engine="native")
            assert worst(loss, truth) <= LOSS_ULPS, isa
    finally:
        core.set_isa(chosen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [2, 10])
def test_every_margin_of_a_soft_target(engine, dtype, classes):
    z, y = at_margins(classes, dtype)
    truth, _ = exact(z, y)
    sure = torch.nn.functional.one_hot(y, classes).to(dtype)
    loss = xent.cross_entropy(z, sure, reduction="none", engine=engine)
    assert worst(loss, truth) <= LOSS_ULPS


@pytest.mark.parametrize(("soft", "additions"), [(False, 64), (True, 128)])
def test_long_sums_have_the_rounding_of_their_lanes(engine, soft, additions):
    # Each addition rounds a lane by up to half a unit; signs at random leave less than a quarter.
    n, classes = (16 if engine == "triton" else 1000), 2048
    z = torch.randn(n, classes) * 3
    y = torch.randint(classes, (n,))
    others = z.scatter(1, y[:, None], -math.inf)
    z = z.scatter(1, y[:, None], others.logsumexp(1, keepdim=True) + torch.rand(n, 1) * 30 - 5)
    odds = others.double().logsumexp(1) - z.gather(1, y[:, None])[:, 0].double()
    target = torch.nn.functional.one_hot(y, classes).float() if soft else y
    loss = xent.cross_entropy(z, target, reduction="none", engine=engine)
    assert worst(loss, torch.log1p(torch.exp(odds))) <= LOSS_ULPS + additions / 8


@pytest.mark.float64
def test_probabilities_at_every_margin(engine):
    # Exponentials of the log-odds after two roundings, half a unit per nat each.
    z, y = at_margins(10, torch.float64)
    s = xent.statistics(z, y, engine=engine)
    _, slope = exact(z, y)
    miss = -slope.gather(1, y[:, None])[:, 0]
    others = z.scatter(1, y[:, None], -math.inf)
    odds = [mpmath.exp(log_sum_exp(row) - z[n, y[n]].item()) for n, row in enumerate(others)]
    prob = torch.tensor([float(1 / (1 + v)) for v in odds], dtype=torch.float64)
    assert worst(s.miss, miss, -2 * torch.log(miss)) <= LOSS_ULPS
    assert worst(s.prob, prob, -2 * torch.log(prob)) <= LOSS_ULPS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("margin", [1.0, 2000.0])  # e^-2000 is 0, and 0 * NaN is NaN
def test_no_margin_hides_nan(engine, dtype, margin):
    z = torch.tensor([[margin, 0.0, math.nan]], dtype=dtype)
    loss, grad = value_and_grad(xent.cross_entropy, z, torch.tensor([0]), engine=engine)
    assert bool(loss.isnan())
    assert bool(grad.isnan().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4, 1e6])  # none; where a lone fp32 lse loses all
def test_an_offset_of_the_logits_loses_nothing(engine, dtype, offset):
    z = (torch.randn(12, 6, dtype=torch.float64) * 8).mul(4).round() / 4 + offset
    assert torch.equal(z.to(dtype).double(), z)  # the logits are exact in this type
    check(z.to(dtype), torch.randint(6, (12,)), engine)


@pytest.mark.parametrize("classes", [3, 20, 100, 3000])  # panels, several rows a block, blocks
def test_logits_beyond_the_reach_of_their_exponents(engine, classes):
    # Some 2^20 and more, where e^z can no longer be taken as a power of two of z log2(e), beside
    # ordinary rows; multiples of 1/8 or of a float32's step there.
    heights = [0, 1.0e6, 1.04e6, 1.05e6, -1.05e6, 3e6, 1e9, -1e20]
    z = (torch.randn(len(heights), classes) * 8).mul(8).round() / 8 + torch.tensor(heights)[:, None]
    check(z, torch.randint(classes, (len(heights),)), engine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_width(engine, dtype):
    few = 7 if engine == "triton" else 1  # the interpreter is slow, and tiles are powers of two
    for classes in [*range(1, 70, few), 127, 129, 2047, 2048, 2049, 4100]:
        z = (torch.randn(5, classes) * 3).to(dtype)
        y = torch.randint(classes, (5,))
        loss, grad = value_and_grad(xent.cross_entropy, z, y, reduction="none", engine=engine)
        slope = torch.softmax(z.double(), 1)
        truth = -torch.log_softmax(z.double(), 1).gather(1, y[:, None])[:, 0]
        slope -= torch.nn.functional.one_hot(y, classes)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(loss.double(), truth, rtol=8 * eps, atol=8 * eps)
        torch.testing.assert_close(grad.double(), slope, rtol=32 * eps, atol=4 * eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("spread", [1.0, 10.0, 40.0])  # flat; peaked; entries down to subnormals
def test_random_rows(engine, dtype, spread):
    check((torch.randn(30, 33) * spread).to(dtype), torch.randint(33, (30,)), engine)


@pytest.mark.sample(2)
@pytest.mark.parametrize("classes", [32000, 128256])  # vocabularies of Llama 2 and 3
def test_vocabularies(engine, classes):
    z = torch.randn(8, classes) * 3
    y = torch.randint(classes, (8,))
    z[torch.arange(4), y[:4]] += 25  # half of the rows are sure
    loss, grad = value_and_grad(xent.cross_entropy, z, y, reduction="none", engine=engine)
    wide = z.double()
    others = torch.logsumexp(wide.scatter(1, y[:, None], -math.inf), 1)
    d = wide.gather(1, y[:, None])[:, 0] - others
    slope = torch.softmax(wide, 1).scatter(1, y[:, None], -torch.sigmoid(-d)[:, None])
    assert worst(loss, torch.log1p(torch.exp(-d))) <= LOSS_ULPS
    assert worst(grad, slope, nats_below_top(z)) <= GRAD_ULPS


def test_the_textbook_row(engine):
    z = torch.tensor([[10.0, -10.0, -10.0]])
    loss = xent.cross_entropy(z, torch.tensor([0]), engine=engine)
    assert loss.item() == pytest.approx(4.122307236380e-09, rel=1e-7)


@pytest.mark.float64
@pytest.mark.parametrize(
    ("logits", "label", "expected"),
    [
        # -ln p for rows whose softmax is known: p = .012, .63
        ([math.log(0.012), math.log(0.988)], 0, 4.422848629194137),
        ([math.log(0.63), math.log(0.37)], 0, 0.46203545959655873),
        # a fair coin; a fair die of 128256 faces needs no data: log of the number of classes
        ([0.0, 0.0], 1, math.log(2)),
        ([5.0] * 1000, 7, math.log(1000)),
    ],
)
def test_golden_numbers(engine, logits, label, expected):
    z = torch.tensor([logits], dtype=torch.float64)
    loss = xent.cross_entropy(z, torch.tensor([label]), engine=engine).item()
    assert loss == pytest.approx(expected, rel=4e-15)


@pytest.mark.float64
@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        # StackOverflow 47377222: -sum t log p over rows, mean over N = 2 (not N * k). A fifth
        # class makes the second row sum to 1.
        (
            [[0.25] * 4 + [0], [0.01, 0.01, 0.01, 0.96, 0.01]],
            [[0, 0, 0, 1.0, 0]] * 2,
            0.7135581778200729,
        ),
        # logits log p: sum -q log p by hand
        (
            [[0.5, 0.3, 0.2]],
            [[0.2, 0.3, 0.5]],
            -0.2 * math.log(0.5) - 0.3 * math.log(0.3) - 0.5 * math.log(0.2),
        ),
    ],
)
def test_golden_numbers_of_soft_targets(engine, p, q, expected):
    z, q = torch.tensor(p, dtype=torch.float64).log(), torch.tensor(q, dtype=torch.float64)
    assert xent.cross_entropy(z, q, engine=engine).item() == pytest.approx(expected, rel=4e-15)


@pytest.mark.float64
def test_optax_doctest(engine):
    z = torch.tensor([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]], dtype=torch.float64)
    a = xent.cross_entropy(z, torch.tensor([0, 1]), reduction="none", engine=engine)
    assert a.tolist() == pytest.approx([0.2761297, 2.951799], abs=5e-7)  # 7 digits printed


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_gradients_are_rounded_once(engine, dtype):
    z = (torch.randn(20, 50) * 6).to(dtype)
    y = torch.randint(50, (20,))
    for row in range(10):  # sure rows: the target's gradient is below the type's epsilon
        z[row, y[row]] = z[row].max() + 9
    loss, grad = value_and_grad(xent.cross_entropy, z, y, reduction="none", engine=engine)
    truth, slope = exact(z, y)
    # Half an ulp is correct rounding; float32 arithmetic on the way moves ties by 2^-13 of an ulp.
    nats = nats_below_top(z)
    assert worst(loss, truth) <= 0.501
    assert bool((ulps(grad, slope) <= 0.5 + (4 + nats / 2) * 2**-13).all())
    representable = slope.abs() > torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    assert bool((grad[representable] != 0).all())


def test_subnormal_gradients(engine):
    z = torch.zeros(1, 4)
    z[0, 1:] = torch.tensor([-90.0, -100.0, -103.0])  # e^-103 is the last subnormal but one
    _, grad = value_and_grad(xent.cross_entropy, z, torch.tensor([0]), engine=engine)
    _, slope = exact(z, torch.tensor([0]))
    assert bool((grad != 0).all())
    assert bool(((grad.double() - slope).abs() <= spacing(slope, torch.float32)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("smoothing", [0.01, 0.1, 1.0])  # a little; usual; the uniform target
def test_label_smoothing(engine, dtype, smoothing):
    z = (torch.randn(10, 12) * 4).to(dtype)
    y = torch.randint(12, (10,))
    z[0, y[0]] += 40
    options = {"label_smoothing": smoothing, "reduction": "none", "engine": engine}
    loss, grad = value_and_grad(xent.cross_entropy, z, y, **options)
    for n in range(10):
        eps = mpmath.mpf(smoothing)
        q = [(1 - eps) * int(j == y[n]) + eps / 12 for j in range(12)]
        truth, slope = exact_row(z[n], q)
        truth = torch.tensor(float(truth), dtype=torch.float64)
        assert ulps(loss[n], truth) <= LOSS_ULPS
        # p_j - q_j cancels: an entry is known to some ulps of its terms
        terms = torch.softmax(z[n].double(), 0) * (4 + nats_below_top(z[n]) / 2)
        terms = terms + 4 * torch.tensor([float(v) for v in q], dtype=torch.float64)
        slope = torch.tensor([float(g) for g in slope], dtype=torch.float64)
        error = (grad[n].double() - slope).abs()
        assert bool((error <= torch.finfo(dtype).eps * terms + spacing(slope, dtype)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_soft_targets(engine, dtype):
    z = (torch.randn(10, 12) * 5).to(dtype)
    q = torch.softmax(torch.randn(10, 12) * 2, 1).to(dtype)
    loss = xent.cross_entropy(z, q, reduction="none", engine=engine)
    truth = [
        float(exact_row(a, [mpmath.mpf(v) for v in b.double().tolist()])[0])
        for a, b in zip(z, q, strict=True)
    ]
    assert worst(loss, torch.tensor(truth, dtype=torch.float64)) <= LOSS_ULPS


# Rows side by side in memory, and short rows: some of a strip of 32, more than one strip, several
# blocks of classes.
@pytest.mark.sample(5)
@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 70, 40), (1, 130, 7), (40, 16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=str)
def test_soft_targets_in_every_layout(engine, dtype, shape):
    z = (torch.randn(shape) * 3).to(dtype)
    z[0, 0] = -torch.inf
    q = torch.softmax(torch.randn(shape) * 2, 1)
    q[0, 0], q[1:, 1] = 0, 0
    q, weight = q.to(dtype), (torch.rand(shape[1]) + 0.5).to(dtype)
    wide = z.double().requires_grad_()
    mass = q.double() * weight.double().view(-1, *(1 for _ in shape[2:]))
    terms = mass * torch.log_softmax(wide, 1).masked_fill(z == -torch.inf, 0)
    truth = -terms.sum(1)
    (slope,) = torch.autograd.grad(truth.sum(), wide)
    eps = torch.finfo(dtype).eps
    for logits in (z, z.movedim(1, -1).contiguous().movedim(-1, 1)):
        for target in (q, q.movedim(1, -1).contiguous().movedim(-1, 1)):
            loss, grad = value_and_grad(
                xent.cross_entropy, logits, target, weight, reduction="none", engine=engine
            )
            torch.testing.assert_close(loss.double(), truth.detach(), rtol=LOSS_ULPS * eps, atol=0)
            # p - q: each of the two is below 2, and has its own rounding
            torch.testing.assert_close(grad.double(), slope, rtol=eps, atol=2 * GRAD_ULPS * eps)


def log_sum_exp(row):
    return mpmath.log(mpmath.fsum(mpmath.exp(mpmath.mpf(v)) for v in row.double().tolist()))


def entropy_of(row):
    values = [mpmath.mpf(v) for v in row.double().tolist()]
    lse = log_sum_exp(row)
    return float(mpmath.fsum(mpmath.exp(v - lse) * (lse - v) for v in values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_entropy(engine, dtype):
    z = (torch.randn(12, 20) * 4).to(dtype)
    z[0] = 0  # log V
    z[1, 5] = z[1, 6] = 90  # two classes: log 2
    y = torch.randint(20, (12,))
    s = xent.statistics(z, y, entropy=True, engine=engine)
    truth = torch.tensor([entropy_of(row) for row in z], dtype=torch.float64)
    # The rows are swept in the logits' type: an error of the type, half an ulp per nat as for exp.
    error = (s.entropy - truth).abs() / truth / torch.finfo(dtype).eps
    assert bool((error <= 4 + nats_below_top(z).amax(1) / 2).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("target", ["sure", "other", "soft"])  # right; wrong; neither
@pytest.mark.parametrize("margin", [10.0, 20.0, 60.0])  # usual; beyond fp32; beyond fp64
def test_entropy_of_a_sure_row(engine, dtype, target, margin):
    z = torch.randn(3, 20).to(dtype)
    z[:, 3] = z.amax(1) + margin
    y = torch.full((3,), 3 if target == "sure" else 0)
    y = torch.full((3, 20), 0.05, dtype=dtype) if target == "soft" else y
    s = xent.statistics(z, y, entropy=True, engine=engine)
    truth = torch.tensor([entropy_of(row) for row in z], dtype=torch.float64)
    error = (s.entropy - truth).abs() / truth / torch.finfo(dtype).eps
    assert bool((error <= 4 + nats_below_top(z).amax(1) / 2).all())


@pytest.mark.float64
def test_statistics_of_a_sure_row(engine):
    z = torch.tensor([[30.0, 0.0, 0.0]], dtype=torch.float64)
    s = xent.statistics(z, torch.tensor([0]), engine=engine)
    assert s.log_odds.item() == pytest.approx(30 - math.log(2), rel=1e-15)
    assert s.log_prob.item() == pytest.approx(-math.log1p(2 * math.exp(-30)), rel=1e-15)
    assert s.rest.item() == pytest.approx(math.log(2), rel=2e-14)
    assert s.lse.item() == pytest.approx(30, rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_log_softmax(dtype):
    for margin in (0.0, 3.0, 17.0, 30.0, 80.0):  # flat; usual; fp32's limit; beyond; deep
        z = torch.randn(4, 9, dtype=torch.float64).to(dtype)
        z[:, 2] = z.amax(1) + margin
        truth = torch.stack([-exact(z, torch.full((4,), j))[0] for j in range(9)], 1)
        nats = -torch.log(-truth).clamp(max=0)  # of a sure class: -exp(-nats)
        assert worst(xent.log_softmax(z), truth, nats) <= 4
        assert worst(xent.log_softmax(z.T.contiguous(), 0).T, truth, nats) <= 4


def test_softmax_jacobian():
    for margin in (0.0, 3.0, 20.0, 60.0):
        z = torch.randn(5, dtype=torch.float64).float()
        z[3] = z.max() + margin
        p = [mpmath.exp(v) for v in z.double().tolist()]
        total = mpmath.fsum(p)
        p = [v / total for v in p]
        rest = [mpmath.fsum(v for k, v in enumerate(p) if k != j) for j in range(5)]
        truth = [
            [float(p[i] * rest[i] if i == j else -p[i] * p[j]) for j in range(5)] for i in range(5)
        ]
        # two factors, each with the conditioning of its exp
        below = nats_below_top(z)
        nats = below[:, None] + below[None] + margin * torch.eye(5)
        assert worst(xent.softmax_jacobian(z), torch.tensor(truth).double(), nats) <= 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_gradient_of_a_sure_log_softmax(dtype):
    for margin in (5.0, 20.0, 40.0, 80.0):
        z = torch.tensor([margin, 0.0, 0.0], dtype=dtype, requires_grad=True)
        (grad,) = torch.autograd.grad(xent.log_softmax(z)[0], z)
        rest = 2 * mpmath.exp(-margin)
        truth = [rest / (1 + rest), -rest / 2 / (1 + rest), -rest / 2 / (1 + rest)]
        truth = torch.tensor([float(t) for t in truth], dtype=torch.float64)
        assert worst(grad, truth, margin) <= 4
