"""Compile kernels for a GPU that need not be present, and print the results as JSON.

    python compile_kernels.py cuda 90

One object per kernel: its name, the constants of its launch and, for NVIDIA, the registers of a
thread, the bytes it spills, and how many loads of 16 bytes it makes.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

if sys.argv[1] == "hip":  # before anybody asks
    torch.version.hip = "7.0"

import xent
from xent.engines import triton as engine
from xent.heads import chunks

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Driver:
    """A driver for a missing device: enough methods to compile for the device."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def resources(cubin: bytes) -> dict[str, int]:
    """Return registers of a thread, and bytes on its stack."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        text = subprocess.run(
            [BIN / "cuobjdump", "--dump-resource-usage", file.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    return {name: int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK")}


def compile_instead(run):
    """Compile a kernel instead of launching it, and print the result."""

    def report(self, *args, grid, warmup, **constants):
        kernel = run(self, *args, grid=grid, warmup=True, **constants)
        told = {k: v for k, v in constants.items() if isinstance(v, (int, bool))}
        threads = kernel.metadata.num_warps * kernel.metadata.warp_size
        found = {"kernel": self.fn.__name__, "constants": told, "threads": threads}
        if "cubin" in kernel.asm:
            found |= resources(kernel.asm["cubin"])
            found["wide loads"] = len(re.findall(r"ld\.global\S*\.v4", kernel.asm["ptx"]))
        print(json.dumps(found))

    return report


@xent.row_loss(needs=("entropy", "mean", "top", "squares", "cubes"))
def everything(s):
    """Compute a loss that requests every statistic."""
    asked = s.entropy + s.mean + s.rest_top_logit + s.rest_squares + s.rest_cubes
    return asked - s.log_prob + s.lse


def main() -> None:
    """Compile the kernels that a few calls would launch."""
    backend, arch = sys.argv[1:]
    nvidia = backend == "cuda"
    triton.runtime.driver.set_active(
        Driver(GPUTarget(backend, int(arch) if nvidia else arch, 32 if nvidia else 64))
    )
    engine.INTERPRETED = True  # tensors of the CPU will do: nothing is run
    JITFunction.run = compile_instead(JITFunction.run)

    def call(loss, *shape, dtype=torch.bfloat16, soft=False, **options):
        z = torch.zeros(shape, dtype=dtype, requires_grad=True)
        y = torch.zeros(shape, dtype=dtype) if soft else torch.zeros(shape[0], *shape[2:]).long()
        loss(z, y, engine="triton", **options).sum().backward()

    ce, none = xent.cross_entropy, {"reduction": "none"}
    call(ce, 4, 1000)
    call(ce, 4, 1000, **none)
    call(ce, 4, 128256)
    chunks.scaled(torch.zeros(4, 1000, dtype=torch.bfloat16), torch.ones(()), torch.bfloat16)
    if not nvidia:
        return
    call(ce, 4, 128256, dtype=torch.float32, **none)
    call(ce, 4, 100, soft=True, **none)
    call(ce, 4, 21, 64, 64, softcap=5.0, logit_scale=2.0)
    call(everything, 4, 1000)
    call(ce, 1, 1)  # where every number is 1, and so a constant
    call(everything, 1, 1)
    z = torch.zeros(4096, dtype=torch.bfloat16, requires_grad=True)
    losses = xent.losses
    for loss in (
        losses.binary_cross_entropy_with_logits, losses.sigmoid_focal_loss,
        losses.reconstruction_excess,
    ):  # fmt: skip
        loss(z, torch.zeros_like(z), engine="triton", reduction="sum").backward()


main()
