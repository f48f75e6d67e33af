"""A CPU that the library takes for an accelerator, whose numbers nobody may look at.

Triton's interpreter runs the kernels on CPU tensors.
"""

import contextlib
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from xent.engines import modes
from xent.heads.kept import Arriving

ASK = modes.on_accelerator
A_WAIT = {
    "_local_scalar_dense", "is_nonzero", "nonzero", "nonzero_numpy", "masked_select", "equal",
    "unique", "_unique2", "unique_dim", "allclose", "argwhere", "where.default", "bincount",
}  # fmt: skip


def take_for_accelerator(monkeypatch):
    """Let every module that asks believe that tensors are on an accelerator."""
    for name, module in list(sys.modules.items()):
        if name.startswith("xent") and getattr(module, "on_accelerator", None) is ASK:
            monkeypatch.setattr(module, "on_accelerator", lambda x: True)


class NoWait(TorchDispatchMode):
    """Raises for an operator that waits for a device; notes operators, and when the count comes."""

    def __init__(self):
        super().__init__()
        self.seen, self.allowed = [], False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, overload = func.__name__.split(".")
        self.seen.append(name)
        masks = name in ("index", "index_put", "index_put_", "_unsafe_index") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        waits = name in A_WAIT or f"{name}.{overload}" in A_WAIT or masks
        if waits and not self.allowed:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_wait(monkeypatch):
    """A context in which the one number that the host may ask for is how many rows are kept."""
    mode, value = NoWait(), Arriving.value

    def ask(arriving):
        mode.seen.append("count")
        mode.allowed = True
        try:
            return value(arriving)
        finally:
            mode.allowed = False

    monkeypatch.setattr(Arriving, "value", ask)
    with mode:
        yield mode.seen
