"""Behind a linear head, edge cases: LinearLogits do what a tensor of logits would do."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import xent
from tests.helpers import grads, head
from xent.heads import chunks as heads


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Make even small problems take several chunks."""
    monkeypatch.setattr(heads, "MAX_ROWS", 5)


def scalar(x):
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


def agree(lean, whole, parts):
    torch.testing.assert_close(lean, whole)
    for a, c in zip(grads(lean, parts), grads(whole, parts), strict=True):
        torch.testing.assert_close(a, c)


def test_a_learned_bias_is_divided_by_the_temperature():
    h, w, _ = head(13, 6, 9)
    y, t = torch.randint(9, (13,)), scalar(0.5)
    bias = torch.randn(9, dtype=torch.float64, requires_grad=True)
    for temperature, class_bias in ((0.5, bias), (t, bias.detach()), (t, bias)):
        options = {"temperature": temperature, "class_bias": class_bias}
        parts = [x for x in (h, w, temperature, class_bias) if getattr(x, "requires_grad", False)]
        both = ((h @ w.T + class_bias) / temperature for _ in range(2))
        log_p, again = (torch.log_softmax(z, -1) for z in both)
        lean = xent.token_log_probs(xent.LinearLogits(h, w), y, **options)
        agree(lean, log_p.gather(-1, y[:, None])[:, 0], parts)
        lean = xent.entropy(xent.LinearLogits(h, w), **options)
        agree(lean, -(again.exp() * again).sum(-1), parts)


@pytest.mark.parametrize("ask", ["gather", "max", "topk", "sampled"])
def test_few_classes_add_up_in_float32(ask):
    """Sums of 16-bit numbers stop growing at 256."""
    h = torch.ones(2000, 4, dtype=torch.bfloat16)
    w = torch.zeros(64, 4, dtype=torch.bfloat16, requires_grad=True)
    z, none = xent.LinearLogits(h, w), torch.zeros(2000, 1, dtype=torch.int64)
    asked = {
        "gather": lambda: z.gather(-1, none).float().sum(),
        "max": lambda: z.max(-1).values.float().sum(),
        "topk": lambda: z.topk(1).values.float().sum(),
        "sampled": lambda: -64 * xent.losses.sampled_cross_entropy(
            h, w, none[:, 0], torch.arange(64), reduction="sum"
        ).float() / 63,
    }[ask]()  # fmt: skip
    total = torch.autograd.grad(asked, w)[0].float().sum(0)
    expected = 2000.0 if ask != "sampled" else 0.0
    assert bool(((total - expected).abs() <= 16).all())


def test_learned_row_weights_and_targets_of_pairs():
    a, b, _ = head(7, 4, 7)
    weight = torch.rand(7, dtype=torch.float64, requires_grad=True)
    for reduction in ("mean", "sum", "none"):
        options = {"row_weight": weight, "reduction": reduction}
        with (
            pytest.warns(UserWarning, match="a gradient of targets")
            if reduction != "none"
            else (torch.enable_grad())
        ):
            lean = xent.losses.siglip_loss(xent.LinearLogits(a, b), **options)
        agree(lean, xent.losses.siglip_loss(a @ b.T, **options), (a, b, weight))


TRANSFORMED = {
    "nt_xent": lambda a, b: xent.losses.nt_xent_loss(a, b),
    "siglip": lambda a, b: xent.losses.siglip_loss(xent.LinearLogits(a, b)),
    "sparsemax": lambda a, b: xent.losses.sparsemax_loss(xent.LinearLogits(a, b), torch.arange(6)),
    "binary": lambda a, b: xent.binary_cross_entropy_with_logits(
        xent.LinearLogits(a, b), torch.eye(6, dtype=torch.float64)
    ),
    "top": lambda a, b: torch.topk(xent.LinearLogits(a, b), 2).values.sum(),
}


@pytest.mark.filterwarnings("ignore:.* needs all .* logits", "ignore:.*torch.jit.script")
@pytest.mark.parametrize("name", TRANSFORMED)
def test_function_transforms(name):
    loss = TRANSFORMED[name]
    a, b, _ = head(6, 3, 6)
    slope = torch.autograd.grad(loss(a, b), a)[0]
    a, b = a.detach(), b.detach()
    torch.testing.assert_close(torch.func.grad(loss)(a, b), slope)
    moved = torch.func.jvp(lambda x: loss(x, b), (a,), (torch.ones_like(a),))[1]
    torch.testing.assert_close(moved, slope.sum())
    many = torch.func.vmap(lambda x: loss(x, b))(torch.stack([a, 2 * a]))
    torch.testing.assert_close(many, torch.stack([loss(a, b), loss(2 * a, b)]))


