"""Losses of sampled tokens: against formulas written out, exact expectations and each other."""

import math

import mpmath
import pytest
import torch
from torch.distributions import Categorical

import xent
from tests.helpers import ulps

LOSSES = {
    "reinforce": lambda p, a, *rest, **o: xent.policy.reinforce_loss(p, a, *rest, **o),
    "ppo": lambda p, a, *rest, **o: xent.policy.ppo_loss(p, p.detach() - 0.1, a, *rest, **o),
    "grpo": lambda p, a, *rest, **o: xent.policy.grpo_loss(
        p, p.detach() - 0.1, a, *rest, reference=p.detach() - 0.3, kl_weight=0.2, **o
    ),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def tokens(*shape, dtype=torch.float64):
    """Return log-probabilities now, when sampled and under a reference; advantages; a mask."""
    p = -torch.rand(*shape, dtype=dtype) * 3
    old, reference = (p + torch.randn(*shape, dtype=dtype) * 0.4 for _ in range(2))
    return p.requires_grad_(), old, reference, torch.randn(*shape, dtype=dtype)


def a_mask():
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
    return mask.bool()


def close(actual, expected, rtol=1e-13, atol=1e-14):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, equal_nan=True)


def grad(value, x):
    return torch.autograd.grad(value, x, retain_graph=True)[0]


# ---- estimates of a divergence --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "d", [0.0, 1e-12, -1e-9, 1e-5, -0.01, 0.3, -0.999, 1.001, -1.5, 5.0, -20.0]
)
def test_estimates_are_exact(d, dtype):
    p = torch.tensor([-1.0], dtype=torch.float64)
    r = torch.tensor([-1.0 - d], dtype=dtype)
    p = p.to(dtype).requires_grad_()
    x = mpmath.mpf(p.item()) - mpmath.mpf(r.item())
    exact = {"k1": x, "k2": x**2 / 2, "k3": mpmath.exp(-x) - 1 + x}
    slope = {"k1": mpmath.mpf(1), "k2": x, "k3": -mpmath.expm1(-x)}
    for name, value in exact.items():
        found = xent.policy.kl_estimate(p, r, estimator=name)
        truth, by_p = (torch.tensor([float(v)], dtype=torch.float64) for v in (value, slope[name]))
        assert ulps(found, truth).max() <= 4
        assert ulps(grad(found.sum(), p), by_p).max() <= 4


# The largest log-ratio whose exponential is taken.
LARGEST = {torch.float32: 40.0, torch.float64: 350.0}
APART = [-1000.0, -0.5, 0.125, 0.3, 19.5, 20.5, 110.0, 600.0]


@pytest.mark.parametrize("dtype", LARGEST, ids=str)
@pytest.mark.parametrize("bound", [0.25, 20.0, None])
def test_above_the_bound_k3_is_its_tangent(dtype, bound):
    p = torch.zeros(len(APART), dtype=dtype, requires_grad=True)
    r = torch.tensor(APART, dtype=dtype)
    found = xent.policy.kl_estimate(p, r, max_log_ratio=bound)
    b = LARGEST[dtype] if bound is None else bound
    values, slopes = [], []
    for y in map(mpmath.mpf, r.tolist()):
        c = min(y, b)
        values.append(float(mpmath.exp(c) - 1 - c + mpmath.expm1(c) * (y - c)))
        slopes.append(float(-mpmath.expm1(c)))
    assert ulps(found, torch.tensor(values, dtype=torch.float64)).max() <= 4
    by_p = grad(found.sum(), p)
    assert ulps(by_p, torch.tensor(slopes, dtype=torch.float64)).max() <= 4
    assert by_p.square().sum().isfinite()  # so clipping by the norm works


@pytest.mark.parametrize("dtype", LARGEST, ids=str)
@pytest.mark.parametrize("bound", [20.0, None])
def test_above_the_bound_the_ratio_is_its_tangent(dtype, bound):
    """Only where the advantage is negative, as the ratio is clipped elsewhere."""
    p = torch.tensor(APART, dtype=dtype, requires_grad=True)
    loss = xent.policy.ppo_loss(
        p, torch.zeros_like(p), -torch.ones_like(p), clip=1.0, max_log_ratio=bound, reduction="none"
    )
    b = LARGEST[dtype] if bound is None else bound
    capped = [(mpmath.exp(min(y, b)), max(y - b, 0)) for y in map(mpmath.mpf, p.tolist())]
    values = [float(e * (1 + beyond)) for e, beyond in capped]
    assert ulps(loss, torch.tensor(values, dtype=torch.float64)).max() <= 4
    slopes = torch.tensor([float(e) for e, _ in capped], dtype=torch.float64)
    assert ulps(grad(loss.sum(), p), slopes).max() <= 4


@pytest.mark.parametrize("gap", [110.0, -110.0])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_a_loss_of_policies_far_apart_is_finite(gap, ratio):
    p = torch.tensor([[-10.0 - gap, -1.0, -2.0]] * 2, requires_grad=True)
    other = torch.tensor([[-10.0, -1.1, -2.2]] * 2)
    loss = xent.policy.grpo_loss(
        p, other, torch.tensor([1.0, -1.0]), reference=other, kl_weight=0.04, ratio=ratio
    )
    slope = grad(loss, p)
    assert loss.isfinite()
    assert slope.square().sum().isfinite()
    if gap > 0:  # the loss draws the policy back to the reference
        assert slope[0, 0] < -1e14


