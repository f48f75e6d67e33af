"""The axis of the classes that a caller names: every function of logits reads it alike."""

import functools
import inspect

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import xent
from tests.helpers import value_and_grad
from tests.registry import REGISTRY, Loss
from xent.engines import core

C = 5
# Losses of single elements, of pairs of rows and of parts of a head have no axis of classes.
WITHOUT = {"binary_cross_entropy", "kl_div", "siglip_loss"}
NAMES = [
    name
    for name, entry in REGISTRY.items()
    if entry.labels != 1 and not entry.apart and name not in WITHOUT
]
SOFT = [
    name
    for name in NAMES
    if any(isinstance(s, Loss) and s.soft for s in REGISTRY[name].settings)
]  # fmt: skip
ALIKE_ALONE = ["distillation_loss", "set_cross_entropy", "multilabel_cross_entropy", "zlpr_loss"]
ALIKE = [*SOFT, *ALIKE_ALONE]
LISTS = ["sparse_cross_entropy"]
SHAPES = [(), (4,), (2, 3), (2, 3, 2)]  # of the rows


def call_of(name, rows, soft=False):
    """Return a loss of logits and what follows them, in the form ``(N, C)`` and ``(N, ...)``."""
    entry, count = REGISTRY[name], torch.Size(rows).numel()
    z = torch.randn(count, C, dtype=torch.float64)
    z = torch.log_softmax(z, 1) if name == "nll_loss" else z.tanh() if entry.cosines else z
    more = entry.more_logits
    labels = torch.randint(C - max(more, 2 * more), (count,))
    if entry.labels:
        labels = (torch.rand(count, C) > 0.5).double()
    elif soft:
        labels = torch.softmax(torch.randn(count, C, dtype=torch.float64), 1)
    settings = entry.arguments(C - entry.more_logits)
    if name == "set_cross_entropy" and soft:
        return functools.partial(entry.function, **settings), (z, labels > 0.1)
    if entry.follows and soft:  # a teacher, or a list of all classes
        others = (torch.arange(C).expand(count, C), labels) if name in LISTS else (labels,)
        return functools.partial(entry.function, **settings), (z, *others)
    return functools.partial(entry.function, **settings), entry.data(z, labels)


def laid(x, rows, axis):
    """Return a tensor of ``(N,)`` or ``(N, K)`` with these rows, and K numbers on an axis."""
    if not isinstance(x, torch.Tensor):
        return x
    x = x.reshape((*rows, *x.shape[1:]))
    return x.movedim(-1, axis).contiguous() if x.ndim > len(rows) else x


def reductions(name):
    return [{}] if name == "hardest_loss" else [{"reduction": r} for r in ("none", "mean", "sum")]