def test_a_gradient_is_never_lost():
    h, w, _ = head(13, 6, 9)
    y, alpha = torch.randint(9, (13,)), scalar(2.0)

    @xent.row_loss
    def closed_over(s):
        return s.nll * alpha

    @xent.element_loss
    def of_elements(e, factor):
        return e.nll * factor

    with pytest.raises(ValueError, match="reads a tensor of shape"):
        closed_over(xent.LinearLogits(h, w), y)
    agree(closed_over(xent.LinearLogits(h, w), y, reduction="none"),
          closed_over(h @ w.T, y, reduction="none"), (h, w, alpha))  # fmt: skip
    labels = torch.rand(13, 9, dtype=torch.float64)
    for factor in (alpha, torch.rand(13, 1, dtype=torch.float64)):
        parts = [x for x in (h, w, factor) if x.requires_grad]
        with pytest.warns(UserWarning, match="a loss of each"):
            lean = of_elements(xent.LinearLogits(h, w), labels, factor=factor)
        agree(lean, of_elements(h @ w.T, labels, factor=factor), parts)


def test_a_mean_is_no_sum_that_overflows():
    h, w = torch.randn(64, 4).half() / 100, torch.randn(2048, 4).half()
    y = torch.randint(2, (64, 2048))
    lean = xent.binary_cross_entropy_with_logits(xent.LinearLogits(h, w), y)
    assert abs(lean.item() - 0.6931) < 2e-3


def test_probabilities_are_refused_where_they_make_no_sense():
    h, w, _ = head(13, 6, 9)
    q = torch.softmax(torch.randn(13, 9), -1).double()
    for loss in (xent.losses.mae_loss, xent.losses.crammer_singer_loss, xent.losses.recall_loss):
        with pytest.raises(ValueError, match="takes one class per row"):
            loss(xent.LinearLogits(h, w), q)
    with pytest.raises(TypeError, match="must hold probabilities"):
        xent.binary_cross_entropy(xent.LinearLogits(h, w), q)
    with pytest.raises(ValueError, match="behind a linear head it is the rule"):
        xent.cross_entropy(xent.LinearLogits(h, w), q, inplace_backward=True)