def test_what_estimates_tell_on_average():
    """Exact expectations, and their gradients, over the actions of a small categorical."""
    z = torch.randn(6, dtype=torch.float64, requires_grad=True)
    policy, reference = Categorical(logits=z), torch.randn(6, dtype=torch.float64)
    log_p, log_r = policy.logits, reference.log_softmax(0)
    p = log_p.exp()
    forward = (p * (log_p - log_r)).sum()  # KL(p || r)
    backward = (log_r.exp() * (log_r - log_p)).sum()
    expected = {
        name: (
            (p * xent.policy.kl_estimate(log_p, log_r, estimator=name)).sum(),
            # For a loss, samples are drawn first, so their probability has no gradient.
            grad((p.detach() * xent.policy.kl_estimate(log_p, log_r, estimator=name)).sum(), z),
        )
        for name in ("k1", "k2", "k3")
    }
    close(expected["k1"][0], forward)
    close(expected["k3"][0], forward)
    assert abs(expected["k2"][0] - forward) > 0.01
    close(expected["k1"][1], torch.zeros_like(z))
    close(expected["k2"][1], grad(forward, z))
    close(expected["k3"][1], grad(backward, z))
    # In a reward, k1 gives the gradient of the divergence by REINFORCE.
    reward = -xent.policy.kl_estimate(log_p, log_r, estimator="k1").detach()
    close(grad((p.detach() * reward * log_p).sum(), z), -grad(forward, z))


