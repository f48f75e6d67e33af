"""The samples with which torch tests its own cross_entropy, if its test tools are installed."""

import pytest
import torch
import torch.nn.functional as F

import xent
from tests.helpers import HALF
from tests.house.test_parity import run

ops = pytest.importorskip(
    "torch.testing._internal.common_methods_invocations", exc_type=ImportError
)
INFO = next(op for op in ops.op_db if op.name == "nn.functional.cross_entropy")
LINEAR = [op for op in ops.op_db if op.name == "nn.functional.linear_cross_entropy"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
def test_samples_of_torch_itself(engine, dtype):
    samples = list(INFO.sample_inputs("cpu", dtype, requires_grad=False))
    assert len(samples) > 20
    for sample in samples:
        y, *rest = sample.args
        assert not rest
        value, grad = run(
            lambda *a, **k: xent.cross_entropy(*a, engine=engine, **k),
            sample.input,
            y,
            **sample.kwargs,
        )
        expected, slope = run(F.cross_entropy, sample.input, y, **sample.kwargs)
        assert (value.shape, value.dtype, grad.dtype) == (expected.shape, dtype, dtype)
        eps = 64 * torch.finfo(dtype).eps
        torch.testing.assert_close(value, expected, rtol=eps, atol=eps, equal_nan=True)
        torch.testing.assert_close(grad, slope, rtol=eps, atol=eps, equal_nan=True)


@pytest.mark.sample(4)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("info", LINEAR, ids=lambda info: info.variant_test_name)
def test_samples_of_linear_cross_entropy(info, dtype):
    """Against float64, since PyTorch's chunks round more than once in 16 bits."""
    samples = list(info.sample_inputs("cpu", dtype, requires_grad=False))
    assert len(samples) > 50
    for sample in samples:
        value = xent.linear_cross_entropy(sample.input, *sample.args, **sample.kwargs)
        tensors, options = (sample.input, *sample.args), dict(sample.kwargs)
        options.pop("options", None)
        expected = F.linear_cross_entropy(*map(_wide, tensors), **_widened(options))
        assert (value.shape, value.dtype) == (expected.shape, dtype)
        eps = 64 * torch.finfo(dtype).eps
        torch.testing.assert_close(value.double(), expected, rtol=eps, atol=eps, equal_nan=True)


def _wide(x):
    floating = isinstance(x, torch.Tensor) and x.is_floating_point()
    return x.double() if floating else x


def _widened(options):
    return {name: _wide(x) for name, x in options.items()}


def test_error_samples_of_torch_itself():
    if INFO.error_inputs_func is None:
        pytest.skip("torch has none")
    for error in INFO.error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises((ValueError, TypeError)):
            xent.cross_entropy(sample.input, *sample.args, **sample.kwargs)
