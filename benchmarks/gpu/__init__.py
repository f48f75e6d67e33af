"""Measurements on a GPU, and a rehearsal of them where there is none; README.md says how."""

import os
import warnings

import torch

if not torch.cuda.is_available():  # a rehearsal; Triton and xent look at this when imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
    warnings.filterwarnings("ignore", module="triton.runtime.interpreter")  # numpy, on infinities
