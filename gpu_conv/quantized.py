"""Convolution of quantised tensors, real value = ``scale * (integer - zero_point)``: 8-bit integers in and out."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .arrays import Array
from .ops import conv

_FIXED = ("x_zero_point", "w_zero_point", "requantize", "activation", "residual", "precision")


def qlinear_conv(
    x: Array,
    x_scale: Any,
    x_zero_point: Any,
    w: Array,
    w_scale: Any,
    w_zero_point: Any,
    y_scale: Any,
    y_zero_point: Any,
    bias: Array | None = None,
    **options: Any,
) -> Array:
    """Quantised convolution with the arguments of ONNX's QLinearConv, in its order.

    ``y = saturate(round((conv(x - x_zero_point, w - w_zero_point) + bias) * scale) + y_zero_point)`` with
    ``scale = x_scale * w_scale / y_scale`` in float32. Sums are int32, halves are rounded to even, padding contributes
    zero. All results are equal on every device, bit for bit.

    Args:
        x: int8 or uint8 input ``[n, c, *spatial]`` in ``input_layout``.
        x_scale: positive number (or an array of one).
        x_zero_point: integer of x's type.
        w: int8 or uint8 filter ``[o, c / groups, *filter]`` in ``filter_layout``; its type may differ from x's.
        w_scale: positive number, or one per output channel ``[o]``.
        w_zero_point: integer of w's type, or one per output channel ``[o]``.
        y_scale: positive number.
        y_zero_point: integer of y's type. Its dtype is the result's, if it is a NumPy or CuPy int8 or uint8; a plain
            int leaves x's. ``out_dtype`` says it in any case.
        bias: int32 ``[o]`` in units of ``x_scale * w_scale``, or None.
        **options: those of :func:`gpu_conv.conv` that say where and how: strides, padding, dilations, groups, layouts,
            out, out_dtype, kernel, device, ... A relu or a clip needs no operation: the limits of y's type are one.

    Returns:
        ``[n, o, *out_spatial]`` in ``output_layout``, int8 or uint8.

    Raises:
        ValueError, TypeError: as :func:`gpu_conv.conv`.

    For many calls with one filter, ``gpu_conv.Conv(w, bias, x_zero_point=..., w_zero_point=..., requantize=(x_scale *
    w_scale / y_scale, y_zero_point), ...)`` prepares it once.

    Example:
        >>> import numpy as np, gpu_conv
        >>> x = np.array([[[[130, 140], [120, 128]]]], np.uint8)  # 0.1 * (x - 128): 0.2, 1.2, -0.8, 0.0
        >>> w = np.array([[[[64]]]], np.int8)  # 64 / 64: one
        >>> gpu_conv.qlinear_conv(x, 0.1, np.uint8(128), w, 1 / 64, np.int8(0), 0.05, np.uint8(100))
        array([[[[104, 124],
                 [ 84, 100]]]], dtype=uint8)
    """
    for name in options.keys() & set(_FIXED):
        raise TypeError(f"qlinear_conv does not take the option {name}")
    for name, value in (("x_scale", x_scale), ("y_scale", y_scale)):
        if prod(getattr(value, "shape", ())) != 1:
            raise ValueError(f"{name} must be one number, got the shape {tuple(value.shape)}")
    with np.errstate(all="ignore"):  # what is not finite is refused by name
        scale = _float32(x_scale) * _float32(w_scale) / _float32(y_scale)
    zero_points = {"x_zero_point": x_zero_point, "w_zero_point": w_zero_point}
    return conv(x, w, bias, **zero_points, requantize=(scale, y_zero_point), **options)


def _float32(value: Any) -> Any:
    """Numbers and NumPy arrays as float32; arrays of other libraries stay where they are."""
    foreign = hasattr(value, "dtype") and not isinstance(value, (np.ndarray, np.generic))
    return value if foreign else np.asarray(value, np.float32)[()]
