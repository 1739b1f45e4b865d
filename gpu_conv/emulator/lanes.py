"""Which lanes take part: masks over the lanes of a chunk of blocks.

Every block is padded to whole warps, so ``array.reshape(-1, 32)`` is always one row per warp. A register is either
a NumPy scalar (the same in every lane) or an array with one element per lane; there is nothing between the two.
``None`` stands for all lanes, ``EMPTY`` for none, a :class:`Mask` for the rest, so that code without divergence
never touches a mask.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

WARP = 32

Value: TypeAlias = Any  # np.generic (uniform) or np.ndarray (per lane); NumPy's stubs have no name for that pair
Bools: TypeAlias = npt.NDArray[np.bool_]
Indices: TypeAlias = npt.NDArray[np.int64]


class Empty:
    """The type of ``EMPTY``."""


EMPTY = Empty()


class Mask:
    """A proper, non-empty subset of the lanes; ``active`` has one bool per lane."""

    def __init__(self, active: Bools, count: int | None = None) -> None:
        self.active = active
        self.count = int(np.count_nonzero(active)) if count is None else count

    @cached_property
    def indices(self) -> Indices:
        return np.flatnonzero(self.active)

    @cached_property
    def warps(self) -> Bools:
        """One bool per warp: does it take part at all?"""
        return np.asarray(self.active.reshape(-1, WARP).any(axis=1))

    @cached_property
    def warp_count(self) -> int:
        return int(np.count_nonzero(self.warps))

    @cached_property
    def whole_warps(self) -> bool:
        """Every warp is either complete or absent."""
        return self.warp_count * WARP == self.count

    def same_lanes(self, other: Mask) -> bool:
        return self.count == other.count and bool(np.array_equal(self.active, other.active))


Lanes: TypeAlias = "Mask | None"
Active: TypeAlias = "Mask | Empty | None"  # what a guard leaves
LaneList: TypeAlias = "Mask | Indices | None"


def lane_indices(lanes: Mask | Indices) -> Indices:
    """The lanes that a mask or a list of lanes names."""
    return lanes.indices if isinstance(lanes, Mask) else lanes


def lanes_where(active: Value) -> Active:
    """The lanes for which a condition holds."""
    if np.ndim(active) == 0:
        return None if active else EMPTY
    count = int(np.count_nonzero(active))
    if count == active.size:
        return None
    return Mask(active, count) if count else EMPTY


def intersect(lanes: Lanes, condition: Value) -> Active:
    """The lanes of ``lanes`` for which the condition holds; the same object if that is all of them."""
    if lanes is None:
        return lanes_where(condition)
    if np.ndim(condition) == 0:
        return lanes if condition else EMPTY
    result = lanes_where(condition & lanes.active)
    return lanes if isinstance(result, Mask) and result.count == lanes.count else result


def union(first: Lanes, second: Lanes) -> Lanes:
    """The lanes of either."""
    if first is None or second is None:
        return None
    result = lanes_where(first.active | second.active)
    assert not isinstance(result, Empty)
    return result


def compact(lanes: LaneList, value: Value) -> Value:
    """The active lanes of a register; a scalar stays a scalar."""
    if lanes is None or np.ndim(value) == 0:
        return value
    return value.take(lane_indices(lanes))


def expand(lanes: Lanes, value: Value) -> Value:
    """Undo :func:`compact`; the other lanes become zero."""
    if lanes is None or np.ndim(value) == 0:
        return value
    out = np.zeros(lanes.active.size, value.dtype)
    out[lanes.indices] = value
    return out


def spread(value: Value, count: int) -> npt.NDArray[Any]:
    """A register as an array of ``count`` lanes (read-only if it was a scalar)."""
    return np.broadcast_to(value, (count,)) if np.ndim(value) == 0 else value


def per_warp(value: Value, count: int) -> npt.NDArray[Any]:
    """A register as one row of 32 lanes per warp."""
    return np.ascontiguousarray(spread(value, count)).reshape(-1, WARP)
