"""The sigmoid family: values and slopes against 50 digits, limits, laws."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F

import xent
from tests.helpers import HALF, same_bits, spacing, ulps, value_and_grad, widest
from tests.registry import ELEMENTS, ElementLoss
from xent.engines import core as native

EACH = pytest.mark.parametrize("loss", ELEMENTS, ids=lambda loss: loss.name)
BCE = xent.binary_cross_entropy_with_logits
FOCAL = ELEMENTS[1]
MARGINS = [-100, -80, -40, -17.3, -5.25, -1, -0.3, -1e-3, 0, 1e-3, 0.3, 1, 5.25, 17.3, 40, 80, 100]


@pytest.fixture(autouse=True)
def _one_thread(_same_start):
    """Use one thread: the tensors are too small for two."""
    torch.set_num_threads(1)


def grid(targets, dtype=torch.float64):
    z = torch.tensor(MARGINS, dtype=torch.float64).to(dtype)
    t = torch.tensor(targets, dtype=torch.float64).to(dtype)
    return z.repeat(len(t)), t.repeat_interleave(len(z))


def ask(loss: ElementLoss, engine: str, dtype: torch.dtype = torch.float32) -> str:
    """Return the engine, or skip if the loss lacks the engine, or the engine the dtype."""
    if engine != "reference" and not loss.kernel:
        pytest.skip("has no kernel")
    if engine == "triton" and dtype == torch.float64:
        pytest.skip("knows no float64")
    return engine


def assert_close(actual, truth, scale, limit):
    """Assert closeness in ulps of the truth, or of the terms whose difference it is."""
    unit = torch.maximum(spacing(truth, actual.dtype), spacing(scale, actual.dtype))
    error = (actual.double() - truth).abs() / unit
    worst = error.argmax()
    assert error[worst] <= limit, (worst, error[worst], actual[worst], truth[worst])


# ---- the formula --------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_hard_targets_to_the_last_digits(loss, every_engine, dtype):
    """Nothing cancels if the target is 0 or 1: a few ulp at each margin, down to subnormals."""
    engine = ask(loss, every_engine, dtype)
    z, t = grid([0.0, 1.0], dtype)
    value, grad = value_and_grad(loss, z, t, reduction="none", engine=engine)
    truth, slope = loss.truth(z, t)
    assert value.dtype == dtype
    # A power multiplies relative errors; by logarithms, by the size of the logarithm in nats.
    power = max(v for k, v in {"gamma": 2, **loss.options}.items() if "gamma" in k)
    logarithms = dtype == torch.float64 and ("focal" in loss.name or "asymmetric" in loss.name)
    limit = 4 + power * (100 if logarithms else 1)
    # The density of the continuous Bernoulli is a difference, as accurate as its terms.
    scale = torch.zeros_like(truth)
    if "continuous" in loss.name:
        scale = 1 + z.double().abs()
    if loss.name.startswith("asymmetric"):  # for p - m where p is nearly m
        scale = torch.where(t == 0, max(1e-2, loss.options.get("clip", 0) / 5), scale)
    assert_close(value, truth, scale, limit)
    assert_close(grad, slope, scale, limit)


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_targets_between(loss, every_engine, dtype):
    engine = ask(loss, every_engine, dtype)
    z, t = grid([1e-6, 0.125, 0.5, 0.9, 1 - 2**-20], dtype)
    if "quality" in loss.name:
        z = z + 0.05  # away from the corner of the power
    value, grad = value_and_grad(loss, z, t, reduction="none", engine=engine)
    truth, slope = loss.truth(z, t)
    one = torch.ones_like(truth)
    relative = dtype == torch.float64 or not loss.kernel
    assert_close(value, truth, 1e-2 * one if "excess" not in loss.name and relative else one, 128)
    assert_close(grad, slope, one, 128 if dtype == torch.float64 else 8)


def test_values_beside_the_smallest_numbers(every_engine):
    """Values of float32 down to its subnormal numbers, and to 0."""
    z = torch.tensor([87.0, 88.5, 95.0, 103.0, 103.9, 120.0, 1e30])
    value, grad = value_and_grad(BCE, z, torch.ones_like(z), reduction="none", engine=every_engine)
    exact = [float(mpmath.log1p(mpmath.exp(-mpmath.mpf(v)))) for v in z.tolist()]
    truth = torch.tensor(exact, dtype=torch.float64)
    assert ulps(value, truth).max() <= 1
    assert ulps(grad, -truth).max() <= 1


@EACH
def test_infinite_logits(loss, every_engine):
    engine = ask(loss, every_engine)
    inf = math.inf
    z = torch.tensor([inf, -inf], dtype=widest(engine))
    t = torch.tensor([1.0, 0.0], dtype=z.dtype)
    right, slope = value_and_grad(loss, z, t, reduction="none", engine=engine)
    if "continuous" in loss.name:
        assert right.tolist() == [-inf, -inf]  # the density is concentrated in one point
        return
    assert right.tolist() == [0, 0]
    assert slope.tolist() == [0, 0]
    wrong = loss(z, 1 - t, reduction="none", engine=engine)
    bounded = loss.name.startswith("asymmetric") and loss.options.get("clip", 0.05) > 0
    assert wrong[0] < inf if bounded else wrong[0] == inf
    assert wrong[1] == inf


@EACH
def test_nan_stays_in_its_element(loss, every_engine):
    z = torch.tensor([1.0, math.nan, -2.0, 3.0])
    t = torch.tensor([1.0, 0.0, 0.0, math.nan])
    value, grad = value_and_grad(loss, z, t, reduction="none", engine=ask(loss, every_engine))
    for result in (value, grad):
        assert result.isnan().tolist() == [False, True, False, True]


@EACH
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_that_of_float32_rounded_once(loss, every_engine, dtype):
    z, t = (2 * torch.randn(300)).to(dtype), torch.rand(300).to(dtype)
    value, grad = value_and_grad(loss, z, t, reduction="none", engine=ask(loss, every_engine))
    wide, slope = value_and_grad(loss, z.double(), t.double(), reduction="none", engine="reference")
    assert value.dtype == dtype
    assert ulps(value, wide).max() <= 0.51
    assert (grad.double() - slope).abs().max() <= 2 * torch.finfo(dtype).eps
    assert ulps(grad, slope).median() <= 0.51


# ---- laws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [None, 2.0, 1.5])
def test_turning_probability_and_target_round_changes_nothing(every_engine, gamma):
    dtype = widest(every_engine)
    z, t = torch.randn(50, dtype=dtype), torch.randint(9, (50,)).to(dtype) / 8
    eps = torch.finfo(dtype).eps
    options = {} if gamma is None else {"alpha": None, "gamma": gamma}
    loss = BCE if gamma is None else xent.losses.sigmoid_focal_loss
    a, da = value_and_grad(loss, z, t, reduction="none", engine=every_engine, **options)
    b, db = value_and_grad(loss, -z, 1 - t, reduction="none", engine=every_engine, **options)
    torch.testing.assert_close(a, b, rtol=32 * eps, atol=0)
    torch.testing.assert_close(da, -db, rtol=400 * eps, atol=eps / 2)


def test_it_is_softmax_of_two_classes(engine):
    z = torch.randn(40, dtype=torch.float64) * 10
    y = torch.randint(2, (40,))
    a = BCE(z, y, reduction="none", engine=engine)
    b = xent.cross_entropy(torch.stack([torch.zeros_like(z), z], 1), y, reduction="none")
    torch.testing.assert_close(a, b, rtol=1e-14, atol=0)
    c = xent.losses.sigmoid_focal_loss(z, y, alpha=None, reduction="none", engine=engine)
    d = xent.losses.focal_loss(torch.stack([torch.zeros_like(z), z], 1), y, reduction="none")
    torch.testing.assert_close(c, d, rtol=1e-13, atol=0)


@EACH
def test_ignored_elements_are_elements_left_out(loss, every_engine):
    engine = ask(loss, every_engine)
    z, t = torch.randn(6, 5), torch.rand(6, 5)
    out = torch.rand(6, 5) < 0.4
    z = torch.where(out, torch.tensor([math.nan, math.inf, 1.0, -1e30, 0.0]), z)
    marked = torch.where(out, -1.0, t)
    for reduction in ("mean", "sum"):
        a, da = value_and_grad(loss, z, marked, reduction=reduction, ignore_value=-1, engine=engine)
        b, db = value_and_grad(loss, z[~out], t[~out], reduction=reduction, engine=engine)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
        torch.testing.assert_close(da[~out], db, rtol=1e-6, atol=0)
        assert not da[out].any()
    assert not loss(z, marked, reduction="none", ignore_value=-1, engine=engine)[out].any()


@EACH
def test_a_weight_is_a_repetition(loss, engine):
    engine = ask(loss, engine)
    z, t = torch.randn(20, dtype=torch.float64), torch.rand(20, dtype=torch.float64)
    counts = torch.randint(4, (20,))
    a = loss(z, t, counts.double(), normalizer="weight", engine=engine)
    again = torch.arange(20).repeat_interleave(counts)
    torch.testing.assert_close(a, loss(z[again], t[again], engine=engine), rtol=1e-13, atol=0)


def test_pos_weight_multiplies_the_targets_term(every_engine):
    dtype = widest(every_engine)
    z, t = torch.randn(8, 3, dtype=dtype), torch.rand(8, 3, dtype=dtype)
    w = torch.tensor([0.5, 2.0, 7.0], dtype=dtype)
    a = BCE(z, t, pos_weight=w, reduction="none", engine=every_engine)
    truth = -w * t * torch.sigmoid(z).log() - (1 - t) * torch.sigmoid(-z).log()
    torch.testing.assert_close(a, truth, rtol=64 * torch.finfo(dtype).eps, atol=0)


def test_normalizers(every_engine):
    engine, dtype = every_engine, widest(every_engine)
    z, t = torch.randn(4, 5, dtype=dtype), torch.rand(4, 5, dtype=dtype)
    w = torch.rand(4, 1, dtype=dtype)
    total = BCE(z, t, w, reduction="sum", engine=engine)
    for normalizer, divisor in (
        (None, 20), ("count", 20), ("weight", 5 * w.sum()), (7, 7), (torch.tensor(2.5), 2.5),
    ):  # fmt: skip
        mean = BCE(z, t, w, normalizer=normalizer, engine=engine)
        torch.testing.assert_close(mean, total / divisor, rtol=4 * torch.finfo(dtype).eps, atol=0)
    nothing = torch.full((3,), -1.0)
    assert BCE(torch.zeros(3), nothing, ignore_value=-1, engine=engine).isnan()
    assert BCE(torch.zeros(3), nothing, ignore_value=-1, empty="zero", engine=engine) == 0
    assert BCE(torch.zeros(0), torch.zeros(0), engine=engine).isnan()
    assert BCE(torch.zeros(0), torch.zeros(0), empty="zero", engine=engine) == 0
    same = BCE(z, t, engine=engine)
    assert BCE(z, t, empty="zero", engine=engine) == same
    assert BCE(z, t, normalizer="weight", engine=engine) == same


def test_weights_are_added_up_in_float64(engine):
    z, t = torch.randn(4, 5, dtype=torch.float64), torch.rand(4, 5, dtype=torch.float64)
    w = torch.tensor([1e8, 1.0, 1.0, 1.0, 1.0])  # in float32 the ones would be rounded away
    total = BCE(z, t, w, reduction="sum", engine=engine)
    mean = BCE(z, t, w, normalizer="weight", engine=engine)
    torch.testing.assert_close(mean, total / (4e8 + 16), rtol=1e-15, atol=0)


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_weights_of_ignored_elements_are_not_divided_by(every_engine, empty):
    dtype = widest(every_engine)
    z, t = torch.randn(4, 5, dtype=dtype), torch.rand(4, 5, dtype=dtype)
    w = torch.rand(5, dtype=dtype) / 20  # the sum of all is below 1
    t[1, :3], t[2] = -1, -1
    kept = t != -1
    rows = F.binary_cross_entropy_with_logits(z, t, w, reduction="none")
    divisor = w.expand(4, 5)[kept].sum()
    assert divisor < 1
    options = {"ignore_value": -1, "empty": empty, "engine": every_engine}
    mean = BCE(z, t, w, normalizer="weight", **options)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(mean, rows[kept].sum() / divisor, rtol=8 * eps, atol=0)
    mean = BCE(z, t, w, normalizer=0.25, **options)
    torch.testing.assert_close(mean, rows[kept].sum() / 0.25, rtol=8 * eps, atol=0)
    mean = BCE(z, t, w, **options)
    torch.testing.assert_close(mean, rows[kept].sum() / 12, rtol=8 * eps, atol=0)


# ---- modulators far out -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0, 2.5])
def test_the_worst_mistake_is_not_turned_down(every_engine, gamma, dtype):
    engine = ask(FOCAL, every_engine, dtype)
    z, t = torch.tensor([-100.0, 100.0], dtype=dtype), torch.tensor([1.0, 0.0], dtype=dtype)
    value, grad = value_and_grad(
        xent.losses.sigmoid_focal_loss,
        z,
        t,
        alpha=None,
        gamma=gamma,
        reduction="none",
        engine=engine,
    )
    torch.testing.assert_close(value, torch.full_like(value, 100.0))
    torch.testing.assert_close(grad, torch.tensor([-1.0, 1.0], dtype=dtype))


@pytest.mark.parametrize("z", [20.0, 90.0, 120.0, 800.0])
def test_powers_below_one_where_the_probability_is_one(engine, z):
    x = torch.tensor([z, -z], dtype=torch.float64)
    y = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for loss in (xent.losses.sigmoid_focal_loss, xent.losses.quality_focal_loss):
        focal = loss is xent.losses.sigmoid_focal_loss
        options = {"gamma": 0.5, "alpha": None} if focal else {"beta": 0.5}
        value, grad = value_and_grad(loss, x, y, reduction="none", engine=engine, **options)
        miss = math.exp(-z)
        torch.testing.assert_close(value, torch.full_like(value, miss**1.5), rtol=1e-8, atol=0)
        slope = torch.tensor([-1.5 * miss**1.5, 1.5 * miss**1.5], dtype=torch.float64)
        torch.testing.assert_close(grad, slope, rtol=1e-8, atol=0)


def test_torchvision_formula(engine):
    """Targets between 0 and 1, too."""
    z, t = torch.randn(300, dtype=torch.float64), torch.rand(300, dtype=torch.float64)
    p = torch.sigmoid(z)
    p_t = p * t + (1 - p) * (1 - t)
    ce = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    truth = (0.25 * t + 0.75 * (1 - t)) * ce * (1 - p_t) ** 2
    value = xent.losses.sigmoid_focal_loss(z, t, reduction="none", engine=engine)
    torch.testing.assert_close(value, truth, rtol=1e-13, atol=1e-16)


def test_the_focusing_factor_can_be_a_constant(every_engine):
    z, t = torch.randn(100, dtype=widest(every_engine)), torch.randint(2, (100,))
    eps = torch.finfo(z.dtype).eps
    options = {"reduction": "none", "engine": every_engine}
    value, grad = value_and_grad(xent.losses.asymmetric_loss, z, t, detach_focus=True, **options)
    assert same_bits(value, xent.losses.asymmetric_loss(z, t, **options))
    with torch.no_grad():
        p = torch.sigmoid(z.double())
        shifted = (p - 0.05).clamp(min=0)
        focus = torch.where(t == 1, 1 - p, shifted**4)
        slope = torch.where(t == 1, p - 1, torch.where(shifted > 0, p * (1 - p) / (1 - shifted), 0))
    torch.testing.assert_close(grad.double(), focus * slope, rtol=4000 * eps, atol=4 * eps)


@pytest.mark.skipif(not native.available(), reason="the compiled core is not installed")
def test_every_instruction_set_gives_the_same_bits():
    best = native.isa
    z, t = torch.randn(5000) * 20, torch.rand(5000)
    w, pw = torch.rand(5000), torch.rand(5000)
    calls = [
        lambda x: BCE(x, t, w, pos_weight=pw, engine="native"),
        lambda x: BCE(x, t, w, pos_weight=pw, reduction="none", engine="native"),
        lambda x: xent.losses.sigmoid_focal_loss(x, t.to(x.dtype), engine="native"),
        lambda x: xent.losses.sigmoid_focal_loss(x, t.to(x.dtype), gamma=0.7, engine="native"),
        lambda x: xent.losses.quality_focal_loss(x, t.to(x.dtype), engine="native"),
        lambda x: xent.losses.varifocal_loss(x, t.to(x.dtype), engine="native"),
        lambda x: xent.losses.asymmetric_loss(x, t.to(x.dtype), engine="native"),
        lambda x: xent.losses.reconstruction_excess(x, t.to(x.dtype), engine="native"),
    ]
    results = {}
    try:
        for isa in native.isas():
            native.set_isa(isa)
            results[isa] = [
                part
                for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
                for call in calls
                for part in value_and_grad(call, z.to(dtype))
            ]
    finally:
        native.set_isa(best)
    for other in results.values():
        assert all(same_bits(a, b) for a, b in zip(other, results[best], strict=True))
