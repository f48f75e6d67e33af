"""The logits of some classes, whose gradient joins that of all logits."""

import pytest
import torch

from xent.engines import rows
from xent.heads.problem import make_problem


def values(z, classes, engine, *, both=True):
    """A function of the statistics, and one of the logits of some classes."""
    problem = make_problem(z, torch.zeros(z.shape[:1] + z.shape[2:], dtype=torch.int64))
    problem, few = rows.with_logits_of(problem, classes.movedim(1, -1), engine)
    total = (few.double() ** 3).sum()
    return total + rows.measure(problem, engine).lse.square().sum() if both else total


@pytest.fixture(params=[(6, 5), (3, 5, 4)], ids=str)
def inputs(request):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(request.param, generator=generator, requires_grad=True)
    size = (len(z), 3, *z.shape[2:])
    classes = torch.rand(len(z), 5, *z.shape[2:], generator=generator).argsort(1)[:, :3]
    assert classes.shape == size
    return z, classes


@pytest.mark.parametrize("both", [False, True])
def test_the_gradient_is_that_of_gather(inputs, both, core):
    z, classes = inputs
    (found,) = torch.autograd.grad(values(z, classes, "native", both=both), z)
    wide = z.detach().double().requires_grad_()
    few = wide.gather(1, classes)
    expected = (few**3).sum() + both * wide.logsumexp(1).square().sum()
    (expected,) = torch.autograd.grad(expected, wide)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_a_second_backward_pass_and_hooks_see_the_same_gradient(inputs, core):
    z, classes = inputs
    seen = []
    z.register_hook(lambda grad: seen.append(grad.clone()))
    loss = values(z, classes, "native")
    first = torch.autograd.grad(loss, z, retain_graph=True)[0].clone()
    second = torch.autograd.grad(loss, z)[0]
    assert torch.equal(first, second)
    assert all(torch.equal(first, one) for one in seen)


def test_the_gradient_can_be_differentiated(inputs, core):
    z, classes = inputs

    def second(engine):
        (first,) = torch.autograd.grad(values(z, classes, engine), z, create_graph=True)
        return torch.autograd.grad(first.square().sum(), z)[0]

    torch.testing.assert_close(second("native"), second("reference"), rtol=1e-5, atol=1e-5)


def test_no_second_tensor_as_large_as_the_logits_is_made(core):
    z = torch.randn(64, 1000, requires_grad=True)
    loss = values(z, torch.arange(64 * 3).view(64, 3), "native")
    with torch.profiler.profile(record_shapes=True) as profile:
        loss.backward()
    made = [e for e in profile.events() if e.name == "aten::zeros"]
    assert all(e.input_shapes[0] != [64, 1000] for e in made)
    assert not any(e.name in ("aten::add", "aten::add_") and [64, 1000] in e.input_shapes
                   for e in profile.events())  # fmt: skip
