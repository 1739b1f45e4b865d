"""Pooling, normalisation, matrix products. Layers with a channel axis work channels last."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...explain import explain
from ...families import global_average
from ...layer import Conv
from ..errors import ModelError
from ..ir import Array, Host
from .conv import Window
from .elementwise import activate
from .launch import in_one_launch
from .registry import Call, check_axis, op


@op("GlobalAveragePool", layout="last")
def global_average_pool(call: Call, x: Array) -> Array:
    """Mean over all pixels."""
    y = call.xp.empty((x.shape[0], *[1] * (x.ndim - 2), x.shape[-1]), x.dtype)
    if in_one_launch(call, global_average, x, y):
        return y
    wide = np.result_type(x.dtype, np.float32)  # 112x112 values of 6 are more than float16 holds
    return x.mean(axis=tuple(range(1, x.ndim - 1)), keepdims=True, dtype=wide).astype(x.dtype, copy=False)


@op("GlobalMaxPool", layout="last")
def global_max_pool(call: Call, x: Array) -> Array:
    """Largest over all pixels."""
    return x.max(axis=tuple(range(1, x.ndim - 1)), keepdims=True)


def _pool_sizes(call: Call, window: Window, spatial: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Per spatial axis: output size, leading pad, trailing pad."""
    sizes = []
    for n, k, s, d, (lo, hi) in zip(
        spatial, window.kernel, window.strides, window.dilations, window.pads(spatial), strict=True
    ):
        room = n + lo + hi - (k - 1) * d - 1
        if room < 0 or min(lo, hi) < 0:
            raise ModelError(f"pooling window {window.kernel} does not fit the padded input {spatial}")
        out = (-(-room // s) if call.attrs.get("ceil_mode", 0) else room // s) + 1
        # ceil_mode must not add a window that starts in the trailing padding
        sizes.append((out - 1 if (out - 1) * s >= n + lo else out, lo, hi))
    return sizes


def _slide(call: Call, x: Array, window: Window, sizes: list[tuple[int, int, int]], combine: Any, start: Any) -> Array:
    """Reduce windows one axis at a time (k + k taps instead of k * k), never reading or copying padding."""
    for axis, (k, s, d, (out, lo, _)) in enumerate(
        zip(window.kernel, window.strides, window.dilations, sizes, strict=True), 1
    ):
        n = x.shape[axis]
        before = (slice(None),) * axis
        if call.out is not None and axis == len(sizes):
            y = call.out
            y[...] = start
        else:
            y = call.xp.full((*x.shape[:axis], out, *x.shape[axis + 1 :]), start, x.dtype)
        for tap in range(k):
            offset = tap * d - lo
            first = max(0, -(offset // s))  # first output whose tap lies inside
            stop = min(out, (n - 1 - offset) // s + 1)
            if first < stop:
                into = y[(*before, slice(first, stop))]
                begin = first * s + offset
                combine(into, x[(*before, slice(begin, begin + (stop - first - 1) * s + 1, s))], out=into)
        x = y
    return x


@op("MaxPool", layout="last", out=True)
def max_pool(call: Call, x: Array) -> Array:
    """Largest of each window; padding takes no part."""
    window = Window.of(call.node, tuple(call.attrs["kernel_shape"]))
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    return _slide(call, x, window, _pool_sizes(call, window, x.shape[1:-1]), call.xp.maximum, lowest)


@op("AveragePool", layout="last", out=True)
def average_pool(call: Call, x: Array) -> Array:
    """Mean of each window; padding counts if ``count_include_pad``."""
    window = Window.of(call.node, tuple(call.attrs["kernel_shape"]))
    spatial = x.shape[1:-1]
    sizes = _pool_sizes(call, window, spatial)
    weights = call.remember(spatial, lambda: call.xp.asarray(_mean_weights(call, window, spatial, sizes), x.dtype))
    total = _slide(call, x, window, sizes, call.xp.add, 0)
    total *= weights
    return total


def _mean_weights(call: Call, window: Window, spatial: tuple[int, ...], sizes: list[tuple[int, int, int]]) -> Host:
    """One over the number of elements that count in each window, ``[1, *out, 1]``."""
    counts = np.ones((1,) * (len(spatial) + 2))
    axes = zip(spatial, window.kernel, window.strides, window.dilations, sizes, strict=True)
    for axis, (n, k, s, d, (out, lo, hi)) in enumerate(axes, 1):
        places = np.arange(out)[:, None] * s - lo + np.arange(k) * d
        low, high = (-lo, n + hi) if call.attrs["count_include_pad"] else (0, n)
        per_axis = ((places >= low) & (places < high)).sum(1)
        counts = counts * per_axis.reshape([-1 if a == axis else 1 for a in range(counts.ndim)])
    return np.asarray(1 / counts)


@op("BatchNormalization", layout="last", out=True)
def batch_normalization(call: Call, x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Array:
    """Inference only, and only where it could not be folded into a convolution."""
    factor = scale / call.xp.sqrt(variance + variance.dtype.type(call.attrs["epsilon"]))
    y = call.xp.multiply(x, factor.astype(x.dtype, copy=False), out=call.out)
    y += (bias - mean * factor).astype(x.dtype, copy=False)
    return y


@op("Affine", layout="last", out=True)
def affine(call: Call, x: Array, factor: Array, summand: Array) -> Array:
    """One factor and one summand per channel, then an activation: what fusion makes of a lone batch normalisation."""
    y = call.xp.multiply(x, factor, out=call.out)
    y += summand
    spec = call.attrs.get("activation")
    return activate(spec, y, y) if spec else y


@op("ChannelShuffle", layout="last", out=True)
def channel_shuffle(call: Call, x: Array) -> Array:
    """Interleave groups of channels: ShuffleNet's reshape, transpose and reshape back, made one by a pattern."""
    groups = call.attrs["groups"]
    if x.shape[-1] % groups:
        raise ModelError(f"{x.shape[-1]} channels do not divide into {groups} groups")
    y = call.xp.empty_like(x) if call.out is None else call.out
    each = x.shape[-1] // groups
    for i in range(groups):  # long inner loops: 3 times faster than one copy of a transposed view
        y[..., i::groups] = x[..., i * each : (i + 1) * each]
    return y


@op("InstanceNormalization", layout="last")
def instance_normalization(call: Call, x: Array, scale: Array, bias: Array) -> Array:
    """Normalise over the pixels of each image and channel."""
    axes = tuple(range(1, x.ndim - 1))
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = (centred * centred).mean(axis=axes, keepdims=True)
    return centred / call.xp.sqrt(variance + x.dtype.type(call.attrs["epsilon"])) * scale + bias


@op("LayerNormalization")
def layer_normalization(call: Call, x: Array, scale: Array, bias: Array | None = None) -> Array:
    """Normalise over the axes from ``axis`` on."""
    axes = tuple(range(check_axis(call.attrs["axis"], x.ndim), x.ndim))
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = (centred * centred).mean(axis=axes, keepdims=True)
    y = centred / call.xp.sqrt(variance + x.dtype.type(call.attrs["epsilon"])) * scale
    return y if bias is None else y + bias


@op("LRN", layout="last")
def local_response_normalization(call: Call, x: Array) -> Array:
    """Divide by a power of the sum of squares over neighbouring channels."""
    size, channels = call.attrs["size"], x.shape[-1]
    squares = x * x
    total = call.xp.zeros_like(x)
    for shift in range(-((size - 1) // 2), size // 2 + 1):
        if abs(shift) < channels:
            into = slice(max(0, -shift), channels - max(0, shift))
            total[..., into] += squares[..., max(0, shift) : channels + min(0, shift)]
    total *= x.dtype.type(call.attrs["alpha"] / size)
    total += x.dtype.type(call.attrs["bias"])
    return x / call.xp.power(total, x.dtype.type(call.attrs["beta"]))


def _is_layer(call: Call, a: Array, b: Array, c: Array | None = None) -> bool:
    """Whether a product with constant weights is computed as a convolution without spatial axes.

    On the GPU, because CuPy's matrix products cannot be captured; in float16, because NumPy's are summed in float16.
    """
    if not call.constant_filter or a.dtype != b.dtype or a.dtype not in (np.float32, np.float16):
        return False
    if b.ndim != 2 or a.ndim < 2 or not b.size or (c is not None and c.size not in (1, c.shape[-1])):
        return False
    return call.xp is not np or call.device not in (None, "cpu") or a.dtype == np.float16


def _layer(call: Call, a: Array, b: Array, c: Array | None = None, alpha: float = 1, beta: float = 1) -> Array:
    def make() -> Conv:
        w = b.T if alpha == 1 else b.T * b.dtype.type(alpha)
        bias = None if c is None else (c if beta == 1 else c * c.dtype.type(beta)).reshape(-1)
        return Conv(w, bias, device=call.device, out_dtype=call.attrs.get("out_dtype"))

    if a.shape[-1] != b.shape[0]:
        raise ModelError(f"cannot multiply {a.shape} by {b.shape}")
    layer = call.remember("layer", make)
    rows, shape = a.reshape(-1, a.shape[-1]), (*a.shape[:-1], b.shape[1])
    return layer(rows, out=None if call.out is None else call.out.reshape(-1, b.shape[1])).reshape(shape)


def _product_kernel(call: Call, a: Array, b: Array, c: Array | None = None) -> str:
    if not _is_layer(call, a, b, c):
        return call.xp.__name__
    rows, w = a.reshape(-1, a.shape[-1]), b if call.attrs.get("transB") else b.T
    return explain(rows, w, device=call.device, out_dtype=call.attrs.get("out_dtype")).kernel


@op("MatMul", out=True, kernel=_product_kernel)
def matmul(call: Call, a: Array, b: Array) -> Array:
    """Matrix product, batched as NumPy has it."""
    return _layer(call, a, b) if _is_layer(call, a, b) else call.xp.matmul(a, b, out=call.out)


@op("Gemm", out=True, kernel=_product_kernel)
def gemm(call: Call, a: Array, b: Array, c: Array | None = None) -> Array:
    """``alpha a b + beta c``, either factor transposed."""
    a, b = (m.T if call.attrs[t] else m for m, t in ((a, "transA"), (b, "transB")))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ModelError(f"cannot multiply {a.shape} by {b.shape}")
    if _is_layer(call, a, b, c):
        return _layer(call, a, b, c, call.attrs["alpha"], call.attrs["beta"])
    y = call.xp.matmul(a, b, out=call.out)
    if call.attrs["alpha"] != 1:
        y *= y.dtype.type(call.attrs["alpha"])
    if c is not None:
        y += c if call.attrs["beta"] == 1 else c * c.dtype.type(call.attrs["beta"])
    return y
