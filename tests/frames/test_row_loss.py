"""The frame of a loss of rows: what it adds to two lines on row statistics."""

import inspect
import math
import types

import pytest
import torch

import xent
from tests.helpers import same_bits, value_and_grad
from tests.registry.probes import above_average, entropy_regularised, focal
from xent import RowStatistics
from xent.frames.dense_rows import by_rows
from xent.frames.reduction import read_reduction, stable_sum

Z, Y = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6) % 5


def log_p():
    return torch.log_softmax(Z, 1).gather(1, Y[:, None])[:, 0]


def test_two_lines_make_a_whole_loss(engine):
    p = log_p().exp()
    rows = -((1 - p) ** 2) * log_p()
    w = torch.linspace(0.5, 2, 5).double()
    r = torch.linspace(1, 3, 6).double()
    close = torch.testing.assert_close
    call = {"engine": engine}
    close(focal(Z, Y, reduction="none", **call), rows)
    close(focal(Z, Y, reduction="sum", **call), rows.sum())
    close(focal(Z, Y, **call), rows.mean())
    close(focal(Z, Y, w, **call), (w[Y] * rows).sum() / w[Y].sum())
    close(focal(Z, Y, row_weight=r, **call), (r * rows).sum() / r.sum())
    close(focal(Z, Y, w, row_weight=r, normalizer=4.0, **call), (r * w[Y] * rows).sum() / 4)
    kept = Y != 2
    close(focal(Z, Y, ignore_index=2, **call), rows[kept].mean())
    close(focal(Z, Y, gamma=0.0, **call), -log_p().mean())
    assert focal(Z[:, :, None], Y[:, None], reduction="none", **call).shape == (6, 1)
    assert focal(Z.float(), Y, **call).dtype == torch.float32


@pytest.mark.parametrize("loss", [xent.cross_entropy, xent.losses.focal_loss, xent.losses.mae_loss])
@pytest.mark.parametrize("logits", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [torch.float64, torch.float32, torch.bfloat16])
def test_class_weights_have_any_floating_type(every_engine, loss, logits, weights):
    """The weights are numbers, so that only their values count."""
    z, w = Z.to(logits), torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0]).to(weights)
    loss_and_gradient = value_and_grad(lambda z: loss(z, Y, w, engine=every_engine), z)
    same = value_and_grad(lambda z: loss(z, Y, w.to(logits), engine=every_engine), z)
    for got, expected in zip(loss_and_gradient, same, strict=True):
        assert got.dtype == logits
        assert torch.equal(got, expected)


def test_smoothing_takes_class_weights_of_any_floating_type(engine):
    w = torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0])
    for z, other in ((Z, w), (Z.float(), w.double())):
        close = xent.cross_entropy(z, Y, other, label_smoothing=0.1, engine=engine)
        exact = xent.cross_entropy(z, Y, w.to(z.dtype), label_smoothing=0.1, engine=engine)
        torch.testing.assert_close(close, exact, rtol=1e-6, atol=0)


def test_a_body_of_arithmetic_takes_one_sweep(monkeypatch, core):
    """Loss and gradient come from one call of the core; other bodies take two sweeps."""
    if not core.fast:
        pytest.skip("this processor takes the reference engine")
    calls, real = [], core._core
    names = [name for name in dir(real) if not name.startswith("__")]
    spied = types.SimpleNamespace(**{name: getattr(real, name) for name in names})
    spied.loss = lambda *given: calls.append(1) or real.loss(*given)
    monkeypatch.setattr(core, "_core", spied)

    @xent.row_loss
    def arithmetic(s, power=0.5):
        return s.miss**power - s.log_prob

    @xent.row_loss
    def looks(s):
        return -s.log_prob if bool((s.prob > 0.5).any()) else s.miss

    z = Z.clone().requires_grad_()
    arithmetic(z, Y).backward()
    assert len(calls) == 1
    looks(z, Y).backward()
    arithmetic(z, Y, reduction="none").sum().backward()
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float32], ids=str)
def test_row_weights_are_read_in_float64(dtype):
    given = torch.tensor([1, 0, 1]).to(dtype)
    weight = read_reduction("sum", None, given, "nan", given.shape, given.device).row_weight
    assert weight is not None
    assert weight.tolist() == [1, 0, 1]
    assert weight.dtype == torch.float64


