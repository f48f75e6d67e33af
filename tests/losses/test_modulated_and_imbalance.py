"""Facts beyond the laws: accuracy at every margin, limits of hyperparameters, known numbers."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from mpmath import mpf

import xent
from tests.helpers import HALF, ulps, value_and_grad, worst
from tests.registry import ANGULAR, REGISTRY

# Limits for float32. Those for float64 are wider: e^-80 has the rounding errors of 80 nats.
LOSS_ULPS = 4
GRAD_ULPS = 8  # partial derivative and probability are rounded once more each
WIDE = 1e-13


# ---- functions of the log-odds, against 50 digits -----------------------------------------------

LOG_ODDS = {  # loss of (p, q = 1 - p), hyperparameters
    "focal": (xent.losses.focal_loss, {}, lambda p, q: -(q**2) * mpmath.log(p)),
    "focal below 1": (
        xent.losses.focal_loss, {"gamma": 0.5}, lambda p, q: -mpmath.sqrt(q) * mpmath.log(p)
    ),
    "poly1": (xent.losses.poly1_loss, {}, lambda p, q: -mpmath.log(p) + 2 * q),
    "taylor": (xent.losses.taylor_cross_entropy, {}, lambda p, q: q + q**2 / 2),
    "complementary": (xent.losses.complementary_loss, {}, lambda p, q: -mpmath.log(q)),
}  # fmt: skip


@pytest.mark.parametrize("name", LOG_ODDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_digit_at_every_margin(name, dtype, engine):
    loss, options, formula = LOG_ODDS[name]
    margins = torch.arange(-80, 80.5, 0.5, dtype=dtype)
    z = torch.stack([margins, torch.zeros_like(margins)], 1)
    y = torch.zeros(len(z), dtype=torch.int64)
    value, grad = value_and_grad(loss, z, y, reduction="none", engine=engine, **options)

    def exact(d):
        return formula(1 / (1 + mpmath.exp(-d)), 1 / (1 + mpmath.exp(d)))

    with mpmath.workdps(120):
        truth = [exact(mpf(d)) for d in margins.tolist()]
        slope = [mpmath.diff(exact, mpf(d), h=mpf(10) ** -40) for d in margins.tolist()]
    truth = torch.tensor([float(t) for t in truth], dtype=torch.float64)
    slope = torch.tensor([float(t) for t in slope], dtype=torch.float64)
    if dtype == torch.float64:
        torch.testing.assert_close(value, truth, rtol=WIDE, atol=0)
        torch.testing.assert_close(grad, torch.stack([slope, -slope], 1), rtol=WIDE, atol=0)
        return
    assert worst(value, truth) <= LOSS_ULPS
    nats = margins.abs().double()
    assert worst(grad[:, 0], slope, nats) <= GRAD_ULPS
    assert worst(grad[:, 1], -slope, nats) <= GRAD_ULPS


def test_the_brier_score_of_two_classes(engine):
    # 2 (1 - p)^2; entries of the gradient are differences of probabilities
    d = torch.arange(-80, 80.5, 0.5)
    z = torch.stack([d, torch.zeros_like(d)], 1)
    y = torch.zeros(len(z), dtype=torch.int64)
    value, grad = value_and_grad(xent.losses.brier_loss, z, y, reduction="none", engine=engine)
    p, q = torch.sigmoid(d.double()), torch.sigmoid(-d.double())
    assert worst(value, 2 * q**2) <= LOSS_ULPS
    torch.testing.assert_close(grad[:, 0].double(), -4 * p * q**2, rtol=1e-5, atol=1e-7)


FINITE = [
    xent.losses.focal_loss,
    xent.losses.poly1_loss,
    xent.losses.taylor_cross_entropy,
    xent.losses.smoothed_cross_entropy,
    xent.losses.confidence_penalty_loss,
    xent.losses.complementary_loss,
    xent.losses.brier_loss,
    xent.losses.crammer_singer_loss,
    xent.losses.recall_loss,
]


@pytest.mark.parametrize("loss", FINITE, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("size", [100.0, 1000.0])
def test_nothing_overflows(loss, size, engine):
    z = torch.tensor([[size, 0, -size], [-size, 0, size], [size, size, size]])
    for target in range(3):
        y = torch.full((3,), target)
        value, grad = value_and_grad(loss, z, y, reduction="none", engine=engine)
        assert value.isfinite().all()
        assert grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_of_a_certainty(gamma, engine):
    z = torch.tensor([[0.0, -math.inf], [300.0, -300.0]])
    value, grad = value_and_grad(
        xent.losses.focal_loss,
        z,
        torch.tensor([0, 0]),
        gamma=gamma,
        reduction="none",
        engine=engine,
    )
    assert not value.any()
    assert not grad.any()


def focal_rows(z, y, gamma):
    """Return the formula of focal loss, row by row."""
    p = torch.softmax(z, 1).gather(1, y[:, None])[:, 0]
    return -((1 - p) ** gamma) * p.log()


# ---- limits -------------------------------------------------------------------------------------

RAMP = torch.linspace(1.0, 3.0, 7, dtype=torch.float64)
LIMITS = [
    (xent.losses.focal_loss, {"gamma": 0.0}),
    (xent.losses.poly1_loss, {"epsilon": 0.0}),
    (xent.losses.smoothed_cross_entropy, {"smoothing": 0.0, "prior": RAMP}),
    (xent.losses.confidence_penalty_loss, {"beta": 0.0}),
    (xent.losses.logit_adjusted_loss, {"prior": RAMP, "tau": 0.0}),
    (xent.losses.logit_adjusted_loss, {"prior": torch.ones_like(RAMP)}),
    (xent.losses.vs_loss, {"counts": RAMP, "tau": 0.0, "gamma": 0.0}),
    (xent.losses.cosface_loss, {"margin": 0.0, "scale": 1.0}),
    (xent.losses.ldam_loss, {"counts": RAMP, "max_margin": 0.0, "scale": 1.0}),
]


@pytest.mark.parametrize(("loss", "options"), LIMITS)
def test_limits_that_are_cross_entropy(loss, options, engine):
    z, y = torch.randn(9, 7, dtype=torch.float64), torch.randint(7, (9,))
    a, da = value_and_grad(loss, z, y, reduction="none", engine=engine, **options)
    b, db = value_and_grad(F.cross_entropy, z, y, reduction="none")
    torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(da, db, rtol=1e-13, atol=1e-14)


def test_more_limits(engine):
    z, y = torch.randn(9, 7, dtype=torch.float64), torch.randint(7, (9,))
    each = {"reduction": "none", "engine": engine}
    ce = F.cross_entropy(z, y, reduction="none")
    far = xent.losses.taylor_cross_entropy(z, y, terms=2000, **each)
    torch.testing.assert_close(far, ce, rtol=1e-10, atol=0)
    smooth = F.cross_entropy(z, y, label_smoothing=0.3, reduction="none")
    torch.testing.assert_close(
        xent.losses.smoothed_cross_entropy(z, y, smoothing=0.3, **each), smooth
    )
    vs = xent.losses.vs_loss(z, y, counts=RAMP, gamma=0.0, **each)
    adjusted = F.cross_entropy(z + torch.log(RAMP / RAMP.sum()), y, reduction="none")
    torch.testing.assert_close(vs, adjusted)


def test_temperature_is_a_scale(engine):
    z, y = torch.randn(9, 7, dtype=torch.float64), torch.randint(7, (9,))
    cold = xent.losses.focal_loss(z, y, logit_scale=1 / 0.5, engine=engine)
    torch.testing.assert_close(cold, focal_rows(z / 0.5, y, gamma=2).mean())


# ---- priors -------------------------------------------------------------------------------------


def test_one_loss_has_three_names():
    assert (
        xent.losses.balanced_softmax_loss
        is xent.losses.pc_softmax_loss
        is xent.losses.logit_adjusted_loss
    )
    assert xent.losses.unlikelihood_loss is xent.losses.complementary_loss


def test_the_balanced_softmax_and_the_corrected_one_differ_by_a_constant(engine):
    # Qin et al.: -log(e^z_y / sum_j pi_j e^z_j) = balanced softmax + log pi_y
    z, y = torch.randn(9, 7, dtype=torch.float64), torch.randint(7, (9,))
    log_prior = torch.log(RAMP / RAMP.sum())
    corrected = torch.logsumexp(z + log_prior, 1) - z.gather(1, y[:, None])[:, 0]
    balanced = xent.losses.balanced_softmax_loss(z, y, prior=RAMP, reduction="none", engine=engine)
    torch.testing.assert_close(corrected, balanced + log_prior[y], rtol=1e-14, atol=1e-14)


def test_adjusting_afterwards_undoes_the_prior():
    z, counts = torch.randn(9, 7), RAMP.float() * 10
    adjusted = xent.losses.adjust_logits(z + torch.log(RAMP / RAMP.sum()).float(), counts)
    torch.testing.assert_close(adjusted, z)
    pixels = xent.losses.adjust_logits(z[:, :, None, None].expand(-1, -1, 2, 3), counts)
    torch.testing.assert_close(pixels[:, :, 1, 2], z - torch.log(RAMP / RAMP.sum()).float())
    with pytest.raises(ValueError, match="positive number for each of the 7"):
        xent.losses.adjust_logits(z, torch.tensor([1.0, 0, 1, 1, 1, 1, 1]))
    for bad in (z[0, 0], z.long()):
        with pytest.raises(TypeError, match="`input` must hold floating-point logits"):
            xent.losses.adjust_logits(bad, counts)


def test_a_class_that_never_occurs_is_masked(engine):
    prior = torch.tensor([1.0, 0.0, 2.0])
    z, y = torch.randn(4, 3), torch.tensor([0, 2, 2, 0])
    value, grad = value_and_grad(
        xent.losses.logit_adjusted_loss, z, y, prior=prior, reduction="none", engine=engine
    )
    two = F.cross_entropy(
        z[:, [0, 2]] + torch.log(prior[[0, 2]] / 3), torch.tensor([0, 1, 1, 0]), reduction="none"
    )
    torch.testing.assert_close(value, two)
    assert not grad[:, 1].any()


# ---- class weights ------------------------------------------------------------------------------


def test_effective_number_weights():
    counts = torch.tensor([5000.0, 500.0, 50.0, 0.0], dtype=torch.float64)
    beta = mpf("0.9999")
    raw = [(1 - beta) / (1 - beta ** int(n)) for n in counts[:3].tolist()]
    truth = torch.tensor([float(4 * w / sum(raw)) for w in raw] + [0.0], dtype=torch.float64)
    torch.testing.assert_close(
        xent.losses.effective_number_weights(counts), truth, rtol=1e-13, atol=0
    )
    narrow = xent.losses.effective_number_weights(counts.float())
    torch.testing.assert_close(narrow.double(), truth, rtol=2**-24, atol=0)
    some = counts[:3]
    torch.testing.assert_close(
        xent.losses.effective_number_weights(some, beta=1.0), 3 / some / (1 / some).sum()
    )
    assert torch.equal(xent.losses.effective_number_weights(some, beta=0.0), torch.ones_like(some))
    assert xent.losses.deferred_weights(counts, 159) is None
    torch.testing.assert_close(xent.losses.deferred_weights(counts, 160), truth, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "counts", [[1.0, -1.0], [0.0, 0.0], [[1.0]]], ids=["negative", "nothing", "a matrix"]
)
def test_counts_that_are_none(counts):
    with pytest.raises(ValueError, match="`counts`"):
        xent.losses.effective_number_weights(torch.tensor(counts))


def test_more_bad_counts():
    with pytest.raises(TypeError, match=r"call counts.float\(\)"):
        xent.losses.effective_number_weights(torch.tensor([True, False]))
    with pytest.raises(ValueError, match=r"`beta` must be at least 0 and at most 1, got 1\.1"):
        xent.losses.effective_number_weights(torch.ones(2), beta=1.1)


# ---- cosines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ANGULAR, ids=lambda loss: loss.name)
def test_margins_on_cosines(loss, engine):
    z = torch.rand(200, 12, dtype=torch.float64) * 1.98 - 0.99
    y = torch.randint(12, (200,))
    value, grad = value_and_grad(loss, z, y, reduction="none", engine=engine)
    leaf = z.clone().requires_grad_()
    truth = loss.truth(leaf, y)
    (slope,) = torch.autograd.grad(truth.sum(), leaf)
    torch.testing.assert_close(value, truth.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(grad, slope, rtol=1e-11, atol=1e-12)
    few = torch.randint(4, (3,))
    assert torch.autograd.gradcheck(
        lambda x: loss(x, few, reduction="none", engine=engine), z[:3, :4].requires_grad_()
    )


@pytest.mark.parametrize("loss", ANGULAR, ids=lambda loss: loss.name)
def test_margins_at_the_poles(loss, engine):
    z = torch.tensor([[1.0, -1.0, 0.2], [-1.0, 1.0, 0.2], [1.0001, 0.0, 0.0]])
    value, grad = value_and_grad(loss, z, torch.tensor([0, 0, 0]), reduction="none", engine=engine)
    assert value.isfinite().all()
    assert grad.isfinite().all()


def test_a_margin_makes_it_harder_all_the_way():
    cos = torch.linspace(-1, 1, 401, dtype=torch.float64)
    z = torch.stack([cos, torch.zeros_like(cos)], 1)
    y = torch.zeros(len(z), dtype=torch.int64)
    for loss, options in (
        (xent.losses.arcface_loss, {"scale": 8.0}),
        (xent.losses.large_margin_loss, {"scale": 8.0, "margin": 4}),
        (xent.losses.cosface_loss, {"scale": 8.0}),
    ):
        value = loss(z, y, reduction="none", **options)
        plain = F.cross_entropy(8 * z, y, reduction="none")
        assert (value.diff() < 0).all()  # falls with the cosine, through every branch
        assert (value >= plain * (1 - 1e-12)).all()
    one = xent.losses.large_margin_loss(z, y, reduction="none", scale=8.0, margin=1)
    torch.testing.assert_close(one, plain)


def test_large_margin_with_a_length_per_row():
    cos = torch.rand(5, 4, dtype=torch.float64) * 2 - 1
    y, lengths = torch.tensor([0, 1, 2, 3, 0]), torch.rand(5, dtype=torch.float64) * 9 + 1
    together = xent.losses.large_margin_loss(cos, y, scale=lengths, margin=3, reduction="none")
    theta = torch.acos(cos.gather(1, y[:, None]))
    k = torch.floor(3 * theta / math.pi)
    psi = (-1) ** k * torch.cos(3 * theta) - 2 * k
    z = cos.scatter(1, y[:, None], psi) * lengths[:, None]
    torch.testing.assert_close(together, F.cross_entropy(z, y, reduction="none"))


# ---- batches ------------------------------------------------------------------------------------


def test_recall_loss_weighs_by_what_the_batch_misses(engine):
    z, y = torch.randn(60, 5, dtype=torch.float64), torch.randint(5, (60,))
    y[[3, 17]] = -100
    kept = y >= 0
    wrong = z.argmax(1) != y
    weights = torch.stack([
        ((wrong & (y == c)).sum() + 1.0) / ((y == c).sum() + 1.0) for c in range(5)
    ]).double()  # fmt: skip
    truth = -torch.log_softmax(z, 1)[torch.arange(60), y.clamp(min=0)] * weights[y.clamp(min=0)]
    value = xent.losses.recall_loss(z, y, reduction="none", engine=engine)
    torch.testing.assert_close(value, truth * kept)
    mean = xent.losses.recall_loss(z, y, engine=engine)
    torch.testing.assert_close(mean, truth[kept].mean())
    # Rows ignored by ignore_index=4 must not change the weights of the other classes.
    ignored = torch.where(kept, y, 4)
    again = xent.losses.recall_loss(z, ignored, ignore_index=4, reduction="none", engine=engine)
    known = kept & (y != 4)
    torch.testing.assert_close(again[known], value[known])


@pytest.mark.parametrize(("keep", "k"), [(0.5, 4), (0.3, 3), (1.0, 8), (3, 3), (100, 8)])
def test_the_hardest_rows(keep, k):
    z, y = torch.randn(10, 5), torch.randint(5, (10,))
    y[[2, 5]] = -100
    rows = F.cross_entropy(z, y, reduction="none")[y >= 0]
    truth = rows.sort(descending=True).values[:k].mean()
    torch.testing.assert_close(xent.losses.hardest_loss(z, y, keep), truth)
    focal = xent.losses.hardest_loss(z, y, keep, loss=xent.losses.focal_loss, gamma=1.0)
    rows = focal_rows(z[y >= 0], y[y >= 0], gamma=1)
    torch.testing.assert_close(focal, rows.sort(descending=True).values[:k].mean())


@pytest.mark.parametrize("keep", [0, 0.0, -0.5, 1.5, math.nan, True])
def test_a_part_that_is_none(keep):
    with pytest.raises(ValueError, match="`keep` must be"):
        xent.losses.hardest_loss(torch.randn(3, 2), torch.tensor([0, 1, 1]), keep)


# ---- hyperparameters out of range ---------------------------------------------------------------

Z, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
BAD = [
    (xent.losses.focal_loss, "gamma", -0.1, "at least 0"),
    (xent.losses.focal_loss, "gamma", math.inf, "finite number"),
    (xent.losses.focal_loss, "gamma", "2", "finite number"),
    (xent.losses.poly1_loss, "epsilon", -1.5, "at least -1"),
    (xent.losses.taylor_cross_entropy, "terms", 0, "at least 1"),
    (xent.losses.taylor_cross_entropy, "terms", 1.5, "whole number"),
    (xent.losses.smoothed_cross_entropy, "smoothing", 1.1, "at most 1"),
    (xent.losses.smoothed_cross_entropy, "prior", torch.ones(2), "3 classes"),
    (xent.losses.smoothed_cross_entropy, "prior", torch.tensor([1.0, -1, 1]), "no number below 0"),
    (xent.losses.arcface_loss, "margin", 2.0, "at least 0 and at most 1.5708"),
    (xent.losses.cosface_loss, "scale", 0.0, "greater than 0"),
    (xent.losses.large_margin_loss, "margin", 2.5, "whole number"),
]


@pytest.mark.parametrize(("loss", "name", "value", "message"), BAD)
def test_hyperparameters_out_of_range(loss, name, value, message):
    with pytest.raises(ValueError, match=message) as error:
        loss(Z, Y, **{name: value})
    assert f"`{name}`" in str(error.value)


def test_hyperparameters_that_are_missing_or_unknown():
    with pytest.raises(TypeError, match="needs the keyword argument `prior`"):
        xent.losses.logit_adjusted_loss(Z, Y)
    with pytest.raises(TypeError, match="unexpected keyword argument 'gama'"):
        xent.losses.focal_loss(Z, Y, gama=1.0)
    with pytest.raises(TypeError, match="sets `class_bias` itself"):
        xent.losses.logit_adjusted_loss(Z, Y, prior=torch.ones(3), class_bias=torch.ones(3))


@pytest.mark.parametrize("name", ["vs_loss", "logit_adjusted_loss", "ldam_loss"])
@pytest.mark.parametrize("dtype", HALF)
def test_counts_with_few_digits_make_factors_with_many(engine, name, dtype):
    loss = REGISTRY[name].settings[0]
    z, y = (16 * torch.randn(40, 9) if name != "ldam_loss" else torch.rand(40, 9)), torch.arange(40)
    settings = {k: v.to(dtype) for k, v in loss.arguments(9).items()}
    options = {"reduction": "none", "engine": engine, **loss.options}
    value, grad = value_and_grad(loss.call, z.to(dtype), y % 9, **settings, **options)
    wide = {k: v.double() for k, v in settings.items()}
    truth, slope = value_and_grad(loss.call, z.to(dtype).double(), y % 9, **wide, **options)
    assert ulps(value, truth).max() <= 0.51  # rounded once
    assert ulps(grad, slope).max() <= 0.51


# ---- losses of all logits of a row -----------------------------------------------------------


def test_dual_focal_looks_at_the_next_class_below_the_target():
    z = torch.tensor([[3.0, 1.0, 2.0], [1.0, 3.0, 0.5], [0.0, 3.0, 1.0], [1.0, 1.0, 0.0]]).double()
    p, y = torch.softmax(z, 1), torch.zeros(4).long()
    below = torch.stack([p[0, 2], p[1, 2], torch.tensor(0.0).double(), p[3, 2]])
    expected = -((1 - p[:, 0] + below) ** 3) * p[:, 0].log()
    found = xent.losses.dual_focal_loss(z, y, gamma=3.0, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def test_dual_focal_of_sure_rows():
    """Also for exponents below 1, whose derivative at 0 is infinite."""
    z, y = torch.tensor([[40.0, 0.0], [900.0, 0.0], [0.0, 900.0]]).double(), torch.zeros(3).long()
    for gamma in (0.5, 5.0):
        value, grad = value_and_grad(
            xent.losses.dual_focal_loss, z, y, gamma=gamma, reduction="none"
        )
        small = math.exp(-40)
        assert value[0].item() == pytest.approx((2 * small) ** gamma * small, rel=1e-13)
        assert value[2].item() == 900
        assert grad.isfinite().all()
    plain = xent.losses.dual_focal_loss(z, y, gamma=0.0)
    torch.testing.assert_close(plain, xent.cross_entropy(z, y), rtol=1e-15, atol=0)


def test_hinges_are_those_of_pytorch():
    z, y = torch.randn(20, 6, dtype=torch.float64), torch.randint(6, (20,))
    found = xent.losses.weston_watkins_loss(z, y, margin=1.5)
    expected = 6 * torch.nn.functional.multi_margin_loss(z, y, margin=1.5)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


def test_margin_smoothing_leaves_near_logits_alone():
    z, y = torch.rand(20, 6, dtype=torch.float64), torch.randint(6, (20,))
    found = value_and_grad(xent.losses.margin_smoothing_loss, z, y, margin=1.0)
    expected = value_and_grad(xent.cross_entropy, z, y)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-16)
    masked = torch.cat([9 * z, torch.full((20, 1), -torch.inf, dtype=torch.float64)], 1)
    gaps = (9 * z.amax(1, keepdim=True) - 9 * z - 2).clamp(min=0)
    expected = xent.cross_entropy(9 * z, y) + 0.3 * gaps.mean()
    found = xent.losses.margin_smoothing_loss(masked, y, margin=2.0, alpha=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


OF_ALL_LOGITS = {
    "dual focal": (xent.losses.dual_focal_loss, {}),
    "margin smoothing": (xent.losses.margin_smoothing_loss, {}),
    "seesaw": (xent.losses.seesaw_loss, {"counts": torch.full((3,), 7.0)}),
    "weston watkins": (xent.losses.weston_watkins_loss, {}),
}


@pytest.mark.parametrize("name", OF_ALL_LOGITS)
def test_masked_and_single_classes_in_losses_of_all_logits(name):
    loss, options = OF_ALL_LOGITS[name]
    inf, y = torch.inf, torch.tensor([0])
    single = torch.tensor([[2.0]], dtype=torch.float64)
    for z in (single, torch.tensor([[2.0, -inf, -inf]], dtype=torch.float64)):
        counted = {k: v[: z.shape[1]] for k, v in options.items()}
        value, grad = value_and_grad(loss, z, y, **counted)
        assert value.item() == 0
        assert math.copysign(1, value.item()) == 1
        assert torch.equal(grad, torch.zeros_like(z))
        x = z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(x, y, **counted), x, create_graph=True)
        assert torch.equal(torch.autograd.grad(slope.sum(), x)[0], torch.zeros_like(z))
    masked = torch.tensor([[-inf, 1.0, 0.0]], dtype=torch.float64)
    value, grad = value_and_grad(loss, masked, y, **options)
    assert value.item() == inf
    expected = value_and_grad(xent.cross_entropy, masked, y)[1]
    if name == "weston watkins":
        expected = torch.tensor([[-2.0, 1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(grad, expected, rtol=1e-14, atol=0)
    value, grad = value_and_grad(
        loss, masked.roll(1, 1), torch.tensor([2]), **options
    )  # the masked class is not the target
    assert value.isfinite()
    assert grad.isfinite().all()


def test_margins_of_classes_that_all_have_no_rows_are_alike():
    z, y = torch.rand(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    found, expected = (xent.losses.ldam_loss(z, y, counts=torch.full((3,), n)) for n in (0.0, 7.0))
    assert found.isfinite()
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=0)
