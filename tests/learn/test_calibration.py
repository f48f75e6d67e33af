"""Calibration against direct formulas, against chance, and against scikit-learn."""

import doctest
import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from xent.information import bin_confidences
from xent.learn import calibration
from xent.learn.calibration import brier_score, calibration_error, fit_temperature, reliability

F64 = torch.float64
close = torch.testing.assert_close


def predictions(rows=400, classes=5, seed=0, sharpness=1.0):
    """Return logits with the right chances except for a factor, and drawn labels."""
    g = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(rows, classes, generator=g, dtype=F64)
    y = torch.multinomial(torch.softmax(z, 1), 1, generator=g)[:, 0]
    return z * sharpness, y


# ---- temperature ----------------------------------------------------------------------------


def best_temperature(z, y):
    """Return the temperature by bisection on the derivative of the loss in 1/T."""
    low, high = 1e-6, 1e6
    for _ in range(70):
        scale = math.sqrt(low * high)
        p = torch.softmax(scale * z, 1)
        slope = ((p * z).sum(1) - z.gather(1, y[:, None])[:, 0]).sum()
        low, high = (low, scale) if slope > 0 else (scale, high)
    return 1 / low


@pytest.mark.parametrize("sharpness", [1e-3, 0.3, 1.0, 4.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_temperature_is_where_the_loss_is_least(sharpness, dtype):
    z, y = predictions(sharpness=sharpness)
    z = z.to(dtype)
    t = fit_temperature(z, y)
    assert t == pytest.approx(best_temperature(z.double(), y), rel=1e-12)
    assert t == pytest.approx(sharpness, rel=0.15)
    scale = torch.tensor(1 / t, dtype=F64, requires_grad=True)
    loss = F.cross_entropy(scale * z.double(), y)
    (slope,) = torch.autograd.grad(loss, scale)
    assert abs(slope.item() / t) < 1e-13
    for other in (0.99, 1.01):
        assert F.cross_entropy(other / t * z.double(), y) > loss


def test_temperature_takes_few_sweeps(monkeypatch):
    calls = []
    measure = calibration.statistics
    monkeypatch.setattr(
        calibration, "statistics", lambda *a, **k: calls.append(1) or measure(*a, **k)
    )
    for sharpness, most in [(1e-4, 30), (0.1, 15), (1.0, 15), (3.0, 15), (1e4, 30)]:
        calls.clear()
        fit_temperature(*predictions(sharpness=sharpness))
        assert len(calls) <= most


def test_temperature_of_a_scaled_model_scales():
    z, y = predictions()
    best = best_temperature(z, y)
    assert fit_temperature(7 * z, y) == pytest.approx(7 * best, rel=1e-12)
    assert fit_temperature(z + 100, y) == pytest.approx(best, rel=1e-11)


def test_temperature_knows_every_kind_of_input():
    z, y = predictions(rows=60)
    t = best_temperature(z, y)
    image, labels = z.view(3, 20, 5).movedim(2, 1), y.view(3, 20)
    assert fit_temperature(image, labels) == pytest.approx(t, rel=1e-12)
    more = torch.cat([z, torch.full((1, 5), math.nan, dtype=F64)])
    ignored = torch.cat([y, torch.tensor([-100])])
    assert fit_temperature(more, ignored) == pytest.approx(t, rel=1e-12)
    one_hot = torch.nn.functional.one_hot(y, 5).double()
    assert fit_temperature(z, one_hot) == pytest.approx(t, rel=1e-12)
    masked = torch.cat([z, torch.full((60, 1), -math.inf, dtype=F64)], 1)
    assert fit_temperature(masked, y) == pytest.approx(t, rel=1e-12)
    assert fit_temperature(z, torch.softmax(z / 3, 1)) == pytest.approx(3, rel=1e-10)


def test_where_there_is_no_best_temperature():
    z, y = predictions(rows=50)
    top = z.argmax(1)
    with pytest.raises(ValueError, match=r"every row is right.*not been trained on"):
        fit_temperature(z, top)
    with pytest.raises(ValueError, match="at no finite temperature"):
        fit_temperature(z, z.argmin(1))
    with pytest.raises(ValueError, match="no row is left"):
        fit_temperature(z, torch.full_like(y, -100))
    masked = z.clone()
    masked[3, y[3]] = -math.inf
    with pytest.raises(ValueError, match=r"not finite.*xent\.diagnose"):
        fit_temperature(masked, y)
    with pytest.raises(ValueError, match="not finite"):
        fit_temperature(z.index_fill(0, torch.tensor([3]), math.nan), y)
    with pytest.raises(ValueError, match="out of bounds"):
        fit_temperature(z, y + 5)


# ---- reliability ----------------------------------------------------------------------------


def counted(confidence, right, edges):
    """Return mean confidence, accuracy and count of each bin (low, high], by a loop."""
    bins = [[] for _ in edges[1:]]
    for c, r in zip(confidence.tolist(), right.tolist(), strict=True):
        bins[next(k for k, high in enumerate(edges[1:]) if c <= high)].append((c, r))
    columns = [[sum(column) / len(b) for column in zip(*b, strict=True)] for b in bins if b]
    n = len(confidence)
    ece = sum(
        len(b) / n * abs(x - y) for b, (x, y) in zip(filter(None, bins), columns, strict=True)
    )
    return columns, [len(b) for b in bins], ece


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
def test_the_table_of_equal_widths(bins):
    z, y = predictions(sharpness=2.0)
    confidence, predicted = torch.softmax(z, 1).max(1)
    table = reliability(z, y, bins)
    edges = [k / bins for k in range(bins + 1)]
    columns, count, ece = counted(confidence, predicted == y, edges)
    assert table.count.tolist() == count
    assert table.edges.tolist() == pytest.approx(edges)
    assert table.ece == pytest.approx(ece, rel=1e-12)
    filled = table.count > 0
    close(
        torch.stack([table.confidence, table.accuracy], 1)[filled], torch.tensor(columns, dtype=F64)
    )
    assert table.confidence[~filled].isnan().all()
    assert table.accuracy[~filled].isnan().all()
    assert table.mce == pytest.approx(max(abs(a - b) for a, b in columns))
    assert calibration_error(z, y, bins) == table.ece
    assert f"ECE {table.ece:.4f}" in str(table)
    assert len(str(table).splitlines()) == bins + 2


@pytest.mark.parametrize("kept", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("binned", ["reliability", "bin_confidences"])
def test_a_border_belongs_to_the_bin_below_however_it_was_rounded(kept, binned):
    """A confidence above the border by more than rounding belongs to the bin above."""
    for bins in range(2, 26):
        for k in range(1, bins):
            border = torch.tensor(k / bins, dtype=torch.float64).to(kept)
            step = torch.finfo(torch.promote_types(kept, torch.float16)).eps
            step = max(step, torch.finfo(torch.float32).eps) if kept != torch.bfloat16 else 2**-7
            p = torch.stack([border, (border.double() * (1 + step)).to(kept)])
            if binned == "reliability":
                count = reliability(
                    torch.stack([p, 1 - p], 1), torch.zeros(2).long(), bins, label=0
                ).count
            else:
                count = bin_confidences(p, torch.ones(2).bool(), bins).count
            assert count.nonzero().flatten().tolist() == [k - 1, k], (bins, k, p)


def test_float32_kept_in_float64_stays_in_its_bin():
    for bins in range(2, 26):
        p = (torch.arange(1, bins, dtype=torch.float64) / bins).float()
        rows, y = torch.stack([p, 1 - p], 1), torch.zeros(bins - 1).long()
        kept, given = (reliability(r, y, bins, label=0).count for r in (rows.double(), rows))
        assert kept.tolist() == given.tolist() == [1] * (bins - 1) + [0]


def test_the_ends():
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.05, 0.95]], dtype=torch.float64)
    for binning in ("width", "mass"):
        table = reliability(p, torch.tensor([0, 0, 0]), 10, label=0, binning=binning)
        assert table.count.sum() == 3
        assert table.count[-1] >= 1
        assert table.count[0] == (2 if binning == "width" else table.count[0])
        assert table.ece == pytest.approx((1 + 0.95) / 3)


