"""Views of arrays in the axis order and form that a strategy works in. Nothing is copied here."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..problem import Tensor
from .scratch import Array


def cut(view: Array, spatial: Iterable[slice]) -> Array:
    """The part of an array whose spatial axes come last."""
    return view[(..., *spatial)]  # type: ignore[arg-type]  # NumPy's stubs want indices of one kind


def working_order(view: Array, channels_last: bool, lead: int = 0) -> Array:
    """``(*lead, a, b, *spatial)`` as ``(*lead, *spatial, a, b)`` if channels come last, else as it is."""
    return view.transpose(_last_order(view.ndim, lead)) if channels_last else view


@cache
def _last_order(ndim: int, lead: int) -> tuple[int, ...]:
    return (*range(lead), *range(lead + 2, ndim), lead, lead + 1)


def merged(view: Array, start: int, stop: int) -> Array | None:
    """The view with the axes from ``start`` up to ``stop`` as one axis, or None if their strides do not allow it."""
    if not view.flags.c_contiguous:
        wanted = None
        for size, stride in zip(view.shape[start:stop][::-1], view.strides[start:stop][::-1], strict=True):
            if size > 1:
                if wanted is not None and stride != wanted:
                    return None
                wanted = stride * size
    return view.reshape(*view.shape[:start], prod(view.shape[start:stop]), *view.shape[stop:])


def split(view: Array, axis: int, size: int) -> Array:
    """The axis as two: parts, and ``size`` elements in each. Always a view."""
    return view.reshape(*view.shape[:axis], -1, size, *view.shape[axis + 1 :])


def even_part(whole: int, most: int) -> int:
    """The largest divisor of ``whole`` up to ``most``; ``most`` itself if that would be less than half of it."""
    most = max(1, min(whole, most))
    parts = -(-whole // most)
    if parts < most:  # the shorter search of two
        return next((whole // n for n in range(parts, 2 * parts) if whole % n == 0), most)
    return next((n for n in range(most, most // 2, -1) if whole % n == 0), most)


def strided(view: Array, axis: int, start: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """Overlapping windows that begin at ``start`` along ``axis``; ``strides`` in bytes."""
    if view.flags.c_contiguous:
        return np.ndarray(shape, view.dtype, view, start * view.strides[axis], strides)  # 6 us faster than as_strided
    return as_strided(view[(slice(None),) * axis + (slice(start, None),)], shape, strides)


def windows_of_runs(view: Array, shape: tuple[int, ...], strides: tuple[int, ...], keep: int) -> Array:
    """Overlapping windows; axes after the first ``keep`` that lie in memory without gaps become one item of bytes.

    NumPy copies an item of 36 bytes nearly twice as fast as 9 floats.
    """
    if not view.flags.c_contiguous:
        return as_strided(view, shape, strides)
    run, axes = view.itemsize, len(shape)
    while axes > keep and (shape[axes - 1] == 1 or strides[axes - 1] == run):
        axes -= 1
        run *= shape[axes]
    return np.ndarray(shape[:axes], np.dtype((np.void, run)), view, 0, strides[:axes])


def channels_are_last(tensor: Tensor) -> bool:
    """Whether neighbouring channels lie closer together than neighbouring pixels."""
    channel = min((abs(s) for n, s in zip(tensor.shape[1:3], tensor.strides[1:3], strict=True) if n > 1), default=0)
    pixel = min((abs(s) for n, s in zip(tensor.shape[3:], tensor.strides[3:], strict=True) if n > 1), default=0)
    return bool(channel) and (not pixel or channel < pixel)