# ---- advantages -----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("eps", [1e-4, 0.0])
def test_advantages_by_a_loop(scale, eps):
    reward = torch.randn(12, dtype=torch.float64)
    group = torch.tensor([7, 3, 3, -1, 7, 7, 3, -1, 7, 3, 7, 50])
    found = xent.policy.group_advantages(reward, group, scale=scale, eps=eps)
    for g in (7, 3, -1, 50):
        own = reward[group == g]
        expected = own - own.mean()
        if scale and len(own) > 1:
            expected = expected / (own.std() + eps)
        close(found[group == g], expected)
    by_size = xent.policy.group_advantages(reward, 4, scale=scale, eps=eps)
    close(
        by_size, xent.policy.group_advantages(reward, torch.arange(12) // 4, scale=scale, eps=eps)
    )


def test_the_mean_of_the_others_is_a_baseline():
    reward = torch.randn(12, dtype=torch.float64)
    group = torch.tensor([7, 3, 3, -1, 7, 7, 3, -1, 7, 3, 7, 50])
    found = xent.policy.group_advantages(reward, group, baseline="others")
    for k, g in enumerate(group.tolist()):
        others = [r for j, r in enumerate(reward.tolist()) if group[j] == g and j != k]
        expected = reward[k].item() - sum(others) / len(others) if others else 0.0
        assert found[k].item() == pytest.approx(expected, rel=1e-13, abs=1e-14)
    scaled = xent.policy.group_advantages(reward, 4, baseline="others", scale=True, eps=0.0)
    close(scaled, 4 / 3 * xent.policy.group_advantages(reward, 4, eps=0.0))
    with pytest.raises(ValueError, match="baseline"):
        xent.policy.group_advantages(reward, 4, baseline="other")


@pytest.mark.parametrize("eps", [1e-4, 0.0])
def test_equal_rewards_have_no_advantage(eps):
    found = xent.policy.group_advantages(torch.tensor([0.1, 0.1, 0.1, 0.7, 0.7, 0.7]), 3, eps=eps)
    assert not found.any()  # though the float32 mean of three times 0.1 is not 0.1


def test_rewards_of_right_and_wrong():
    close(xent.policy.group_advantages(torch.tensor([1, 0, 0, 1]), 2, scale=False),
          torch.tensor([0.5, -0.5, -0.5, 0.5]))  # fmt: skip
    reward = torch.rand(4, requires_grad=True)
    assert not xent.policy.group_advantages(reward, 2).requires_grad


# ---- the losses, written out ----------------------------------------------------------------


def averaged(values, mask, average, normalizer=None):
    """Average by loops, with Python's sums."""
    rows = [[v for v, keep in zip(*pair, strict=True) if keep]
            for pair in zip(values, mask, strict=True)]  # fmt: skip
    rows = [row for row in rows if row]
    if average == "token":
        return sum(map(sum, rows)) / (normalizer or sum(map(len, rows)))
    return sum(sum(row) / (len(row) if average == "sequence" else average) for row in rows) / (
        normalizer or len(rows)
    )


def written_out(p, old, a, reference, kl_weight, low, high, dual):
    rho = (p - old).exp()
    gain = torch.minimum(rho * a, rho.clamp(1 - low, 1 + high) * a)
    if dual is not None:
        gain = torch.where(a < 0, torch.maximum(gain, dual * a), gain)
    d = p - reference
    return -gain + kl_weight * ((-d).exp() - 1 + d)


@pytest.mark.parametrize("average", ["token", "sequence", 8, 0.5])
@pytest.mark.parametrize("normalizer", [None, 7.5])
@pytest.mark.parametrize("masked", [False, True])
def test_grpo_written_out(average, normalizer, masked):
    p, old, reference, a = tokens(4, 5)
    mask = a_mask() if masked else torch.ones(4, 5, dtype=torch.bool)
    for low, high, dual in ((0.2, 0.2, None), (0.2, 0.28, 1.5), (0.0, 0.0, None), (1.0, 5.0, 3.0)):
        found = xent.policy.grpo_loss(
            p, old, a, mask if masked else None, reference=reference, kl_weight=0.3,
            clip=(low, high), dual_clip=dual, average=average, normalizer=normalizer,
        )  # fmt: skip
        values = written_out(p, old, a, reference, 0.3, low, high, dual)
        expected = averaged(values, mask, average, normalizer)
        close(found, expected)
        close(grad(found, p), grad(expected, p))


def test_ppo_written_out():
    p, old, reference, a = tokens(4, 5)
    mask, h = a_mask(), torch.rand(4, 5, dtype=torch.float64, requires_grad=True)
    found = xent.policy.ppo_loss(p, old, a, mask, clip=0.1, entropy=h, entropy_weight=0.01)
    values = written_out(p, old, a, reference, 0.0, 0.1, 0.1, None) - 0.01 * h
    expected = averaged(values, mask, "token")
    close(found, expected)
    for x in (p, h):
        close(grad(found, x), grad(expected, x))


def test_sequence_ratio_written_out():
    p, old, _, _ = tokens(4, 5)
    a, mask = torch.randn(4, dtype=torch.float64), a_mask()
    found = xent.policy.grpo_loss(p, old, a, mask, ratio="sequence", clip=(0.02, 0.04))
    losses = []
    for k in (0, 1, 3):
        rho = (p - old)[k][mask[k]].mean().exp()
        losses.append(-torch.minimum(rho * a[k], rho.clamp(0.98, 1.04) * a[k]))
    expected = sum(losses) / 3
    close(found, expected)
    close(grad(found, p), grad(expected, p))


@every_loss
@pytest.mark.parametrize("average", ["token", "sequence", 8])
def test_reductions(name, average):
    p, _, _, a = tokens(4, 5)
    mask, loss = a_mask(), LOSSES[name]
    values = loss(p, a, mask, average=average, reduction="none")
    assert values.shape == p.shape
    assert not values[~mask].any()
    total = loss(p, a, mask, average=average, reduction="sum")
    close(total, averaged(values, mask, average, 1.0))
    close(loss(p, a, mask, average=average), averaged(values, mask, average))


# ---- laws -----------------------------------------------------------------------------------


def test_the_policy_gradient(engine):
    """R (p - onehot) / N in the logits, for rewards of any sign, as of weighted cross-entropy."""
    z = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    y, r = torch.randint(6, (9,)), torch.randn(9, dtype=torch.float64)
    r -= r.mean()  # so the sum of the weights is 0
    loss = xent.policy.reinforce_loss(xent.token_log_probs(z, y, engine=engine), r)
    truth = r[:, None] * (z.softmax(1) - torch.nn.functional.one_hot(y, 6)) / 9
    close(grad(loss, z), truth.detach())
    weighted = xent.cross_entropy(z, y, row_weight=r, normalizer="count", engine=engine)
    close(loss, weighted)
    close(grad(weighted, z), truth.detach())


@pytest.mark.parametrize("average", ["token", "sequence", 8])
@pytest.mark.parametrize("clip", [0.2, 0.0])
def test_on_policy_all_are_reinforce(average, clip):
    p, _, _, a = tokens(4, 5)
    mask = a_mask()
    options = {"average": average}
    slope = grad(xent.policy.reinforce_loss(p, a, mask, **options), p)
    for old in (None, p.detach(), p):  # an old policy counts as constant, detached or not
        for loss in (xent.policy.ppo_loss, xent.policy.grpo_loss):
            value = loss(p, old, a, mask, clip=clip, **options)
            assert torch.equal(
                value, xent.policy.reinforce_loss(-torch.ones_like(p), -a, mask, **options)
            )
            assert torch.equal(grad(value, p), slope)


def test_on_policy_sequences():
    p, _, _, _ = tokens(4, 5)
    a, mask = torch.randn(4, dtype=torch.float64), a_mask()
    found = grad(xent.policy.grpo_loss(p, None, a, mask, ratio="sequence"), p)
    close(found, grad(xent.policy.reinforce_loss(p, a, mask, average="sequence"), p))


@pytest.mark.parametrize("clip", [0.1, 0.2, 0.3])
def test_the_range_of_the_ratio_is_clip(clip):
    """Ratios of 1.05, 1.15 and 1.25 should rise; those outside the range have no gradient."""
    ratio = torch.tensor([[1.05, 1.15, 1.25]], dtype=torch.float64)
    p = ratio.log().requires_grad_()
    for loss in (xent.policy.ppo_loss, xent.policy.grpo_loss):
        value = loss(p, torch.zeros(1, 3).double(), torch.ones(1).double(), clip=clip,
                     average="token", reduction="sum")  # fmt: skip
        close(value, -ratio.clamp(max=1 + clip).sum())
        close(grad(value, p), torch.where(ratio > 1 + clip, 0, -ratio))


def test_clipped_tokens_have_no_gradient():
    old = torch.full((6,), -2.0, dtype=torch.float64)
    d = torch.tensor([0.5, 0.5, -0.5, -0.5, 800.0, 800.0], dtype=torch.float64)
    a = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 0.0], dtype=torch.float64)
    p = (old + d).requires_grad_()
    loss = xent.policy.ppo_loss(p, old, a, reduction="none")
    bounds = [-1.2, math.exp(0.5), -math.exp(-0.5), 0.8, -1.2, 0.0]
    close(loss, torch.tensor(bounds, dtype=torch.float64))
    slopes = [0.0, math.exp(0.5), -math.exp(-0.5), 0.0, 0.0, 0.0]
    close(grad(loss.sum(), p), torch.tensor(slopes, dtype=torch.float64))
    dual = xent.policy.ppo_loss(p, old, -a.abs(), dual_clip=3.0, reduction="none")
    assert dual[4].item() == pytest.approx(3.0, rel=1e-15)
    assert grad(dual.sum(), p)[4] == 0


