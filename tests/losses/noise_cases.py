"""The losses, logits, labels and noise matrices that the tests of label noise share."""

import pytest
import torch

import xent

FORWARD = xent.losses.forward_corrected_cross_entropy
BACKWARD = xent.losses.backward_corrected_cross_entropy
CORRECTED = pytest.mark.parametrize("loss", [FORWARD, BACKWARD], ids=["forward", "backward"])

C = 5
Z = torch.randn(40, C, generator=torch.Generator().manual_seed(1)).double() * 3
Y = torch.arange(40) % C
EYE = torch.eye(C, dtype=torch.float64)
SYMMETRIC = xent.losses.symmetric_noise_matrix(C, 0.3)
PAIR = xent.losses.pair_noise_matrix(C, 0.4)
ANY = torch.softmax(
    torch.randn(C, C, generator=torch.Generator().manual_seed(2)).double() + 3 * EYE, 1
)
MATRICES = pytest.mark.parametrize(
    "matrix", [EYE, SYMMETRIC, PAIR, ANY], ids=["identity", "symmetric", "pair", "any"]
)
