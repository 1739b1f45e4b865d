"""What the fuzzers found, shrunk and named."""

import numpy as np
import pytest

import gpu_conv
from gpu_conv import arguments, reference
from gpu_conv.testing import assert_conv_close
from tests.kernels.checking import numbers


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_pointwise_input_that_runs_backwards(dtype, axis):
    """The kernel took the negative offset of a pixel for one outside of the input, and the product was 0."""
    pytest.importorskip("cuda.bindings.nvrtc")
    rng = np.random.default_rng(0)
    x = np.flip(numbers((2, 9, 8), dtype, rng, exact=True), axis)
    w = numbers((24, 1, 8), dtype, rng, exact=True)
    options = {"strides": 2, "input_layout": "nwc", "filter_layout": "owi"}
    y = gpu_conv.conv(x, w, device="emulator", **options)
    np.testing.assert_array_equal(y, np.einsum("nwc,oc->nwo", x[:, ::2].astype("f8"), w[:, 0].astype("f8")))


def test_no_input_channels_in_a_tile():
    """The tiles' model divided by the number of chunks of input channels."""
    pytest.importorskip("cuda.bindings.nvrtc")
    x, w, bias = np.zeros((2, 0, 8, 4), np.int8), np.zeros((6, 0, 3, 3), np.uint8), np.arange(6, dtype=np.int32)
    y = gpu_conv.conv(x, w, bias, groups=2, padding=1, device="emulator")
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None, None], (2, 6, 8, 4)))


def test_the_reference_where_the_filter_does_not_fit():
    """It raised where the dilated filter exceeds the padded input, instead of giving the empty result."""
    x, w = np.ones((1, 2, 5, 9), np.float32), np.ones((4, 2, 3, 3), np.float32)
    call = arguments.prepare(x, w, strides=(2, 1), dilations=(3, 1))
    assert reference.convolve(call.problem, call.operands).shape == call.problem.y.shape == (1, 1, 4, 0, 7)
    assert_conv_close(gpu_conv.conv(x, w, strides=(2, 1), dilations=(3, 1)), x, w, strides=(2, 1), dilations=(3, 1))
