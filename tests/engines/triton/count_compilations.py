"""Launch kernels for a GPU that is missing, and print what was compiled and launched, as JSON.

One object per call: its number of rows, the kernels that Triton compiled for it, and those that it
launched.
"""

import json

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import xent
from benchmarks.harness.internals import take_for_gpu
from benchmarks.harness.stand_in import compile_for, count_launches

CALLS = (
    ("cross_entropy", 24, "mean"), ("cross_entropy", 24, "none"), ("focal_loss", 24, "mean"),
    ("focal_loss", 9000, "mean"),
)  # fmt: skip


def main() -> None:
    """Call a few losses for several numbers of rows."""
    compile_for(GPUTarget("cuda", 90, 32))
    launched, compiled, real = count_launches(), [], JITFunction._do_compile

    def compile_and_note(function, *args, **kwargs):
        compiled.append(function.fn.__name__)
        return real(function, *args, **kwargs)

    JITFunction._do_compile = compile_and_note
    with take_for_gpu():
        for rows in (23, 1, 16, 17, 1000):
            for name, classes, reduction in CALLS:
                z = torch.randn(rows, classes).bfloat16().requires_grad_()
                y = torch.zeros(rows, dtype=torch.int64)
                launched.clear(), compiled.clear()
                loss = getattr(xent.losses, name)(z, y, reduction=reduction)
                loss.backward(torch.ones_like(loss))
                print(json.dumps({"rows": rows, "compiled": compiled, "launched": launched}))


main()
