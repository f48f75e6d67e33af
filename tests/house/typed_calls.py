"""Calls as an editor sees them; `make lint` runs pyright on this file.

Nothing here is executed. A type that is wrong or lost makes `assert_type` fail, and the comments
`pyright: ignore` fail where the error that they name is gone.
"""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

import torch
from torch import Tensor
from typing_extensions import assert_type

import xent
from xent import LinearLogits, RowStatistics


def drop_ins(z: Tensor, head: LinearLogits, y: Tensor, flag: bool) -> None:
    assert_type(xent.cross_entropy(z, y, label_smoothing=0.1), Tensor)
    assert_type(xent.cross_entropy(head, y), Tensor)
    assert_type(xent.cross_entropy(z, y, class_dim=-1), Tensor)
    assert_type(xent.cross_entropy(z, y, return_stats=True), tuple[Tensor, RowStatistics])
    assert_type(xent.cross_entropy(z, y, return_stats=flag), Tensor | tuple[Tensor, RowStatistics])
    assert_type(xent.binary_cross_entropy_with_logits(head, y), Tensor)
    assert_type(xent.statistics(head, y), RowStatistics)
    assert_type(xent.token_log_probs(head, y), Tensor)
    assert_type(xent.token_log_probs(z, y, entropy=True), xent.TokenLogProbs)
    assert_type(xent.entropy(head), Tensor)
    assert_type(xent.sample(head), Tensor)
    assert_type(xent.nll_loss(torch.log_softmax(z, 1), y), Tensor)


def losses(z: Tensor, head: LinearLogits, y: Tensor, flag: bool) -> None:
    assert_type(xent.losses.focal_loss(head, y, gamma=1.0), Tensor)
    assert_type(xent.losses.focal_loss(z, y, class_dim=-1), Tensor)
    assert_type(xent.losses.distillation_loss(z, z, class_dim=-1), Tensor)
    assert_type(xent.losses.focal_loss(z, y, return_stats=True), tuple[Tensor, RowStatistics])
    assert_type(
        xent.losses.focal_loss(z, y, return_stats=flag), Tensor | tuple[Tensor, RowStatistics]
    )
    assert_type(xent.losses.sigmoid_focal_loss(head, y), Tensor)
    assert_type(xent.losses.sparsemax_loss(head, y), Tensor)
    assert_type(xent.losses.distillation_loss(head, z), Tensor)
    assert_type(xent.policy.reinforce_loss(z, y), Tensor)


def mistakes(z: Tensor, y: Tensor) -> None:
    xent.cross_entropi(z, y)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    xent.losses.focal_los(z, y)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    xent.cross_entropy(z, y, smoothing=0.1)  # pyright: ignore[reportCallIssue]
    xent.losses.focal_loss(z, y, reduction="average")  # pyright: ignore[reportArgumentType]
    xent.losses.focal_loss(z, "cat")  # pyright: ignore[reportArgumentType]
