"""Corrections of Triton's interpreter, so that it rounds as a GPU does and takes half the time."""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_convert, _patch = interpreter._convert_float, interpreter._patch_lang


def convert(data, of, to, rounding):
    """Round to nearest: the interpreter cuts float32 off to bfloat16, and spoils subnormals."""
    if of.is_fp32() and to.is_bf16():
        return torch.from_numpy(data.copy()).bfloat16().view(torch.uint16).numpy()
    if of.is_bf16() and to.is_fp32():
        bits = torch.from_numpy(data.view("uint16").copy())
        return bits.view(torch.bfloat16).float().view(torch.uint32).numpy()
    return _convert(data, of, to, rounding)


def patch(function):
    """Search once: the interpreter searches Triton's language for each function that is called."""
    languages = [x for x in function.__globals__.values() if x is tl or x is tl.core]
    if any(tl.core.is_builtin(language.load) for language in languages):
        return _patch(function)
    return interpreter._LangPatchScope()  # a kernel is running, so the language is patched already


def fma(builder, x, y, z):
    """Round the sum twice: before Triton 3.8 the interpreter rounds product and sum."""
    with np.errstate(all="ignore"):
        wide = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data.astype(np.float64)
        wide = wide.astype(z.data.dtype)
    return interpreter.TensorHandle(wide, z.dtype.scalar)


def tame() -> None:
    """Install these corrections."""
    interpreter.InterpreterBuilder.create_fma = fma
    interpreter._convert_float, interpreter._patch_lang = convert, patch
