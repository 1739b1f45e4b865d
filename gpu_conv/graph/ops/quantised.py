"""Convolutions of 8-bit integers, and the way into and out of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ops import conv as convolve
from ...quantized import qlinear_conv as qlinear
from ..errors import ModelError
from ..ir import Array
from ..tensors import dtype_of
from .conv import geometry, layouts
from .registry import Call, check_axis, op


@op("ConvInteger", layout="last")
def conv_integer(call: Call, x: Array, w: Array, x_zero: Array | None = None, w_zero: Array | None = None) -> Array:
    """8-bit integers to int32; padding contributes zero after the zero point is subtracted."""
    zeros: dict[str, Any] = {
        "x_zero_point": 0 if x_zero is None else x_zero,
        "w_zero_point": 0 if w_zero is None else w_zero,
    }
    return convolve(x, w, **zeros, **geometry(call, x.shape[1:-1], w), **layouts(x.ndim - 2))


@op("QLinearConv", layout="last")
def qlinear_conv(
    call: Call,
    x: Array,
    x_scale: Array,
    x_zero: Array,
    w: Array,
    w_scale: Array,
    w_zero: Array,
    y_scale: Array,
    y_zero: Array,
    bias: Array | None = None,
) -> Array:
    """8-bit integers to 8-bit integers. Filter scale and zero point may be given per output channel."""
    options: Any = geometry(call, x.shape[1:-1], w) | layouts(x.ndim - 2)
    return qlinear(x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias, **options)


@op("QuantizeLinear")
def quantize_linear(call: Call, x: Array, scale: Array, zero: Array | None = None) -> Array:
    """To integers: the nearest multiple of ``scale`` (halves to even), shifted by the zero point and saturated."""
    wide = np.result_type(scale.dtype, np.float32)
    dtype = zero.dtype if zero is not None else _wanted(call, np.dtype(np.uint8))
    y = call.xp.rint(x.astype(wide) / _aligned(call, scale, x.ndim).astype(wide))
    if zero is not None:
        y += _aligned(call, zero, x.ndim).astype(wide)
    limits = np.iinfo(dtype)
    return call.xp.clip(y, limits.min, limits.max).astype(dtype)


@op("DequantizeLinear")
def dequantize_linear(call: Call, x: Array, scale: Array, zero: Array | None = None) -> Array:
    """Back to floating point: ``(x - zero_point) * scale``."""
    wide = np.result_type(scale.dtype, np.float32)
    whole = x.astype(np.int32) if zero is None else x.astype(np.int32) - _aligned(call, zero, x.ndim)
    y = whole.astype(wide) * _aligned(call, scale, x.ndim).astype(wide)
    return y.astype(_wanted(call, scale.dtype), copy=False)


def _wanted(call: Call, default: np.dtype[Any]) -> np.dtype[Any]:
    """The element type of the attribute ``output_dtype``, which newer opsets have."""
    code = call.attrs.get("output_dtype", 0)
    return dtype_of(code, str(call.node)) if code else default


def _aligned(call: Call, operand: Array, rank: int) -> Array:
    """One number, or one per entry of the attribute ``axis``, with axes to broadcast."""
    if operand.ndim > 1 or call.attrs.get("block_size", 0):
        raise ModelError("scales and zero points must be single numbers or one per entry of an axis, not of blocks")
    if operand.size == 1:
        return operand.reshape(())
    shape = [1] * rank
    shape[check_axis(call.attrs["axis"], rank)] = -1
    return operand.reshape(shape)