@pytest.mark.parametrize("shape", [0, 1, 4095, 4096, 4097, 8192, 3 * 4096 + 5, (3, 4097)], ids=str)
def test_sums_of_any_length(shape):
    values = torch.randn(shape, dtype=torch.float64) + 1
    error = stable_sum(values).item() - math.fsum(values.flatten().tolist())
    assert abs(error) <= 1e-15 * values.abs().sum().item()


def test_the_last_rows_of_many_count(engine):
    """The sum takes whole blocks first; here the rest holds nearly all of the loss."""
    z, y = torch.zeros(8197, 2, dtype=torch.float64), torch.zeros(8197, dtype=torch.int64)
    z[8192:, 1] = torch.tensor([2e5, 3e5, 4e5, 5e5, 6e5])
    total = 8192 * math.log(2) + 2e6
    loss, grad = value_and_grad(xent.cross_entropy, z, y, engine=engine)
    assert loss.item() == pytest.approx(total / 8197, rel=1e-14)
    torch.testing.assert_close(
        grad[8192:], torch.tensor([[-1.0, 1.0]]).double().repeat(5, 1) / 8197
    )


@pytest.mark.parametrize("rows", [1, 3, 4, 8])
@pytest.mark.parametrize(("classes", "height"), [(1, 15), (4, 3), (20, 1)])
def test_rows_are_worked_on_as_many_at_a_time_as_fit(rows, classes, height, monkeypatch):
    monkeypatch.setattr("xent.frames.dense_rows.CHUNK", 15)
    heights = []

    def square(x, nothing, y):
        heights.append(len(x))
        assert nothing is None
        return x.square().sum(-1) + y

    z, y = torch.randn(rows, classes), torch.arange(rows)
    torch.testing.assert_close(by_rows(square, z, None, y), z.square().sum(-1) + y)
    whole, rest = divmod(rows, height)
    assert heights == [height] * whole + [rest] * (rest > 0)


@pytest.mark.parametrize("divisor", [0.5, 2.0**-10, 1.0, 3.0])
def test_what_to_do_with_nothing_leaves_small_divisors_alone(engine, divisor):
    rows = -log_p()
    share = torch.full((6,), divisor / 6, dtype=torch.float64)
    for options, expected in (
        ({"normalizer": divisor}, rows.sum() / divisor),
        ({"normalizer": torch.tensor(divisor)}, rows.sum() / divisor),
        ({"row_weight": share}, rows.mean()),
        ({"weight": torch.full((5,), divisor / 6, dtype=torch.float64)}, rows.mean()),
    ):
        loss = xent.cross_entropy(Z, Y, empty="zero", engine=engine, **options)
        torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)


def test_gamma_zero_is_cross_entropy(engine):
    for reduction in ("mean", "sum", "none"):
        a, da = value_and_grad(focal, Z, Y, gamma=0.0, reduction=reduction, engine=engine)
        b, db = value_and_grad(xent.cross_entropy, Z, Y, reduction=reduction, engine=engine)
        torch.testing.assert_close(a, b, rtol=1e-14, atol=0)
        torch.testing.assert_close(da, db, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"label_smoothing": 0.0}, {}),
        ({"z_loss": 0.0}, {}),
        ({"logit_scale": 1.0}, {}),
        ({"softcap": 1e9}, {}),  # too large to change a logit
        ({"class_bias": torch.zeros(5).double()}, {}),
        ({"weight": torch.ones(5).double()}, {}),
        ({"row_weight": torch.ones(6)}, {}),
        ({"normalizer": 6}, {}),
        ({"ignore_index": 77}, {}),  # a class that does not occur
        ({"logit_scale": torch.full((6,), 0.5)}, {"logit_scale": 0.5}),
    ],
)
def test_settings_that_change_nothing(engine, options, limit):
    a, da = value_and_grad(xent.cross_entropy, Z, Y, engine=engine, **options)
    b, db = value_and_grad(xent.cross_entropy, Z, Y, engine=engine, **limit)
    torch.testing.assert_close(a, b, rtol=1e-14, atol=0)
    torch.testing.assert_close(da, db, rtol=1e-13, atol=1e-16)


