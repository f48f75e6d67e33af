"""Edge cases: NaN, infinities, masks, empty tensors and very large ones."""

import math

import pytest
import torch

import xent
from tests.helpers import same_bits, value_and_grad

INF = math.inf


def run(z, y, engine="auto", **options):
    return value_and_grad(xent.cross_entropy, z, y, engine=engine, **options)


def test_t1_the_mean_is_over_rows_not_over_numbers(engine):
    # The predictions and targets of StackOverflow 47377222, a fifth class making each row sum to 1.
    p = torch.tensor([[0.25] * 4 + [0], [0.01, 0.01, 0.01, 0.96, 0.01]], dtype=torch.float64)
    z, hot = p.log(), torch.tensor([[0, 0, 0, 1.0, 0]] * 2, dtype=torch.float64)
    for y in (torch.tensor([3, 3]), hot):
        assert xent.cross_entropy(z, y, engine=engine).item() == pytest.approx(0.7135581778200729)


@pytest.mark.parametrize(
    ("dtype", "height"),
    [(torch.float16, 6e4), (torch.bfloat16, 1e38), (torch.float32, 1e38), (torch.float64, 1e300)],
)  # exp overflows at 12, 89, 89, 710
def test_t2_large_logits_do_not_overflow(engine, dtype, height):
    z = torch.tensor([[height, height, 0.0], [-height, 0.0, height]], dtype=dtype)
    value, grad = run(z, torch.tensor([0, 2]), engine, reduction="none")
    assert value.tolist() == pytest.approx([math.log(2), 0.0], rel=torch.finfo(dtype).eps)
    assert grad.tolist() == [[-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]


def test_t3_probabilities_as_logits_compute_and_have_their_known_floor(engine):
    for classes, floor in ((2, 0.3133), (10, 1.4612), (1000, 5.9095)):
        p = torch.nn.functional.one_hot(torch.tensor([0]), classes).double()
        loss = xent.cross_entropy(p, torch.tensor([0]), engine=engine)
        assert loss.item() == pytest.approx(floor, abs=5e-5)
        assert loss.item() == pytest.approx(math.log(math.e + classes - 1) - 1, rel=1e-14)


def test_t13_one_value_per_row(engine):
    z = torch.randn(2, 5)
    y = torch.tensor([1, 2])
    assert xent.cross_entropy(z, y, reduction="none", engine=engine).shape == (2,)
    with pytest.raises(ValueError, match="row_weight"):
        xent.cross_entropy(z, y, row_weight=torch.ones(2, 1), engine=engine)


def test_t14_a_target_row_may_sum_to_anything(engine):
    z = torch.tensor([[2.0, 1.0, -1.0]], dtype=torch.float64)
    q = torch.tensor([[1.0, 1.5, 0.5]], dtype=torch.float64)
    value, grad = run(z, q, engine)
    p = torch.softmax(z, 1)
    assert value.item() == pytest.approx(-(q * p.log()).sum().item(), rel=1e-14)
    torch.testing.assert_close(grad, 3 * p - q, rtol=1e-14, atol=1e-15)


def test_t16_masked_classes(engine):
    z = torch.tensor([[1.0, -INF, 2.0, 0.5]], dtype=torch.float64)
    seen = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
    where = torch.tensor([0, 2, 3])
    q, q_seen = (
        torch.tensor([[0.2, 0.0, 0.5, 0.3]]).double(),
        torch.tensor([[0.2, 0.5, 0.3]]).double(),
    )
    pairs = [(torch.tensor([2]), torch.tensor([1])), (q, q_seen)]
    for (y, y_seen), eps in ((p, e) for p in pairs for e in (0.0, 0.2)):
        value, grad = run(z, y, engine, label_smoothing=eps)
        expected, slope = run(seen, y_seen, engine, label_smoothing=eps)
        torch.testing.assert_close(value, expected, rtol=1e-14, atol=0)
        torch.testing.assert_close(grad[:, where], slope, rtol=1e-13, atol=1e-16)
        assert grad[0, 1] == 0


@pytest.mark.parametrize("reduction", ["mean", "none"])  # the plain call, the frame
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-4}], ids=str)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("classes", [1, 3, 40])
def test_t16_the_only_class_allowed(engine, classes, soft, options, reduction):
    # A policy with one legal move: the gradient is 0, and not 0 / 0 for the other moves.
    z = torch.full((2, classes), -INF)
    z[:, 0], z[1, 0] = 1.5, -80.0
    y = torch.zeros(2, dtype=torch.int64)
    y = torch.nn.functional.one_hot(y, classes).float() if soft else y
    value, grad = run(z, y, engine, reduction=reduction, **options)
    lse = z[:, 0] if "z_loss" in options else torch.zeros(2)
    weight = options.get("z_loss", 0.0) * (0.5 if reduction == "mean" else 1)
    torch.testing.assert_close(value.sum(), weight * (lse**2).sum())
    torch.testing.assert_close(grad[:, 0], 2 * weight * lse)
    assert not grad[:, 1:].any()


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7F800001, -0x00400001])
@pytest.mark.parametrize("classes", [5, 50, 3000])
def test_a_nan_stays_nan_whatever_its_payload(engine, bits, classes):
    nan = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    z = torch.randn(3, classes)
    z[0, 0], z[1, -1], z[2, classes // 2] = nan, nan, nan
    value, grad = run(z, torch.full((3,), 1), engine, reduction="none")
    assert value.isnan().all()
    assert grad.isnan().all()


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1}], ids=str)
@pytest.mark.parametrize("bad", [math.nan, INF])
def test_a_poisoned_row_is_nan_even_where_it_is_masked(engine, bad, options):
    z = torch.tensor([[bad, 1.0, -INF, -90.0], [0.5, 1.0, -INF, -90.0]])
    value, grad = run(z, torch.tensor([1, 1]), engine, reduction="none", **options)
    assert value.isnan().tolist() == [True, False]
    assert grad[0].isnan().all()
    assert grad[1].isfinite().all()


