"""Compilers, export, copies of the module, worker processes."""

import copy
import io
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import xent
from tests.helpers import opcheck, same_bits, value_and_grad
from tests.registry import BASIC, Loss

# Dynamo itself warns on some Python versions.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.sample(6)
@pytest.mark.parametrize("loss", BASIC, ids=lambda loss: loss.name)
@pytest.mark.parametrize("soft", [False, True])
def test_fullgraph(loss: Loss, soft):
    z = torch.randn(6, 9)
    y = torch.softmax(torch.randn(6, 9), 1) if soft else torch.tensor([0, 8, -100, 3, 3, 1])
    compiled = torch.compile(lambda x, t: loss(x, t), fullgraph=True, backend="aot_eager")
    a, da = value_and_grad(compiled, z, y)
    b, db = value_and_grad(loss, z, y)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(da, db, rtol=1e-5, atol=1e-7)


@pytest.mark.sample(1)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_fullgraph_dynamic_shapes(reduction):
    step = torch.compile(
        lambda x, t: xent.cross_entropy(x, t, reduction=reduction),
        fullgraph=True, backend="aot_eager", dynamic=True,
    )  # fmt: skip
    for n in (3, 7, 20):
        z, y = torch.randn(n, 11, 2), torch.randint(11, (n, 2))
        a, da = value_and_grad(step, z, y)
        b, db = value_and_grad(xent.cross_entropy, z, y, reduction=reduction)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(da, db, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_inductor():
    model = torch.nn.Linear(8, 11)
    x, y = torch.randn(5, 8), torch.randint(11, (5,))
    step = lambda x, y: xent.cross_entropy(model(x), y, label_smoothing=0.1)  # noqa: E731
    step(x, y).backward()
    expected = model.weight.grad.clone()
    model.zero_grad()
    compiled = torch.compile(step, fullgraph=True)
    compiled(x, y).backward()
    torch.testing.assert_close(model.weight.grad, expected, rtol=1e-5, atol=1e-6)


def test_a_bad_label_in_a_compiled_loss_still_raises(core):
    step = torch.compile(lambda x, t: xent.cross_entropy(x, t), fullgraph=True, backend="aot_eager")
    with pytest.raises((IndexError, ValueError, RuntimeError), match="out of bounds"):
        step(torch.randn(3, 4), torch.tensor([0, 1, 4]))


def test_export():
    module = xent.nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.rand(5))
    z, y = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    exported = torch.export.export(module, (z, y))
    torch.testing.assert_close(exported.module()(z, y), module(z, y))


@pytest.mark.sample(5)
@pytest.mark.parametrize("op", ["row_statistics", "row_gradient"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
def test_opcheck(kernels, op, soft, layout):
    from xent.engines.rows import MODULES
    from xent.engines.rows import operators as ops
    from xent.engines.rows.problem import Problem, Settings, Tensors

    z = torch.randn(3, 5, 2)
    y = torch.softmax(torch.randn(3, 5, 2), 1) if soft else torch.randint(5, (3, 2))
    if layout == "permuted":
        z = z.transpose(0, 2).contiguous().transpose(0, 2)
    problem = Problem(Tensors(z, y), Settings(soft, requests=("entropy", "mean", "top")))
    arguments = ops.question(problem, kernels)
    if op == "row_statistics":
        arguments[0].requires_grad_()
    else:
        table, _ = MODULES[kernels].row_statistics(problem)
        arguments = (table, torch.randn_like(table), *arguments)
    opcheck(getattr(torch.ops.xent, op).default, arguments)


# ---- modules --------------------------------------------------------------------------------

SETTINGS = [
    {},
    {"label_smoothing": 0.1, "reduction": "none"},
    {"weight": torch.rand(5), "class_bias": torch.rand(5), "z_loss": 0.1, "softcap": 5.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "numbers", "tensors"])
def test_copies_of_a_module_give_the_same_loss(settings):
    module = xent.nn.CrossEntropyLoss(**settings)
    z, y = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    expected = module(z, y)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ):
        assert same_bits(other(z, y), expected)
        assert repr(other) == repr(module)


def test_a_module_loads_what_torch_saved():
    w = torch.rand(5)
    theirs, ours = torch.nn.CrossEntropyLoss(w), xent.nn.CrossEntropyLoss(torch.zeros(5))
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight, w)
    assert isinstance(ours, torch.nn.CrossEntropyLoss)


def test_a_module_shows_its_settings_and_moves_with_its_buffers():
    module = xent.nn.CrossEntropyLoss(weight=torch.ones(3), class_bias=torch.ones(3), z_loss=0.1)
    assert "z_loss=0.1" in repr(module)
    assert repr(xent.nn.CrossEntropyLoss()) == "CrossEntropyLoss()"
    module.double()
    loss = module(torch.randn(2, 3).double(), torch.tensor([0, 1]), normalizer="count")
    assert loss.dtype == torch.float64


class Losses(Dataset):
    """A dataset that computes a loss in the process that asks for an item."""

    def __len__(self):
        return 4

    def __getitem__(self, k):
        z = torch.arange(3000.0).view(30, 100).sin() * (k + 1)
        return value_and_grad(xent.cross_entropy, z, torch.arange(30))


def check_workers(start: str) -> None:
    here = [Losses()[k] for k in range(4)]
    loader = DataLoader(Losses(), batch_size=None, num_workers=2, multiprocessing_context=start)
    for (a, da), (b, db) in zip(loader, here, strict=True):
        assert same_bits(a, b)
        assert same_bits(da, db)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])  # with the parent's thread pool gone; afresh
def test_data_loader_workers(start):
    """From a new process: PyTorch does not fork after gradients were computed on threads."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as parent:
        parent.submit(check_workers, start).result()
