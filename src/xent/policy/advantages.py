"""Advantages: how much better a sample was than others of its group."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .._check import class_indices, is_tensor, one_of, whole_number
from ..arrays import takes_arrays
from ..engines.modes import widened
from ..hyperparameters import Range


@takes_arrays
def group_advantages(
    reward: Tensor,
    group: int | Tensor,
    *,
    baseline: Literal["group", "others"] = "group",
    scale: bool | None = None,
    eps: float = 1e-4,
) -> Tensor:
    r"""Rewards compared within groups: the answers to one prompt.

    .. math:: A_i = \frac{R_i - \mathrm{mean}(R)}{\mathrm{std}(R) + \epsilon}

    Where all rewards of a group are equal, or there is only one, advantages are exactly 0. With
    ``baseline="others"`` they are those of RLOO, the rewards less the mean of the others, with
    which REINFORCE has no bias.

    Args:
        reward: ``(B,)``.
        group: how many consecutive rewards make a group; or the group of each, integers ``(B,)``.
        baseline: what is subtracted: the mean of the ``"group"``, or of the ``"others"`` in it,
            which makes advantages ``n / (n - 1)`` times as large.
        scale: divide by the standard deviation (with ``n - 1``): unless given, for the baseline of
            the group only. It makes easy and hard prompts count more than others; Dr. GRPO leaves
            it out.
        eps: added to the standard deviation.

    Returns:
        ``(B,)``, a constant, in the dtype of ``reward`` (float32 for integers).

    Raises:
        ValueError: for shapes that do not fit, an unknown ``baseline``, or a negative ``eps``.
        TypeError: if ``reward`` is no tensor, or ``group`` no integers.

    Example:
        >>> import torch, xent
        >>> rewards = torch.tensor([1.0, 0.0, 0.0, 5.0, 5.0, 5.0])
        >>> xent.policy.group_advantages(rewards, 3, scale=False)
        tensor([ 0.6667, -0.3333, -0.3333,  0.0000,  0.0000,  0.0000])
        >>> xent.policy.group_advantages(rewards, 3, baseline="others")
        tensor([ 1.0000, -0.5000, -0.5000,  0.0000,  0.0000,  0.0000])

    References:
        Shao et al., *DeepSeekMath*, 2024. Liu et al., *Understanding R1-Zero-like training*, 2025.
        Kool, van Hoof & Welling, *Buy 4 REINFORCE samples, get a baseline for free!*, 2019;
        Ahmadian et al., *Back to basics*, ACL 2024 (RLOO).
    """
    is_tensor("reward", reward)
    one_of("baseline", baseline, ("group", "others"))
    if not (scale is None or isinstance(scale, bool)):
        raise ValueError(f"`scale` must be True, False or None, got {scale!r}")
    scale = baseline == "group" if scale is None else scale
    eps = Range(0).check("eps", eps, None)
    if reward.ndim != 1:
        raise ValueError(f"`reward` must have shape (B,), got {tuple(reward.shape)}")
    index = _group_index(group, reward)
    r = widened(reward.detach())
    none = r.new_zeros(index.numel())

    def total(x: Tensor) -> Tensor:
        return none.index_add(0, index, x)[index]

    # Subtract the least reward of each group. So equal rewards are exactly 0, and so is their mean.
    r = r - none.scatter_reduce(0, index, r, "amin", include_self=False)[index]
    count = total(torch.ones_like(r))
    advantage = r - total(r) / count
    deviation = (total(advantage.square()) / (count - 1).clamp(min=1)).sqrt() + eps
    if baseline == "others":
        advantage = advantage * (count / (count - 1).clamp(min=1))
    if scale:
        advantage = advantage / torch.where(deviation == 0, 1.0, deviation)
    return advantage.to(reward.dtype if reward.is_floating_point() else torch.float32)


def _group_index(group: int | Tensor, reward: Tensor) -> Tensor:
    """The number of each reward's group, from 0 on."""
    size = reward.numel()
    if isinstance(group, Tensor) and group.ndim:
        group = class_indices("group", group)
        if group.shape != reward.shape:
            raise ValueError(
                f"`group` must hold the group of each reward, shape {tuple(reward.shape)}; got "
                f"{tuple(group.shape)}"
            )
        return torch.unique(group, return_inverse=True)[1]
    group = whole_number("group", group)
    if group < 1 or size % group:
        raise ValueError(f"`group`, {group}, must divide the number of rewards, {size}")
    return torch.arange(size, device=reward.device) // group