def test_zero_classes(engine):
    z, ignored = torch.zeros(3, 0), torch.full((3,), -100)
    for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1}):
        value, grad = run(z, ignored, engine, reduction="none", **options)
        assert value.tolist() == [0, 0, 0]
        assert grad.shape == (3, 0)
    assert (
        xent.statistics(z, ignored, engine=engine, entropy=True, mean=True).lse.tolist() == [0] * 3
    )
    with pytest.raises(IndexError):
        xent.cross_entropy(z, torch.zeros(3, dtype=torch.int64), engine=engine)
    with pytest.raises(ValueError, match="`input` must have a class"):
        xent.cross_entropy(z, torch.zeros(3, 0), engine=engine)


def test_a_large_gradient_over_logits_at_an_odd_address(core):
    class Move(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            odd = torch.frombuffer(bytearray(x.nbytes + 1), dtype=x.dtype, offset=1)
            return x.new_empty(0).set_(odd.untyped_storage(), 0, x.shape, x.stride()).copy_(x)

        @staticmethod
        def backward(ctx, grad):
            return grad

    z, y = torch.randn(520, 4099), torch.randint(4099, (520,))  # 8 MiB
    _, expected = run(z, y, "native")
    z.requires_grad_()
    xent.cross_entropy(Move.apply(z), y, engine="native", inplace_backward=True).backward()
    assert torch.equal(z.grad, expected)


@pytest.mark.parametrize("soft", [False, True])
def test_t16_a_target_on_a_masked_class_is_infinitely_bad(engine, soft):
    z = torch.tensor([[1.0, -INF, 2.0]])
    y = torch.tensor([[0.0, 1.0, 0.0]]) if soft else torch.tensor([1])
    assert xent.cross_entropy(z, y, engine=engine) == INF


def test_t16_masks_go_through_scale_and_cap(engine):
    z = torch.tensor([[1.0, -INF, 2.0]], dtype=torch.float64)
    for options in ({"softcap": 5.0}, {"logit_scale": 0.5}, {"logit_scale": torch.tensor([2.0])}):
        value, grad = run(z, torch.tensor([2]), engine, **options)
        expected = run(z[:, [0, 2]], torch.tensor([1]), engine, **options)
        torch.testing.assert_close(value, expected[0], rtol=1e-15, atol=0)
        torch.testing.assert_close(grad[:, [0, 2]], expected[1], rtol=1e-14, atol=0)
        assert grad[0, 1] == 0


def test_t17_zero_weights(engine):
    z, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    for zero in ({"weight": torch.zeros(4)}, {"row_weight": torch.zeros(3)}):
        assert xent.cross_entropy(z, y, engine=engine, **zero).isnan()
        value, grad = run(z, y, engine, empty="zero", **zero)
        assert value == 0
        assert not grad.any()


def test_t19_an_ignored_class_stays_in_the_denominator(engine):
    z = torch.tensor([[1.0, 2.0], [3.0, 1.0]], dtype=torch.float64)
    loss = xent.cross_entropy(z, torch.tensor([0, 1]), ignore_index=1, engine=engine)
    assert loss.item() == pytest.approx(math.log1p(math.exp(1)), rel=1e-15)


def test_t20_weights_with_smoothing_follow_torch(engine):
    z, y, w = (
        torch.randn(4, 3).double(),
        torch.tensor([0, 1, 2, 0]),
        torch.tensor([1.0, 5, 0.1]).double(),
    )
    options = {"weight": w, "label_smoothing": 0.2}
    expected = torch.nn.functional.cross_entropy(z, y, **options)
    torch.testing.assert_close(xent.cross_entropy(z, y, engine=engine, **options), expected)


def test_t21_signed_weights_are_divided_by_a_count(engine):
    z, y = torch.randn(4, 3).double(), torch.tensor([0, 1, 2, 0])
    advantage = torch.tensor([1.0, -2.0, 0.5, -1.5]).double()
    loss = xent.cross_entropy(z, y, row_weight=advantage, normalizer="count", engine=engine)
    log_p = torch.log_softmax(z, 1)[torch.arange(4), y]
    torch.testing.assert_close(loss, -(advantage * log_p).mean(), rtol=1e-14, atol=1e-15)
    with pytest.raises(ValueError, match="normalizer"):
        xent.cross_entropy(z, y, row_weight=advantage, engine=engine)


@pytest.mark.parametrize("bad", [math.nan, INF])  # NaN; an overflow upstream
@pytest.mark.parametrize("at", [0, 2])  # in the target's class; in another one
@pytest.mark.parametrize("kind", ["index", "soft", "smooth", "entropy"])
@pytest.mark.parametrize("classes", [4, 5000])  # one block; several
def test_a_bad_row_poisons_only_itself(engine, bad, at, kind, classes):
    z = torch.randn(3, classes)
    y = torch.tensor([1, 0, 3])
    hot = torch.nn.functional.one_hot(y, classes).float()
    target = hot if kind == "soft" else y
    options = {"label_smoothing": 0.1} if kind == "smooth" else {}
    clean = run(z, target, engine, reduction="none", **options)
    z[1, at] = bad
    value, grad = run(z, target, engine, reduction="none", **options)
    keep = torch.tensor([0, 2])
    assert same_bits(value[keep], clean[0][keep])
    assert same_bits(grad[keep], clean[1][keep])
    assert value[1].isnan()
    assert grad[1].isnan().any()
    if kind == "entropy":
        s = xent.statistics(z, y, entropy=True, mean=True, top=True, engine=engine)
        assert s.entropy.isnan().tolist() == [False, True, False]
        assert s.lse.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("classes", [1, 3, 5000])
def test_a_row_of_masks_alone_is_nan(engine, soft, classes):
    z = torch.randn(2, classes)
    z[1] = -INF
    y = torch.full((2, classes), 1 / classes) if soft else torch.tensor([0, 0])
    value = xent.cross_entropy(z, y, reduction="none", engine=engine)
    assert value.isnan().tolist() == [False, True]


def test_no_rows_and_no_classes(engine):
    shapes = ((0, 3), (2, 3, 0), (0, 3, 2), (0, 3, 2, 4), (2, 3, 0, 4), (0, 3, 1, 2, 2))
    for shape in shapes:
        rows = shape[:1] + shape[2:]
        value, grad = run(torch.randn(shape), torch.zeros(rows).long(), engine, reduction="none")
        assert value.shape == rows
        assert grad.shape == shape
    assert (
        xent.cross_entropy(torch.randn(0, 0), torch.zeros(0).long(), reduction="sum", engine=engine)
        == 0
    )
    with pytest.raises(ValueError, match="target"):
        xent.cross_entropy(torch.randn(2, 0), torch.tensor([0, 0]), engine=engine)
    all_ignored = xent.cross_entropy(
        torch.randn(2, 0), torch.tensor([-100, -100]), reduction="none", engine=engine
    )
    assert all_ignored.tolist() == [0, 0]


@pytest.mark.parametrize("soft", [False, True])
def test_a_single_class_is_certain(engine, soft):
    y = torch.ones(3, 1) if soft else torch.zeros(3, dtype=torch.int64)
    value, grad = run(torch.randn(3, 1), y, engine)
    assert value == 0
    assert not grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_one_hot_row_surer_than_the_type_can_say(engine, dtype):
    # exp(-800) is 0 in every type: the loss is 0, and so is the gradient
    z = torch.tensor([[800.0, 0.0]], dtype=dtype)
    for y in (torch.tensor([0]), torch.tensor([[1.0, 0.0]], dtype=dtype)):
        value, grad = run(z, y, engine)
        assert value == 0
        assert grad.tolist() == [[0, 0]]


def test_t27_logits_near_ten_thousand(engine):
    z = torch.tensor([[1e4 + 0.0625, 1e4], [1e4 + 9.25, 1e4]])
    value = xent.cross_entropy(z, torch.tensor([0, 0]), reduction="none", engine=engine)
    expected = [math.log1p(math.exp(-0.0625)), math.log1p(math.exp(-9.25))]
    assert value.tolist() == pytest.approx(expected, rel=2e-7)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])  # below 1 the naive gradient is NaN at p = 1
