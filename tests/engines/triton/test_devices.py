"""Devices on which kernels cannot run."""

from types import SimpleNamespace

import pytest
import torch

from xent.engines import triton


@pytest.mark.skipif(not triton.INSTALLED, reason="Triton is not installed")
def test_a_device_without_float64_is_refused(monkeypatch):
    monkeypatch.setattr(torch.xpu, "get_device_capability", lambda device: {"has_fp64": False})
    triton._has_float64.cache_clear()
    on_arc = SimpleNamespace(device=torch.device("xpu", 0))  # PyTorch has no such tensors here
    with pytest.raises(NotImplementedError, match=r"xpu:0 has no arithmetic in float64.*the CPU"):
        triton.obstacle_of((None, on_arc))
    triton._has_float64.cache_clear()
