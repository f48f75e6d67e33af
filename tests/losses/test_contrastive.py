"""Losses whose classes are other examples, or samples: equal to the whole matrix."""

import mpmath
import pytest
import torch
import torch.nn.functional as F

import xent
from xent.heads import chunks as heads

every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Make even small problems take several chunks."""
    monkeypatch.setattr(heads, "MAX_ROWS", 5)


def features(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def learned(x):
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


def cosines(a, b):
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T


def reduced(values, reduction):
    return values if reduction == "none" else getattr(values, reduction)()


def agree(found, expected, parts, rtol=1e-10):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-13)
    for a, b in zip(
        torch.autograd.grad((found * 1.5).sum(), parts),
        torch.autograd.grad((expected * 1.5).sum(), parts),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


@every_reduction
@pytest.mark.parametrize("normalize", [True, False])
def test_info_nce(reduction, normalize):
    a, b, t = features(12, 6), features(17, 6), learned(0.3)
    weight = torch.rand(12, dtype=torch.float64)
    options = {"temperature": t, "normalize": normalize, "row_weight": weight}
    found = xent.losses.info_nce_loss(a, b, reduction=reduction, **options)
    z = (cosines(a, b) if normalize else a @ b.T) / t
    values = F.cross_entropy(z, torch.arange(12), reduction="none") * weight
    expected = values.sum() / weight.sum() if reduction == "mean" else reduced(values, reduction)
    agree(found, expected, (a, b, t))


def test_keys_in_any_order():
    a, b = features(7, 4), features(9, 4)
    y = torch.randperm(9)[:7]
    y[2] = -100
    found = xent.losses.info_nce_loss(a, b, y, temperature=0.5)
    agree(found, F.cross_entropy(cosines(a, b) / 0.5, y), (a, b))


def of_several(z, same, out):
    """Return minus the mean log-probability of the keys that belong, row by row; 0 where none."""
    values = []
    for row, belongs, removed in zip(z, same, out, strict=True):
        p = torch.log_softmax(row[~removed | belongs], 0)[belongs[~removed | belongs]]
        values.append(-p.mean() if len(p) else row.new_zeros(()))
    return torch.stack(values)


@every_reduction
@pytest.mark.parametrize("masked", [True, False])
def test_several_keys_of_a_query(reduction, masked):
    a, b, t = features(12, 6), features(17, 6), learned(0.3)
    y, of_keys = torch.randint(4, (12,)), torch.randint(4, (17,))
    y[1], y[2], of_keys[3] = -100, 9, 7  # ignored; without a key; a key without a query
    weight = torch.rand(12, dtype=torch.float64)
    weight[5] = 0
    out = (torch.rand(12, 17) < 0.3) & torch.tensor(masked)
    options = {"key_mask": lambda n: ~out[n]} if masked else {}
    found = xent.losses.info_nce_loss(
        a, b, labels=y, key_labels=of_keys, temperature=t, row_weight=weight, reduction=reduction,
        **options,
    )  # fmt: skip
    same = y[:, None] == of_keys
    values = of_several(cosines(a, b) / t, same, out) * weight
    kept = (y != -100) & same.any(1)
    mean = values.sum() / (weight * kept).sum()
    agree(found, mean if reduction == "mean" else reduced(values, reduction), (a, b, t), 1e-12)


def test_false_negatives_are_removed():
    """As a guide finds them: keys nearer to a query than its own are no negatives (GIST)."""
    a, b, guide = features(9, 4), features(9, 4), torch.randn(9, 9)
    near = guide > guide.diagonal()[:, None]
    asked = []

    def mask(rows):
        asked.append(rows)
        return ~near[rows]

    found = xent.losses.info_nce_loss(a, b, temperature=0.5, key_mask=mask)
    assert torch.equal(torch.cat(asked), torch.arange(9))
    assert len(asked) > 1
    z = (cosines(a, b) / 0.5).masked_fill(near, -torch.inf)
    agree(found, F.cross_entropy(z, torch.arange(9)), (a, b), 1e-12)
    y = torch.randperm(9)
    y[3] = -100
    found = xent.losses.info_nce_loss(a, b, y, temperature=0.5, key_mask=lambda n: ~near[n])
    own = F.one_hot(y.clamp(min=0), 9).bool()  # the key of a query takes part in any case
    z = (cosines(a, b) / 0.5).masked_fill(near & ~own, -torch.inf)
    agree(found, F.cross_entropy(z, y), (a, b), 1e-12)


def test_one_key_of_each_label_is_its_number():
    a, b = features(7, 4), features(9, 4)
    y, order = torch.randint(9, (7,)), torch.randperm(9)
    found = xent.losses.info_nce_loss(a, b, labels=order[y], key_labels=order)
    agree(found, xent.losses.info_nce_loss(a, b, y), (a, b), 1e-12)
    both = xent.losses.info_nce_loss(a, b[:7], labels=y)
    agree(both, xent.losses.info_nce_loss(a, b[:7], labels=y, key_labels=y), (a, b), 1e-12)


def test_one_of_several_keys_must_be_found():
    """MIL-NCE, as the docstring says: the cross-entropy of a set."""
    a, b = features(7, 4), features(9, 4)
    y, of_keys = torch.randint(3, (7,)), torch.arange(9) % 3
    head = xent.LinearLogits(a, b)
    found = xent.losses.set_cross_entropy(head, y, groups=of_keys, logit_scale=2.0)
    p = torch.softmax(2 * a @ b.T, 1)
    agree(found, -(p * (y[:, None] == of_keys)).sum(1).log().mean(), (a, b), 1e-12)


@every_reduction
def test_clip(reduction):
    a, b, log_scale = features(12, 6), features(12, 6), learned(2.0)
    found = xent.losses.clip_loss(a, b, logit_scale=log_scale.exp(), reduction=reduction)
    z, y = cosines(a, b) * log_scale.exp(), torch.arange(12)
    values = sum(F.cross_entropy(x, y, reduction="none") for x in (z, z.T)) / 2
    agree(found, reduced(values, reduction), (a, b, log_scale))


@every_reduction
def test_nt_xent(reduction):
    a, b, t = features(7, 4), features(7, 4), learned(0.4)
    found = xent.losses.nt_xent_loss(a, b, temperature=t, reduction=reduction)
    both = torch.cat([a, b])
    z = (cosines(both, both) / t).masked_fill(torch.eye(14).bool(), -torch.inf)
    values = F.cross_entropy(z, torch.arange(14).roll(7), reduction="none")
    agree(found, reduced(values, reduction), (a, b, t))


@every_reduction
@pytest.mark.parametrize("dense", [True, False])
def test_siglip(reduction, dense):
    a, b, t, c = features(12, 6), features(15, 6), learned(4.0), learned(-3.0)
    target = (torch.rand(12, 15) < 0.2).double() if dense else None
    weight = torch.rand(12, dtype=torch.float64)
    options = {"scale": t, "bias": c, "reduction": reduction, "row_weight": weight}
    lean = xent.losses.siglip_loss(xent.LinearLogits(a, b) * 0.5, target, **options)
    z = a @ b.T * 0.5 * t + c
    y = torch.eye(12, 15, dtype=torch.float64) if target is None else target
    values = F.binary_cross_entropy_with_logits(z, y, reduction="none").sum(1) * weight
    expected = values.sum() / weight.sum() if reduction == "mean" else reduced(values, reduction)
    agree(lean, expected, (a, b, t, c))


def test_a_sure_pair_keeps_its_digits():
    """The similarity is 1 for the pair and 0 for all others, at a temperature of 1/60."""
    found = xent.losses.info_nce_loss(torch.eye(3), torch.eye(3), temperature=1 / 60)
    truth = float(mpmath.log1p(2 * mpmath.exp(-mpmath.mpf(60))))
    assert abs(found.item() - truth) <= 8 * 2**-24 * 60 * truth


@pytest.mark.parametrize("correct", [True, False])
@every_reduction
def test_sampled_softmax(correct, reduction):
    h, w, b = features(3, 4, 6), features(30, 6), features(30)
    y = torch.randint(30, (3, 4))
    y[1, 2] = -100
    some = torch.cat([torch.randint(30, (9,)), y[0]])  # among them targets, some of them twice
    log_q = torch.randn(30) if correct else None
    found = xent.losses.sampled_cross_entropy(
        h, w, y, some, bias=b, log_q=log_q, reduction=reduction
    )
    z = F.linear(h, w, b) - (0 if log_q is None else log_q)
    rivals = z[..., some].masked_fill(some == y.unsqueeze(-1), -torch.inf)
    own = z.gather(-1, y.clamp(min=0).unsqueeze(-1))
    values = torch.where(y >= 0, -torch.log_softmax(torch.cat([own, rivals], -1), -1)[..., 0], 0)
    expected = values.sum() / 11 if reduction == "mean" else reduced(values, reduction)
    agree(found, expected, (h, w, b))


def test_sampled_softmax_takes_the_workspace():
    h, w = features(8, 4), features(11, 4)
    y, some = torch.randint(11, (8,)), torch.randperm(11)
    found = xent.losses.sampled_cross_entropy(h, w, y, some, max_workspace=1)
    agree(found, F.cross_entropy(h @ w.T, y), (h, w))
    with pytest.raises(ValueError, match="`max_workspace`"):
        xent.losses.sampled_cross_entropy(h, w, y, some, max_workspace=0)


def test_a_sample_of_all_classes_is_cross_entropy():
    h, w = features(8, 4), features(11, 4)
    y = torch.randint(11, (8,))
    found = xent.losses.sampled_cross_entropy(h, w, y, torch.randperm(11))
    agree(found, F.cross_entropy(h @ w.T, y), (h, w))


def test_the_correction_takes_the_bias_out():
    """Over many samples from a skewed distribution, the mean of exp(lse) is that of all classes."""
    h, w = torch.randn(1, 4).double(), torch.randn(12, 4).double()
    q = torch.softmax(2 * torch.randn(12, dtype=torch.float64), 0)
    generator, y = torch.Generator().manual_seed(0), torch.tensor([3])
    size, total, draws = 6, [], 4000
    for _ in range(draws):
        some = torch.multinomial(q, size, replacement=True, generator=generator)
        loss = xent.losses.sampled_cross_entropy(h, w, y, some, log_q=(q * size).log())
        odds = torch.expm1(loss)  # odds of all sampled classes against the target
        total.append(odds / (q[3] * size))
    total = torch.stack(total)
    z = (h @ w.T)[0]
    truth = (z.exp().sum() - z[3].exp()) / z[3].exp()
    assert abs(total.mean() - truth) <= 4 * total.std() / draws**0.5


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: xent.losses.info_nce_loss(a, b, temperature=0.3),
        lambda a, b: xent.losses.info_nce_loss(
            a, b[:4], labels=torch.tensor([0, 0, 1, 2, 9, 1]), key_labels=torch.tensor([0, 1, 0, 2])
        ),
        lambda a, b: xent.losses.clip_loss(a, b, reduction="none").sum(),
        lambda a, b: xent.losses.nt_xent_loss(a, b, temperature=0.3),
        lambda a, b: xent.losses.siglip_loss(xent.LinearLogits(a, b), scale=2.0, bias=-1.0),
        lambda a, b: xent.losses.sampled_cross_entropy(
            a, b, torch.arange(6), torch.tensor([1, 2, 2])
        ),
    ],
    ids=["info_nce", "info_nce_of_labels", "clip", "nt_xent", "siglip", "sampled"],
)
def test_derivatives(loss):
    a, b = features(6, 3), features(6, 3)
    assert torch.autograd.gradcheck(loss, (a, b))
    assert torch.autograd.gradgradcheck(loss, (a, b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_types(dtype):
    a, b = (torch.randn(40, 16).to(dtype) for _ in range(2))
    wide = [x.double() for x in (a, b)]
    for loss in (xent.losses.info_nce_loss, xent.losses.clip_loss, xent.losses.nt_xent_loss):
        options = {
            "normalize": False,
            **({} if loss is xent.losses.clip_loss else {"temperature": 1.0}),
        }
        if loss is xent.losses.clip_loss:
            options["logit_scale"] = 1.0
        found = loss(a, b, **options)
        assert found.dtype == dtype
        # The losses of both ways are rounded, and then their mean.
        truth = loss(*wide, **options).item()
        assert abs(found.item() - truth) <= torch.finfo(dtype).eps * truth


def test_no_matrix_of_pairs():
    """No tensor is larger than a chunk."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor):
                    self.numel = max(self.numel, x.untyped_storage().nbytes() // x.itemsize)
            return out

    n = 64
    a, b = (torch.randn(n, 4, requires_grad=True) for _ in range(2))
    for loss in (
        lambda: xent.losses.info_nce_loss(a, b),
        lambda: xent.losses.clip_loss(a, b, reduction="none").sum(),
        lambda: xent.losses.nt_xent_loss(a, b),
        lambda: xent.losses.siglip_loss(xent.LinearLogits(a, b)),
    ):
        with Largest() as seen:
            loss().backward()
        assert seen.numel < n * n / 2


BAD = {
    "shape": (lambda a: xent.losses.info_nce_loss(a, a[0]), "`key` must hold features"),
    "too few keys": (lambda a: xent.losses.info_nce_loss(a, a[:2]), "need as many keys"),
    "both": (
        lambda a: xent.losses.info_nce_loss(a, a, torch.arange(5), labels=torch.arange(5)),
        "`target` and `labels`",
    ),
    "labels of keys alone": (
        lambda a: xent.losses.info_nce_loss(a, a, key_labels=torch.arange(5)),
        "pass `labels`",
    ),
    "no labels of keys": (
        lambda a: xent.losses.info_nce_loss(a, a[:4], labels=torch.arange(5)),
        "pass `key_labels`",
    ),
    "mask": (
        lambda a: xent.losses.info_nce_loss(a, a, key_mask=lambda n: torch.ones(5, 5)),
        "`key_mask` must return booleans",
    ),
    "no such key": (
        lambda a: xent.losses.info_nce_loss(
            a, a, torch.arange(1, 6), key_mask=lambda n: torch.ones(len(n), 5).bool()
        ),
        "`target`",
    ),
    "temperature": (
        lambda a: xent.losses.info_nce_loss(a, a, temperature=0.0),
        "`temperature` must be",
    ),
    "two": (
        lambda a: xent.losses.info_nce_loss(a, a, temperature=torch.ones(2)),
        "must be a number",
    ),
    "scale": (
        lambda a: xent.losses.clip_loss(a, a, logit_scale=-1.0),
        "`logit_scale` must be positive",
    ),
    "pairs": (lambda a: xent.losses.clip_loss(a, a[:2]), "must have the same shape"),
    "views": (lambda a: xent.losses.nt_xent_loss(a, a[:2]), "must have the same shape"),
    "target": (
        lambda a: xent.losses.siglip_loss(xent.LinearLogits(a, a), torch.ones(4)),
        "`target` must have",
    ),
    "cap": (
        lambda a: xent.losses.siglip_loss(3 * torch.tanh(xent.LinearLogits(a, a) / 3)),
        "softcap",
    ),
    "nothing sampled": (
        lambda a: xent.losses.sampled_cross_entropy(a, a, torch.arange(5), torch.arange(0)),
        "`sampled`",
    ),
    "no such sample": (
        lambda a: xent.losses.sampled_cross_entropy(a, a, torch.arange(5), torch.tensor([5])),
        "outside",
    ),
    "no such target": (
        lambda a: xent.losses.sampled_cross_entropy(a, a, torch.arange(1, 6), torch.arange(2)),
        "outside",
    ),
    "targets": (
        lambda a: xent.losses.sampled_cross_entropy(a, a, torch.arange(2), torch.arange(2)),
        "`target`",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(torch.randn(5, 4))
