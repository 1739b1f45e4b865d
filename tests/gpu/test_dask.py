"""Dask arrays of CuPy chunks."""

import dask.array as da
import numpy as np
import pytest

import gpu_conv
import gpu_conv.dask as gd

cupy = pytest.importorskip("cupy")

pytestmark = pytest.mark.gpu


def whole_numbers(*shape, dtype=np.float32):
    """Every sum of few of them is exact."""
    return np.random.default_rng(shape).integers(-4, 5, shape).astype(dtype)


@pytest.mark.parametrize("meta", [cupy.ndarray, np.ndarray], ids=["cupy meta", "numpy meta"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_equal_to_the_whole(meta, dtype):
    x, w, bias = whole_numbers(2, 6, 50, 61, dtype=dtype), whole_numbers(12, 3, 5, 3, dtype=dtype), np.arange(12)
    bias = bias.astype(np.int32 if dtype == np.int8 else dtype)
    options = {"groups": 2, "strides": (2, 1), "padding": "same_upper", "dilations": (1, 2), "activation": "relu"}
    kind = cupy if meta is cupy.ndarray else np
    lazy = da.from_array(x, chunks=(1, 2, 17, 20)).map_blocks(cupy.asarray, meta=kind.empty((0,) * 4, dtype))
    y = gd.conv2d(lazy, w, bias, **options)
    assert isinstance(y._meta, meta)
    want = gpu_conv.conv2d(*map(cupy.asarray, (x, w, bias)), **options)
    blocks = [b.compute(scheduler="sync") for b in y.to_delayed().ravel()]
    for place, block in zip(da.core.slices_from_chunks(y.chunks), blocks):
        assert isinstance(block, cupy.ndarray)
        np.testing.assert_array_equal(block.get(), want[place].get())
