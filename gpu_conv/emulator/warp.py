"""Instructions in which the lanes of a warp see each other: shuffles, votes, reductions.

The scheduler has made sure that every lane of the member mask takes part. Registers of the other lanes hold anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .lanes import WARP, Lanes, Value, per_warp, spread

if TYPE_CHECKING:
    from .chunk import Chunk
    from .site import Site

_REDUCTIONS: dict[str, Any] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
_LANE = np.arange(WARP)
_BIT = np.uint64(1) << np.arange(WARP, dtype=np.uint64)


class WarpOperations:
    """All results have one element per lane."""

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk

    def _rows(self, value: Value) -> Any:
        return per_warp(value, self.chunk.lane_count)

    def _active(self, lanes: Lanes) -> Any:
        if lanes is None:
            return np.ones((self.chunk.lane_count // WARP, WARP), np.bool_)
        return lanes.active.reshape(-1, WARP)

    def shuffle(
        self, site: Site, mode: str, value: Value, lane: Value, control: Value, lanes: Lanes
    ) -> tuple[Value, Value]:
        """``shfl.sync``: the value of another lane and whether that lane is in range."""
        value, lane, control = self._rows(value), self._rows(lane).astype(np.int64), self._rows(control)
        segment = (control >> np.uint32(8)).astype(np.int64) & 31
        clamp = control.astype(np.int64) & 31
        highest = (_LANE & segment) | (clamp & ~segment)
        match mode:
            case "up":
                source = _LANE - (lane & 31)
                inside = source >= highest
            case "down":
                source = _LANE + (lane & 31)
                inside = source <= highest
            case "bfly":
                source = _LANE ^ (lane & 31)
                inside = source <= highest
            case _:
                source = (_LANE & segment) | (lane & 31 & ~segment)
                inside = source <= highest
        source = np.where(inside, source, _LANE)
        if lanes is not None and not lanes.whole_warps:
            active = self._active(lanes)
            absent = active & ~np.take_along_axis(active, source, axis=1)
            if absent.any():
                text = "reads the register of a lane that doesn't take part"
                self.chunk.report("undefined lane", site, absent.ravel(), None, text)
        result = np.take_along_axis(value, source, axis=1)
        return result.ravel(), inside.ravel()

    def vote(self, mode: str, predicate: Value, lanes: Lanes, members: Value) -> Value:
        """``vote.sync``: ballot (bits), all, any, uni (bools)."""
        taking_part = self._together(lanes, members)
        votes = self._rows(predicate)[:, None, :] & taking_part
        match mode:
            case "ballot":
                result = (votes * _BIT).sum(axis=2).astype(np.uint32)
            case "any":
                result = votes.any(axis=2)
            case "all":
                result = (votes == taking_part).all(axis=2)
            case _:
                result = (votes == taking_part).all(axis=2) | ~votes.any(axis=2)
        return result.ravel()

    def _together(self, lanes: Lanes, members: Value) -> Any:
        """(warp, lane, other lane): do both execute the instruction with the same member mask?"""
        active = self._active(lanes)
        members = self._rows(members)
        named = (members[:, :, None] >> _LANE.astype(np.uint32)) & np.uint32(1) != 0
        return named & active[:, None, :]

    def match(self, mode: str, value: Value, lanes: Lanes, members: Value) -> tuple[Value, Value]:
        """``match.sync``: the lanes with the same value (``any``), or all of them if all agree (``all``)."""
        rows, together = self._rows(value), self._together(lanes, members)
        same = (rows[:, :, None] == rows[:, None, :]) & together
        if mode == "all":
            agree = (same == together).all(axis=2)
            bits = np.where(agree, (together * _BIT).sum(axis=2), 0)
        else:
            agree, bits = same.any(axis=2), (same * _BIT).sum(axis=2)
        return bits.astype(np.uint32).ravel(), agree.ravel()

    def reduce(self, operation: str, value: Value, lanes: Lanes, members: Value) -> Value:
        """``redux.sync``."""
        function = _REDUCTIONS[operation]
        rows, together = self._rows(value), self._together(lanes, members)
        info = np.iinfo(value.dtype)
        neutral = {"add": 0, "or": 0, "xor": 0, "and": -1 if info.min else info.max, "min": info.max, "max": info.min}
        everyone = np.where(together, rows[:, None, :], value.dtype.type(neutral[operation]))
        return function.reduce(everyone, axis=2).astype(value.dtype).ravel()

    def active_mask(self, lanes: Lanes) -> Value:
        """``activemask``: the lanes that execute together now."""
        bits = (self._active(lanes) * _BIT).sum(axis=1).astype(np.uint32)
        return np.repeat(bits, WARP)

    def elect(self, lanes: Lanes, members: Value) -> tuple[Value, Value]:
        """``elect.sync``: the lowest lane of the mask and whether it is me."""
        leader = np.argmax(self._together(lanes, members), axis=2)
        return leader.astype(np.uint32).ravel(), (leader == _LANE).ravel()


def lane_mask(relation: str, count: int) -> Value:
    """``%lanemask_lt`` and its like."""
    below = _BIT - np.uint64(1)
    bits = {"lt": below, "le": below | _BIT, "eq": _BIT, "gt": ~(below | _BIT), "ge": ~below}[relation]
    return np.tile(bits.astype(np.uint32), spread(np.uint32(0), count).size // WARP)
