"""Log-probabilities of tokens and entropies, classes last: of tensors, and behind a linear head."""

import itertools
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical

import xent
from tests.helpers import spacing, ulps, worst
from xent import log_probs
from xent.heads import chunks as heads

# Shapes of one row, of rows on one to three axes, and of no rows.
SHAPES = [(7,), (5, 7), (3, 4, 7), (2, 3, 4, 7), (0, 7), (2, 0, 7)]


def problem(*shape, dtype=torch.float64):
    z = (torch.randn(*shape, dtype=torch.float64) * 2).to(dtype).requires_grad_()
    return z, torch.randint(shape[-1], shape[:-1])


def close(actual, expected, rtol=1e-13, atol=1e-13):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def same_as_categorical(logits, z, y, parts, **options):
    """Compare values and gradients with PyTorch's distribution with ``logits``.

    ``parts`` are the tensors to differentiate by.
    """
    truth = Categorical(logits=logits, validate_args=False)  # validation refuses a batch of no rows
    expected = (truth.log_prob(y), truth.entropy())
    slopes = tuple(torch.randn_like(e) for e in expected)
    found = xent.token_log_probs(z, y, entropy=True, **options)
    alone = (xent.token_log_probs(z, y, **options), xent.entropy(z, **options))
    for actual in (found, alone):
        for a, e in zip(actual, expected, strict=True):
            close(a, e)
        grads = torch.autograd.grad(actual, parts, slopes)
        wanted = torch.autograd.grad(expected, parts, slopes, retain_graph=True)
        for a, e in zip(grads, wanted, strict=True):
            close(a, e, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_as_categorical(shape, engine):
    z, y = problem(*shape)
    same_as_categorical(z, z, y, (z,), engine=engine)


VIEWS = {
    "sliced rows": lambda z: z[:, 1:],
    "transposed": lambda z: z.transpose(0, 1),
    "sliced classes": lambda z: z[..., 1:],
    "classes apart": lambda z: z.transpose(1, 2),
    "expanded": lambda z: z[:, :1].expand(3, 5, 6),
}


@pytest.mark.parametrize("view", VIEWS)
def test_logits_of_any_strides_are_not_copied(view, engine, monkeypatch):
    z = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    logits = VIEWS[view](z)
    y = torch.randint(logits.shape[-1], logits.shape[:-1])
    seen = []
    measure = log_probs.measure
    monkeypatch.setattr(log_probs, "measure", lambda p, e: (seen.append(p), measure(p, e))[1])
    same_as_categorical(logits, logits, y, (z,), engine=engine)
    assert {p.logits.data_ptr() for p in seen} == {logits.data_ptr()}


def test_one_pass_for_both(monkeypatch):
    z, y = problem(3, 4, 7)
    calls = []
    measure = log_probs.measure
    monkeypatch.setattr(log_probs, "measure", lambda *a: (calls.append(a), measure(*a))[1])
    xent.token_log_probs(z, y, entropy=True)
    assert len(calls) == 1


def exact(z, y):
    """Return log-probability and entropy of a row in 50 digits."""
    e = [mpmath.exp(mpmath.mpf(v)) for v in z.tolist()]
    total = mpmath.fsum(e)
    log_p = [mpmath.log1p(-mpmath.fsum(e[:j] + e[j + 1 :]) / total) for j in range(len(e))]
    h = -mpmath.fsum(v / total * lp for v, lp in zip(e, log_p, strict=True))
    grad = [-v / total * (lp + h) for v, lp in zip(e, log_p, strict=True)]
    return [torch.tensor(list(map(float, x)), dtype=torch.float64) for x in ([log_p[y]], [h], grad)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("margin", [30.0, 80.0])  # above 17 nats float32 gives 0 by subtraction
@pytest.mark.parametrize("top", [0, 2])
def test_all_digits_of_sure_predictions(dtype, margin, top, engine):
    z = torch.tensor([0.0, 1.0, -0.5, 0.25], dtype=dtype)
    z[top] = margin
    log_prob, h, _ = exact(z, top)
    found = xent.token_log_probs(z, torch.tensor(top), entropy=True, engine=engine)
    alone = xent.entropy(z, engine=engine)
    assert worst(found.log_prob[None], log_prob, margin + 1) <= 4
    for entropy in (found.entropy, alone):
        assert worst(entropy[None], h, margin + 1) <= 6


@pytest.mark.parametrize("top", [0, 2])
def test_all_digits_of_the_gradient_of_entropy(top, core):
    z = torch.tensor([0.0, 1.0, -0.5, 0.25])
    z[top] = 30.0
    z.requires_grad_()
    (grad,) = torch.autograd.grad(xent.entropy(z, engine="native"), z)
    assert worst(grad, exact(z.detach(), top)[2], 31.0) <= 6


# ---- temperature, cap, bias -----------------------------------------------------------------

TEMPERATURES = {
    "number": lambda: 0.7,
    "0-d": lambda: torch.tensor(0.7),
    "by sequence": lambda: torch.rand(3, 1) + 0.5,
    "by position": lambda: torch.rand(1, 4) + 0.5,
    "by row": lambda: torch.rand(3, 4, dtype=torch.float64) + 0.5,
}


def as_categorical_has_it(t):
    return t.double()[..., None] if isinstance(t, torch.Tensor) and t.ndim else float(t)


@pytest.mark.parametrize("kind", TEMPERATURES)
def test_temperature(kind, engine):
    z, y = problem(3, 4, 7)
    t = TEMPERATURES[kind]()
    same_as_categorical(z / as_categorical_has_it(t), z, y, (z,), temperature=t, engine=engine)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_temperature_divides_capped_and_biased_logits(temperature, engine):
    z, y = problem(3, 4, 7)
    bias = torch.randn(7, dtype=torch.float64)
    logits = (5 * torch.tanh(z / 5) + bias) / temperature
    options = {"softcap": 5.0, "class_bias": bias, "engine": engine}
    same_as_categorical(logits, z, y, (z,), temperature=temperature, **options)


def test_a_16_bit_bias_is_divided_in_full():
    z, y = problem(3, 4, 7, dtype=torch.float32)
    bias = torch.randn(7).bfloat16()
    found = xent.token_log_probs(z, y, temperature=3.0, class_bias=bias)
    truth = Categorical(logits=(z.double() + bias.double()) / 3).log_prob(y)
    close(found, truth.float(), rtol=4e-7, atol=4e-7)


def test_learned_temperature_and_bias():
    z, y = problem(3, 4, 7)
    t = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)
    options = {"temperature": t, "class_bias": bias}
    same_as_categorical((z + bias) / t, z, y, (z, t, bias), **options)
    rows = (torch.rand(3, 4, dtype=torch.float64) + 0.5).requires_grad_()
    same_as_categorical(z / rows[..., None], z, y, (z, rows), temperature=rows)


# ---- masked classes, ignored rows, shifts ---------------------------------------------------


def test_masked_classes(engine):
    z, y = problem(4, 5, 7)
    mask = torch.zeros(4, 5, 7, dtype=torch.bool)
    mask[..., :2] = True  # among them class 0, from which entropy is measured
    y = y.clamp(min=2)
    logits = torch.where(mask, -math.inf, z)
    log_prob, entropy = xent.token_log_probs(logits, y, entropy=True, engine=engine)
    some = Categorical(logits=z[..., 2:])
    close(log_prob, some.log_prob(y - 2))
    close(entropy, some.entropy())
    close(xent.entropy(logits, engine=engine), some.entropy())
    (grad,) = torch.autograd.grad((log_prob + entropy).sum(), z)
    (truth,) = torch.autograd.grad((some.log_prob(y - 2) + some.entropy()).sum(), z)
    close(grad, truth)
    assert not grad[mask].any()
    nothing = xent.token_log_probs(logits, torch.zeros_like(y), engine=engine)
    assert bool((nothing == -math.inf).all())


@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_ignored_rows_leave_no_trace(ignore_index, engine):
    z, y = problem(4, 5, 7)
    y = torch.where(y == ignore_index, 0, y)
    y[1:3] = ignore_index
    with torch.no_grad():
        z[1:3] = math.nan
    options = {"ignore_index": ignore_index, "engine": engine, "entropy": True}
    found = xent.token_log_probs(z, y, **options)
    kept = y != ignore_index
    some = Categorical(logits=z[kept])
    for x, truth in zip(found, (some.log_prob(y[kept]), some.entropy()), strict=True):
        assert not x[~kept].any()
        close(x[kept], truth)
    (grad,) = torch.autograd.grad(sum(x.sum() for x in found), z)
    assert not grad[~kept].any()
    assert bool(grad[kept].any())


@pytest.mark.parametrize("shift", [0, 1, 3, 6])
def test_shift(shift, engine):
    z, tokens = problem(2, 6, 7)
    tokens[1, :2] = -100
    options = {"entropy": True, "engine": engine}
    found = xent.token_log_probs(z, tokens, shift=shift, **options)
    sliced = xent.token_log_probs(z[:, : 6 - shift], tokens[:, shift:], **options)
    for a, b in zip(found, sliced, strict=True):
        assert a.shape == (2, 6 - shift)
        close(a, b, rtol=0, atol=0)
    if shift < 6:
        slopes = [torch.randn(2, 6 - shift, dtype=torch.float64)] * 2
        a, b = (torch.autograd.grad(x, z, slopes)[0] for x in (found, sliced))
        close(a, b, rtol=0, atol=0)


def test_shifted_labels():
    labels = torch.tensor([[1, 2, -1, 4], [5, 6, 7, 8]])
    moved = xent.shift_labels(labels, 2, ignore_index=-1)
    assert moved.tolist() == [[-1, 4, -1, -1], [7, 8, -1, -1]]
    assert torch.equal(xent.shift_labels(labels, 0), labels)
    assert bool((xent.shift_labels(labels.byte(), 4) == -100).all())
    h, w = torch.randn(2, 4, 3), torch.randn(9, 3)
    lean = xent.cross_entropy(xent.LinearLogits(h, w), xent.shift_labels(labels, 1, -1),
                              ignore_index=-1)  # fmt: skip
    sliced = (h @ w.T)[:, :-1].reshape(-1, 9), labels[:, 1:].reshape(-1)
    close(lean, F.cross_entropy(*sliced, ignore_index=-1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("k", [0, 1, 2, 5, 9])
def test_labels_stay_within_their_document(k):
    labels = torch.arange(18).reshape(2, 9)
    documents = torch.tensor([[4, 4, 4, 0, 0, 4, 4, 4, 4], [1, 2, 2, 2, 2, 2, 2, 2, 3]])
    bounds = [[0, 3, 5, 9], [0, 1, 8, 9]]
    expected = torch.full_like(labels, -7)
    for row, edges in enumerate(bounds):
        for start, end in itertools.pairwise(edges):
            expected[row, start : max(end - k, start)] = labels[row, start + k : end]
    found = xent.shift_labels(labels, k, -7, documents=documents)
    assert torch.equal(found, expected)
    one = xent.shift_labels(labels, k, -7, documents=documents[1].byte())  # for both rows
    assert torch.equal(one[1], expected[1])
    assert torch.equal(one[0], expected[1] - 9 * (expected[1] != -7))
    positions = torch.cat([torch.arange(b - a) for a, b in itertools.pairwise(bounds[0])])
    starts = (positions == 0).cumsum(-1)
    assert torch.equal(xent.shift_labels(labels[0], k, -7, documents=starts), expected[0])


# ---- dtypes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_float32_at_least(dtype, engine):
    z, y = problem(20, 50, dtype=dtype)
    found = xent.token_log_probs(z, y, entropy=True, engine=engine)
    exact = Categorical(logits=z.detach().double())
    for x, truth in zip(found, (exact.log_prob(y), exact.entropy()), strict=True):
        assert x.dtype == torch.float32
        assert ulps(x, truth).max() <= 4
    (grad,) = torch.autograd.grad(sum(x.sum() for x in found), z)
    assert grad.dtype == dtype


def test_under_autocast():
    h, w = torch.randn(20, 8).bfloat16(), torch.randn(50, 8).bfloat16()
    y = torch.randint(50, (20,))
    for z in (h @ w.T, xent.LinearLogits(h, w)):
        plain = xent.token_log_probs(z, y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = xent.token_log_probs(z, y)
        assert found.dtype == torch.float32
        assert torch.equal(found, plain)


# ---- behind a linear head -------------------------------------------------------------------


@pytest.fixture
def lean(monkeypatch):
    """Take several chunks even for small problems, and forbid all logits at once."""

    def refuse(*_):
        raise AssertionError("all logits were made")

    monkeypatch.setattr(heads, "MAX_ROWS", 8)
    monkeypatch.setattr(xent.LinearLogits, "materialize", refuse)


def head(*rows, v=11, dtype=torch.float64):
    parts = (torch.randn(*rows, 5), torch.randn(v, 5), torch.randn(v))
    return tuple(x.to(dtype).requires_grad_() for x in parts), torch.randint(v, rows)


@pytest.mark.parametrize("rows", [(), (20,), (3, 7), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_behind_a_head(rows, biased, engine, lean):
    parts, y = head(*rows)
    parts = parts if biased else parts[:2]
    z = F.linear(*parts)
    same_as_categorical(z, xent.LinearLogits(*parts), y, parts, engine=engine)


def test_what_a_head_records(engine, lean):
    parts, y = head(3, 7)
    z, logits = F.linear(*parts), xent.LinearLogits(*parts)
    by_row = torch.rand(3, 7, dtype=torch.float64) + 0.5
    same_as_categorical(
        z * 2 / by_row[..., None], logits * 2, y, parts, temperature=by_row, engine=engine
    )
    capped = 4 * torch.tanh(z / 4)
    recorded = 4 * torch.tanh(logits / 4)
    same_as_categorical(capped / 0.7, recorded, y, parts, temperature=0.7, engine=engine)
    bias = torch.randn(11, dtype=torch.float64)
    same_as_categorical(
        (capped + bias) / 0.7, logits, y, parts, softcap=4.0, class_bias=bias, temperature=0.7,
        engine=engine,
    )  # fmt: skip


def test_shift_behind_a_head(engine, lean):
    parts, y = head(3, 7)
    y[0, :4] = -100
    found = xent.token_log_probs(xent.LinearLogits(*parts), y, shift=1, entropy=True, engine=engine)
    z = F.linear(*parts)
    whole = xent.token_log_probs(z, y, shift=1, entropy=True)
    slopes = [torch.randn(3, 6, dtype=torch.float64) for _ in range(2)]
    for a, b in zip(found, whole, strict=True):
        close(a, b)
    wanted = torch.autograd.grad(whole, parts, slopes)
    for a, b in zip(torch.autograd.grad(found, parts, slopes), wanted, strict=True):
        close(a, b, rtol=1e-11, atol=1e-12)


def test_16_bits_behind_a_head(lean):
    parts, y = head(20, dtype=torch.bfloat16)
    found = xent.token_log_probs(xent.LinearLogits(*parts), y, entropy=True)
    truth = Categorical(logits=F.linear(*(x.detach().double() for x in parts)))
    for x, e in zip(found, (truth.log_prob(y), truth.entropy()), strict=True):
        assert x.dtype == torch.float32
        # Products of bfloat16 numbers are exact in float32. Sums of six products, of about 8, are
        # rounded, and log-probability and entropy are computed from several of these sums.
        close(x.double(), e, rtol=0, atol=20 * spacing(torch.tensor(8.0), torch.float32).item())


# ---- derivatives and transforms -------------------------------------------------------------


def test_derivatives(engine):
    z, y = problem(3, 4)
    y[1] = -100

    def f(x):
        return tuple(xent.token_log_probs(x, y, temperature=0.7, entropy=True, engine=engine))

    assert torch.autograd.gradcheck(f, z)
    assert torch.autograd.gradgradcheck(f, z)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_transforms():
    z, y = problem(3, 4, 5)

    def f(x, target):
        return sum(v.sum() for v in xent.token_log_probs(x, target, entropy=True))

    (truth,) = torch.autograd.grad(f(z, y), z)
    plain = z.detach()
    close(torch.func.grad(f)(plain, y), truth)
    close(torch.func.vmap(torch.func.grad(f))(plain, y), truth)
    tangent = torch.randn_like(plain)
    _, moved = torch.func.jvp(lambda x: f(x, y), (plain,), (tangent,))
    close(moved, (truth * tangent).sum())
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    close(compiled(z, y), f(z, y))
    close(torch.autograd.grad(compiled(z, y), z)[0], truth)


# ---- what is refused ------------------------------------------------------------------------

Z, Y = torch.randn(3, 4, 7), torch.zeros(3, 4, dtype=torch.int64)
BAD = {
    "classes on axis 1": ({"input": Z.movedim(2, 1)}, ValueError, "classes last"),
    "probabilities": ({"target": Z.softmax(-1)}, ValueError, r"must have shape \(3, 4\)"),
    "floats": ({"target": Y.float()}, TypeError, "class indices"),
    "text": ({"input": "1"}, TypeError, "torch.Tensor"),
    "no class axis": ({"input": torch.tensor(1.0)}, ValueError, "class axis"),
    "integer logits": ({"input": Z.long()}, TypeError, "floating-point logits"),
    "no such class": ({"target": Y + 7}, IndexError, "out of bounds"),
    "temperature 0": ({"temperature": 0.0}, ValueError, "must be positive"),
    "temperature nan": ({"temperature": math.nan}, ValueError, "finite"),
    "a temperature 0": ({"temperature": torch.zeros(3, 1)}, ValueError, "positive and finite"),
    "by sequence": ({"temperature": torch.ones(3)}, ValueError, r"temperature\[:, None\]"),
    "too many": ({"temperature": torch.ones(3, 5)}, ValueError, "axes of the rows"),
    "cap by row": (
        {"temperature": torch.ones(3, 4), "softcap": 3.0}, ValueError, "must be a number",
    ),
    "bias by row": (
        {"temperature": torch.ones(3, 4), "class_bias": torch.ones(7)}, ValueError, "same for all",
    ),
    "softcap": ({"softcap": -2.0, "temperature": 2.0}, ValueError, r"got -2\.0"),
    "bias": ({"class_bias": torch.ones(3)}, ValueError, "class_bias"),
    "shift": ({"shift": 5}, ValueError, "0 to 4 places"),
    "shift back": ({"shift": -1}, ValueError, "0 to 4 places"),
    "engine": ({"engine": "fast"}, ValueError, "engine"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    changed, error, words = BAD[name]
    with pytest.raises(error, match=words):
        xent.token_log_probs(**{"input": Z, "target": Y, **changed})
    if "target" not in changed and "shift" not in changed and name != "classes on axis 1":
        with pytest.raises(error, match=words):
            xent.entropy(**{"input": Z, **changed})


def test_bad_labels():
    with pytest.raises(TypeError, match="class indices"):
        xent.shift_labels(torch.ones(3))
    with pytest.raises(ValueError, match="axis of positions"):
        xent.shift_labels(torch.tensor(1))
    with pytest.raises(ValueError, match=r"`documents` must have the shape of `labels`, \(2, 3\)"):
        xent.shift_labels(torch.ones(2, 3).long(), documents=torch.ones(2).long())
    with pytest.raises(TypeError, match="`documents` must hold integers"):
        xent.shift_labels(torch.ones(3).long(), documents=torch.ones(3))
    with pytest.raises(ValueError, match="must have a class"):
        xent.entropy(torch.zeros(3, 0))
