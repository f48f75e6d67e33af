"""Compile kernels for a GPU that need not be present, and print the results as JSON.

    python -m tests.engines.triton.compile_kernels cuda 90
    python -m tests.engines.triton.compile_kernels cuda 90 1000 4096

The second form compiles the kernels alone that sweep over logits, for cross-entropy of so many
classes. One object per kernel: its name, the constants of its launch, the number of classes and,
for NVIDIA, the registers of a thread, the bytes that it spills, its instructions for a logit, and
how many loads of 16 bytes it makes.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

if sys.argv[1] == "hip":  # before anybody asks
    torch.version.hip = "7.0"

import xent
from benchmarks.harness.internals import launch_sizes
from benchmarks.harness.stand_in import compile_for, count_launches
from xent.engines import triton as engine
from xent.engines.triton import launch_sums
from xent.heads import chunks

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def dumped(cubin: bytes, what: str) -> str:
    """Return what cuobjdump tells of a kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [BIN / "cuobjdump", f"--dump-{what}", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(cubin: bytes) -> dict[str, int]:
    """Return registers of a thread, and bytes on its stack."""
    text = dumped(cubin, "resource-usage")
    return {name: int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK")}


INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\S*)([^;]*);")


def instructions(cubin: bytes) -> tuple[int, int]:
    """Return how many instructions a kernel has in its innermost loops, and elsewhere.

    One in float64 takes the time of two. The endless loop of one instruction behind the end of each
    kernel is none.
    """
    found = [INSTRUCTION.match(line) for line in dumped(cubin, "sass").splitlines()]
    code = [(int(m[1], 16), m[2], m[3]) for m in found if m and m[2] != "NOP"]
    places = {address: k for k, (address, _, _) in enumerate(code)}
    loops = []
    for end, (_, name, operands) in enumerate(code):
        target = re.search(r"0x([0-9a-f]+)", operands) if name.startswith("BRA") else None
        begin = places.get(int(target[1], 16)) if target else None
        if begin is not None and begin + 2 < end:
            loops.append((begin, end))
    times = [2 if re.match(r"D(ADD|FMA|MUL|SETP)", name) else 1 for _, name, _ in code]
    inside = sum(
        sum(times[first : last + 1])
        for first, last in loops  # the innermost
        if sum(first <= begin and end <= last for begin, end in loops) == 1
    )
    return inside, sum(times) - inside


def per_logit(cubin: bytes, classes: int, threads: int, constants: dict) -> float:
    """Return instructions for a logit: those of loops, and the rest spread over a thread's logits.

    A kernel without a loop over the parts of a row has a whole tile in hand.
    """
    inside, outside = instructions(cubin)
    numbers = constants["ROWS"] * constants["BLOCK"] / (threads * constants["num_ctas"])
    parts = constants.get("TILES")  # of a group of rows
    if parts is None and constants.get("WHOLE", True):
        return (inside + outside) / numbers
    parts = parts or -(-classes // constants["BLOCK"])
    return inside / numbers + outside / (numbers * parts)


def compile_instead(run, only_sweeps):
    """Compile a kernel instead of launching it, and print the result."""

    def report(self, *args, grid, warmup, **constants):
        if only_sweeps and "ROWS" not in constants:
            return SimpleNamespace(run=lambda *_: None, function=None, packed_metadata=None)
        kernel = run(self, *args, grid=grid, warmup=True, **constants)
        told = {k: v for k, v in constants.items() if isinstance(v, (int, bool))}
        threads = kernel.metadata.num_warps * kernel.metadata.warp_size
        found = {"kernel": self.fn.__name__, "constants": told, "threads": threads}
        if "cubin" in kernel.asm:
            cubin = kernel.asm["cubin"]
            found |= resources(cubin)
            found["wide loads"] = len(re.findall(r"ld\.global\S*\.v4", kernel.asm["ptx"]))
            if "ROWS" in told:
                found["classes"] = args[0].classes
                found["per logit"] = per_logit(cubin, args[0].classes, threads, told)
        print(json.dumps(found))
        return kernel

    return report


@xent.row_loss(needs=("entropy", "mean", "top", "squares", "cubes"))
def everything(s):
    """Compute a loss that requests every statistic."""
    asked = s.entropy + s.mean + s.rest_top_logit + s.rest_squares + s.rest_cubes
    return asked - s.log_prob + s.lse


@xent.row_loss(needs=("mean", "top"))
def asking(s):
    """Compute a loss of requests that one kernel takes."""
    return s.mean + s.rest_top_logit - s.log_prob * s.prob


def main() -> None:
    """Compile the kernels that a few calls would launch."""
    backend, arch, *lengths = sys.argv[1:]
    nvidia = backend == "cuda"
    compile_for(GPUTarget(backend, int(arch) if nvidia else arch, 32 if nvidia else 64))
    count_launches()
    engine.INTERPRETED = True  # tensors of the CPU will do: nothing is run
    launch_sums.few = lambda device: 0  # groups are as large as for many rows
    JITFunction.run = compile_instead(JITFunction.run, only_sweeps=bool(lengths))

    def call(loss, *shape, dtype=torch.bfloat16, soft=False, follow=False, **options):
        z = torch.zeros(shape, dtype=dtype, requires_grad=True)
        y = torch.zeros(shape, dtype=dtype) if soft else torch.zeros(shape[0], *shape[2:]).long()
        value = loss(z, y, engine="triton", **options)
        if value.ndim or follow:  # otherwise the gradient is there, and backward asks for the slope
            value.sum().backward()

    ce, none = xent.cross_entropy, {"reduction": "none"}
    focal = xent.losses.focal_loss
    for length in lengths:
        call(ce, 4, int(length))
        call(ce, 4, int(length), **none)
        call(focal, 4, int(length))
    if lengths:
        return
    call(ce, 4, 1000, follow=True)
    call(ce, 4, 1000, **none)
    call(ce, 4, 128256)
    call(xent.losses.focal_loss, 4, 40, follow=True)
    call(xent.losses.focal_loss, 4, 4096, follow=True)
    chunks.scaled(torch.zeros(4, 1000, dtype=torch.bfloat16), torch.ones(()), torch.bfloat16)
    if not nvidia:
        return
    call(ce, 4, 128256, dtype=torch.float32, **none)
    for length in (10000, 16384, 32000, 50257):
        call(ce, 4, length)
    if triton.__version__ >= "3.8":  # before, no row is divided among the programs of a cluster
        with launch_sizes(CLUSTER=8):
            for length in (32000, 128256):
                call(ce, 4, length)
    call(ce, 4, 100, soft=True, **none)
    call(ce, 4, 21, 64, 64, softcap=5.0, logit_scale=2.0)
    call(everything, 4, 1000)
    call(everything, 4, 1000, **none)
    for length in (1000, 16384):
        call(asking, 4, length)
        call(asking, 4, length, dtype=torch.float32)
    call(everything, 4, 21, 64, 64)
    call(ce, 4, 1000, soft=True)
    call(ce, 4, 1000, softcap=5.0, logit_scale=2.0)
    call(xent.losses.generalized_cross_entropy, 4, 4096, softcap=5.0, logit_scale=2.0)
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