@every_loss
@pytest.mark.parametrize("average", ["token", "sequence", 8])
def test_masks_are_subsets(name, average):
    p, _, _, a = tokens(4, 5)
    loss, mask = LOSSES[name], torch.tensor([True, True, False, False, True]).expand(4, 5).clone()
    mask[2] = False
    with torch.no_grad():
        p[~mask] = -math.inf
    a = torch.where(mask, a, math.nan)
    found = loss(p, a, mask, average=average)
    some = [0, 1, 3]
    part, others = p.detach()[some][:, [0, 1, 4]].requires_grad_(), a[some][:, [0, 1, 4]]
    expected = loss(part, others, average=average)
    close(found, expected)
    slopes = grad(found, p)
    close(slopes[mask], grad(expected, part).flatten())
    assert not slopes[~mask].any()


@every_loss
def test_micro_batches_with_a_normalizer(name):
    p, _, _, a = tokens(6, 5)
    mask = torch.rand(6, 5) < 0.6
    mask[4:] = False  # the last micro-batch has no tokens
    loss = LOSSES[name]
    for average, total in (("token", mask.sum()), ("sequence", mask.any(1).sum()),
                           (8, mask.any(1).sum())):  # fmt: skip
        whole = loss(p, a, mask, average=average)
        parts = [
            loss(p[k : k + 2], a[k : k + 2], mask[k : k + 2], average=average, normalizer=total)
            for k in (0, 2, 4)
        ]
        close(sum(parts), whole)


@every_loss
@pytest.mark.parametrize("average", ["token", "sequence", 8])
def test_no_tokens(name, average):
    p, _, _, a = tokens(4, 5)
    nothing = torch.zeros(4, 5, dtype=torch.bool)
    assert LOSSES[name](p, a, nothing, average=average).isnan()
    loss = LOSSES[name](p, a, nothing, average=average, empty="zero")
    assert loss == 0
    assert not grad(loss, p).any()


@every_loss
def test_advantages_by_sequence_and_single_actions(name):
    p, _, _, _ = tokens(5, 5)  # a number per sequence could pass for a number per position
    a, loss = torch.randn(5, dtype=torch.float64), LOSSES[name]
    each = loss(p, a[:, None].expand(5, 5), average="sequence")
    assert torch.equal(loss(p, a, average="sequence"), each)
    assert torch.equal(loss(p, a[:, None], average="sequence"), each)
    flat = loss(p.flatten(), a[:, None].expand(5, 5).flatten(), average="token")
    close(flat, loss(p, a, average="token"))


@every_loss
def test_constants_have_no_gradient(name):
    p, old, reference, a = (x.detach().requires_grad_() for x in tokens(4, 5))
    if name == "reinforce":
        loss, constants = xent.policy.reinforce_loss(p, a), [a]
    else:
        options = {"reference": reference, "kl_weight": 0.1} if name == "grpo" else {}
        loss = getattr(xent.policy, f"{name}_loss")(p, old, a, **options)
        constants = [old, a, reference]
    assert all(
        g is None
        for g in torch.autograd.grad(loss, constants, allow_unused=True, retain_graph=True)
    )
    assert grad(loss, p).any()


@every_loss
@pytest.mark.parametrize("average", ["token", "sequence", 8])
def test_float32_is_worked_on_in_float64(name, average):
    """Value and gradients are those of the formula in float64, rounded once."""
    p, old, reference, a = (x.detach().float() for x in tokens(4, 5))
    mask, h = a_mask(), torch.rand(4, 5)
    p.requires_grad_(), h.requires_grad_()
    options = {"entropy": h, "entropy_weight": 0.125, "average": average}
    x, s, r, b = (t.detach().double() for t in (p, old, reference, a))
    g = h.detach().double().requires_grad_()
    x.requires_grad_()
    if name == "reinforce":
        found, values = xent.policy.reinforce_loss(p, a, mask, **options), -b * x
    else:
        more = {"reference": reference, "kl_weight": 0.25} if name == "grpo" else {}
        found = getattr(xent.policy, f"{name}_loss")(p, old, a, mask, **more, **options)
        values = written_out(x, s, b, r, 0.25 if name == "grpo" else 0.0, 0.2, 0.2, None)
    truth = averaged(values - 0.125 * g, mask, average)
    assert found.dtype == torch.float32
    assert ulps(found, truth) <= 0.5001
    for narrow, wide in ((p, x), (h, g)):
        assert ulps(grad(found, narrow), grad(truth, wide)).max() <= 0.5001