def test_equal_confidences_share_a_bin_of_equal_mass():
    p = torch.tensor([0.5] * 6 + [0.7] * 6 + [0.9] * 3).double()
    right = torch.tensor([True] * 3 + [False] * 3 + [True] * 9)
    table = bin_confidences(p, right, 5, "mass")
    assert sorted(n for n in table.count.tolist() if n) == [3, 6, 6]
    assert table.ece == pytest.approx((6 * 0 + 6 * 0.3 + 3 * 0.1) / 15)


@pytest.mark.parametrize("rows", [7, 60, 61])
@pytest.mark.parametrize("bins", [1, 4, 15])
def test_the_table_of_equal_mass(rows, bins):
    z, y = predictions(rows)
    confidence, predicted = torch.softmax(z, 1).max(1)
    table = reliability(z, y, bins, binning="mass")
    assert table.count.sum() == rows
    if bins <= rows:
        assert table.count.max() - table.count.min() <= 1
    order = confidence.argsort()
    parts = order.split([n for n in table.count.tolist() if n])
    direct = sum(
        len(i) / rows * abs(confidence[i].mean() - (predicted == y)[i].double().mean())
        for i in parts
    )
    assert table.ece == pytest.approx(float(direct))
    mixed = torch.randperm(rows)
    assert reliability(z[mixed], y[mixed], bins, binning="mass").ece == pytest.approx(table.ece)


