"""The page of a loss names only relatives that are equal in numbers."""

import pytest
import torch

from tests.site import sources  # noqa: F401  so that the next line finds its module
from xent import losses

import relatives  # isort: skip

N, C = 12, 4


def names():
    """Return what the expressions are about."""
    draw = torch.Generator().manual_seed(5)
    z, teacher, labels_z = (torch.randn(3, N, C, generator=draw) * 2).double()
    y = torch.randint(C, (N,), generator=draw)
    z2, y2 = z[:, :2], y % 2
    t = torch.randint(2, (N,), generator=draw).double()
    given = {
        "z": z, "y": y, "z2": z2, "y2": y2, "logit": z[:, 0], "t": t, "teacher": teacher,
        "labels_z": labels_z, "labels": (labels_z + teacher > 0).double(), "C": C,
        "cosines": torch.tanh(z), "ones": torch.ones(C).double(), "eye": torch.eye(C).double(),
        "counts": torch.tensor([50.0, 20.0, 5.0, 1.0]).double(),
        "one_hot": torch.nn.functional.one_hot(y, C).double(),
        "one_hot2": torch.nn.functional.one_hot(y2, 2).double(),
        "arange": torch.arange, "ones_like": torch.ones_like, "sigmoid": torch.sigmoid,
        "zeros": lambda n: torch.zeros(n).double(), "exp": lambda x: torch.tensor(x).exp().item(),
        "softmax": lambda x: torch.softmax(x, 1), "log_softmax": lambda x: torch.log_softmax(x, 1),
        "symmetric_noise_matrix": lambda *a: losses.symmetric_noise_matrix(*a).double(),
    }  # fmt: skip
    return {**{name: getattr(losses, name) for name in losses.CATALOG}, **given}


@pytest.mark.parametrize("relation", relatives.RELATIONS, ids=lambda r: r.left)
def test_the_two_sides_are_equal(relation):
    left, right = (eval(side, names()) for side in relation[:2])
    torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-12)
    assert left.isfinite()
    assert left != 0  # two zeros would prove nothing
    assert relation.losses & {*losses.CATALOG}
