"""Layout strings: which axis of an array is the batch, the channels, a spatial axis.

A data layout is a permutation of ``n``, ``c`` and the spatial axes; a filter layout of ``o``, ``i`` and the spatial
axes, with ``g`` for the five-axis grouped filter. The spatial axes are called ``w``, ``hw``, ``dhw`` for one, two and
three of them, ``0123...`` beyond. In a transposed convolution's filter ``i`` counts all input channels and ``o`` the
output channels of one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod


@cache
def spatial_axes(rank: int) -> str:
    """Names of ``rank`` spatial axes, slowest first: ``hw`` for 2."""
    return "dhw"[3 - rank :] if rank <= 3 else "".join(map(str, range(rank))) if rank <= 10 else _too_many(rank)


def _too_many(rank: int) -> str:
    raise ValueError(f"convolution over {rank} spatial axes: at most 10 are supported")


@cache
def data_axes(layout: str, rank: int, name: str = "input_layout") -> tuple[int, ...]:
    """Positions of ``n``, ``c`` and the spatial axes in a data layout: ``nhwc`` -> ``(0, 3, 1, 2)``."""
    return _positions(layout, "nc" + spatial_axes(rank), name, rank)


@cache
def filter_axes(layout: str, rank: int) -> tuple[int, ...]:
    """Positions of ``o``, ``i`` and the spatial axes (``g``, ``o``, ``i`` ... if the layout names a group axis)."""
    return _positions(layout, ("goi" if "g" in layout else "oi") + spatial_axes(rank), "filter_layout", rank)


def _positions(layout: str, axes: str, name: str, rank: int) -> tuple[int, ...]:
    if sorted(layout) != sorted(axes):
        raise ValueError(
            f"{name}={layout!r} must be a permutation of {axes!r} for {rank} spatial ax{'is' if rank == 1 else 'es'}"
        )
    return tuple(layout.index(a) for a in axes)


def default_data(rank: int) -> str:
    """``nchw`` and its siblings."""
    return "nc" + spatial_axes(rank)


def default_filter(rank: int, transposed: bool) -> str:
    """``oihw`` for a convolution, ``iohw`` for a transposed one."""
    return ("io" if transposed else "oi") + spatial_axes(rank)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Element strides of a C-contiguous array."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def settled(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The strides, those of axes of length 1 as NumPy's ``reshape`` sets them.

    Nothing follows those, but they are part of a problem, and CuPy's ``reshape`` sets others: plans and measured
    choices are for both libraries.
    """
    inner = next((abs(s) for n, s in zip(reversed(shape), reversed(strides), strict=True) if n != 1), 1)
    found: list[int] = []
    for n, s in zip(reversed(shape), reversed(strides), strict=True):
        found.append(inner if n == 1 else s)
        inner = abs(found[-1]) * n
    return tuple(reversed(found))
