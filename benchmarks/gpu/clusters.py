"""Whole rows kept on chip by several thread blocks: does that beat a second read from the cache?

    python -m benchmarks.gpu.clusters compile   # anywhere, with Triton 3.8 or later
    python -m benchmarks.gpu.clusters run       # on the GPU, with CuPy

The kernel is a bare cross-entropy, one read and one write of the logits, without the gradient of
the label. Triton lets blocks of a cluster share a row from 3.8 on, and PyTorch for GPUs pins an
older one. So the machine code is compiled ahead, into ``built/``, and run from there.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

from .device import median
from .timing import CudaTimer

BUILT = Path(__file__).with_name("built")
CLUSTERS = {32000: 2, 65536: 4, 128256: 8}  # thread blocks that share a row, by classes
WARPS = 16  # of a thread block
LOGITS = 1 << 30  # of a measurement


def compile_all() -> None:
    """Compile the kernel for each number of classes, and write machine code and launch data."""
    os.environ.pop("TRITON_INTERPRET", None)  # Triton looks when a kernel is defined
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from .one_row import one_row

    BUILT.mkdir(exist_ok=True)
    pointers = {"logits": "*bf16", "labels": "*i64", "gradient": "*bf16", "sums": "*fp32"}
    signature = {**pointers, "rows": "i32", "pitch": "i32"}
    aligned = {(k,): [["tt.divisibility", 16]] for k in (0, 1, 2, 3, 5)}
    launches: dict[int, dict[str, Any]] = {}
    for classes, blocks in CLUSTERS.items():
        constants = {"CLASSES": classes, "BLOCK": triton.next_power_of_2(classes)}
        source = ASTSource(
            fn=one_row,
            signature={**signature, **dict.fromkeys(constants, "constexpr")},
            constexprs=constants,
            attrs=aligned,
        )
        options = {"num_warps": WARPS, "num_ctas": blocks, "enable_fp_fusion": True}
        kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        (BUILT / f"one_row_{classes}.cubin").write_bytes(kernel.asm["cubin"])
        launches[classes] = {"name": kernel.metadata.name, "shared": kernel.metadata.shared}
    (BUILT / "clusters.json").write_text(json.dumps(launches))


def load(classes: int) -> Any:
    """Return a function ``(logits, labels, gradient, sums)`` that launches the compiled kernel."""
    import cupy  # pyright: ignore
    import numpy as np

    how = json.loads((BUILT / "clusters.json").read_text())[str(classes)]
    module = cupy.RawModule(path=str(BUILT / f"one_row_{classes}.cubin"))
    kernel, blocks = module.get_function(how["name"]), CLUSTERS[classes]

    def launch(*tensors: torch.Tensor) -> None:
        rows, pitch = tensors[0].shape
        scratch = [np.uint64(0)] * 2  # memory that Triton may pass to a kernel; none is used
        numbers = [np.uint64(t.data_ptr()) for t in tensors], np.int32(rows), np.int32(pitch)
        arguments = (*numbers[0], *numbers[1:], *scratch)
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            kernel((rows * blocks,), (32 * WARPS,), arguments, shared_mem=how["shared"])

    return launch


def run() -> None:
    """Print time, share of the rate of a copy, and error, for each number of classes."""
    timer = CudaTimer()
    for classes, blocks in CLUSTERS.items():
        rows = LOGITS // classes // 8 * 8
        logits = torch.randn(rows, classes, device="cuda", dtype=torch.bfloat16)
        labels = torch.randint(classes, (rows,), device="cuda")
        gradient = torch.full_like(logits, torch.nan)
        sums = torch.empty(2, rows, device="cuda")
        launch = load(classes)
        ms = median(timer, lambda: launch(logits, labels, gradient, sums))  # noqa: B023
        wrong = relative_error(logits, labels, gradient)
        copy = median(timer, lambda: gradient.copy_(logits))  # noqa: B023
        print(
            f"{rows} x {classes}, {blocks} thread blocks a row: {ms:.3f} ms, "
            f"{100 * copy / ms:.0f} % of the rate of a copy, relative error {wrong:.1e}",
            flush=True,
        )


def relative_error(logits: torch.Tensor, labels: torch.Tensor, gradient: torch.Tensor) -> float:
    """Return the error of a few rows against softmax without the label, whose entry is 0."""
    rows = torch.tensor([0, 1, len(logits) // 2, len(logits) - 1], device=logits.device)
    wide = logits[rows].double().scatter(1, labels[rows, None], -torch.inf)
    true = wide.softmax(1)
    return ((gradient[rows].double() - true).norm() / true.norm()).item()


def main() -> None:
    """Compile or run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("compile", "run"))
    {"compile": compile_all, "run": run}[parser.parse_args().what]()


if __name__ == "__main__":
    main()
