"""The seesaw loss: both factors by their definition, and the gradient with constant factors."""

import math

import torch

import xent
from tests.helpers import value_and_grad
from xent.losses import seesaw_loss

COUNTS = torch.tensor([1000.0, 90.0, 700.0, 3.0, 40.0], dtype=torch.float64)
Z, Y = 3 * torch.randn(40, 5, dtype=torch.float64), torch.arange(40) % 5


def factors(z, y, n, p, q):
    """Return the factors of a row, class by class."""
    sigma = torch.softmax(z, 0)
    found = []
    for j in range(len(z)):
        mitigation = 1.0 if n[y] <= n[j] else (n[j] / n[y]) ** p
        compensation = 1.0 if sigma[j] <= sigma[y] else (sigma[j] / sigma[y]) ** q
        found.append(1.0 if j == y else mitigation * compensation)
    return torch.tensor(found, dtype=torch.float64)


def test_both_factors():
    for p, q in ((0.8, 2.0), (0.0, 2.0), (0.8, 0.0), (1.7, 0.5), (0.0, 0.0)):
        value, grad = value_and_grad(
            seesaw_loss, Z, Y, counts=COUNTS, p=p, q=q, reduction="none"
        )  # fmt: skip
        for k in range(len(Z)):
            z = Z[k].clone().requires_grad_()
            weighed = factors(z.detach(), Y[k], COUNTS, p, q) * z.exp()
            expected = -torch.log(weighed[Y[k]] / weighed.sum())
            (slope,) = torch.autograd.grad(expected, z)
            torch.testing.assert_close(value[k], expected.detach(), rtol=1e-12, atol=1e-13)
            torch.testing.assert_close(grad[k], slope, rtol=1e-12, atol=1e-13)


def test_without_factors_it_is_cross_entropy_with_all_its_digits():
    z = torch.tensor([[60.0, 0.0], [-60.0, 0.0]])
    options = {"p": 0.0, "q": 0.0, "counts": torch.ones(2), "reduction": "none"}
    found = seesaw_loss(z, torch.tensor([0, 0]), **options)
    expected = xent.cross_entropy(z, torch.tensor([0, 0]), reduction="none")
    torch.testing.assert_close(found, expected, rtol=2e-7, atol=0)


def test_a_class_without_rows_counts_as_the_rarest():
    counts = torch.tensor([10.0, 0.0, 4.0], dtype=torch.float64)
    z = torch.zeros(2, 3, dtype=torch.float64)
    found = seesaw_loss(z, torch.tensor([0, 1]), counts=counts, reduction="none")
    expected = torch.tensor([math.log(1 + 2 * 0.4**0.8), math.log(3)], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_classes_that_all_have_no_rows_are_alike():
    found, expected = (seesaw_loss(Z, Y, counts=torch.full((5,), n)) for n in (0.0, 7.0))
    assert found.isfinite()
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=0)


def test_a_masked_target_is_infinite():
    z = torch.tensor([[0.0, 1.0, -torch.inf]])
    loss = seesaw_loss(z, torch.tensor([2]), counts=torch.ones(3), q=0.0)
    assert loss == torch.inf
    assert seesaw_loss(z, torch.tensor([2]), counts=torch.ones(3)) == torch.inf


def test_only_the_ratios_of_the_counts_matter():
    found = [seesaw_loss(Z, Y, counts=c) for c in (COUNTS, COUNTS / COUNTS.sum())]
    torch.testing.assert_close(*found, rtol=1e-13, atol=0)


def test_float32_is_float64_rounded():
    z = 10 * torch.randn(50, 5)
    y = torch.randint(5, (50,))
    narrow = seesaw_loss(z, y, counts=COUNTS.float(), reduction="none")
    wide = seesaw_loss(z.double(), y, counts=COUNTS, reduction="none")
    torch.testing.assert_close(narrow.double(), wide, rtol=2e-7, atol=0)
