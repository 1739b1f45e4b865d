"""A whole network on CuPy arrays: the same graph runner, the same answers as on NumPy."""

import numpy as np
import pytest

import gpu_conv.onnx

from ..graph_models import MOBILENET_V2, Builder, inverted_residuals

cupy = pytest.importorskip("cupy")
pytestmark = pytest.mark.gpu


def test_mobilenet_v2_agrees_with_numpy():
    model = gpu_conv.onnx.load(inverted_residuals(MOBILENET_V2))
    x = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    (want,) = model(x).values()
    (got,) = model(cupy.asarray(x)).values()
    assert isinstance(got, cupy.ndarray)
    np.testing.assert_allclose(cupy.asnumpy(got), want, atol=2e-4 * np.abs(want).max())


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_float16_with_nothing_left_to_the_array_library(batch):
    """Step by step and replayed; the float32 scores come out of the last product."""
    proto = inverted_residuals(MOBILENET_V2)
    x = np.random.default_rng(batch).standard_normal((batch, 3, 224, 224)).astype(np.float32)
    (want,) = gpu_conv.onnx.load(proto)(x[:3]).values()
    for graph in (False, True):
        model = gpu_conv.onnx.load(proto, dtype="float16", graph=graph)
        for _ in range(3):
            (got,) = model(cupy.asarray(x)).values()
            assert got.dtype == np.float32
            np.testing.assert_allclose(cupy.asnumpy(got[:3]), want, atol=2e-2 * np.abs(want).max())
    steps = [(r.op, r.kernel) for r in model.profile(cupy.asarray(x), repeat=1)]
    assert [op for op, kernel in steps if kernel == "cupy"] == ["ChannelsFirst", "Flatten"], "views"
    assert steps[0] == ("ChannelsLast", "channels_last")
    assert ("GlobalAveragePool", "global_average") in steps


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(1, 3, 224, 224), (64, 3, 225, 223), (5, 1, 7, 9), (33, 4, 640, 480)])
def test_planes_and_means_agree_with_numpy(shape, dtype):
    """The move to channels last, and the mean of what it wrote."""
    b = Builder()
    model = b.model({"x": (np.float32, ["n", "c", "h", "w"])}, b.node("Relu", b.node("GlobalAveragePool", "x")))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32) + 1
    want = x.mean((2, 3), np.float64, keepdims=True)
    runner = gpu_conv.onnx.load(model, dtype=dtype)
    for _ in range(2):
        (got,) = runner(cupy.asarray(x)).values()
        np.testing.assert_allclose(cupy.asnumpy(got), want, rtol={"float32": 1e-5, "float16": 1e-3}[dtype])
