"""Rows and elements of weight 0 are left out, whatever they hold, by every engine and reduction."""

import math

import pytest
import torch
from torch.autograd import forward_ad

import xent
from tests.helpers import head
from tests.registry import APART, OF_A_BATCH, OF_ELEMENTS, OF_LABELS, REGISTRY
from xent.losses import CATALOG

N, C = 6, 4
HOLES = {"nan": math.nan, "inf": math.inf, "masked": -math.inf, "overflown": 1e300}
WEIGHT = torch.tensor([1.0, 0.0, 0.5, 2.0, 0.0, 1.0])
KEPT = WEIGHT != 0
BY_ROW = [n for n in REGISTRY if n not in {*APART, *OF_A_BATCH, *OF_LABELS, *OF_ELEMENTS}]


def logits(name, hole, dtype=torch.float64):
    """Return logits of rows, and the same with other numbers in the rows of weight 0."""
    z = 0.5 * torch.randn(N, REGISTRY[name].width(C), dtype=dtype)
    return z, torch.where(KEPT[:, None], z, torch.tensor(hole, dtype=dtype))


def both(loss, z, holed):
    """Return loss and gradient of whole rows and of rows with holes."""
    found = []
    for x in (z, holed):
        x = x.clone().requires_grad_()
        value = loss(x)
        (slope,) = torch.autograd.grad(value.sum(), x)
        found += [value.detach(), slope]
    return found


def check(loss, z, holed):
    """Assert that such rows have no effect on the loss, and no gradient."""
    value, slope, with_holes, holed_slope = both(loss, z, holed)
    assert value.isfinite().all()
    assert torch.equal(value, with_holes)
    assert torch.equal(slope, holed_slope)
    assert (slope[~KEPT] == 0).all()


@pytest.mark.parametrize("hole", HOLES.values(), ids=HOLES)
@pytest.mark.parametrize("name", BY_ROW)
def test_every_loss_of_rows(name, hole):
    z, holed = logits(name, hole)
    c, function = REGISTRY[name], CATALOG[name].function
    settings = REGISTRY[name].arguments(C)
    y = torch.arange(N) % C
    for reduction in ("none", "sum", "mean"):
        check(
            lambda x, r=reduction: function(
                *c.data(x, y), reduction=r, row_weight=WEIGHT, **settings
            ),
            z, holed,
        )  # fmt: skip


@pytest.mark.parametrize("name", sorted(OF_LABELS))
def test_every_loss_of_labels(name):
    z, function = 0.5 * torch.randn(N, C).double(), CATALOG[name].function
    y = (torch.randn(N, C) > 0).double()
    for hole in HOLES.values():
        holed = torch.where(KEPT[:, None], z, torch.tensor(hole).double())
        check(lambda x: function(x, y, row_weight=WEIGHT), z, holed)


@pytest.mark.parametrize("name", OF_ELEMENTS)
def test_every_loss_of_elements(name):
    function, y = CATALOG[name].function, torch.rand(N, C).double()
    z = torch.randn(N, C).double()
    for hole in HOLES.values():
        holed = torch.where(KEPT[:, None], z, torch.tensor(hole).double())
        for reduction in ("none", "sum", "mean"):
            check(
                lambda x, r=reduction: function(x, y, WEIGHT.double()[:, None], reduction=r),
                z, holed,
            )  # fmt: skip
    value = function(z, y, WEIGHT.double()[:, None])
    assert value == function(z, y, WEIGHT.double()[:, None], reduction="sum") / (N * C)


@pytest.mark.parametrize("hole", [math.nan, -math.inf])
def test_every_engine(every_engine, hole):
    z, holed = logits("cross_entropy", hole, torch.float32)
    y, soft = torch.arange(N) % C, torch.softmax(torch.randn(N, C), 1)
    for target in (y, soft):
        options = {"engine": every_engine, "row_weight": WEIGHT}
        check(lambda x, t=target, o=options: xent.cross_entropy(x, t, **o), z, holed)
    t, weight = torch.rand(N, C), WEIGHT[:, None]
    check(
        lambda x: xent.binary_cross_entropy_with_logits(x, t, weight, engine=every_engine),
        z, holed,
    )  # fmt: skip