@pytest.mark.sample(120)
@pytest.mark.parametrize("rows", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_axis_is_the_second_one_of_a_matrix(name, rows):
    for soft in (False, True) if name in SOFT else (False,):
        loss, data = call_of(name, rows, soft)
        for options in reductions(name):
            truth, slope = value_and_grad(loss, *data, **options)
            each = options.get("reduction") == "none"
            for axis in range(len(rows) + 1):
                x, *others = (laid(a, rows, axis) for a in data)
                place = {"class_dim": axis if each else axis - x.ndim}
                found, grad = value_and_grad(loss, x, *others, **place, **options)
                expected = truth.view(rows) if each else truth
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
                torch.testing.assert_close(grad, laid(slope, rows, axis), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_one_axis_of_three_is_the_default(name):
    loss, data = call_of(name, (2, 3))
    data = [laid(a, (2, 3), 1) for a in data]
    if name not in (*ALIKE, "decoupled_distillation_loss"):  # two readings of a teacher
        assert torch.equal(loss(*data), loss(*data, class_dim=1))


# ---- two readings -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ALIKE, *LISTS])
def test_tensors_that_do_not_tell_the_axis_are_refused(name):
    loss, data = call_of(name, (2, 3), soft=True)
    data = [laid(a, (2, 3), 2) for a in data]
    if name == "cross_entropy":
        torch.testing.assert_close(loss(*data), torch.nn.functional.cross_entropy(*data))
        return
    with pytest.raises(ValueError, match=r"axis 1 of length 3.*class_dim=1.*5.*class_dim=-1"):
        loss(*data)
    assert loss(*data, class_dim=-1).isfinite()
    assert loss(*(a[0] for a in data)).isfinite()  # the rows of a matrix


def test_statistics_and_explanations_are_refused_alike():
    z, q = torch.randn(2, 3, C), torch.softmax(torch.randn(2, 3, C), -1)
    with pytest.raises(ValueError, match="class_dim=-1"):
        xent.statistics(z, q)
    for loss in (xent.losses.distillation_loss, xent.losses.sparsemax_loss):
        with pytest.raises(ValueError, match="class_dim=-1"):
            xent.explain(z, q, loss=loss)
        assert xent.explain(z, q, loss=loss, class_dim=-1) == xent.explain(
            z.view(6, C), q.view(6, C), loss=loss
        )
    y = torch.zeros(2, 3, dtype=torch.int64)
    assert xent.explain(z, y, class_dim=-1) == xent.explain(z.view(6, C), y.view(6))


@pytest.mark.parametrize("name", NAMES)
def test_targets_that_fit_the_last_axis_alone_are_told(name):
    loss, data = call_of(name, (2, 3))
    data = [laid(a, (2, 3), 2) for a in data]
    for options in ({}, {"class_dim": 1}):
        if name in ALIKE_ALONE and options:
            continue  # there nothing can be wrong
        with pytest.raises(ValueError, match="class_dim=-1"):
            loss(*data, **options)


@pytest.mark.parametrize("name", NAMES)
def test_axes_that_are_none_are_refused(name):
    loss, data = call_of(name, (4,))
    for wrong, kind in ((2, ValueError), (-3, ValueError), (True, TypeError), (1.0, TypeError)):
        with pytest.raises(kind, match="`class_dim`"):
            loss(*data, class_dim=wrong)


def test_the_message_has_the_shapes_of_the_caller():
    z, y = torch.randn(2, 3, C), torch.zeros(2, C, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(2, 3, 5\).*\(2, 3\).*got \(2, 5\); .*class_dim=1"):
        xent.losses.focal_loss(z, y, class_dim=-1)
    with pytest.raises(ValueError, match=r"`teacher` must have shape \(2, 3, 5\); got \(2, 3, 4\)"):
        xent.losses.distillation_loss(z, z[..., 1:], class_dim=-1)
    with pytest.raises(ValueError, match=r"`row_weight`.*\(2, 3\); got shape \(6,\)"):
        xent.losses.focal_loss(z, y[:, :3], class_dim=-1, row_weight=torch.ones(6))
    with pytest.raises(ValueError, match="class axis"):
        xent.cross_entropy(z[0, 0, 0], y[0, 0], class_dim=0)
    with pytest.raises(TypeError, match="`input`"):
        xent.cross_entropy("text", y[0, 0], class_dim=0)  # pyright: ignore
    with pytest.raises(TypeError, match="gama"):
        xent.losses.focal_loss(z, y[:, :3], class_dim=-1, gama=2.0)


# ---- behind a head, in modules ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["cross_entropy", "focal_loss", "sparsemax_loss", "distillation_loss", "hardest_loss"]
)
def test_behind_a_head_the_last_axis_is_the_only_one(name):
    h, w = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(C, 4, dtype=torch.float64)
    lean = xent.LinearLogits(h, w)
    loss, (_, *others) = call_of(name, (2, 3))
    others = [laid(a, (2, 3), 2) for a in others]
    for class_dim in (None, -1, 2):
        value = loss(lean, *others, class_dim=class_dim)
        torch.testing.assert_close(value, loss(h @ w.T, *others, class_dim=-1))
    with pytest.raises(ValueError, match=r"last axis.*class_dim=-1"):
        loss(lean, *others, class_dim=1)


def test_a_teacher_behind_a_head_has_its_classes_last():
    h, w = torch.randn(2, 3, 4), torch.randn(C, 4)
    student, loss = torch.randn(2, 3, C), xent.losses.distillation_loss
    lean = xent.LinearLogits(h, w)
    torch.testing.assert_close(loss(student, lean), loss(student, h @ w.T, class_dim=-1))
    torch.testing.assert_close(loss(student, lean, class_dim=-1), loss(student, lean))
    with pytest.raises(ValueError, match="last axis"):
        loss(student, lean, class_dim=1)


def test_log_probabilities_behind_a_head():
    lean = xent.LinearLogits(torch.randn(2, 3, 4), torch.randn(C, 4))
    log_p, y = torch.log_softmax(lean, -1), torch.randint(C, (2, 3))
    assert torch.equal(xent.nll_loss(log_p, y, class_dim=-1), xent.nll_loss(log_p, y))


@pytest.mark.parametrize("name", NAMES)
def test_modules_have_the_setting(name):
    from xent.nn.twins import class_name

    module = getattr(xent.nn, class_name(name))
    loss, data = call_of(name, (2, 3))
    known = inspect.signature(module).parameters  # a tree belongs to the call
    settings = {k: v for k, v in loss.keywords.items() if k in known}
    others = {k: v for k, v in loss.keywords.items() if k not in settings}
    data = [laid(a, (2, 3), 2) for a in data]
    made = module(class_dim=-1, **settings)
    assert torch.equal(made(*data, **others), loss(*data, class_dim=-1))
    assert "class_dim=-1" in repr(made)
    with pytest.raises(TypeError, match="`class_dim`"):
        module(class_dim=1.5, **settings)


# ---- the ways that a call may go ----------------------------------------------------------------


class Copies(TorchDispatchMode):
    """Count the operations that make a tensor of at least so many numbers, and no view."""

    def __init__(self, size):
        super().__init__()
        self.size, self.found = size, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        large = isinstance(result, torch.Tensor) and result.numel() >= self.size
        if large and not func.is_view and not any(r.alias_info for r in func._schema.returns):
            self.found.append(func)
        return result


@pytest.mark.skipif(not core.fast, reason="the reference engine copies")
@pytest.mark.parametrize("name", ["cross_entropy", "focal_loss", "sparsemax_loss"])
def test_rows_one_after_the_other_are_not_copied(name):
    loss = REGISTRY[name].function
    z, y = torch.randn(8, 16, 50), torch.randint(50, (8, 16))
    for logits, labels in ((z, y), (z[:, 1:], y[:, 1:])):
        with Copies(logits.numel()) as mode:
            loss(logits, labels, class_dim=-1)
        assert mode.found == []


def test_contiguous_rows_come_as_a_matrix():
    seen = []

    @xent.row_loss
    def spy(s, shift=0.0):
        seen.append(tuple(s.log_prob.shape))
        return -s.log_prob - shift * (s.log_prob * 0 + 1)

    z, y = torch.randn(2, 3, C), torch.randint(C, (2, 3))
    options = {"class_dim": -1, "reduction": "none"}
    value, stats = spy(z, y, return_stats=True, **options)
    assert seen.pop() == (6,)
    assert value.shape == stats.lse.shape == (2, 3)
    # A number per row by a name that only the body knows keeps the rows as they are.
    shift = torch.rand(2, 3)
    torch.testing.assert_close(spy(z, y, shift=shift, **options), value - shift)
    assert seen.pop() == (2, 3)


def test_rows_have_weights_scales_and_masks():
    z, y = torch.randn(2, 3, C).double(), torch.randint(C, (2, 3))
    w, scale = torch.rand(2, 3).double(), torch.rand(2, 3).double() + 1
    flat = {"row_weight": w.view(6), "logit_scale": scale.view(6)}
    for x in (z, z.transpose(0, 1).contiguous().transpose(0, 1)):  # another way in memory
        for loss in (xent.cross_entropy, xent.losses.focal_loss, xent.losses.sparsemax_loss):
            value = loss(x, y, class_dim=-1, row_weight=w, logit_scale=scale, normalizer=7)
            truth = loss(z.view(6, C), y.view(6), normalizer=7, **flat)
            torch.testing.assert_close(value, truth)
        mask = torch.tensor([[True, False, True], [False, True, True]])
        value = xent.losses.distillation_loss(x, z.flip(0), row_mask=mask, class_dim=-1)
        truth = xent.losses.distillation_loss(z[mask], z.flip(0)[mask])
        torch.testing.assert_close(value, truth)
    lam = torch.rand(2, 3).double()
    mixed = xent.losses.mixup_cross_entropy(z, y, y.flip(0), lam, class_dim=-1)
    both = (lam * xent.cross_entropy(z, y, class_dim=-1, reduction="none")).sum()
    both += ((1 - lam) * xent.cross_entropy(z, y.flip(0), class_dim=-1, reduction="none")).sum()
    torch.testing.assert_close(mixed, both / 6)


def test_weights_of_labels_broadcast_as_they_are_given():
    z, t = torch.randn(2, 3, C).double(), (torch.rand(2, 3, C) > 0.5).double()
    loss = xent.losses.multilabel_cross_entropy
    each = torch.nn.functional.binary_cross_entropy_with_logits(z, t, reduction="none")
    for weight in (torch.rand(C), torch.rand(3, 1), torch.rand(2, 1, C), torch.rand(())):
        value = loss(z, t, weight.double(), class_dim=-1)
        torch.testing.assert_close(value, (each * weight.double()).sum(-1).mean())


def test_weights_of_labels_that_fit_nothing_are_refused():
    z, t = torch.randn(2, 3, C), torch.rand(2, 3, C)
    for weight in (torch.rand(3, 3), torch.rand(1, 2, 3, C), torch.rand(C + 1)):
        with pytest.raises(ValueError, match="`weight` must broadcast"):
            xent.losses.multilabel_cross_entropy(z, t, weight, class_dim=-1)


def test_statistics_have_the_shape_of_the_rows():
    z, q = torch.randn(2, 3, C), torch.softmax(torch.randn(2, 3, C), -1)
    for axis in range(3):
        x, p = z.movedim(-1, axis), q.movedim(-1, axis)
        s = xent.statistics(x, p, entropy=True, class_dim=axis)
        torch.testing.assert_close(s.lse, z.double().logsumexp(-1))
        assert s.entropy.shape == (2, 3)


def test_the_gradient_over_the_logits():
    h, y = torch.randn(2, 3, C, requires_grad=True), torch.randint(C, (2, 3))
    (truth,) = torch.autograd.grad(xent.cross_entropy(2 * h, y, class_dim=-1), h)
    loss = xent.cross_entropy(2 * h, y, class_dim=-1, inplace_backward=True, return_stats=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, h)[0], truth)
    with pytest.raises(ValueError, match="leaf"):
        xent.cross_entropy(h, y, class_dim=-1, inplace_backward=True)


def test_logits_are_adjusted_along_the_axis():
    z, prior = torch.randn(2, 3, C), torch.rand(C) + 0.1
    adjusted = xent.losses.adjust_logits(z, prior, class_dim=-1)
    torch.testing.assert_close(adjusted, z - (prior / prior.sum()).log())


def test_transforms_and_compilers():
    z, y = torch.randn(2, 3, C).double(), torch.randint(C, (2, 3))
    teacher = torch.randn(2, 3, C).double()
    calls = (
        lambda z: xent.losses.focal_loss(z, y, class_dim=-1),
        lambda z: xent.losses.distillation_loss(z, teacher, class_dim=-1),
        lambda z: xent.losses.sparsemax_loss(z.mT, y, class_dim=-2),
    )
    for call in calls:
        value, slope = value_and_grad(call, z)
        torch.testing.assert_close(torch.func.grad(call)(z), slope)
        torch.testing.assert_close(torch.func.vmap(call)(z.expand(4, 2, 3, C)), value.expand(4))
        found = value_and_grad(torch.compile(call, fullgraph=True, backend="eager"), z)
        torch.testing.assert_close(found, (value, slope))


# ---- the diagnosis ------------------------------------------------------------------------------


def test_the_diagnosis_tells_the_last_axis():
    z, q = torch.randn(2, 3, C), torch.softmax(torch.randn(2, 3, C), -1)
    (finding,) = xent.diagnose(z, q)
    assert finding.name == "class-axis"
    assert "class_dim=-1" in finding.fix
    assert xent.diagnose(z, q, class_dim=-1) == []
    assert xent.diagnose(z.movedim(-1, 1), q.movedim(-1, 1)) == []
    square, y = torch.log_softmax(torch.randn(2, C, C), -1), torch.randint(C, (2, C))
    for logits in (square, torch.randn(2, C, C)):
        assert "class-axis" in [f.name for f in xent.diagnose(logits, y)]
        assert "class-axis" not in [f.name for f in xent.diagnose(logits, y, class_dim=1)]
    (finding,) = xent.diagnose(z, torch.randint(C, (2, 3)))
    assert "class_dim=-1" in finding.fix
    with pytest.raises(ValueError, match="`class_dim`"):
        xent.diagnose(z, q, class_dim=3)
