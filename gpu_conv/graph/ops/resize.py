"""Resize and Upsample: one axis at a time, each output a weighted sum of one, two or four input rows."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from ..errors import ModelError
from ..ir import Array, Host
from .registry import Call, check_size, host, op


@op("Resize", "Upsample", layout="aligned", host=(1, 2, 3))
def resize(call: Call, x: Array, *operands: Array | None) -> Array:
    """Interpolate along every axis whose size changes; Upsample is its older name."""
    axes, scales, sizes, roi = _request(call, x, operands)
    for i, axis in enumerate(axes):
        where = call.axis(axis, x.ndim)
        n = x.shape[where]
        region = (roi[i], roi[i + len(axes)]) if roi else (0.0, 1.0)
        crops = call.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        if sizes[i] == n and scales[i] == 1 and not crops:
            continue
        key = where, n, sizes[i], scales[i], region
        x = _interpolate(x, where, *call.remember(key, partial(_taps, call, *key[1:], x)))
    return x


def _request(call: Call, x: Array, operands: Any) -> tuple[list[int], list[float], list[int], list[float]]:
    """Axes, scale and output size per axis, region of interest."""
    roi, scales, sizes = _operands(call, operands)
    axes = [a % x.ndim for a in call.attrs.get("axes") or range(x.ndim)]
    logical = [x.shape[call.axis(a, x.ndim)] for a in axes]
    if (scales is None) == (sizes is None) or len(scales or sizes or ()) != len(axes):
        raise ModelError(f"needs either scales or sizes, one per axis of {len(axes)}")
    if scales is not None:
        if not all(math.isfinite(s) and s > 0 for s in scales):
            raise ModelError(f"scales {scales} must be positive")
        # scales are float32: their product with the size decides the result's size, as in onnxruntime
        targets = [int(np.floor(np.float32(n) * np.float32(s))) for n, s in zip(logical, scales, strict=True)]
    else:
        targets = [int(n) for n in sizes or ()]
        if min(targets) < 1 or not all(logical):
            raise ModelError(f"sizes {targets} must be at least 1, and the input must not be empty")
        scales = [t / n for t, n in zip(targets, logical, strict=True)]
        policy = call.attrs.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            scale = min(scales) if policy == "not_larger" else max(scales)
            scales = [scale] * len(axes)
            targets = [math.floor(scale * n + 0.5) for n in logical]
    check_size(targets)
    return axes, scales, targets, roi or []


def _operands(call: Call, operands: Any) -> list[list[float] | None]:
    """Region of interest, scales and sizes, whichever are given."""
    if call.version < 11 and "scales" in call.attrs:
        return [None, call.attrs["scales"], None]
    given = [None, *operands] if call.version < 11 else [*operands]
    return [host(o).tolist() if o is not None and o.size else None for o in [*given, None, None][:3]]


def _coordinates(call: Call, n: int, size: int, scale: float, region: tuple[float, float]) -> Any:
    """Where in the input each output element lies. In float32, as onnxruntime has it: ``nearest`` turns on ties."""
    mode = call.attrs.get("coordinate_transformation_mode", "asymmetric")
    one, half = np.float32(1), np.float32(0.5)
    i, s = np.arange(size, dtype=np.float32), np.float32(scale)
    if mode == "asymmetric":
        return i / s
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and size > 1):
        return (i + half) / s - half
    if mode == "pytorch_half_pixel":
        return i * 0
    if mode == "align_corners":
        return i * np.float32(n - 1) / np.float32(max(1, size - 1))
    if mode == "half_pixel_symmetric":
        return np.float32(n / 2) * (one - np.float32(size) / (s * np.float32(n))) + (i + half) / s - half
    if mode == "tf_crop_and_resize":
        start, end = region
        step = (end - start) * (n - 1) / (size - 1) if size > 1 else 0.0
        first = start * (n - 1) if size > 1 else 0.5 * (start + end) * (n - 1)
        return i * np.float32(step) + np.float32(first)
    raise ModelError(f"coordinate_transformation_mode {mode!r} is unknown")


def _nearest(call: Call, at: Host, scale: float) -> Any:
    mode = call.attrs.get("nearest_mode")
    if mode is None:  # before opset 11
        return np.ceil(at) if scale < 1 else np.floor(at)
    if mode == "round_prefer_floor":
        return np.ceil(at - np.float32(0.5))
    if mode == "round_prefer_ceil":
        return np.floor(at + np.float32(0.5))
    if mode in ("floor", "ceil"):
        return np.floor(at) if mode == "floor" else np.ceil(at)
    raise ModelError(f"nearest_mode {mode!r} is unknown")


def _taps(call: Call, n: int, size: int, scale: float, region: tuple[float, float], x: Array) -> tuple[Any, ...]:
    """Input rows ``[taps][size]``, their weights or None, and which outputs lie outside with the value they take."""
    at = _coordinates(call, n, size, scale, region)
    mode = call.attrs["mode"]
    if mode == "nearest":
        rows, weights = _nearest(call, at, scale)[None], None
    elif mode == "linear":
        at_inside = np.clip(at, 0, n - 1)
        low = np.floor(at_inside)
        rows, weights = np.stack([low, low + 1]), np.stack([1 - (at_inside - low), at_inside - low])
    elif mode == "cubic":
        rows, weights = _cubic(call, at, n)
    else:
        raise ModelError(f"mode {mode!r} is unknown")
    indices = [call.xp.asarray(r) for r in np.clip(rows, 0, n - 1).astype(np.intp)]
    outside = None
    if call.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        beyond = (at < 0) | (at > n - 1)
        outside = (call.xp.asarray(beyond), call.attrs["extrapolation_value"]) if beyond.any() else None
    dtype = x.dtype if x.dtype.kind == "f" else np.float32
    return indices, None if weights is None else [call.xp.asarray(w.astype(dtype)) for w in weights], outside


def _cubic(call: Call, at: Host, n: int) -> tuple[Host, Host]:
    a = call.attrs.get("cubic_coeff_a", -0.75)
    low = np.floor(at)
    rows = low + np.arange(-1, 3)[:, None]
    d = np.abs(at - rows)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    weights = np.where(d <= 1, near, far)
    if call.attrs.get("exclude_outside", 0):
        weights = np.where((rows < 0) | (rows >= n), 0, weights)
        weights = weights / weights.sum(0)
    return rows, weights


def _interpolate(x: Array, axis: int, indices: Any, weights: Any, outside: Any) -> Array:
    shape = [1] * x.ndim
    shape[axis] = -1
    if weights is None:
        y = x.take(indices[0], axis=axis)
    else:
        y = sum(x.take(i, axis=axis) * w.reshape(shape) for i, w in zip(indices, weights, strict=True))
        y = y.astype(x.dtype, copy=False)
    if outside is not None:
        where, value = outside
        y[(slice(None),) * axis + (where,)] = value
    return y
