"""Views of arrays in the axis order and form that a strategy works in. Nothing is copied here."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from ..problem import Tensor
from .scratch import Array


def working_order(view: Array, channels_last: bool, lead: int = 0) -> Array:
    """``(*lead, a, b, *spatial)`` as ``(*lead, *spatial, a, b)`` if channels come last, else as it is."""
    if not channels_last:
        return view
    return view.transpose(*range(lead), *range(lead + 2, view.ndim), lead, lead + 1)


def cut(view: Array, spatial: Iterable[slice]) -> Array:
    """The part of an array whose spatial axes come last."""
    return view[(..., *spatial)]  # type: ignore[arg-type]  # NumPy's stubs want indices of one kind


def merged(view: Array, start: int, stop: int) -> Array | None:
    """The view with the axes from ``start`` up to ``stop`` as one axis, or None if their strides do not allow it."""
    wanted = None
    for size, stride in zip(reversed(view.shape[start:stop]), reversed(view.strides[start:stop]), strict=True):
        if size == 1:
            continue
        if wanted is not None and stride != wanted:
            return None
        wanted = stride * size
    return view.reshape(*view.shape[:start], prod(view.shape[start:stop]), *view.shape[stop:])


def channels_are_last(tensor: Tensor) -> bool:
    """Whether neighbouring channels lie closer together than neighbouring pixels."""
    channel = min((abs(s) for n, s in zip(tensor.shape[1:3], tensor.strides[1:3], strict=True) if n > 1), default=0)
    pixel = min((abs(s) for n, s in zip(tensor.shape[3:], tensor.strides[3:], strict=True) if n > 1), default=0)
    return bool(channel) and (not pixel or channel < pixel)
