"""Deformable convolution: sample the input where the offsets say, then one grouped matrix product."""

from __future__ import annotations

from itertools import product
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from ...ops import conv as convolve
from ...problem import output_size
from ..errors import ModelError
from ..ir import Array, Host
from .conv import Window, layouts
from .registry import Call, op


@op("DeformConv", layout="last", data=(0, 2, 4))
def deform_conv(
    call: Call, x: Array, w: Array, offset: Array, bias: Array | None = None, mask: Array | None = None
) -> Array:
    """Every tap of every window is read at its own place, between pixels by linear interpolation, outside as zero.

    The samples become the channels of a 1x1 convolution, so the products run wherever convolutions do.
    """
    window = Window.of(call.node, w.shape[2:])
    sizes = _sizes(call, window, x, w, offset, mask)
    columns = _sampled(call, window, x, sizes, offset, mask)
    flat = convolve(
        columns.reshape(x.shape[0], prod(sizes), -1),
        w.reshape(w.shape[0], -1, 1),
        bias,
        groups=call.attrs["group"],
        device=call.device,
        **layouts(1),
    )
    return flat.reshape(x.shape[0], *sizes, w.shape[0])


def _sizes(call: Call, window: Window, x: Array, w: Array, offset: Array, mask: Array | None) -> tuple[int, ...]:
    """The spatial sizes of the result; every operand must agree with them."""
    rank = len(window.kernel)
    groups, taps = call.attrs["offset_group"], prod(window.kernel)
    n, *spatial, channels = x.shape
    if x.ndim != w.ndim:
        raise ModelError(f"input has {x.ndim} axes, the filter {w.ndim}")
    if groups < 1 or channels % groups:
        raise ModelError(f"{channels} input channels do not divide into offset_group={groups}")
    axes = zip(spatial, window.kernel, window.strides, window.explicit, window.dilations, strict=True)
    sizes = tuple(output_size(size, k, s, lo, hi, d) for size, k, s, (lo, hi), d in axes)
    for name, array, depth in (("offset", offset, groups * taps * rank), ("mask", mask, groups * taps)):
        if array is not None and array.shape != (n, *sizes, depth):
            raise ModelError(
                f"{name} must have the shape {(n, depth, *sizes)}, one number for each tap of each result"
                f" in offset_group={groups}{' and axis' if name == 'offset' else ''}"
            )
    return sizes


def _sampled(call: Call, window: Window, x: Array, sizes: tuple[int, ...], offset: Array, mask: Array | None) -> Array:
    """What the taps read: ``[n, *sizes, channels, taps]`` in the type of x, interpolated in float32 at least."""
    xp, rank = call.xp, len(sizes)
    n, *spatial, channels = x.shape
    groups, taps = call.attrs["offset_group"], prod(window.kernel)
    wide = np.result_type(x.dtype, np.float32)
    regular = call.remember((sizes, wide), lambda: xp.asarray(_places(window, sizes), wide))
    places = offset.reshape(n, *sizes, groups, taps, rank) + regular
    axes = [_neighbours(xp, places[..., axis], size) for axis, size in enumerate(spatial)]
    pixels = x.reshape(-1, groups, channels // groups)
    image = xp.arange(n).reshape(-1, *(1,) * (rank + 2))
    group = xp.arange(groups).reshape(-1, 1)
    total: Any = 0
    for corner in product(*axes):
        index: Array = image
        weight: Array = 1 if mask is None else mask.reshape(n, *sizes, groups, taps)
        for (place, share), size in zip(corner, spatial, strict=True):
            index, weight = index * size + place, weight * share
        weight = weight[..., None]
        # what has no weight is not looked at: it may be infinite
        total = total + xp.where(weight != 0, pixels[index, group], x.dtype.type(0)) * weight
    return xp.moveaxis(total.astype(x.dtype), -2, -1)


def _places(window: Window, sizes: tuple[int, ...]) -> Host:
    """Where the taps lie before they are moved: ``[*sizes, 1, taps, axes]``."""
    pads = [lo for lo, _ in window.explicit]
    starts = np.moveaxis(np.indices(sizes), 0, -1) * window.strides - pads
    taps = np.moveaxis(np.indices(window.kernel), 0, -1).reshape(-1, len(sizes)) * window.dilations
    return np.asarray(starts[..., None, None, :] + taps)


def _neighbours(xp: ModuleType, place: Array, size: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The two pixels around each place along an axis, and their shares; those outside have none. NaN stays NaN."""
    place = xp.clip(place, -1, size)
    low = xp.floor(place)
    pairs = (low, low + 1 - place), (low + 1, place - low)
    lower, upper = (
        (xp.clip(xp.nan_to_num(pixel), 0, size - 1).astype(np.int64), share * ((pixel >= 0) & (pixel < size)))
        for pixel, share in pairs
    )
    return lower, upper