@every_loss
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_derivatives_and_transforms(name):
    p, _, _, a = tokens(3, 4)
    mask = torch.rand(3, 4) < 0.7
    old = p.detach() - 0.1

    def f(x):
        if name == "reinforce":
            return xent.policy.reinforce_loss(x, a, mask, average="sequence")
        more = {"reference": old - 0.2, "kl_weight": 0.5} if name == "grpo" else {}
        return getattr(xent.policy, f"{name}_loss")(x, old, a, mask, average="sequence", **more)

    assert torch.autograd.gradcheck(f, p)
    assert torch.autograd.gradgradcheck(f, p)
    slope = grad(f(p), p)
    close(torch.func.grad(f)(p.detach()), slope)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    close(compiled(p), f(p))
    close(grad(compiled(p), p), slope)


# ---- other first terms ----------------------------------------------------------------------


def test_cispo_is_the_policy_gradient_with_a_clipped_weight():
    p, old, reference, a = tokens(4, 5)
    mask = a_mask()
    options = {"reference": reference, "kl_weight": 0.3, "average": "token"}
    for clip, low, high in ((0.2, 0.8, 1.2), ((1.0, 4.0), 0.0, 5.0)):
        found = xent.policy.grpo_loss(p, old, a, mask, kind="cispo", clip=clip, **options)
        weight = (p - old).exp().clamp(low, high).detach()
        d = p - reference
        values = -weight * a * p + 0.3 * ((-d).exp() - 1 + d)
        expected = values[mask].mean()
        close(found, expected)
        close(grad(found, p), grad(expected, p))


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_sapo_written_out(ratio):
    p, old, _, a = tokens(4, 5)
    found = xent.policy.grpo_loss(p, old, a, kind="sapo", ratio=ratio, temperature=[1.1, 1.3])
    log_ratio = p - old
    if ratio == "sequence":
        log_ratio = log_ratio.mean(1, keepdim=True).expand(4, 5)
    t = 1.3 - 0.2 * (a > 0).double()
    expected = (-4 / t * torch.sigmoid(t * (log_ratio.exp() - 1)) * a).mean(1).mean()
    close(found, expected, rtol=1e-14)
    close(grad(found, p), grad(expected, p))


def test_on_policy_every_kind_has_the_policy_gradient():
    p, _, _, a = tokens(4, 5)
    expected = grad(xent.policy.reinforce_loss(p, a), p)
    for kind in ("clip", "cispo", "sapo"):
        loss = xent.policy.grpo_loss(p, None, a, kind=kind, average="token")
        close(grad(loss, p), expected)


def test_far_policies_leave_every_kind_finite():
    p = torch.tensor([0.0, -600.0, -600.0, 0.0], requires_grad=True)
    old = torch.tensor([-600.0, 0.0, 0.0, -600.0])
    a = torch.tensor([1.0, 1.0, -1.0, -1.0])
    for kind in ("cispo", "sapo"):
        loss = xent.policy.grpo_loss(p, old, a, kind=kind, average="token")
        assert loss.isfinite()
        assert grad(loss, p).isfinite().all()


