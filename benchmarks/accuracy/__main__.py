"""The command of the atlas of errors."""

import os

import torch

if not torch.cuda.is_available():  # Triton's kernels run in its interpreter, on CPU tensors
    os.environ["TRITON_INTERPRET"] = "1"

from .command import main

if __name__ == "__main__":
    main()