def test_what_else_a_row_holds():
    """A label that does not exist, numbers that are no probabilities, a target that is NaN."""
    z, y = torch.randn(N, C), torch.arange(N) % C
    bad = torch.where(KEPT, y, 77)
    assert xent.cross_entropy(z, bad, row_weight=WEIGHT) == xent.cross_entropy(
        z, y, row_weight=WEIGHT
    )
    soft = torch.softmax(z, 1)
    for loss in (xent.cross_entropy, xent.losses.sparsemax_loss):
        none = torch.where(KEPT[:, None], soft, math.nan)
        assert loss(z, none, row_weight=WEIGHT) == loss(z, soft, row_weight=WEIGHT)
    t = torch.rand(N, C)
    none, weight = torch.where(KEPT[:, None], t, math.nan), WEIGHT[:, None]
    loss = xent.binary_cross_entropy_with_logits
    assert loss(z, none, weight) == loss(z, t, weight)


def test_what_else_a_mixture_and_a_probability_hold():
    z, y = torch.randn(N, C).double(), torch.arange(N) % C
    lam, bad = torch.rand(N), torch.where(KEPT, y, 77)
    no_lam = torch.where(KEPT, lam, math.nan)
    for reduction in ("none", "sum", "mean"):
        options = {"row_weight": WEIGHT, "reduction": reduction}
        torch.testing.assert_close(
            xent.losses.mixup_cross_entropy(z, bad, y.flip(0), no_lam, **options),
            xent.losses.mixup_cross_entropy(z, y, y.flip(0), lam, **options), rtol=0, atol=0,
        )  # fmt: skip
    with pytest.raises(ValueError, match="`lam`"):
        xent.losses.mixup_cross_entropy(z, y, y, no_lam)
    with pytest.raises(xent.TargetError, match="`target_b`"):
        xent.losses.mixup_cross_entropy(z, y, bad, lam)
    q, t, weight = torch.rand(N, C).double(), torch.rand(N, C).double(), WEIGHT.double()[:, None]
    for hole in (math.nan, 7.0):
        holed = torch.where(KEPT[:, None], q, hole)
        check(lambda x: xent.binary_cross_entropy(x, t, weight), q, holed)
        with pytest.raises(ValueError, match="`input` holds"):
            xent.binary_cross_entropy(holed, t)


@pytest.mark.parametrize("normalize", [True, False])
def test_queries_of_weight_0_and_those_ignored(normalize):
    """The length of a query that is left out must not be a divisor."""
    query, key = torch.randn(2, N, 3).double()
    target = torch.where(KEPT, torch.arange(N), -100)
    for options in ({"row_weight": WEIGHT}, {"target": target}, {"target": target.int()}):
        for hole in HOLES.values():
            holed = torch.where(KEPT[:, None], query, torch.tensor(hole).double())
            check(
                lambda x, o=options: xent.losses.info_nce_loss(x, key, normalize=normalize, **o),
                query, holed,
            )  # fmt: skip


def test_counts_and_statistics_go_on_as_they_were():
    """A row of weight 0 still counts as a row, such as a row with an advantage of 0."""
    z, y = torch.randn(N, C).double(), torch.arange(N) % C
    options = {"row_weight": WEIGHT, "normalizer": "count"}
    total = xent.cross_entropy(z, y, row_weight=WEIGHT, reduction="sum")
    assert xent.cross_entropy(z, y, **options) == total / N
    loss, stats = xent.cross_entropy(z, y, return_stats=True, **options)
    assert loss == total / N
    torch.testing.assert_close(stats.log_prob, xent.statistics(z, y).log_prob, rtol=0, atol=0)
    for name in ("mixup_cross_entropy", "sparse_cross_entropy", "distillation_loss"):
        function, data = CATALOG[name].function, REGISTRY[name].data(z, y)
        total = function(*data, row_weight=WEIGHT, reduction="sum")
        torch.testing.assert_close(function(*data, **options), total / N)


