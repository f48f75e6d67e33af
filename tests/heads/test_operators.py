"""Compilers see one operator for the statistics behind a head, and never all logits."""

import pytest
import torch

import xent
from tests.heads.linear_heads import grads, labels, near
from tests.helpers import opcheck
from xent.heads import operators
from xent.heads.problem import make_problem

# Dynamo itself warns on some Python versions.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

ROWS, FEATURES, CLASSES = 300, 6, 50
SMALL = 64 * CLASSES * 4  # bytes of a chunk
OPTIONS = {
    "mean": {},
    "none": {"reduction": "none"},
    "options": {"label_smoothing": 0.1, "softcap": 20.0, "logit_scale": 0.5, "reduction": "sum"},
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def parts():
    shapes = ((2, ROWS // 2, FEATURES), (CLASSES, FEATURES), (CLASSES,))
    return [torch.randn(shape, requires_grad=True) for shape in shapes], labels().repeat(9)[:ROWS]


def cross_entropy(h, w, b, y, **options):
    return xent.linear_cross_entropy(h, w, y, linear_bias=b, max_workspace=SMALL, **options)


def focal(h, w, b, y, **options):
    return xent.losses.focal_loss(xent.LinearLogits(h, w, b, max_workspace=SMALL), y, **options)


@pytest.mark.sample(2)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("loss", [cross_entropy, focal])
@pytest.mark.parametrize("dynamic", [None, True], ids=["", "dynamic"])
def test_fullgraph_without_all_logits(loss, options, dynamic, core):
    if (loss, options) == (focal, "options"):
        pytest.skip("options of cross-entropy")
    seen = []

    def note(graph, inputs):
        seen.extend(node.target for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    (h, w, b), y = parts()
    y, options = y.view(2, -1), OPTIONS[options]
    compiled = torch.compile(loss, fullgraph=True, backend=note, dynamic=dynamic)
    found, known = (f(h, w, b, y, **options) for f in (compiled, loss))
    assert torch.ops.xent.head_statistics.default in map(_operator, seen)
    near(found, known, rtol=1e-6, atol=1e-6)
    slope = torch.linspace(0.5, 2, found.numel()).view(found.shape)
    pairs = zip(grads(found, (h, w, b), slope), grads(known, (h, w, b), slope), strict=True)
    for a, c in pairs:
        near(a, c, rtol=1e-5, atol=1e-5)


def _operator(target):
    """Return the operator of a node, which may be the function that calls it."""
    return getattr(target, "_opoverload", target)


@pytest.mark.sample(2)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("needed", [(True, True, True), (False, True, False)], ids=str)
def test_opcheck(kernels, needed, transposed):
    (h, w, b), y = parts()
    w = w.detach().t().contiguous().t() if transposed else w
    h, w, b = (x.detach().requires_grad_(n) for x, n in zip((h, w, b), needed, strict=True))
    h, y = h.detach().view(-1, FEATURES)[:9].requires_grad_(needed[0]), y[:9]
    problem = make_problem(xent.LinearLogits(h, w, b), y, requests=("entropy",))
    arguments = operators.question(problem, kernels)
    opcheck(torch.ops.xent.head_statistics.default, arguments)
    table = operators.head_statistics(*arguments).detach()
    given = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    given = (table, torch.randn_like(table), list(needed), *given)
    opcheck(torch.ops.xent.head_gradient.default, given)


def test_a_learned_option_has_all_logits():
    """Its gradient is that of plain operations."""
    (h, w, b), y = parts()
    scale = torch.tensor(0.7, requires_grad=True)

    def loss(scale):
        return cross_entropy(h, w, b, y.view(2, -1), logit_scale=scale)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, theirs = (torch.autograd.grad(f(scale), scale)[0] for f in (compiled, loss))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_inplace_is_refused():
    (h, w, b), y = parts()
    step = torch.compile(
        lambda: focal(h, w, b, y.view(2, -1), inplace_backward=True), backend="eager"
    )
    with pytest.raises(Exception, match=r"inplace_backward"):
        step()
