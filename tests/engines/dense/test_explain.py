"""Answers of `xent.explain` about losses that need all logits of a row."""

import pytest
import torch

import xent
from xent.engines import core as engines_core
from xent.engines import dense

Z, Y = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, -100])
SOFT = torch.full((6, 5), 0.2)
LABELLED = [xent.losses.sparsemax_loss, xent.losses.entmax_loss, xent.losses.bi_tempered_loss]
EACH = pytest.mark.parametrize("loss", LABELLED, ids=lambda loss: loss.__name__)
DISTILLATION = xent.losses.distillation_loss
needs_fast_kernels = pytest.mark.skipif(
    torch.float64 not in engines_core.fast, reason="the reference engine is taken, being faster"
)


@needs_fast_kernels
@EACH
def test_class_indices_have_kernels_on_the_cpu(core, loss):
    plan = xent.explain(Z, Y, loss=loss)
    assert plan.engine == "native"
    assert "in the same sweep" in plan.gradient
    assert xent.explain(Z, Y, loss=loss, engine="reference").engine == "reference"


@EACH
def test_what_has_no_kernel(core, loss):
    weight = torch.ones(5, requires_grad=True)
    for arguments, reason in (
        ((Z, SOFT, None), "no kernel for these targets"),
        ((Z, Y, weight), "requires a gradient"),
    ):
        *data, weight = arguments
        plan = xent.explain(*data, weight=weight, loss=loss)
        assert plan.engine == "reference"
        assert reason in plan.reason


@EACH
def test_triton_has_no_kernels(loss):
    with pytest.raises(ValueError, match="have no kernels in triton"):
        xent.explain(Z, Y, loss=loss, engine="triton")
    with pytest.raises(ValueError, match="have no kernels in triton"):
        xent.explain(Z, Z, loss=DISTILLATION, engine="triton")


@needs_fast_kernels
def test_hyperparameters_are_those_of_the_loss(core):
    tempered = xent.losses.bi_tempered_loss
    assert xent.explain(Z, Y, loss=tempered, t1=0.5).engine == "native"
    smoothed = xent.explain(Z, Y, loss=tempered, label_smoothing=0.1)
    assert (smoothed.engine, "options" in smoothed.reason) == ("reference", True)
    with pytest.raises(ValueError, match="`t1`"):
        xent.explain(Z, Y, loss=tempered, t1=2.0)
    with pytest.raises(TypeError, match="gamma"):
        xent.explain(Z, Y, loss=tempered, gamma=2.0)


@needs_fast_kernels
def test_distillation(core):
    assert xent.explain(Z, Z, loss=DISTILLATION, temperature=2.0).engine == "native"
    with pytest.raises(ValueError, match="divergence"):
        xent.explain(Z, Z, loss=DISTILLATION, divergence="sideways")
    with pytest.raises(ValueError, match="same rows and classes"):
        xent.explain(Z, Z[:3], loss=DISTILLATION)
    with pytest.raises(TypeError, match="class_bias"):
        xent.explain(Z, Z, loss=DISTILLATION, class_bias=Z[0])


@needs_fast_kernels
def test_behind_a_head(core):
    hidden, weight = torch.randn(6, 3), torch.randn(5, 3)
    logits = xent.LinearLogits(hidden, weight)
    for plan in (
        xent.explain(logits, Y, loss=xent.losses.sparsemax_loss),
        xent.explain(logits, Z, loss=DISTILLATION),
        xent.explain(Z, logits, loss=DISTILLATION),
    ):
        assert plan.engine == "native"
        assert "by chunks of" in plan.gradient
        assert "torch.float32" in plan.products
    bias = torch.zeros(5, requires_grad=True)
    learned = xent.explain(logits, Y, class_bias=bias, loss=xent.losses.sparsemax_loss)
    assert learned.gradient == xent.explain(logits, Y, class_bias=bias).gradient


def test_other_losses_are_refused():
    for loss in (xent.cross_entropy, xent.losses.sigmoid_focal_loss, len):
        with pytest.raises(TypeError, match="sparsemax_loss"):
            xent.explain(Z, Y, loss=loss)
    with pytest.raises(TypeError, match=r"t1.*`loss`"):
        xent.explain(Z, Y, t1=0.5)


def test_without_the_core(monkeypatch):
    monkeypatch.setattr(engines_core, "_core", None)
    plan = xent.explain(Z, Y, loss=LABELLED[0])
    assert plan.engine == "reference"
    assert "not installed" in plan.reason


CALLS = {
    "labels": (LABELLED[0], (Z, Y), {}),
    "softcap": (LABELLED[0], (Z, Y), {"softcap": 30.0}),
    "soft": (LABELLED[1], (Z, SOFT), {}),
    "class weights": (LABELLED[1], (Z, Y), {"weight": torch.rand(5)}),
    "learned weights": (LABELLED[1], (Z, Y), {"weight": torch.rand(5).requires_grad_()}),
    "other mark": (LABELLED[2], (Z, Y.clamp(min=-1)), {"ignore_index": -1}),
    "smoothed": (LABELLED[2], (Z, Y), {"label_smoothing": 0.1}),
    "narrow teacher": (DISTILLATION, (Z, Z.bfloat16()), {"divergence": "reverse"}),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_loss_does_what_it_says(core, name, monkeypatch):
    loss, data, options = CALLS[name]
    taken, total = [], dense.native.total

    def spied(*args, **kwargs):
        taken.append(name)
        return total(*args, **kwargs)

    monkeypatch.setattr(dense.native, "total", spied)
    loss(*data, **options)
    assert bool(taken) == (xent.explain(*data, loss=loss, **options).engine == "native")