INDICES = [
    (slice(None), slice(2), ...), (slice(None), 1, ...), (0, ..., slice(1, 3)), (..., -1, slice(4)),
    (slice(None), [1, 0], ...), (torch.tensor([True, False, True]), slice(1, 3)), (None, 1),
    (torch.ones(3, 4).bool(), slice(1, 3)), torch.eye(12, 7).view(3, 4, 7).bool().numpy(),
    [True, False, True], (slice(None), slice(None, None, 2)), -1, (0, 1, 5, ...),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:getitem needs all")
@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indices(index):
    h, w, b = head(12, 5, 7)
    h = h.view(3, 4, 5)
    found, expected = xent.LinearLogits(h, w, b)[index], F.linear(h, w, b)[index]
    assert found.shape == expected.shape
    found = found.materialize() if isinstance(found, xent.LinearLogits) else found
    torch.testing.assert_close(found, expected)


def test_numbers_are_compared():
    h, w, _ = head(4, 3, 5)
    with pytest.warns(UserWarning, match="eq needs all"):
        assert (xent.LinearLogits(h, w) == 0.0).shape == (4, 5)
    with pytest.warns(UserWarning, match="ne needs all"):
        assert bool((xent.LinearLogits(h, w) != 0.0).all())
    z = xent.LinearLogits(h, w)
    assert z in {z: 1}
    with pytest.raises(RuntimeError, match="ambiguous"):
        bool(z)
    assert copy.deepcopy(z.detach()).shape == z.shape


def test_a_mask_stays_a_mask():
    """A mask of -inf passes through a cap, a learned scale, and a list with a tail."""
    h, w, b = head(13, 6, 9)
    b = b.detach().clone()
    b[2] = -torch.inf
    y, s = torch.randint(3, 9, (13,)), scalar(1.7)
    z = 5 * torch.tanh(xent.LinearLogits(h, w, b) / 5)
    assert bool((z.materialize()[:, 2] == -torch.inf).all())
    assert bool((z.gather(-1, torch.full((13, 1), 2)) == -torch.inf).all())
    torch.testing.assert_close(F.cross_entropy(z, y), F.cross_entropy(z.materialize(), y))
    lean = xent.cross_entropy(xent.LinearLogits(h, w, b) * s, y)
    kept = [0, 1, *range(3, 9)]
    agree(lean, F.cross_entropy((F.linear(h, w, b)[:, kept]) * s, y - 1), (h, s))
    listed, q = torch.stack([y, (y + 1) % 9], -1), torch.tensor([0.5, 0.2]).expand(13, 2)
    options = {"tail": "mass", "logit_scale": s}
    lean = xent.losses.sparse_cross_entropy(xent.LinearLogits(h, w), listed, q, **options)
    whole = xent.losses.sparse_cross_entropy(h @ w.T, listed, q, **options)
    agree(lean, whole, (h, w, s))
    again = xent.losses.sparse_cross_entropy(h @ w.T, listed, q, **options)
    assert grads(again, (s,))[0].isfinite()


def test_a_learned_scale_changes_no_digit_of_a_16_bit_head():
    h, w = (x.detach() for x in head(20, 64, 30, torch.bfloat16)[:2])
    y, any_scale = torch.randint(30, (20,)), torch.tensor(1.3)
    constant = xent.statistics(xent.LinearLogits(h, w), y, logit_scale=any_scale).lse
    learned = any_scale.clone().requires_grad_()
    found = xent.statistics(xent.LinearLogits(h, w), y, logit_scale=learned).lse
    torch.testing.assert_close(found, constant, rtol=1e-5, atol=1e-5)


def test_what_is_asked_for_is_done_or_refused():
    h, w, _ = head(6, 3, 5)
    z = xent.LinearLogits(h.float(), w.float())
    index = torch.zeros(6, 1, dtype=torch.int64)
    assert z.log_softmax(-1, torch.float64).gather(-1, index).dtype == torch.float64
    assert z.to(torch.zeros((), dtype=torch.float64)).dtype == torch.float64
    with pytest.warns(UserWarning, match="mul needs all"):
        found = torch.mul(z.detach(), 2, out=torch.empty(6, 5))
    assert torch.equal(found, z.materialize() * 2)
    with pytest.raises(TypeError, match="use the result"):
        torch.mul(z, 2, out=z)
    with pytest.warns(UserWarning, match="to needs all"):
        assert z.to(torch.int64).dtype == torch.int64
    z = xent.LinearLogits(h, w)
    with pytest.warns(UserWarning, match="argmax needs all"):
        assert torch.equal(z.argmax(axis=-1), z.materialize().argmax(-1))
    with pytest.warns(UserWarning, match="flatten needs all"):
        assert xent.LinearLogits(h, w).flatten().shape == (30,)
    assert xent.LinearLogits(h.view(2, 3, 3), w).flatten(0, 1).shape == (6, 5)
    with pytest.raises(IndexError, match="must hold classes from 0 to 4"):
        xent.LinearLogits(h, w).log_softmax(-1).gather(-1, index - 100)
    with pytest.raises(ValueError, match="reduction"):
        xent.linear_cross_entropy(h, w.view(5, 1, 3), index, reduction="foo")


def test_ignored_rows_of_samples_and_labels_leave_no_trace():
    h, w, _ = head(8, 4, 9)
    bad = h.detach().clone()
    bad[2] = torch.nan
    bad.requires_grad_()
    y = torch.randint(9, (8,))
    y[2] = -100
    xent.losses.sampled_cross_entropy(bad, w, y, torch.arange(4)).backward()
    labels = torch.rand(8, 9, dtype=torch.float64)
    labels[2] = -1
    xent.losses.multilabel_cross_entropy(
        xent.LinearLogits(bad, w), labels, ignore_value=-1
    ).backward()
    assert bool(w.grad.isfinite().all())
    assert bool(bad.grad.isfinite().all())


def test_a_checkpoint_runs_twice_whatever_the_chunks():
    h, w, _ = head(50, 4, 9)
    y, runs = torch.randint(9, (50,)), []

    def body(x):
        runs.append(1)
        return xent.cross_entropy(xent.LinearLogits(x.sin(), w), y)

    loss = checkpoint(body, h, use_reentrant=False)
    agree(loss, F.cross_entropy(h.sin() @ w.T, y), (h, w))
    assert len(runs) == 2


def test_one_row_of_labels():
    h, w, _ = head(1, 4, 9)
    labels = torch.rand(9, dtype=torch.float64)
    for loss in (xent.binary_cross_entropy_with_logits, xent.losses.multilabel_cross_entropy):
        agree(loss(xent.LinearLogits(h[0], w), labels), loss(w @ h[0], labels), (h, w))
    q = torch.softmax(labels, 0)
    lean = xent.losses.distillation_loss(xent.LinearLogits(h[0], w), labels, q)
    agree(lean, xent.losses.distillation_loss(w @ h[0], labels, q), (h, w))


def test_explain_says_when_all_logits_are_needed():
    h, w, _ = head(6, 3, 5)
    z, y = xent.LinearLogits(h, w), torch.arange(6) % 5
    assert "by chunks of" in str(xent.explain(z, y))
    weight = torch.rand(5, dtype=torch.float64, requires_grad=True)
    assert "all logits at once" in str(xent.explain(z, y, weight=weight))


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("rows", [3, 900])  # one chunk, and several
def test_a_weight_without_memory_is_multiplied_nowhere(reduction, rows):
    hidden, weight = torch.randn(rows, 4, requires_grad=True), torch.randn(5, 4)
    logits, y = xent.LinearLogits(hidden, weight), torch.arange(rows) % 5
    loss = xent.losses.focal_loss(logits, y, reduction=reduction).sum()
    if reduction == "sum":  # the gradient is there already; a second backward pass multiplies
        loss.backward(retain_graph=True)
    weight.untyped_storage().resize_(0)
    for use in (
        loss.backward,
        lambda: xent.cross_entropy(logits, y),
        lambda: torch.nn.functional.cross_entropy(logits, y),
        lambda: logits.argmax(-1),
        logits.materialize,
    ):
        with pytest.raises(RuntimeError, match=r"weight behind .* is no longer in memory"):
            use()


def test_the_signature_is_that_of_a_call():
    names = list(inspect.signature(xent.LinearLogits).parameters)
    assert names == ["hidden", "weight", "bias", "max_workspace", "products"]
