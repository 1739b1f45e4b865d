"""All 52 convolutions of MobileNetV2 at full size, batch 1, in the emulator with all checks on, against NumPy."""

import numpy as np
import pytest

import gpu_conv

# (expansion, output channels, repeats, stride) of the inverted residual blocks, from the paper's table 2.
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def layers():
    """(size, channels in, out, filter, stride, groups, activation, residual) of every convolution, in order."""
    yield 224, 3, 32, 3, 2, 1, "relu6", False
    size, channels = 112, 32
    for expansion, out, repeats, first in BLOCKS:
        for i in range(repeats):
            stride, hidden = first if i == 0 else 1, channels * expansion
            if expansion > 1:
                yield size, channels, hidden, 1, 1, 1, "relu6", False
            yield size, hidden, hidden, 3, stride, hidden, "relu6", False
            size //= stride
            yield size, hidden, out, 1, 1, 1, None, stride == 1 and channels == out
            channels = out
    yield 7, 320, 1280, 1, 1, 1, "relu6", False


LAYERS = tuple(layers())


def test_there_are_52_convolutions():
    assert len(LAYERS) == 52
    assert sum(2 * (s // st) ** 2 * o * k * k * c // g for s, c, o, k, st, g, _, _ in LAYERS) == pytest.approx(
        598e6, rel=0.01
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("part", range(4))
def test_emulator_agrees_with_numpy(dtype, part):
    rng = np.random.default_rng(part)
    for size, c, o, k, stride, groups, activation, residual in LAYERS[part::4]:
        x = rng.standard_normal((1, size, size, c)).astype(dtype)
        w = (rng.standard_normal((o, k, k, c // groups)) / np.sqrt(k * k * c // groups)).astype(dtype)
        options = dict(
            strides=stride,
            padding=k // 2,
            groups=groups,
            input_layout="nhwc",
            filter_layout="ohwi",
            activation=activation,
            residual=rng.standard_normal((1, size, size, o)).astype(dtype) if residual else None,
        )
        bias = rng.standard_normal(o).astype(np.float32)
        got = gpu_conv.conv2d(x, w, bias, device="emulator", **options)
        want = gpu_conv.conv2d(x, w, bias, **options)
        close = {"float32": dict(rtol=1e-4, atol=1e-4), "float16": dict(rtol=2e-3, atol=2e-3)}[dtype]
        np.testing.assert_allclose(got.astype(np.float32), want.astype(np.float32), **close)
