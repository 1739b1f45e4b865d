"""For tests of code that convolves: run it on the emulated GPU, and compare with float64 within a computed tolerance.

``pytest_plugins = ["gpu_conv.testing.plugin"]`` in a ``conftest.py`` adds the fixture ``device``.

Example:
    >>> import numpy as np, gpu_conv, gpu_conv.testing
    >>> x, w = np.ones((1, 2, 4, 4), np.float32), np.ones((2, 1, 3, 3), np.float32)
    >>> with gpu_conv.testing.use("numpy") as device:
    ...     y = gpu_conv.conv2d(device.asarray(x), device.asarray(w), groups=2)
    >>> gpu_conv.testing.assert_conv_close(y, x, w, groups=2)
"""

from __future__ import annotations

from .devices import DEVICES, Device, missing, use
from .tolerance import assert_close, assert_conv_close

__all__ = ["DEVICES", "Device", "assert_close", "assert_conv_close", "missing", "use"]
