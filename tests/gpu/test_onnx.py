"""A whole network on CuPy arrays: the same graph runner, the same answers as on NumPy."""

import numpy as np
import pytest

import gpu_conv.onnx

from ..graph_models import MOBILENET_V2, inverted_residuals

cupy = pytest.importorskip("cupy")
pytestmark = pytest.mark.gpu


def test_mobilenet_v2_agrees_with_numpy():
    model = gpu_conv.onnx.load(inverted_residuals(MOBILENET_V2))
    x = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    (want,) = model(x).values()
    (got,) = model(cupy.asarray(x)).values()
    assert isinstance(got, cupy.ndarray)
    np.testing.assert_allclose(cupy.asnumpy(got), want, atol=2e-4 * np.abs(want).max())
