"""A stand-in for a GPU that is missing: Triton compiles for the GPU, and launches do nothing."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel


class Driver:
    """A driver for a missing device: enough methods to compile for the device."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        """Return the device to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """Return the number of the device."""
        return 0

    def get_current_stream(self, _device: int) -> int:
        """Return the default stream."""
        return 0


def compile_for(target: GPUTarget) -> None:
    """Let Triton compile for a device that need not be present."""
    driver: Any = Driver(target)
    triton.runtime.driver.set_active(driver)


def count_launches() -> list[str]:
    """Let launches of compiled kernels do nothing; return the list that receives their names."""
    names: list[str] = []

    def launched(kernel: CompiledKernel) -> Any:
        return lambda *_: names.append(kernel.name)

    kernels: Any = CompiledKernel
    kernels._init_handles = lambda self: None  # loads the machine code on a GPU
    kernels.run = property(launched)
    return names