def test_return_stats(engine):
    loss, s = focal(Z, Y, return_stats=True, engine=engine)
    assert isinstance(s, RowStatistics)
    torch.testing.assert_close(s.log_prob, log_p())
    torch.testing.assert_close(loss, focal(Z, Y, engine=engine))
    loss, s = xent.cross_entropy(Z, Y, return_stats=True, engine=engine)
    assert s.log_odds.shape == (6,)
    loss, s = entropy_regularised(Z, Y, return_stats=True)
    assert s.entropy.dtype == torch.float64


def test_statistics_are_differentiable_beside_the_loss(engine):
    z = Z.clone().requires_grad_()
    loss, s = focal(z, Y, return_stats=True, engine=engine)
    (grad,) = torch.autograd.grad(loss + s.lse.sum(), z)
    (part,) = torch.autograd.grad(focal(z, Y, engine=engine), z)
    torch.testing.assert_close(grad - part, torch.softmax(Z, 1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "body",
    [
        lambda s: s.log_prob.sum(),
        lambda s: s.log_prob[:1],
        lambda s: s.log_prob.unsqueeze(-1),
        lambda s: torch.stack([s.log_prob, s.lse]),
    ],
)  # a scalar; too few; a column; too many
def test_a_body_must_return_one_value_per_row(body):
    with pytest.raises(ValueError, match="one value per row"):
        xent.row_loss(body)(Z, Y)


def test_a_statistic_that_was_not_requested_raises():
    for name in ("entropy", "mean", "top", "support", "top_logit", "mean_mass"):
        with pytest.raises(AttributeError, match="nobody asked"):
            xent.row_loss(lambda s, name=name: getattr(s, name))(Z, Y)


def test_unknown_needs():
    for bad in ("entrpy", ("mean", "entrpy")):
        with pytest.raises(ValueError, match="entrpy"):
            xent.row_loss(needs=bad)(lambda s: s.log_prob)
    with pytest.raises(ValueError, match="first parameter"):
        xent.row_loss(lambda: None)
    with pytest.raises(ValueError, match="entrpy"):
        xent.row_loss(needs=lambda: ("entrpy",))(lambda s: s.log_prob)(Z, Y)


def test_needs_may_depend_on_the_hyperparameters():
    asked = []

    @xent.row_loss(needs=lambda beta: asked.append(beta) or (("entropy",) if beta else ()))
    def loss(s, beta=0.0):
        return -s.log_prob - (beta * s.entropy if beta else 0.0)

    loss(Z, Y)
    loss(Z, Y, beta=0.5)
    assert asked == [0.0, 0.5]


def test_signature():
    parameters = inspect.signature(focal).parameters
    assert list(parameters)[:3] == ["input", "target", "weight"]
    assert parameters["gamma"].default == 2.0
    assert parameters["gamma"].kind is inspect.Parameter.KEYWORD_ONLY
    assert focal.__name__ == "focal"
    doc = inspect.getdoc(focal)
    assert doc.startswith("A loss of the log-odds alone.")
    assert all(f"\n    {name}: " in doc for name in parameters if name != "gamma")
    with pytest.raises(TypeError):
        focal(Z, Y, gama=1.0)
    with pytest.raises(TypeError):
        focal(Z, Y, None, 1.0)


def test_a_required_hyperparameter():
    @xent.row_loss
    def loss(s, *, power):
        return s.nll**power

    torch.testing.assert_close(loss(Z, Y, power=2, reduction="none"), log_p() ** 2)
    with pytest.raises(TypeError, match="power"):
        loss(Z, Y)


# ---- the choice of an engine ----------------------------------------------------------------


def test_explain(core):
    plan = xent.explain(Z, Y)
    assert plan.engine == "native"
    assert "native" in str(plan)
    assert xent.explain(Z, Y, engine="reference").engine == "reference"
    with pytest.raises(TypeError, match="gamma"):
        xent.explain(Z, Y, gamma=2)


UNFIT = {
    "target that learns": (Z, torch.softmax(Z, 1).requires_grad_(), {}, "requires a gradient"),
    "bias that learns": (
        Z,
        Y,
        {"class_bias": torch.zeros(5, requires_grad=True).double()},
        "requires",
    ),
    "float64 targets": (Z.float(), torch.softmax(Z, 1), {}, "float64"),
    "meta tensors": (Z.to("meta"), Y.to("meta"), {}, "meta"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_engine_that_cannot_take_a_call_says_why(core, name):
    z, y, options, reason = UNFIT[name]
    with pytest.raises(ValueError, match=reason):
        xent.explain(z, y, engine="native", **options)
    plan = xent.explain(z, y, **options)
    assert plan.engine == "reference"
    assert reason in plan.reason
    if not z.is_meta:
        with pytest.raises(ValueError, match=reason):
            xent.cross_entropy(z, y, engine="native", **options)
        xent.cross_entropy(z, y, **options)


def test_a_tensor_subclass_that_answers_itself_takes_the_reference(core):
    class Mine(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    plan = xent.explain(torch.Tensor._make_subclass(Mine, Z), Y)
    assert plan.engine == "reference"
    assert "Mine" in plan.reason


# ---- the statistics themselves --------------------------------------------------------------


def test_statistics(engine):
    s = xent.statistics(Z, Y, entropy=True, mean=True, top=True, engine=engine)
    p, close = torch.softmax(Z, 1), torch.testing.assert_close
    close(s.target, Z.gather(1, Y[:, None])[:, 0])
    close(s.lse, torch.logsumexp(Z, 1))
    close(s.log_prob, log_p())
    close(s.prob, log_p().exp())
    close(s.log_odds, torch.logit(log_p().exp()))
    close(s.rest, torch.logsumexp(Z.scatter(1, Y[:, None], -torch.inf), 1))
    close(s.nll, -log_p())
    close(s.entropy, -(p * p.log()).sum(1))
    close(s.mean, Z.mean(1))
    assert torch.equal(s.top, Z.argmax(1))
    assert torch.equal(s.top_logit, Z.amax(1))
    assert s.mass.tolist() == s.mean_mass.tolist() == [1.0] * 6
    assert s.support.tolist() == [5.0] * 6
    assert not s.soft


def test_statistics_of_soft_targets(engine):
    q = torch.softmax(Z.flip(0), 1)
    w = torch.linspace(0.5, 2, 5).double()
    s = xent.statistics(Z, q, weight=w, engine=engine)
    close = torch.testing.assert_close
    close(s.target, (q * w * Z).sum(1))
    close(s.log_prob, (q * w * torch.log_softmax(Z, 1)).sum(1))
    close(s.mass, (q * w).sum(1))
    close(s.nll, -s.log_prob)
    assert s.soft


def test_masks_leave_the_mean(engine):
    z = Z.clone()
    z[:, 3] = -torch.inf
    y = torch.where(Y == 3, 0, Y)
    s = xent.statistics(z, y, mean=True, engine=engine)
    torch.testing.assert_close(s.mean, Z[:, [0, 1, 2, 4]].mean(1))
    assert s.support.tolist() == [4.0] * 6


def test_an_ignored_row_is_a_sure_one(engine):
    s = xent.statistics(Z, torch.full((6,), -100), entropy=True, mean=True, engine=engine)
    for name in ("log_prob", "mass", "nll", "entropy", "lse", "target"):
        assert not getattr(s, name).any(), name
    assert bool((s.log_odds == torch.inf).all())


@pytest.mark.parametrize("loss", [focal, entropy_regularised, above_average])
def test_extra_axes(loss, engine):
    z, y = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    value = loss(z, y, reduction="none", engine=engine)
    flat = loss(z.movedim(1, -1).reshape(-1, 5), y.flatten(), reduction="none", engine=engine)
    torch.testing.assert_close(value.flatten(), flat, rtol=1e-6, atol=1e-7)
    again = loss(z, y, reduction="none", engine=engine)
    assert same_bits(value, again)


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("soft", [False, True])
def test_the_default_dtype_is_for_others(every_engine, dtype, soft):
    z, y, weight = torch.randn(301, 7), torch.randint(7, (301,)), torch.rand(7)
    y[::300] = -100
    target = torch.rand(301, 7) if soft else y

    def run(loss, **options):
        return value_and_grad(loss, z, target, engine=every_engine, **options)

    calls = [
        lambda: run(xent.cross_entropy),
        lambda: run(xent.cross_entropy, weight=weight, normalizer="count"),
        lambda: run(xent.cross_entropy, empty="zero"),
        lambda: run(xent.cross_entropy, label_smoothing=0.1, reduction="none"),
    ]
    expected = [call() for call in calls]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = [call() for call in calls]
    finally:
        torch.set_default_dtype(before)
    for ours, right in zip(found, expected, strict=True):
        assert all(same_bits(a, b) for a, b in zip(ours, right, strict=True))
