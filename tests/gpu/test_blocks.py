"""Blocks of convolutions in one launch on the GPU, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

import gpu_conv
from tests.kernels.chains import BLOCKS, block

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("number", BLOCKS)
@pytest.mark.parametrize("batch", [1, 3])
def test_blocks_of_mobilenet(number: int, batch: int) -> None:
    """Whatever is chosen, split or not: the same small integers, in every call and bound."""
    import cupy

    size, c, e, o, stride = BLOCKS[number]
    made = block((size, size), (c, e, o), batch=batch, expand=c != e, strides=stride, residual=stride == 1 and c == o)
    wanted = gpu_conv.InvertedResidual(*made.filters, input_layout="nhwc", **made.options)(made.x)
    filters = [None if w is None else cupy.asarray(w) for w in made.filters]
    options = {k: cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in made.options.items()}
    layer, x = gpu_conv.InvertedResidual(*filters, input_layout="nhwc", **options), cupy.asarray(made.x)
    for call in (lambda: layer(x), lambda: layer(x), layer.bind(x)):
        np.testing.assert_array_equal(cupy.asnumpy(call()), wanted)
    once = gpu_conv.inverted_residual(x, *filters, input_layout="nhwc", **options)
    np.testing.assert_array_equal(cupy.asnumpy(once), wanted)


def test_separable() -> None:
    import cupy

    made = block((28, 28), (64, 64, 128), batch=4, expand=False)
    options = {name: made.options[name] for name in ("bias", "depthwise_bias", "depthwise_activation", "padding")}
    options["input_layout"] = "nhwc"
    wanted = gpu_conv.depthwise_separable_conv2d(made.x, *made.filters[1:], **options)
    arrays = {k: cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    found = gpu_conv.depthwise_separable_conv2d(cupy.asarray(made.x), *map(cupy.asarray, made.filters[1:]), **arrays)
    np.testing.assert_array_equal(cupy.asnumpy(found), wanted)
