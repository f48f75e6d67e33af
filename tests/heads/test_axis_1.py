"""Logits behind a head that were moved to axis 1 are used as tensors with the classes there."""

import warnings

import pytest
import torch

import xent
from xent import losses

N, V, T, D = 2, 5, 3, 4
torch.manual_seed(0)
HIDDEN = torch.randn(N, T, D, dtype=torch.float64)
WEIGHT = torch.randn(V, D, dtype=torch.float64)
WHOLE = (HIDDEN @ WEIGHT.T).transpose(1, 2)  # (N, V, T)
LABELS = torch.randint(V, (N, T))
SOFT = torch.softmax(torch.randn(N, V, T, dtype=torch.float64), 1)
FACTORS = torch.rand(V, 1, dtype=torch.float64)
FEW = torch.arange(2).view(1, 2, 1).expand(N, 2, T)
HALVES = torch.full((N, 2, T), 0.5, dtype=torch.float64)
OTHERS = torch.zeros(N, V).long()  # labels for rows of T classes
bce = xent.binary_cross_entropy_with_logits


def moved():
    return xent.LinearLogits(HIDDEN, WEIGHT).transpose(1, 2)


LEAN = {
    "labels": lambda z: xent.cross_entropy(z, LABELS),
    "soft": lambda z: xent.cross_entropy(z, SOFT),
    "class_dim": lambda z: xent.cross_entropy(z, LABELS, class_dim=1),
    "from the end": lambda z: xent.cross_entropy(z, SOFT, class_dim=-2),
    "rows": lambda z: losses.focal_loss(z, LABELS, reduction="none"),
    "student": lambda z: losses.distillation_loss(z, 2 * WHOLE, class_dim=1, reduction="none"),
    "teacher": lambda z: losses.distillation_loss(2 * WHOLE, z, class_dim=1),
    "elements": lambda z: bce(z, SOFT),
    "factors": lambda z: bce(z, SOFT, FACTORS, pos_weight=FACTORS),
    "multilabel": lambda z: losses.multilabel_cross_entropy(z, SOFT, class_dim=1),
    "lists": lambda z: losses.sparse_cross_entropy(z, FEW, HALVES),
    "statistics": lambda z: xent.statistics(z, LABELS).lse,
    "dense": lambda z: losses.entmax_loss(z, LABELS),
    "module": lambda z: xent.nn.CrossEntropyLoss()(z, LABELS),
}
OF_ALL_NUMBERS = {
    "each element": lambda z: bce(z, SOFT, FACTORS, reduction="none"),
    "classes elsewhere": lambda z: xent.cross_entropy(z, OTHERS, class_dim=-1),
    "log-probabilities": lambda z: xent.token_log_probs(z, OTHERS),
    "entropy": lambda z: xent.entropy(z),
    "softmax": lambda z: xent.softmax(z, 1),
    "log_softmax": lambda z: xent.log_softmax(z),
    "sparsemax": lambda z: losses.sparse.sparsemax(z, 1),
    "jacobian": lambda z: xent.softmax_jacobian(z),
    "sample": lambda z: xent.sample(z, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("name", LEAN)
def test_lean(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = LEAN[name](moved())
    torch.testing.assert_close(found, LEAN[name](WHOLE))


@pytest.mark.parametrize("name", OF_ALL_NUMBERS)
def test_of_all_numbers(name):
    with pytest.warns(UserWarning, match="needs all 30 logits"):
        found = OF_ALL_NUMBERS[name](moved())
    torch.testing.assert_close(found, OF_ALL_NUMBERS[name](WHOLE))


@pytest.mark.filterwarnings("ignore:diagnose needs all")
def test_diagnosis():
    said = {str(xent.diagnose(z, LABELS + 1)) for z in (WHOLE, moved(), moved().movedim(1, -1))}
    assert len(said) == 1
    assert "label-out-of-range" in said.pop()