def test_a_weight_that_is_learned_has_its_slope_at_0():
    z, y = torch.randn(N, C).double(), torch.arange(N) % C
    weight = WEIGHT.double().requires_grad_()
    (slope,) = torch.autograd.grad(
        xent.cross_entropy(z, y, row_weight=weight, reduction="sum"), weight
    )
    torch.testing.assert_close(slope, xent.cross_entropy(z, y, reduction="none"))
    weight = WEIGHT.double()[:, None].requires_grad_()
    t, loss = torch.rand(N, C).double(), xent.binary_cross_entropy_with_logits
    (slope,) = torch.autograd.grad(loss(z, t, weight, reduction="sum"), weight)
    torch.testing.assert_close(slope[:, 0], loss(z, t, reduction="none").sum(1))


@pytest.mark.parametrize("loss", ["cross_entropy", "sparsemax_loss", "multilabel_cross_entropy"])
def test_behind_a_head(loss):
    hidden, weight, bias = (x.detach() for x in head(N, 3, C))
    y, soft = torch.arange(N) % C, torch.softmax(torch.randn(N, C).double(), 1)
    targets = [soft] if loss == "multilabel_cross_entropy" else [y, soft]
    for target in targets:

        def run(x, t=target):
            w = weight.clone().requires_grad_()
            value = CATALOG[loss].function(xent.LinearLogits(x, w, bias), t, row_weight=WEIGHT)
            assert torch.autograd.grad(value, w, retain_graph=True)[0].isfinite().all()
            return value

        check(run, hidden, torch.where(KEPT[:, None], hidden, math.nan))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_elements_behind_a_head(reduction):
    hidden, weight, bias = (x.detach() for x in head(N, 3, C))
    t = torch.rand(N, C).double()

    def run(x):
        w = weight.clone().requires_grad_()
        value = xent.losses.sigmoid_focal_loss(
            xent.LinearLogits(x, w, bias), t, WEIGHT[:, None].double(), reduction=reduction
        )
        assert torch.autograd.grad(value, w, retain_graph=True)[0].isfinite().all()
        return value

    check(run, hidden, torch.where(KEPT[:, None], hidden, math.nan))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("behind_head", [False, True])
def test_scales_of_rows_left_out(soft, behind_head):
    """A row that does not count may have a temperature of NaN, also a learned one."""
    z = torch.randn(N, C, dtype=torch.float64)
    y = torch.rand(N, C).double().softmax(1) if soft else torch.arange(N) % C
    if not soft:
        y[0] = -100
    scale = torch.rand(N, dtype=torch.float64) + 0.5
    counts = KEPT if soft else KEPT & (y != -100)
    holed = torch.where(counts, scale, math.nan).requires_grad_()
    logits = xent.LinearLogits(z, torch.eye(C, dtype=z.dtype)) if behind_head else z
    loss = xent.cross_entropy(logits, y, row_weight=WEIGHT.double(), logit_scale=holed)
    loss.backward()
    s = scale.clone().requires_grad_()
    q = y if soft else torch.nn.functional.one_hot(y.clamp(min=0), C).double()
    rows = -(q * torch.log_softmax(z * s[:, None], 1)).sum(1)
    weight = WEIGHT.double() * counts
    expected = (weight * rows).sum() / weight.sum()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(holed.grad, s.grad)


def test_soft_targets_of_rows_left_out():
    z, q = torch.randn(N, C).double(), torch.softmax(torch.randn(N, C).double(), 1)
    for hole in HOLES.values():
        holed = torch.where(KEPT[:, None], q, torch.tensor(hole).double())
        for options in ({}, {"label_smoothing": 0.1}, {"engine": "reference"}):
            options = {"row_weight": WEIGHT, "reduction": "sum", **options}
            both = []
            for target in (q, holed):
                x = z.clone().requires_grad_()
                value = xent.cross_entropy(x, target, **options)
                both.append((value.detach(), *torch.autograd.grad(value, x)))
            for whole, left in zip(*both, strict=True):
                assert torch.equal(whole, left)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_weight_of_0_has_a_slope_forward():
    """A derivative by a weight in forward mode reads rows of weight 0, too."""
    z, y = torch.randn(N, C).double(), torch.arange(N) % C
    with forward_ad.dual_level():
        weight = forward_ad.make_dual(WEIGHT.double(), torch.ones(N).double())
        loss = xent.cross_entropy(z, y, row_weight=weight, reduction="sum")
        slope = forward_ad.unpack_dual(loss).tangent
    torch.testing.assert_close(slope, torch.nn.functional.cross_entropy(z, y, reduction="sum"))
