"""The merge of packed parts, and the gradient of one part."""

import itertools

import mpmath
import pytest
import torch

import xent
from xent.row_merge import joined, names_of, packed, read, with_gradient_of

EDGES = [0, 3, 4, 9, 12]
EPS = torch.finfo(torch.float64).eps
ASKED = {"entropy": True, "mean": True, "top": True}


def rows(soft):
    g = torch.Generator().manual_seed(0)
    z = torch.randn(8, EDGES[-1], generator=g, dtype=torch.float64) * 3
    z[1, 5] += 300
    z[2] += 1e4
    z[3, :4] = -torch.inf
    if soft:
        q = torch.randn(8, EDGES[-1], generator=g, dtype=torch.float64).softmax(1)
        q[3, :4] = 0.0
        return z, q
    return z, torch.tensor([0, 5, 2, 7, 11, -100, 4, 8])


def parts_of(z, target, options):
    parts = []
    for a, b in itertools.pairwise(EDGES):
        own = target[:, a:b] if target.is_floating_point() else target
        parts.append(xent.statistics(z[:, a:b], own, first_class=a, **options))
    return parts


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("part", range(len(EDGES) - 1))
def test_the_gradient_of_one_part_is_that_of_the_joined_parts(soft, part):
    options = ASKED | ({} if soft else {"squares": True, "cubes": True})
    parts = parts_of(*rows(soft), options)
    like, table = parts[0], torch.stack([packed(p) for p in parts])
    slope = torch.randn(table.shape[1:], generator=torch.Generator().manual_seed(1)).double()
    names = names_of(like)
    fixed = [names.index(name) for name in ("top", "rest_top", "support") if name in names]
    slope[fixed] = 0.0  # whole numbers have no gradient
    if not soft:
        slope[:, 5] = 0.0  # nor has an ignored row

    own = table[part].clone().requires_grad_()
    whole = joined(torch.stack([own if k == part else x for k, x in enumerate(table)]), like)
    finite = whole.detach().isfinite()  # of what is infinite the slope is that of no loss
    (expected,) = torch.autograd.grad(whole[finite], own, slope[finite])
    union = with_gradient_of(own, whole.detach(), like)
    assert union.equal(whole)
    (found,) = torch.autograd.grad(union, own, torch.where(finite, slope, 0.0))
    expected[fixed] = 0.0
    offset = 1e4 * EPS  # the rounding of a logit at the offset of a row
    torch.testing.assert_close(found, expected, rtol=4 * offset, atol=4 * offset)


@pytest.mark.parametrize("soft", [False, True])
def test_packed_numbers_hold_the_statistics(soft):
    z, target = rows(soft)
    whole = xent.statistics(z, target, **ASKED)
    again = read(packed(whole), whole)
    for name in ("log_odds", "log_prob", "target", "lse", "mass"):
        torch.testing.assert_close(
            getattr(again, name), getattr(whole, name), rtol=1e-14, atol=1e4 * EPS, msg=name
        )
    for name, x in whole.on_request.items():
        assert torch.equal(again.on_request[name], x), name


def test_the_entropy_of_a_row_that_is_nearly_certain_keeps_its_digits():
    z = torch.tensor([[4.6, 29.1, -3.0, 2.0]], dtype=torch.float64, requires_grad=True)
    with mpmath.workdps(50):
        p = [mpmath.exp(mpmath.mpf(v)) for v in z[0].tolist()]
        shares = [x / mpmath.fsum(p) for x in p]
        truth = -mpmath.fsum(x * mpmath.log(x) for x in shares)
        slopes = [-x * (mpmath.log(x) + truth) for x in shares]
    y = torch.tensor([1])
    parts = [xent.statistics(z[:, k : k + 1], y, first_class=k, entropy=True) for k in range(4)]
    own, like = packed(parts[1]), parts[1]
    table = torch.stack([own if k == 1 else packed(p).detach() for k, p in enumerate(parts)])
    union = with_gradient_of(own, joined(table, like).detach(), like)
    entropy = read(union, like).entropy
    (slope,) = torch.autograd.grad(entropy, z)
    assert abs(entropy.item() / float(truth) - 1) < 100 * EPS
    assert abs(slope[0, 1].item() / float(slopes[1]) - 1) < 1000 * EPS