def test_equal_confidences_share_a_bin():
    p = torch.tensor([[0.7, 0.3]] * 10)
    y = torch.tensor([0] * 7 + [1] * 3)
    for binning in ("width", "mass"):
        table = reliability(p, y, 5, binning=binning)
        assert sorted(table.count.tolist()) == [0, 0, 0, 0, 10]
        assert table.ece == pytest.approx(0, abs=1e-7)  # 0.7 in float32


def test_borders_belong_to_the_lower_bin():
    p = torch.tensor([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    assert reliability(p, torch.tensor([0, 0, 0]), 4).count.tolist() == [0, 1, 1, 1]
    assert reliability(p, torch.tensor([0, 0, 0]), 4, label=1).count.tolist() == [2, 1, 0, 0]


def test_classwise():
    z, y = predictions()
    p = torch.softmax(z, 1)
    each = []
    for c in range(5):
        edges = [k / 10 for k in range(11)]
        each.append(counted(p[:, c], y == c, edges)[2])
        assert reliability(p, y, 10, label=c).ece == pytest.approx(each[-1])
    assert calibration_error(p, y, 10, classwise=True) == pytest.approx(sum(each) / 5)


def test_brier():
    z, y = predictions()
    p = torch.softmax(z, 1)
    direct = ((p - torch.nn.functional.one_hot(y, 5)) ** 2).sum(1).mean().item()
    assert brier_score(z, y) == pytest.approx(direct, rel=1e-14)
    assert brier_score(p, y) == pytest.approx(direct, rel=1e-14)
    sure = torch.eye(3)
    assert brier_score(sure, torch.arange(3)) == 0
    assert brier_score(sure, torch.tensor([1, 2, 0])) == 2


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_a_calibrated_model_errs_by_chance_alone(binning):
    found, expected = {}, {}
    for rows in (1000, 8000):
        errors = []
        for seed in range(5):
            z, y = predictions(rows, seed=seed)
            table = reliability(z, y, 10, binning=binning)
            errors.append(table.ece)
            p = torch.softmax(z, 1).max(1)[0]
        which = torch.bucketize(p, table.edges[1:-1])
        spread = torch.bincount(which, weights=p * (1 - p), minlength=10)  # variance of the hits
        expected[rows] = (2 / math.pi * spread).sqrt().sum().item() / rows
        found[rows] = sum(errors) / len(errors)
        assert found[rows] == pytest.approx(expected[rows], rel=0.35)
    z, y = predictions(8000, sharpness=3.0)
    assert calibration_error(z, y, 10, binning=binning) > 7 * found[8000]
    assert calibration_error(z / fit_temperature(z, y), y, 10, binning=binning) < 2 * found[8000]


def test_agrees_with_scikit_learn():
    peer = pytest.importorskip("sklearn.calibration")
    metrics = pytest.importorskip("sklearn.metrics")
    z, y = predictions(2000, sharpness=2.0)
    p = torch.softmax(z, 1)
    top, predicted = p.max(1)
    for bins in (5, 15):
        for label, chance, came in [(None, top, predicted == y), (2, p[:, 2], y == 2)]:
            table = reliability(p, y, bins, label=label)
            filled = table.count > 0
            accuracy, confidence = peer.calibration_curve(came, chance, n_bins=bins)
            close(table.accuracy[filled], torch.tensor(accuracy), rtol=1e-12, atol=0)
            close(table.confidence[filled], torch.tensor(confidence), rtol=1e-12, atol=0)
    direct = sum(metrics.brier_score_loss(y == c, p[:, c]) for c in range(5))
    assert brier_score(p, y) == pytest.approx(direct, rel=1e-12)


# ---- input ----------------------------------------------------------------------------------


def test_logits_and_probabilities_tell_themselves_apart():
    z, y = predictions()
    p = torch.softmax(z, 1)

    def ece(p, y):
        confidence, predicted = p.max(1)
        return pytest.approx(counted(confidence, predicted == y, edges)[2], rel=1e-12)

    bins = len(reliability(z, y).count)
    edges = [k / bins for k in range(bins + 1)]
    assert reliability(z, y).ece == ece(p, y)
    assert reliability(p, y).ece == ece(p, y)
    assert reliability(p, y, from_logits=True).ece == ece(torch.softmax(p, 1), y)
    image, labels = z.view(20, 20, 5).movedim(2, 1), y.view(20, 20)
    assert reliability(image, labels).ece == ece(p, y)
    y[:30] = -100
    z[:30] = math.nan
    assert reliability(z, y).ece == ece(p[30:], y[30:])
    assert reliability(z, y).count.sum() == 370


def test_bad_input():
    z, y = predictions(10)
    p = torch.softmax(z, 1)
    with pytest.raises(ValueError, match=r"`input` must sum to 1.*from_logits=True"):
        reliability(p / 2, y)
    with pytest.raises(ValueError, match="no probability"):
        reliability(z, y, from_logits=False)
    with pytest.raises(ValueError, match="holds the class index 7"):
        reliability(p, y.clone().fill_(7))
    with pytest.raises(ValueError, match=r"target.argmax\(1\)"):
        reliability(p, p)
    with pytest.raises(ValueError, match="no row"):
        reliability(p, torch.full_like(y, -100))
    with pytest.raises(ValueError, match="`bins`"):
        reliability(p, y, 0)
    with pytest.raises(ValueError, match="`binning` must be one of 'width', 'mass'"):
        reliability(p, y, binning="equal")
    with pytest.raises(ValueError, match="`label` must be a class, 0 to 4, got 5"):
        reliability(p, y, label=5)
    with pytest.raises(ValueError, match="must have shape"):
        brier_score(p, y[:, None])


@pytest.mark.parametrize("name", [n for n, v in vars(calibration).items() if inspect.isfunction(v)])
def test_public_functions_explain_themselves(name):
    function = getattr(calibration, name)
    if name.startswith("_") or function.__module__ != calibration.__name__:
        return
    for part in ("Args:", "Returns:", "Raises:", *inspect.signature(function).parameters):
        assert part in (function.__doc__ or ""), part
    assert doctest.DocTestParser().get_examples(function.__doc__ or "")
