"""Races in global memory: two threads, one location, no order between them.

Order comes from program order, from barriers (:class:`clock.Clock`) and, between blocks, from a hand-over: the
writer's block executes a device-scope fence and then an atomic; the reader's block executes an atomic on the same
location and then a fence. A barrier extends either side to the other threads of the block.
Of the readers of a location that is written later two are remembered, the last one and the last one of another block;
a random schedule shows others.
Locations that were last changed by atomics (or strong stores) are exempt: those never race with each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .global_shadow import THREAD, Entries, GlobalShadow
from .lanes import WARP, Indices, LaneList, Lanes, Value, compact, spread

if TYPE_CHECKING:
    from .chunk import Chunk
    from .memory import Allocation
    from .site import Site

_ATOMIC = np.uint64(0xFFFFFFFF)  # "thread" of a location that was changed by an atomic


@dataclass(eq=False)
class _Acquire:
    """What a block has learnt of another one.

    Attributes:
        released: per lane of the other block, the time up to which its writes are out.
        lanes: which lanes of this block learnt it themselves, ``time`` when the first of them did; after the next
            barrier all lanes know.
    """

    released: npt.NDArray[np.int64]
    lanes: npt.NDArray[np.bool_]
    time: int


class LaunchOrder:
    """State of the hand-overs of one launch."""

    def __init__(self, granule: int, has_fence: bool) -> None:
        self.granule = granule  # bytes per shadow entry: the narrowest write to global memory in the kernel
        self.has_fence = has_fence
        self.released: dict[int, npt.NDArray[np.int64]] = {}  # by block; replaced, never changed
        self.channels: dict[int, dict[int, npt.NDArray[np.int64]]] = {}  # address of an atomic -> block -> released
        self.pending: dict[int, dict[int, _Acquire]] = {}  # block -> other block: the fence is still missing
        self.acquired: dict[int, dict[int, list[_Acquire]]] = {}  # block -> other block


class BlockOrder:
    """The same seen from the blocks that run together."""

    def __init__(self, chunk: Chunk, launch: LaunchOrder) -> None:
        self.chunk = chunk
        self.launch = launch
        width = chunk.block_lanes
        self.thread = chunk.block_ids.astype(np.uint64)[chunk.local_block] * np.uint64(width)
        self.thread += (np.arange(chunk.lane_count) % width + 1).astype(np.uint64)
        self.fence_time = np.zeros(chunk.lane_count, np.int64)
        self.fence_covers = np.zeros(chunk.lane_count, np.int64)  # writes before this time, of the whole block

    def _granules(self, offsets: Indices, size: int) -> list[Indices]:
        first = offsets // self.launch.granule
        return [first + part for part in range(max(1, size // self.launch.granule))]

    def _shadow(self, allocation: Allocation) -> GlobalShadow:
        if allocation.order is None:
            allocation.order = GlobalShadow(len(allocation.bytes) // self.launch.granule + 1)
        return allocation.order

    def _key(self, mine: Entries) -> Entries:
        return (mine << THREAD) | np.uint64(self.chunk.clock.now)

    def write(self, site: Site, allocation: Allocation, offsets: Indices, lanes: LaneList, size: int) -> None:
        """Check and record a store; ``offsets`` has one entry per active lane."""
        shadow = self._shadow(allocation)
        mine = compact(lanes, self.thread)
        key = self._key(mine)
        for granule in self._granules(offsets, size):
            for table, verb in shadow.before_write():
                before = table.take(granule)
                bad = before != 0
                if bad.any():
                    bad &= (before >> THREAD) != mine
                    self._report(site, allocation, offsets, lanes, bad, before, verb)
            shadow.writer[granule] = key
            lost = shadow.writer.take(granule) != key
            if lost.any():
                self.chunk.report(
                    "global race", site, lost, lanes, f"several threads write {allocation.name} at once",
                    offsets + allocation.base,
                )  # fmt: skip

    def read(self, site: Site, allocation: Allocation, offsets: Value, lanes: LaneList, size: int) -> None:
        """Check and record a load of memory that this launch may write."""
        shadow = self._shadow(allocation)
        mine = compact(lanes, self.thread)
        key = self._key(mine)
        offsets = spread(offsets, len(mine))
        for granule in self._granules(offsets, size):
            before = shadow.writer.take(granule)
            bad = (before != 0) & ((before >> THREAD) != mine)
            if bad.any():
                self._report(site, allocation, offsets, lanes, bad, before, "reads {}, written")
            shadow.read(granule, key, self.chunk.block_lanes)

    def atomic(
        self, site: Site, allocation: Allocation, offsets: Indices, lanes: Lanes, size: int, turns: Indices
    ) -> None:
        """Check and record an atomic or a strong store; then hand over what fences have made visible.

        ``turns`` lists the positions in ``offsets`` in the order in which the lanes take their turn.
        """
        shadow = self._shadow(allocation)
        mine = compact(lanes, self.thread)
        for granule in self._granules(offsets, size):
            before = shadow.writer.take(granule)
            bad = (before != 0) & ((before >> THREAD) != mine)
            if bad.any():
                self._report(site, allocation, offsets, lanes, bad, before, "atomically changes {}, written")
            shadow.writer[granule] = _ATOMIC << THREAD
        self.synchronise(allocation, offsets, lanes, turns, release=True)

    def synchronise(
        self, allocation: Allocation, offsets: Indices, lanes: Lanes, turns: Indices, *, release: bool
    ) -> None:
        """An atomic, strong load (``release=False``) or strong store: the point where a hand-over happens."""
        if not self.launch.has_fence:
            return
        chunk = self.chunk
        indices = np.arange(chunk.lane_count) if lanes is None else lanes.indices
        for lane, offset in zip(indices[turns].tolist(), offsets[turns].tolist(), strict=True):
            local = lane // chunk.block_lanes
            block = int(chunk.block_ids[local])
            sources = self.launch.channels.setdefault(allocation.base + offset, {})
            self._observe(block, lane, sources)
            if release:
                times = self._release(block, local, lane)
                if times.any():
                    sources[block] = times

    def _block_slice(self, local: int) -> slice:
        return slice(local * self.chunk.block_lanes, (local + 1) * self.chunk.block_lanes)

    def _release(self, block: int, local: int, lane: int) -> npt.NDArray[np.int64]:
        own = self._block_slice(local)
        since = self.chunk.clock.block_since[local]
        fenced = self.fence_time[own]
        seen = fenced < since  # ordered before the atomic by a barrier, of the block or of the warp
        warp = slice((lane - own.start) // WARP * WARP, (lane - own.start) // WARP * WARP + WARP)
        seen[warp] |= fenced[warp] < self.chunk.clock.warp_since[lane]
        seen[lane - own.start] = True
        seen &= fenced > 0
        covered = int(self.fence_covers[own][seen].max(initial=0))
        times = np.maximum(np.where(seen, fenced, 0), covered)
        before = self.launch.released.get(block)
        times = times if before is None else np.maximum(before, times)
        self.launch.released[block] = times
        return times

    def _observe(self, block: int, lane: int, sources: dict[int, npt.NDArray[np.int64]]) -> None:
        position = lane % self.chunk.block_lanes
        pending = self.launch.pending.setdefault(block, {})
        for source, released in sources.items():
            if source == block:
                continue
            known = pending.get(source)
            if known is None or known.released is not released:
                lanes = np.zeros(self.chunk.block_lanes, np.bool_)
                known = pending[source] = _Acquire(released, lanes, self.chunk.clock.now)
            known.lanes[position] = True

    def fence(self, lanes: Lanes) -> None:
        """A device-scope fence (``__threadfence``)."""
        chunk = self.chunk
        now = chunk.clock.tick()
        active: Any = slice(None) if lanes is None else lanes.indices
        self.fence_time[active] = now
        self.fence_covers[active] = chunk.clock.block_since[chunk.local_block[active]]
        for local, block in enumerate(chunk.block_ids.tolist()):
            own = self._block_slice(local)
            fencing = np.ones(chunk.block_lanes, np.bool_) if lanes is None else lanes.active[own]
            for source, atomic in self.launch.pending.get(block, {}).items():
                knowing = fencing & self._informed(local, atomic)
                if knowing.any():
                    self._acquire(block, source, _Acquire(atomic.released, knowing, now))

    def _acquire(self, block: int, source: int, new: _Acquire) -> None:
        history = self.launch.acquired.setdefault(block, {}).setdefault(source, [])
        if history and history[-1].released is new.released:  # another warp reached the same fence
            history[-1].lanes = history[-1].lanes | new.lanes
        else:
            history.append(new)

    def _report(
        self, site: Site, allocation: Allocation, offsets: Indices, lanes: LaneList, bad: Any, before: Any, verb: str
    ) -> None:
        """Drop the pairs that are ordered after all; report the rest."""
        chunk, width = self.chunk, self.chunk.block_lanes
        where = np.flatnonzero(bad)
        mine = spread(compact(lanes, np.arange(chunk.lane_count)), len(bad))[where]
        writer, time = before[where] >> THREAD, (before[where] & np.uint64(0xFFFFFFFF)).astype(np.int64)
        atomic = writer == _ATOMIC
        writer = np.where(atomic, 0, writer.astype(np.int64) - 1)
        blocks = writer // width
        local = mine // width
        same_block = blocks == chunk.block_ids[local]
        same_warp = same_block & (writer % width // 32 == mine % width // 32)
        ordered = atomic | (same_block & (time < chunk.clock.block_since[local]))
        ordered |= same_warp & (time < chunk.clock.warp_since[mine])
        foreign = np.flatnonzero(~ordered & ~same_block)
        ordered[foreign] = self._handed_over(blocks[foreign], writer[foreign] % width, time[foreign], mine[foreign])
        bad = np.zeros(len(bad), np.bool_)
        bad[where[~ordered]] = True
        if not bad.any():
            return
        first = int(np.argmax(~ordered))
        who = "another thread of its block" if same_block[first] else f"block {int(blocks[first])} (linear index)"
        hint = "no barrier between" if same_block[first] else "no fence + atomic hands it over"
        chunk.report(
            "global race", site, bad, lanes, f"{verb.format(allocation.name)} by {who}, {hint}",
            offsets + allocation.base,
        )  # fmt: skip

    def _handed_over(self, blocks: Indices, writers: Indices, times: Indices, lanes: Indices) -> npt.NDArray[np.bool_]:
        """For each access: has what lane ``writers`` of another block wrote at ``times`` been handed to ``lanes``?"""
        local, position = np.divmod(lanes, self.chunk.block_lanes)
        ordered = np.zeros(len(lanes), np.bool_)
        pairs = blocks * self.chunk.block_count + local
        for pair in np.unique(pairs).tolist():
            other, mine = divmod(pair, self.chunk.block_count)
            rows = np.flatnonzero(pairs == pair)
            for news in self.launch.acquired.get(int(self.chunk.block_ids[mine]), {}).get(other, []):
                informed = self._informed(mine, news)[position[rows]]
                ordered[rows] |= informed & (times[rows] < news.released[writers[rows]])
        return ordered

    def _informed(self, local: int, news: _Acquire) -> npt.NDArray[np.bool_]:
        """The lanes of a block that know: those that learnt it, and those that a barrier has ordered after them."""
        clock, own = self.chunk.clock, self._block_slice(local)
        if clock.block_since[local] > news.time:
            return np.ones(self.chunk.block_lanes, np.bool_)
        warps = np.repeat(news.lanes.reshape(-1, WARP).any(axis=1), WARP)
        return np.asarray(news.lanes | (warps & (clock.warp_since[own] > news.time)))
