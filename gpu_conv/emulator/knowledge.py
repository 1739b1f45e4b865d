"""What each lane knows of the others through mbarriers and proxy fences: a vector clock per lane.

``bar.sync`` orders everything before it, which :class:`clock.Clock` keeps. An mbarrier orders less: what its arriving
threads have done, before what the threads do that waited for its phase. So every lane has a row of times: per thread
of the block, before when its accesses are ordered before mine; per thread, before when they are visible to the
asynchronous proxy as well (a ``fence.proxy.async`` lies between); per mbarrier, the completion of its last phase
that I know of. Lanes that know the same share a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .lanes import WARP, Active, Empty, Indices, Lanes

if TYPE_CHECKING:
    from .chunk import Chunk

Times = npt.NDArray[np.int32]

_MBARRIERS = 128  # of one block; more make the rows longer


class Knowledge:
    """The rows of a chunk.

    Attributes:
        width: lanes of a block: columns 0 to ``width`` are their accesses, the next ``width`` the fenced ones; the
            mbarriers follow.
        row: per lane, which of ``rows`` it has; row 0 knows nothing.
        fenced, fenced_warp, fenced_block: per lane, what its own last proxy fence covered: its own accesses, those of
            its warp and those of its block before these times.
    """

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.clock = chunk.clock
        self.width = chunk.block_lanes
        self.slots: dict[int, int] = {}
        self.rows: Times = np.zeros((64, 2 * self.width + _MBARRIERS), np.int32)
        self.used = 1
        self.row = np.zeros(chunk.lane_count, np.int64)
        self.fenced = np.zeros(chunk.lane_count, np.int32)
        self.fenced_warp = np.zeros(chunk.lane_count, np.int32)
        self.fenced_block = np.zeros(chunk.lane_count, np.int32)
        self.thread = np.arange(chunk.lane_count) % self.width
        self.warp = np.arange(chunk.lane_count) // WARP
        self._learnt: dict[tuple[int, int], tuple[Times, int]] = {}  # row and vector -> both, so that rows are shared

    def column(self, address: int) -> int:
        """The column of the mbarriers at an address."""
        slot = self.slots.setdefault(address, len(self.slots))
        if 2 * self.width + slot >= self.rows.shape[1]:
            self.rows = np.pad(self.rows, ((0, 0), (0, _MBARRIERS)))
        return 2 * self.width + slot

    def _store(self, vector: Times) -> int:
        if self.used == len(self.rows):
            kept, self.row = np.unique(self.row, return_inverse=True)
            if kept[0]:
                kept, self.row = np.r_[0, kept], self.row + 1
            rows = np.zeros((max(64, 2 * len(kept)), self.rows.shape[1]), np.int32)
            rows[: len(kept)] = self.rows[kept]
            self.rows, self.used = rows, len(kept)
            self._learnt = {}
        self.rows[self.used, : len(vector)] = vector
        self.used += 1
        return self.used - 1

    def release(self, lanes: Indices) -> Times:
        """What these lanes of one block hand on together: all that they know and all that they have done."""
        width, now = self.width, self.clock.now
        kinds = self.row[lanes]
        first = kinds[0]
        vector = self.rows[first].copy() if (kinds == first).all() else self.rows[np.unique(kinds)].max(axis=0)
        own, fenced = vector[:width], vector[width : 2 * width]
        threads = self.thread[lanes]
        np.maximum(fenced, self.fenced_block[lanes].max(), out=fenced)
        warps, since, visible = own.reshape(-1, WARP), self.clock.warp_since[lanes], self.fenced_warp[lanes]
        for warp in np.unique(threads // WARP).tolist():
            part = threads // WARP == warp
            np.maximum(warps[warp], since[part].max(), out=warps[warp])
            np.maximum(fenced.reshape(-1, WARP)[warp], visible[part].max(), out=fenced.reshape(-1, WARP)[warp])
        own[threads] = now
        fenced[threads] = np.maximum(fenced[threads], self.fenced[lanes])
        return np.asarray(vector)

    def _replace(self, lanes: Indices, change: Callable[[Times], Times]) -> None:
        """Give each lane what its row becomes by ``change``."""
        kinds = self.row[lanes]
        rows = [(lanes[kinds == k], self.rows[k], change(self.rows[k])) for k in np.unique(kinds).tolist()]
        for chosen, old, new in rows:
            if (new != old).any():
                self.row[chosen] = self._store(new)

    def acquire(self, lanes: Indices, vector: Times) -> None:
        """These lanes of one block learn what ``vector`` says, which nobody may change afterwards."""
        kinds = self.row[lanes]
        first, learnt = int(kinds[0]), self._learnt
        known = learnt.get((first, id(vector)))
        if known is not None and (kinds == first).all():
            self.row[lanes] = known[1]
            return
        padded = np.pad(vector, (0, self.rows.shape[1] - len(vector)))
        self._replace(lanes, lambda row: np.maximum(row, padded))
        if (kinds == first).all() and learnt is self._learnt:  # else the rows have got new numbers
            learnt[first, id(vector)] = vector, int(self.row[lanes[0]])

    def barrier(self, blocks: Indices) -> None:
        """The threads of these blocks have met."""
        for block in blocks[self._differ(self.width)[blocks]].tolist():
            self._share(np.arange(block * self.width, (block + 1) * self.width))

    def warp_barrier(self, lanes: Lanes) -> None:
        """The warps of these lanes have synchronised."""
        differ = self._differ(WARP)
        for warp in np.flatnonzero(differ if lanes is None else differ & lanes.warps).tolist():
            mine = np.arange(warp * WARP, (warp + 1) * WARP)
            self._share(mine if lanes is None else mine[lanes.active[mine]])

    def _differ(self, count: int) -> npt.NDArray[np.bool_]:
        """For every ``count`` lanes: do they know different things?"""
        rows = self.row.reshape(-1, count)
        return np.asarray((rows != rows[:, :1]).any(axis=1) | self.fenced.reshape(-1, count).any(axis=1))

    def _share(self, lanes: Indices) -> None:
        """From now on these lanes know the same; what their fences have covered is part of it."""
        self.row[lanes] = self._store(self.release(lanes))
        for times in (self.fenced, self.fenced_warp, self.fenced_block):
            times[lanes] = 0

    def fence(self, lanes: Active) -> None:
        """``fence.proxy.async``: all that these lanes know of becomes visible to the asynchronous proxy."""
        if isinstance(lanes, Empty):
            return
        indices = np.arange(len(self.row)) if lanes is None else lanes.indices
        now = self.clock.tick()
        self.fenced[indices] = now
        self.fenced_warp[indices] = self.clock.warp_since[indices]
        self.fenced_block[indices] = self.clock.block_since[self.chunk.local_block[indices]]
        width = self.width

        def cover(row: Times) -> Times:
            changed = row.copy()
            changed[width : 2 * width] = np.maximum(row[:width], row[width : 2 * width])
            return changed

        self._replace(indices, cover)

    # ---- questions

    def ordered(self, lanes: Indices, threads: Any, times: Any) -> npt.NDArray[np.bool_]:
        """Does each lane know that what its block's thread did at that time is over?"""
        since = self.clock.block_since[self.chunk.local_block[lanes]]
        same_warp = self.thread[lanes] // WARP == threads // WARP
        known = (times < since) | (same_warp & (times < self.clock.warp_since[lanes])) | (self.thread[lanes] == threads)
        return np.asarray(known | (times < self.rows[self.row[lanes], threads]))

    def visible(self, lanes: Indices, threads: Any, times: Any) -> npt.NDArray[np.bool_]:
        """The same, and does a proxy fence lie between?"""
        mine = self.thread[lanes]
        known = times < self.fenced_block[lanes]
        known |= (mine // WARP == threads // WARP) & (times < self.fenced_warp[lanes])
        known |= (mine == threads) & (times < self.fenced[lanes])
        return np.asarray(known | (times < self.rows[self.row[lanes], self.width + threads]))

    def representatives(self, first: int, count: int) -> Indices:
        """Of these lanes, one of each kind: those of a warp that share a row know the same."""
        lanes = np.arange(first, first + count)
        _, chosen = np.unique(self.warp[lanes] << 32 | self.row[lanes], return_index=True)
        return np.asarray(lanes[chosen])

    def phase_of_all(self, first: Indices, count: int, columns: Indices) -> Times:
        """Like :meth:`phase` for groups of lanes from ``first``, a row of columns each: what all of a group know."""
        kinds = self.row[first[:, None] + np.arange(count)]
        if (kinds == kinds[:, :1]).all():
            return np.asarray(self.rows[kinds[:, :1], columns])
        least = np.stack([self.rows[np.unique(k)].min(axis=0) for k in kinds])
        return np.take_along_axis(least, columns, axis=1)

    def phase(self, lanes: Indices, columns: Any) -> Times:
        """When the phase of an mbarrier completed that each lane knows of."""
        return np.asarray(self.rows[self.row[lanes], columns])
