"""The facts that the catalog states, each checked with numbers, for every member."""

import inspect

import pytest
import torch

import xent
from tests.registry import APART, ENTRIES, OF_A_BATCH, OF_ELEMENTS, REGISTRY
from xent.losses import CATALOG
from xent.row_statistics import REQUESTS

NAMES = [name for name in REGISTRY if name not in APART]
ALONE = [name for name in NAMES if name not in OF_A_BATCH]
EACH = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _one_thread(_same_start):
    """Use one thread: the tensors are too small for two."""
    torch.set_num_threads(1)


def outcomes_of(c):
    return 2**c.labels if c.labels else 4


def some_logits(c, outcomes, n=60):
    """Return logits from almost equal to far apart."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.logspace(-2, 1.3, n, dtype=torch.float64)[:, None]
    return sizes * torch.randn(n, c.width(outcomes), dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", CATALOG)
def test_every_member_can_be_called(name):
    """Every member of the catalog needs an entry here, or no other test would see it."""
    entry = REGISTRY[name]
    if entry.apart or entry.follows:
        return
    parameters = list(inspect.signature(CATALOG[name].function).parameters.values())[2:]
    needed = {p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    missing = sorted(needed - entry.arguments(3).keys())
    assert not missing, f"{name} needs {missing}: name them in tests/registry/family.py"
    if CATALOG[name].targets == "other":
        known = entry.batch or entry.labels
        assert known, f"{name} has other targets: say which in tests/registry/family.py"


def test_every_member_has_one_entry():
    assert sorted(entry.name for entry in ENTRIES) == sorted(CATALOG)


def test_binary_members_have_one_label():
    binary = {name for name, member in CATALOG.items() if member.targets == "binary"}
    assert binary <= set(OF_ELEMENTS)


@pytest.mark.parametrize("name", [n for n in ALONE if CATALOG[n].targets == "classes"])
def test_a_loss_of_0_has_no_sign(name):
    z, y = torch.rand(3, 1), torch.zeros(3, dtype=torch.long)  # (N, 1): a single class
    values = CATALOG[name].function(z, y, reduction="none", **REGISTRY[name].arguments(1))
    assert not torch.signbit(values[values == 0]).any()


# ---- proper: the best prediction is the truth -----------------------------------------------


def distributions(c):
    """Return 100 random distributions over the outcomes of a row, by number of outcomes."""
    if c.labels:
        yield c.of_labels(0.01 + 0.98 * torch.rand(100, c.labels, dtype=torch.float64))
        return
    for outcomes, n in {3: 34, 4: 33, 5: 33}.items():
        p = -torch.log(torch.rand(n, outcomes, dtype=torch.float64))
        yield 0.98 * p / p.sum(1, keepdim=True) + 0.02 / outcomes


def logits_of(c, p):
    """Return logits that predict ``p`` by softmax or sigmoid."""
    return torch.logit(p @ c.targets(0)) if c.labels else p.log()


def inside(c, u):
    """Return logits in the domain of a loss, from unbounded ones."""
    return u.tanh() if c.cosines else u


def minimise(c, p, start, steps):
    """Return logits of locally least expected loss under each ``p``, all solved as one problem."""
    u = (start.clamp(-0.99, 0.99).atanh() if c.cosines else start).clone()
    u.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [u], max_iter=steps, history_size=30, tolerance_grad=1e-11, tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        cost = risk(c, p, inside(c, u)).sum()
        cost.backward()
        return cost

    optimizer.step(closure)
    return inside(c, u.detach())


def risk(c, p, z):
    return (p * c.values(z, p.shape[1])).sum(1)


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", [n for n in NAMES if CATALOG[n].proper])
def test_proper(name):
    """From any start the least expected loss is that of the truth."""
    c = REGISTRY[name]
    for p in distributions(c):
        start = torch.randn(len(p), c.width(p.shape[1]), dtype=torch.float64)
        for z in (minimise(c, p, size * start, 150) for size in (0.0, 1.0)):
            torch.testing.assert_close(c.predictions(z), p, atol=1e-3, rtol=0)
        if c.predicts:
            continue  # there may be no logits that predict the truth
        true = logits_of(c, p).requires_grad_()
        cost = risk(c, p, true)
        (slope,) = torch.autograd.grad(cost.sum(), true)
        assert slope.abs().max() < 1e-13
        assert (risk(c, p, z) >= cost - 1e-13).all()


@pytest.mark.sample(20)
@pytest.mark.parametrize("name", [n for n in ALONE if not CATALOG[n].proper])
def test_not_proper(name):
    """Some prediction costs less than the truth, however the truth is shifted."""
    c = REGISTRY[name]
    for p in distributions(c):
        true = logits_of(c, p)
        shifts = torch.zeros(1) if c.labels else torch.linspace(-20, 20, 161)
        costs = torch.stack([risk(c, p, true + shift) for shift in shifts])
        if c.cosines:
            reached = [(true + shift).abs().amax(1) <= 1 for shift in shifts]
            costs = torch.where(torch.stack(reached), costs, torch.inf)
        honest, best = costs.min(0)
        true = true[honest < torch.inf] + shifts[best][honest < torch.inf, None]
        p, honest = p[honest < torch.inf], honest[honest < torch.inf]
        for start in (true, torch.zeros_like(true)):
            z = minimise(c, p, start, 40)
            better = risk(c, p, z) < honest - 1e-6
            if (better & ((c.predictions(z) - p).abs().amax(1) > 1e-3)).any():
                return
    pytest.fail(f"no distribution found under which {name} prefers another one")


@pytest.mark.parametrize("name", sorted(OF_A_BATCH))
def test_not_proper_over_a_batch(name):
    """The same for a batch whose class frequencies are those of the distribution."""
    assert not CATALOG[name].proper
    target = torch.tensor([0] * 14 + [1] * 5 + [2])
    p = torch.bincount(target) / 20

    def cost(z):
        return CATALOG[name].function(z.expand(20, 3), target).item()

    honest = cost(p.double().log()[None])
    others = 2 * torch.randn(200, 1, 3, dtype=torch.float64)
    assert min(map(cost, others)) < honest - 1e-3


# ---- bounded, convex, symmetric -------------------------------------------------------------


@EACH
def test_bounded(name):
    c = REGISTRY[name]
    outcomes = outcomes_of(c)
    ahead = torch.eye(c.width(outcomes), dtype=torch.float64)[:1]
    directions = torch.cat([ahead, -ahead, some_logits(c, outcomes, 30).sign() * 0.5])
    near, far = (c.values(size * directions, outcomes) for size in (100.0, 200.0))
    assert near.isfinite().all()
    assert far.isfinite().all()
    grows = (far.max() / near.max()).item()  # 2 for linear growth, 1 for a limit
    assert grows < 1.05 if CATALOG[name].bounded else grows > 1.5


def least_curvature(c, z, outcomes):
    """Return the smallest eigenvalue of a Hessian, relative to the size of its terms."""
    z = z.detach().requires_grad_()
    values = c.values(z, outcomes)
    least = []
    for value in values.unbind(1):
        (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True, materialize_grads=True)
        rows = [torch.zeros_like(z)] * z.shape[1]
        if slope.requires_grad:
            rows = [
                torch.autograd.grad(s.sum(), z, retain_graph=True, materialize_grads=True)[0]
                for s in slope.unbind(1)
            ]
        hessian = torch.stack(rows, 1)
        size = torch.maximum(hessian.abs().amax((1, 2)), value.detach().abs()).clamp(min=1)
        least.append(torch.linalg.eigvalsh(hessian).amin(1) / size)
    return torch.stack(least).min().item()


def largest_sag(loss, z):
    """Return how far the loss lies above its chord in the middle, at most; relative."""
    a, b = z, z.flip(0)
    at_a, at_b, middle = loss(a), loss(b), loss((a + b) / 2)
    return ((middle - (at_a + at_b) / 2) / (1 + at_a.abs() + at_b.abs())).max().item()


@pytest.mark.parametrize("name", ALONE)
def test_convex(name):
    c = REGISTRY[name]
    outcomes = outcomes_of(c)
    z = some_logits(c, outcomes)
    curvature = least_curvature(c, z, outcomes)
    sag = largest_sag(lambda x: c.values(x, outcomes), z)
    if CATALOG[name].convex:
        assert curvature >= -1e-12  # a shift of all logits has the eigenvalue 0, but for rounding
        assert sag <= 1e-12
    else:
        assert curvature < -1e-9 or sag > 1e-9


@pytest.mark.parametrize("name", sorted(OF_A_BATCH))
def test_convex_over_a_batch(name):
    """The loss is convex, or not, as a function of the logits of all rows together."""
    target = torch.tensor([0, 0, 1, 2])

    def loss(batches):
        return torch.stack([CATALOG[name].function(batch, target) for batch in batches])

    sag = largest_sag(loss, torch.randn(300, 4, 3, dtype=torch.float64))
    assert sag <= 1e-12 if CATALOG[name].convex else sag > 1e-6


@EACH
def test_symmetric(name):
    c = REGISTRY[name]
    outcomes = outcomes_of(c)
    totals = c.values(some_logits(c, outcomes), outcomes).sum(1)
    spread = (totals.max() - totals.min()).item() / (1 + totals.abs().max().item())
    if CATALOG[name].symmetric:
        assert spread < 1e-12
    else:
        assert spread > 1e-4


# ---- in_nats --------------------------------------------------------------------------------

OF_ONE_ROW = [n for n in ALONE if CATALOG[n].targets in ("classes", "soft", "binary")]


@pytest.mark.parametrize("name", [n for n in OF_ONE_ROW if CATALOG[n].in_nats])
def test_a_loss_in_nats_grows_no_faster_than_the_logits(name):
    """A logarithm, a difference of logits, or less: no square of them, no power above 1."""
    c = REGISTRY[name]
    outcomes = outcomes_of(c)
    far = 100 * torch.randn(
        30, c.width(outcomes), dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    near, double = (c.values(z, outcomes).abs().amax().item() for z in (far, 2 * far))
    assert double <= 2.1 * near + 1e-9


# ---- needs, second_pass ---------------------------------------------------------------------


def settings_of(name):
    body = inspect.signature(inspect.unwrap(CATALOG[name].function)).parameters
    defaults = {p.name: p.default for p in list(body.values())[1:] if p.default is not p.empty}
    return {**defaults, **REGISTRY[name].arguments(4)}


@pytest.mark.parametrize("name", [n for n in CATALOG if hasattr(CATALOG[n].function, "needs")])
def test_needs_are_what_the_body_reads(name):
    settings = settings_of(name)
    needs = CATALOG[name].needs(**settings)
    body = inspect.unwrap(CATALOG[name].function)
    z, y = torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 3, 0])
    assert body(xent.statistics(z, y, **dict.fromkeys(needs, True)), **settings).shape == (5,)
    for without in needs:
        fewer = {request: request != without for request in REQUESTS}
        with pytest.raises(Exception, match=without):
            body(xent.statistics(z, y, **fewer), **settings)


@EACH
def test_second_pass(name, core):
    """A loss of one pass keeps nothing of the size of the logits but the logits themselves."""
    c = REGISTRY[name]
    if c.labels or name in OF_A_BATCH:
        pytest.skip("has kernels of its own, or none")
    classes, kept = 256, []
    z = torch.randn(8, c.width(classes), requires_grad=True)
    target = c.targets(classes)[:8]
    outside = {z.untyped_storage().data_ptr(), target.untyped_storage().data_ptr()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in outside:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        c.function(*c.data(z, target), reduction="none", **c.arguments(classes))
    large = [n for n in kept if n == z.numel()]
    assert CATALOG[name].second_pass == bool(large)