def test_options_of_one_kind_are_refused_by_the_others():
    for options, words in (
        ({"kind": "ppo"}, "kind"), ({"kind": "sapo", "clip": 0.1}, "`clip`"),
        ({"kind": "cispo", "dual_clip": 3.0}, "`dual_clip`"),
        ({"kind": "sapo", "temperature": 1.0}, "must be a pair"),
        ({"kind": "sapo", "temperature": (1.0, 0.0)}, "`temperature` must be greater"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            xent.policy.grpo_loss(P, None, A, **options)


# ---- preferences ----------------------------------------------------------------------------


def test_sequence_log_prob():
    p, _, _, _ = tokens(4, 5)
    mask = a_mask()
    total = xent.policy.sequence_log_prob(p, mask)
    mean = xent.policy.sequence_log_prob(p, mask, mean=True)
    for k in range(4):
        close(total[k], p[k][mask[k]].sum())
        close(mean[k], p[k][mask[k]].mean(), rtol=1e-13)
    close(xent.policy.sequence_log_prob(p), p.sum(1))
    close(xent.policy.sequence_log_prob(p, mean=True), p.mean(1))


KINDS = {
    "dpo": ({}, lambda x: -torch.log(torch.sigmoid(0.1 * x))),
    "conservative": (
        {"label_smoothing": 0.2, "beta": 0.5},
        lambda x: -0.8 * torch.log(torch.sigmoid(0.5 * x)) - 0.2 * torch.log(torch.sigmoid(-x / 2)),
    ),
    "margin": ({"margin": 0.5, "beta": 2.0}, lambda x: -torch.log(torch.sigmoid(2 * x - 0.5))),
    "hinge": ({"kind": "hinge", "beta": 0.5}, lambda x: (1 - 0.5 * x).clamp(min=0)),
    "ipo": ({"kind": "ipo", "beta": 0.25}, lambda x: (x - 2) ** 2),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("referenced", [True, False])
def test_preferences_written_out(kind, referenced):
    options, formula = KINDS[kind]
    chosen, rejected, *reference = torch.randn(4, 6, dtype=torch.float64) * 3
    chosen.requires_grad_(), rejected.requires_grad_()
    reference = reference if referenced else []
    h = chosen - rejected - (reference[0] - reference[1] if referenced else 0)
    found = xent.policy.dpo_loss(chosen, rejected, *reference, **options)
    expected = formula(h).mean()
    close(found, expected)
    for x in (chosen, rejected):
        close(grad(found, x), grad(expected, x))
    close(
        xent.policy.dpo_loss(chosen, rejected, *reference, reduction="none", **options), formula(h)
    )
    close(
        xent.policy.dpo_loss(chosen, rejected, *reference, normalizer=10, **options), expected * 0.6
    )


def test_sure_preferences_keep_their_digits():
    chosen = torch.tensor([600.0], requires_grad=True)
    loss = xent.policy.dpo_loss(chosen, torch.zeros(1))
    exact = mpmath.log1p(mpmath.exp(-mpmath.mpf(0.1) * 600))
    assert ulps(loss[None], torch.tensor([float(exact)], dtype=torch.float64)).max() <= 1
    assert grad(loss, chosen).item() == pytest.approx(-0.1 * math.exp(-60), rel=1e-6)
    assert xent.policy.dpo_loss(torch.tensor([0.0]), torch.tensor([-math.inf])) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_preferences_in_float32_are_worked_on_in_float64(kind):
    options, formula = KINDS[kind]
    pairs = torch.randn(4, 6) * 3 - 200  # log-probabilities of whole answers
    chosen, rejected, *reference = (x.requires_grad_() for x in pairs.unbind())
    x, y, r, s = (t.detach().double().requires_grad_() for t in (chosen, rejected, *reference))
    found, truth = (
        xent.policy.dpo_loss(chosen, rejected, *reference, **options),
        formula(x - y - r + s),
    )
    assert found.dtype == torch.float32
    assert ulps(found, truth.mean()) <= 0.5001
    for narrow, wide in ((chosen, x), (rejected, y)):
        assert ulps(grad(found, narrow), grad(truth.mean(), wide)).max() <= 0.5001


def log_sigmoid(x):
    return -torch.logaddexp(torch.zeros_like(x), -x)


ALONE = {
    "nca": lambda c, r: -log_sigmoid(c) - log_sigmoid(-c) / 2 - log_sigmoid(-r) / 2,
    "bco": lambda c, r: -log_sigmoid(c - 0.25) - log_sigmoid(-(r - 0.25)),
    "apo_zero": lambda c, r: 1 - torch.sigmoid(c) + torch.sigmoid(r),
    "apo_down": lambda c, r: torch.sigmoid(c) + 1 - torch.sigmoid(c - r),
}


@pytest.mark.parametrize("kind", ALONE)
def test_kinds_that_look_at_each_answer(kind):
    chosen, rejected, *reference = torch.randn(4, 6, dtype=torch.float64) * 3
    chosen.requires_grad_(), rejected.requires_grad_()
    options = {"kind": kind, "beta": 0.5, "margin": 0.25 if kind == "bco" else 0.0}
    found = xent.policy.dpo_loss(chosen, rejected, *reference, **options)
    c, r = 0.5 * (chosen - reference[0]), 0.5 * (rejected - reference[1])
    expected = ALONE[kind](c, r).mean()
    close(found, expected)
    for x in (chosen, rejected):
        close(grad(found, x), grad(expected, x), atol=1e-13)
    far = torch.tensor([400.0, -400.0], requires_grad=True), torch.tensor([-300.0, 300.0])
    loss = xent.policy.dpo_loss(*far, torch.zeros(2), torch.zeros(2), **options)
    assert loss.isfinite()
    assert grad(loss, far[0]).isfinite().all()


@pytest.mark.parametrize("gap", [0.0, 1e-7, -1e-3, 0.5, -3.0, 40.0, -900.0])
def test_exo_is_a_divergence_with_all_its_digits(gap):
    eps = 0.02
    with mpmath.workdps(60):
        true = mpmath.log(1 - mpmath.mpf(eps)) - mpmath.log(mpmath.mpf(eps))
        x = torch.tensor([float(true) + gap], dtype=torch.float64, requires_grad=True)
        a, b = 1 / (1 + mpmath.exp(-mpmath.mpf(x.item()))), 1 - mpmath.mpf(eps)
        no, other = 1 / (1 + mpmath.exp(mpmath.mpf(x.item()))), mpmath.mpf(eps)
        exact = float(a * mpmath.log(a / b) + no * mpmath.log(no / other))
    found = xent.policy.dpo_loss(x, torch.zeros_like(x), kind="exo", beta=1.0, label_smoothing=eps)
    # The log-odds are rounded to 1e-15, and the divergence is quadratic in their difference.
    assert found.item() == pytest.approx(exact, rel=1e-12 + 4e-15 / max(abs(gap), 1e-9), abs=1e-30)
    assert grad(found, x).isfinite().all()


def test_exo_of_an_impossible_answer():
    """The divergence of certainty from the smoothed label: the logarithm of its probability."""
    for c, r, share in ((0.0, -math.inf, 0.8), (-math.inf, 0.0, 0.2)):
        x, y = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (c, r))
        found = xent.policy.dpo_loss(x, y, kind="exo", label_smoothing=0.2)
        assert found.item() == pytest.approx(-math.log(share), rel=1e-15)
        assert not any(slope.any() for slope in torch.autograd.grad(found, (x, y)))


def test_exo_by_default():
    x, zero = torch.randn(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    found = xent.policy.dpo_loss(x, zero, kind="exo")
    close(found, xent.policy.dpo_loss(x, zero, kind="exo", label_smoothing=1e-3))


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.3])
def test_negative_smoothing_undoes_wrong_preferences(eps):
    """The mean over the noise of robust DPO is DPO: backward correction."""
    x, zero = torch.randn(9, dtype=torch.float64) * 20, torch.zeros(9, dtype=torch.float64)
    smoothing = -eps / (1 - 2 * eps)

    def robust(a, b):
        return xent.policy.dpo_loss(a, b, label_smoothing=smoothing, reduction="none")

    written = -(1 - eps) * log_sigmoid(0.1 * x) + eps * log_sigmoid(-0.1 * x)
    close(robust(x, zero), written / (1 - 2 * eps))
    mean = (1 - eps) * robust(x, zero) + eps * robust(zero, x)
    close(mean, xent.policy.dpo_loss(x, zero, reduction="none"), rtol=1e-12)


def test_kto_written_out():
    p, reference = (torch.randn(2, 8, dtype=torch.float64) * 5).unbind()
    p.requires_grad_()
    good = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0]).bool()
    for point in (0.0, 1.5, torch.tensor(0.75, requires_grad=True)):
        found = xent.policy.kto_loss(
            p, reference, good, reference_point=point, beta=0.3, desirable_weight=1.3,
            undesirable_weight=0.7, reduction="none",
        )  # fmt: skip
        z0 = point.detach() if isinstance(point, torch.Tensor) else point
        lead = 0.3 * (p - reference - z0)
        value = torch.where(good, torch.sigmoid(lead), torch.sigmoid(-lead))
        weight = 0.7 + 0.6 * good.double()
        close(found, weight - weight * value, rtol=1e-14)
        close(grad(found.sum(), p), grad((-weight * value).sum(), p))
    mean = xent.policy.kto_loss(p, reference, good)
    close(mean, xent.policy.kto_loss(p, reference, good, reduction="sum") / 8)
    assert xent.policy.kto_loss(p[:0], reference[:0], good[:0], empty="zero") == 0
    for changed, error, words in (
        ({"desirable": good.double()}, ValueError, "`desirable` must be bool"),
        ({"beta": 0.0}, ValueError, "`beta`"), ({"reference": p[:3]}, ValueError, "`reference`"),
        ({"undesirable_weight": -1.0}, ValueError, "`undesirable_weight`"),
        ({"reference_point": torch.zeros(8)}, ValueError, "`reference_point`"),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            xent.policy.kto_loss(
                **{"log_prob": p, "reference": reference, "desirable": good, **changed}
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("chosen", [-1e-12, -1e-8, -1e-3, -0.7, -4.0, -60.0])
def test_odds_of_sure_answers_keep_their_digits(chosen, dtype):
    c = torch.tensor([chosen], dtype=dtype, requires_grad=True)
    r = torch.tensor([-1.5], dtype=dtype)
    found = xent.policy.orpo_loss(c, r, beta=0.5, nll_weight=0.0, reduction="none")
    with mpmath.workdps(60):
        x, y = mpmath.mpf(c.item()), mpmath.mpf(r.item())

        def exact(x):
            odds = [v - mpmath.log(1 - mpmath.exp(v)) for v in (x, y)]
            return mpmath.log(1 + mpmath.exp(odds[1] - odds[0])) / 2

        value, slope = exact(x), mpmath.diff(exact, x, h=abs(x) * mpmath.mpf(10) ** -20)
    assert found.item() == pytest.approx(float(value), rel=8 * torch.finfo(dtype).eps)
    assert grad(found.sum(), c).item() == pytest.approx(
        float(slope), rel=8 * torch.finfo(dtype).eps
    )
    whole = xent.policy.orpo_loss(c, r, beta=0.5, reduction="none")
    close(whole, found - c, rtol=4 * torch.finfo(dtype).eps)


def test_certain_answers_have_finite_odds():
    c, r = torch.tensor([0.0, 0.0, -1.0]), torch.tensor([0.0, -1.0, 0.0])
    c.requires_grad_()
    loss = xent.policy.orpo_loss(c, r, reduction="none")
    assert loss.isfinite().all()
    assert grad(loss.sum(), c).isfinite().all()
    assert loss[0].item() == pytest.approx(0.1 * math.log(2), rel=1e-6)
    with pytest.raises(ValueError, match="nll_weight"):
        xent.policy.orpo_loss(c, r, nll_weight=-1.0)


# ---- what is refused ------------------------------------------------------------------------

P, A = torch.full((3, 4), -1.0), torch.ones(3, 4)
BAD = {
    "half": ({"log_prob": P.bfloat16()}, TypeError, "must be float32 or float64"),
    "text": ({"log_prob": "1"}, TypeError, "torch.Tensor"),
    "old": ({"old_log_prob": P[:2]}, ValueError, "`old_log_prob` must have the shape"),
    "advantage": ({"advantage": torch.ones(4)}, ValueError, "number per sequence"),
    "text for advantages": ({"advantage": "1"}, TypeError, "`advantage` must be a torch.Tensor"),
    "text for a mask": ({"mask": "all"}, TypeError, "`mask` must be a torch.Tensor"),
    "old text": ({"old_log_prob": "1"}, TypeError, "`old_log_prob` must be a torch.Tensor"),
    "mask": ({"mask": torch.ones(3, 4)}, ValueError, r"mask\.bool\(\)"),
    "mask of rows": ({"mask": torch.ones(3).bool()}, ValueError, "in the shape"),
    "clip": ({"clip": -0.1}, ValueError, "`clip` must be at least 0"),
    "clip, three": ({"clip": (0.1, 0.2, 0.3)}, ValueError, "`clip` must be"),
    "low clip": ({"clip": (1.5, 0.2)}, ValueError, "`clip` must be at least 0 and at most 1"),
    "dual clip": ({"dual_clip": 1.0}, ValueError, "`dual_clip` must be greater than 1"),
    "no entropy": ({"entropy_weight": 0.1}, ValueError, "needs `entropy`"),
    "no reference": ({"kl_weight": 0.1}, ValueError, "needs `reference`"),
    "estimator": (
        {"reference": P, "kl_weight": 0.1, "kl_estimator": "k4"}, ValueError, "estimator",
    ),
    "ratio": ({"ratio": "word"}, ValueError, "`ratio`"),
    "bound": ({"max_log_ratio": 0.0}, ValueError, "`max_log_ratio` must be greater than 0"),
    "average": ({"average": "batch"}, ValueError, "`average` must be"),
    "no length": ({"average": 0}, ValueError, "`average` must be"),
    "normalizer": ({"normalizer": "weight"}, ValueError, "number or a 0-d tensor"),
    "sum": ({"reduction": "sum", "normalizer": 3.0}, ValueError, "nothing is divided"),
    "reduction": ({"reduction": "batchmean"}, ValueError, "`reduction`"),
    "empty": ({"empty": "one"}, ValueError, "`empty`"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    changed, error, words = BAD[name]
    arguments = {"log_prob": P, "old_log_prob": P, "advantage": A, **changed}
    with pytest.raises(error, match=words):
        xent.policy.grpo_loss(**arguments)


def test_single_actions_have_no_sequences():
    for options in (
        {"average": "sequence"},
        {"average": 5},
        {"average": "token", "ratio": "sequence"},
    ):
        with pytest.raises(ValueError, match="speaks of sequences"):
            xent.policy.grpo_loss(P[0], None, A[0], **options)


def test_bad_groups():
    reward = torch.ones(6)
    for group, error, words in (
        (4, ValueError, "must divide"), (0, ValueError, "must divide"),
        (torch.ones(6), TypeError, "integers"), (2.0, TypeError, "integer"),
        (torch.ones(3, dtype=torch.int64), ValueError, "group of each"),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            xent.policy.group_advantages(reward, group)
    with pytest.raises(ValueError, match=r"shape \(B,\)"):
        xent.policy.group_advantages(torch.ones(2, 3), 3)
    with pytest.raises(ValueError, match="eps"):
        xent.policy.group_advantages(reward, 3, eps=-1.0)


BAD_PAIRS = {
    "no reference": ({"kind": "nca"}, ValueError, "`reference_chosen` and `reference_rejected`"),
    "exo": ({"kind": "exo", "label_smoothing": 0.0}, ValueError, "`label_smoothing` must be above"),
    "smoothing of ipo": ({"kind": "ipo", "label_smoothing": 0.1}, ValueError, "leave it out"),
    "half a reference": ({"reference_chosen": P[0]}, ValueError, "both of"),
    "shapes": ({"rejected": P}, ValueError, "`rejected` must have the shape of `chosen`"),
    "dtype": ({"chosen": P[0].half()}, TypeError, "float32 or float64"),
    "beta": ({"beta": 0.0}, ValueError, "`beta` must be greater than 0"),
    "smoothing": ({"label_smoothing": 0.7}, ValueError, "at most 0.5"),
    "kind": ({"kind": "kto"}, ValueError, "`kind`"),
    "margin": ({"kind": "ipo", "margin": 1.0}, ValueError, 'kind="sigmoid"'),
    "normalizer": ({"normalizer": "count"}, ValueError, "0-d tensor"),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_bad_pairs(name):
    changed, error, words = BAD_PAIRS[name]
    with pytest.raises(error, match=words):
        xent.policy.dpo_loss(**{"chosen": P[0], "rejected": P[0], **changed})
    with pytest.raises(ValueError, match="axis of tokens"):
        xent.policy.sequence_log_prob(torch.tensor(-1.0))
