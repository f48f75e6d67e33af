"""Functions of logits along the classes: the answers of whole logits, without the logits."""

import pytest
import torch
import torch.nn.functional as F

import xent
from xent.heads import chunks as heads


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Make even small problems take several chunks."""
    monkeypatch.setattr(heads, "MAX_ROWS", 5)


def head(cap=True, shape=(3, 4), d=6, v=20, dtype=torch.float64):
    """Return logits behind a head, the same logits as a tensor, and the parts of the head."""
    parts = [torch.randn(*shape, d), torch.randn(v, d), torch.randn(v)]
    parts = [x.to(dtype).requires_grad_() for x in parts]
    lean, z = xent.LinearLogits(*parts), F.linear(*parts)
    if cap:
        lean, z = (3 * torch.tanh(x * 0.8 / 3) for x in (lean, z))
    return lean, z, parts


INDEX = torch.randint(20, (3, 4, 2))
ANSWERS = {
    "logsumexp": lambda z: torch.logsumexp(z, -1),
    "logsumexp method": lambda z: z.logsumexp(dim=2, keepdim=True),
    "max": lambda z: z.max(-1).values,
    "max of rows": lambda z: torch.max(z, dim=2, keepdim=True)[0],
    "topk": lambda z: z.topk(3).values,
    "smallest": lambda z: torch.topk(z, 2, dim=-1, largest=False)[0],
    "gather": lambda z: z.gather(-1, INDEX),
    "one log-prob": lambda z: torch.log_softmax(z, -1).gather(-1, INDEX[..., :1]),
    "log-probs": lambda z: F.log_softmax(z, dim=-1).gather(2, INDEX),
    "log-probs of rows": lambda z: (
        z.float().double().log_softmax(-1)[1:, 2].gather(-1, INDEX[1:, 2])
    ),
    "costs": lambda z: (-F.log_softmax(z, -1)).gather(-1, INDEX),
    "cost of all": lambda z: (-z.log_softmax(-1)).sum(-1, True, dtype=torch.float64),
    "mean": lambda z: torch.mean(z.log_softmax(2), 2),
    "nll": lambda z: F.nll_loss(z.log_softmax(-1).view(-1, 20), INDEX[..., 0].flatten()),
    "selective": lambda z: torch.stack([torch.logsumexp(rows, dim=-1) for rows in z]),
}
CLASSES = {
    "argmax": lambda z: z.argmax(-1),
    "argmax keeps": lambda z: torch.argmax(z, dim=2, keepdim=True),
    "max": lambda z: z.max(dim=-1)[1],
    "topk": lambda z: torch.topk(z, 3).indices,
    "log-probs": lambda z: z.log_softmax(-1).argmax(-1),
    "costs": lambda z: (-z.log_softmax(-1)).argmax(-1),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("cap", [False, True])
def test_values_and_gradients(name, cap):
    lean, z, parts = head(cap)
    found, expected = (ANSWERS[name](x) for x in (lean, z))
    narrow = "rows" in name  # computed by way of float32
    rtol = 1e-6 if narrow else 1e-12
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-12)
    for a, c in zip(
        torch.autograd.grad(found.square().sum(), parts),
        torch.autograd.grad(expected.square().sum(), parts),
        strict=True,
    ):
        torch.testing.assert_close(
            a, c, rtol=1e-5 if narrow else 1e-10, atol=1e-5 if narrow else 1e-11
        )


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name):
    lean, z, _ = head()
    assert torch.equal(CLASSES[name](lean), CLASSES[name](z))


def test_a_log_prob_keeps_its_digits():
    h = torch.tensor([[40.0]])
    w = torch.tensor([[1.0], [0.0]])
    log_prob = xent.LinearLogits(h, w).log_softmax(-1).gather(-1, torch.tensor([[0]]))
    torch.testing.assert_close(
        log_prob.double(), -torch.tensor([[-40.0]]).double().exp(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    "ask",
    [
        lambda z: z.logsumexp(0), lambda z: z.argmax(), lambda z: z.max(), lambda z: z.topk(2, 0),
        lambda z: z.max(0).values, lambda z: z.log_softmax(0), lambda z: z.gather(0, INDEX % 3),
        lambda z: z - z.mean(), lambda z: 1 / (2 + z * z), lambda z: -z, lambda z: z < 1,
        lambda z: torch.cat([z, z], -1), lambda z: z.softmax(-1).sum(),
        lambda z: (-z.log_softmax(-1)).exp(),
        lambda z: z.log_softmax(-1)[..., 3], lambda z: z.log_softmax(-1).gather(0, INDEX % 3),
        lambda z: z @ torch.eye(20).double(),
        lambda z: F.cross_entropy(z, torch.zeros(3, 20).long()),
        lambda z: F.nll_loss(z.log_softmax(-1), torch.zeros(3, 20).long()),
        lambda z: F.nll_loss((-z.log_softmax(-1)).view(12, 20), torch.zeros(12).long()),
        lambda z: z.log_softmax(-1).sum(), lambda z: z.log_softmax(-1).mean((0, 2)),
    ],
)  # fmt: skip
def test_everything_else_gets_all_logits_once(ask):
    lean, z, _ = head(shape=(3, 4))
    with pytest.warns(UserWarning, match="needs all 240 logits") as said:
        found = ask(lean)
    assert len(said) == 1
    torch.testing.assert_close(found, ask(z))


def test_all_logits_are_kept_for_both_gradient_modes():
    lean, _, _ = head()
    with pytest.warns(UserWarning, match="exp needs all"), torch.no_grad():
        assert not lean.exp().requires_grad
    assert lean.exp().requires_grad  # without a second product and warning


def test_the_likeliest_classes():
    lean, z, parts = head()
    for kind in (torch.softmax, torch.log_softmax):
        found, expected = kind(lean, -1), kind(z, -1)
        torch.testing.assert_close(found.max(-1).values, expected.max(-1).values)
        torch.testing.assert_close(found.amax(-1, True), expected.amax(-1, True))
        pair = found.topk(3), expected.topk(3)
        for a, b in zip(*pair, strict=True):
            torch.testing.assert_close(a, b)
        slopes = [
            torch.autograd.grad(x.values.square().sum(), parts, retain_graph=True) for x in pair
        ]
        torch.testing.assert_close(*slopes)


def test_the_entropy_of_two_calls():
    lean, z, _ = head()
    found = -(F.softmax(lean, -1) * F.log_softmax(lean, -1)).sum(-1)
    torch.testing.assert_close(found, -(z.softmax(-1) * z.log_softmax(-1)).sum(-1))
    with pytest.warns(UserWarning, match="mul needs all"):
        F.softmax(2 * lean, -1) * F.log_softmax(lean, -1)


@pytest.mark.filterwarnings("ignore:.*needs all")
def test_half_a_softcap_and_soft_targets():
    lean, z, _ = head()
    for name in ("logsumexp", "sum", "argmax", "amax"):
        found = getattr(torch.tanh(lean / 3), name)(-1)
        torch.testing.assert_close(found, getattr(torch.tanh(z / 3), name)(-1))
    flat, whole = lean.view(-1, 20), z.view(-1, 20)
    torch.testing.assert_close(
        F.cross_entropy(flat, flat.detach().softmax(-1)),
        F.cross_entropy(whole, whole.detach().softmax(-1)),
    )


@pytest.mark.parametrize("cap", [False, True])
def test_many_classes_are_gathered_by_chunks(cap):
    """By chunks if the weights of all classes would take more memory than the logits."""
    lean, z, parts = head(cap)
    index = torch.randint(20, (3, 4, 9))
    found, expected = lean.gather(-1, index), z.gather(-1, index)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(x.square().sum(), parts) for x in (found, expected)]
    torch.testing.assert_close(*slopes)
    torch.testing.assert_close(lean.topk(15).values, z.topk(15).values)


def test_no_rows():
    lean, _, _ = head(shape=(0,))
    none = torch.zeros(0, dtype=torch.int64)
    assert lean.argmax(-1).shape == xent.sample(lean).shape == (0,)
    assert lean.topk(3).values.shape == (0, 3)
    assert lean.gather(-1, torch.zeros(0, 15).long()).shape == (0, 15)
    assert lean.logsumexp(-1).shape == (0,)
    assert xent.cross_entropy(lean, none, reduction="sum") == 0
    assert xent.cross_entropy(lean, none).isnan()
    assert xent.losses.sparsemax_loss(lean, none, reduction="none").shape == (0,)


def test_it_passes_for_a_tensor():
    lean, z, _ = head()
    for name in (
        "shape",
        "ndim",
        "dtype",
        "device",
        "layout",
        "itemsize",
        "is_cpu",
        "is_cuda",
        "is_leaf",
        "requires_grad",
    ):
        assert getattr(lean, name) == getattr(z, name), name
    for name in (
        "dim",
        "size",
        "numel",
        "is_floating_point",
        "is_complex",
        "is_contiguous",
        "get_device",
    ):
        assert getattr(lean, name)() == getattr(z, name)(), name
    assert lean.new_zeros(2).dtype == z.dtype
    assert lean.float().new_ones(()).dtype == torch.float32
    assert lean.cpu().shape == z.shape
    assert len(list(lean)) == 3
    assert not hasattr(lean, "nonsense")
    log_probs = lean.log_softmax(-1)
    assert log_probs.shape == z.shape
    assert log_probs.float().dtype == torch.float32
    assert not log_probs.detach().requires_grad
    assert not lean.detach().requires_grad
    assert "LinearLogProbs((3, 4, 20), torch.float64, cpu)" in repr(log_probs)


def test_gradients_of_function_transforms():
    _, _, parts = head(False)
    plain = [x.detach() for x in parts]

    def of_lean(h, w, b):
        return xent.LinearLogits(h, w, b).logsumexp(-1).sum()

    def of_whole(h, w, b):
        return F.linear(h, w, b).logsumexp(-1).sum()

    with pytest.warns(UserWarning, match="logsumexp needs all"):
        found = torch.func.grad(of_lean, (0, 1, 2))(*plain)
    for a, c in zip(found, torch.func.grad(of_whole, (0, 1, 2))(*plain), strict=True):
        torch.testing.assert_close(a, c)


@pytest.mark.parametrize("temperature", [1.0, 0.3, torch.rand(3, 4) + 0.5])
def test_samples_do_not_depend_on_chunks(temperature, monkeypatch):
    lean, z, _ = head()
    options = {"temperature": temperature}
    some = xent.sample(lean, generator=torch.Generator().manual_seed(3), **options)
    monkeypatch.setattr(heads, "MAX_ROWS", 1000)
    assert torch.equal(
        xent.sample(lean, generator=torch.Generator().manual_seed(3), **options), some
    )
    assert torch.equal(xent.sample(z, generator=torch.Generator().manual_seed(3), **options), some)
    assert some.shape == (3, 4)


def test_samples_follow_the_softmax():
    n = 40_000
    z = torch.tensor([1.0, -torch.inf, 0.0, 3.0, 2.0]).expand(n, -1)
    drawn = xent.sample(z, temperature=2.0, generator=torch.Generator().manual_seed(0))
    p = torch.softmax(z[0].double() / 2, -1)
    share = torch.bincount(drawn, minlength=5) / n
    assert share[1] == 0
    assert bool(((share - p).abs() <= 4 * (p * (1 - p) / n).sqrt()).all())


def test_bad_samples():
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        xent.sample(torch.zeros(3, 4), temperature=0.0)
    for bad in (torch.nan, -torch.inf):
        with pytest.raises(ValueError, match="no class can be drawn"):
            xent.sample(torch.full((2, 3), bad))