def test_t28_focal_loss_of_a_certain_row(engine, gamma):
    @xent.row_loss
    def focal(s, gamma):
        log_miss = torch.nn.functional.logsigmoid(-s.log_odds)
        return -torch.exp(gamma * log_miss) * s.log_prob

    z = torch.tensor([[100.0, 0.0], [-100.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([0, 0, -100])
    value, grad = value_and_grad(focal, z, y, reduction="none", gamma=gamma, engine=engine)
    assert value.tolist() == pytest.approx([math.exp(-100 * (1 + gamma)), 100.0, 0.0], rel=1e-13)
    assert bool(grad.isfinite().all())


@pytest.mark.slow
def test_more_than_two_to_the_31_numbers(core):
    z = torch.zeros(1).expand(70_000, 32_000)
    with torch.no_grad():
        value = xent.cross_entropy(z, torch.full((70_000,), 31_999), engine="native")
    assert value.item() == pytest.approx(math.log(32_000), rel=1e-6)


@pytest.mark.slow
def test_offsets_beyond_two_to_the_31(core):
    storage = torch.zeros(2**31 + 64, dtype=torch.bfloat16)  # untouched pages cost nothing
    z = storage.as_strided((2, 8), (2**31 + 32, 1))
    z[1, 3] = 5.0
    value = xent.cross_entropy(z, torch.tensor([3, 3]), reduction="none", engine="native")
    expected = [math.log(8), math.log1p(7 * math.exp(-5))]
    assert value.tolist() == pytest.approx(expected, rel=2**-8)


def test_an_infinite_logit_is_no_certainty():
    assert xent.log_softmax(torch.tensor([math.inf, 0.0, 1.0])).isnan().all()
    assert xent.log_softmax(torch.tensor([math.nan, 0.0, 1.0])).isnan().all()
