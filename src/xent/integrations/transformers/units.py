"""Units of FSDP2: those that hold the weights of a head keep them from forward to backward.

A unit gathers its weights before its forward, and frees them afterwards until its backward. Late
logits are multiplied after the forward of their head.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn


class HeadUnits:
    """The units that hold the weights of a head. Any module may become a unit between two calls.

    Args:
        head: the head.
        around: the modules around the head, the innermost first.
    """

    def __init__(self, head: nn.Module, around: Sequence[nn.Module]) -> None:
        self.head, self.around = head, around
        self.before: list[tuple[Any, Any]] = []  # groups of weights, and how they were freed

    def __iter__(self) -> Iterator[Any]:
        """The units inside the head, and the innermost around it unless the head is one."""
        fsdp = sys.modules.get("torch.distributed.fsdp")
        if fsdp is None:
            return
        kind = fsdp.FSDPModule
        yield from (module for module in self.head.modules() if isinstance(module, kind))
        if not isinstance(self.head, kind):
            yield from [module for module in self.around if isinstance(module, kind)][:1]

    def keep(self) -> None:
        """Let the units keep their weights after the forward."""
        for unit in self:
            freed = [g for g in _groups(unit) if g.post_forward_mesh_info is not None]
            if freed:
                self.before += [(group, group.post_forward_mesh_info) for group in freed]
                unit.set_reshard_after_forward(False, recurse=False)

    def undo(self) -> None:
        """Let the units free their weights again, as before."""
        for group, how in self.before:
            group.post_forward_mesh_info = how  # `set_reshard_after_forward` knows no sizes
        self.before = []

    def original_of(self, part: Tensor) -> Tensor | None:
        """The tensor that counts the changes of a part; of a gathered weight, its parameter.

        None where there are no units.
        """
        gathered, original = part if part._base is None else part._base, None
        for unit in self:
            original = part if original is None else original
            for group in _groups(unit):
                for parameter in group.fsdp_params:
                    if getattr(parameter, "_unsharded_param", None) is gathered:
                        original = parameter.sharded_param
        return original


def _groups(unit: Any) -> list[Any]:
    """The groups of weights of a unit, which older versions of PyTorch have one of at most."""
    state = unit._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return state._fsdp_param_groups
    return [group for group in [state._fsdp_param_group] if group is not None]
