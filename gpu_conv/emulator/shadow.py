"""Races in shared memory: who wrote and who read each granule last, and when.

One entry per granule (the narrowest access of the kernel). A key is ``time << 11 | atomic << 10 | thread``; time 0
means never written, the highest time a ``cp.async`` in flight. An access is ordered before mine if it was made by my
thread, before the last barrier of my block, or by my warp before its last ``bar.warp.sync``.

A granule may have many readers. Three words are enough to judge a later write: the latest reader, the latest time at
which another thread of that reader's warp read, and the latest time at which another warp read. If two warps have
read since the last barrier, any write is a race; otherwise all readers sit in one warp. In a reader's key the atomic
bit marks a warp-collective read (``ldmatrix``), which is complete before any lane of that warp goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .lanes import Indices, LaneList, Lanes, Value, compact, lane_indices, spread
from .memory import shift

if TYPE_CHECKING:
    from .chunk import Chunk
    from .site import Site

Keys = npt.NDArray[np.uint32]

TIME = np.uint32(11)
ATOMIC = np.uint32(1 << 10)
THREAD = np.uint32(1023)
WARP = np.uint32(1023 - 31)
IN_FLIGHT = np.uint32(0x1FFFFF << 11)
_ONE = np.uint32(1)


class Shadow:
    """The shadow of the shared memory of all blocks of a chunk, side by side."""

    def __init__(self, chunk: Chunk, size: int, granule: int, *, warp_barriers: bool) -> None:
        self.chunk = chunk
        self.granule = granule
        self.warp_barriers = warp_barriers  # or collective reads, which order the lanes of a warp too
        count = size // granule
        self.writer = np.zeros(count, np.uint32)
        self.reader = np.zeros(count, np.uint32)
        self.warp_readers = np.zeros(count, np.uint32)  # time of another reader in the warp of `reader`
        self.other_warps = np.zeros(count, np.uint32)  # time of a reader in another warp
        self.thread = (np.arange(chunk.lane_count) % chunk.block_lanes).astype(np.uint32)
        self._key_time = self._since_version = -1
        self._keys: Keys = self.thread
        self._since: Value = np.uint32(0)

    @property
    def keys(self) -> Keys:
        """The key of an access by each lane now."""
        now = self.chunk.clock.now
        if now != self._key_time:
            self._keys, self._key_time = self.thread | (np.uint32(now) << TIME), now
        return self._keys

    @property
    def since(self) -> Value:
        """Keys from here on were made after the last barrier of the lane's block."""
        clock = self.chunk.clock
        if clock.version != self._since_version:
            per_block = clock.block_since.astype(np.uint32) << TIME
            uniform = bool((per_block == per_block[0]).all())
            self._since = per_block[0] if uniform else per_block[self.chunk.local_block]
            self._since_version = clock.version
        return self._since

    def granules(self, index: Indices) -> Indices:
        """Byte indices -> granules."""
        return index >> shift(self.granule)

    def _take(self, table: Keys, rows: Indices, parts: int) -> Keys:
        """Entries of each access: (accesses,) or, if an access has several granules, (accesses, granules)."""
        return table.take(rows) if parts == 1 else table.reshape(-1, parts).take(rows, axis=0)

    def _parts(self, index: Indices, size: int, lanes: Lanes) -> tuple[int, Indices, Keys, Value, Keys]:
        """How many granules an access has, its row of that many, and key and barrier in the shape of :meth:`_take`."""
        parts = size // self.granule
        flat, since = compact(lanes, self.keys), compact(lanes, self.since)
        if parts == 1:
            return parts, self.granules(index), flat, since, flat
        return parts, index >> shift(size), flat[:, None], since if np.ndim(since) == 0 else since[:, None], flat

    def read(self, site: Site, index: Indices, lanes: Lanes, size: int) -> None:
        """Check and record a read; ``index`` is the first byte of each active lane."""
        parts, rows, key, since, flat = self._parts(index, size, lanes)
        writer = self._take(self.writer, rows, parts)
        suspect = (writer - _ONE) >= (since - _ONE)  # recent, in flight, or never written (0 wraps)
        if suspect.any():
            for part in range(parts):
                one, other = column(part, suspect), column(part, writer)
                self._judge_read(site, one, rows * parts + part, other, flat, lanes)
        reader = self._take(self.reader, rows, parts)
        suspect = (reader >= since) & (reader != key)
        if suspect.any():
            if self.warp_barriers:
                for part in range(parts):
                    self._remember(rows * parts + part, column(part, suspect), column(part, reader), flat)
            else:  # nothing orders the threads of a warp, so they are like any others
                others = (suspect & (((reader ^ key) & THREAD) != 0)).reshape(-1, parts)
                access, which = np.nonzero(others)
                self.other_warps[rows[access] * parts + which] = self.chunk.clock.now
        self.reader.reshape(-1, parts)[rows] = flat[:, None]
        winner = self.reader.take(rows * parts)
        lost = winner != flat
        if not lost.any():
            return
        if self.warp_barriers:
            for part in range(parts):
                self._remember(rows * parts + part, lost, winner, flat)
        else:  # several lanes read these rows at once; which ones makes no difference
            self.other_warps.reshape(-1, parts)[rows[lost]] = self.chunk.clock.now

    def read_collectively(self, site: Site, granule: Indices, lane: Indices) -> None:
        """``ldmatrix``: ``lane`` (of the chunk) receives what is in ``granule``."""
        key, since = self.keys[lane], self.since if np.ndim(self.since) == 0 else self.since[lane]
        writer = self.writer.take(granule)
        suspect = (writer - _ONE) >= (since - _ONE)
        if suspect.any():
            self._judge_read(site, suspect, granule, writer, key, lane)
        key = key | ATOMIC
        reader = self.reader.take(granule)
        suspect = (reader >= since) & (reader != key)
        if suspect.any():
            self._remember(granule, suspect, reader, key)
        self.reader[granule] = key
        winner = self.reader.take(granule)
        lost = winner != key
        if lost.any():
            self._remember(granule, lost, winner, key)

    def read_by_all(self, site: Site, first: Indices, size: int) -> bool:
        """All lanes of every block read one address, ``first`` per block. False: the caller must look closer."""
        width = self.chunk.block_lanes
        since = self.since if np.ndim(self.since) == 0 else self.since[::width]
        now = np.uint32(self.chunk.clock.now)
        parts = [first + part for part in range(size // self.granule)]
        if any(((self.writer.take(g) - _ONE) >= (since - _ONE)).any() for g in parts):
            return False
        for granule in parts:
            self.reader[granule] = now << TIME
            self.warp_readers[granule] = now
            if width > 32:
                self.other_warps[granule] = now
        return True

    def write(self, site: Site, index: Indices, lanes: Lanes, size: int, *, mark: np.uint32 | None = None) -> None:
        """Check and record a write, an atomic (``mark=ATOMIC``) or the issue of a copy (``mark=IN_FLIGHT``)."""
        parts, rows, key, since, flat = self._parts(index, size, lanes)
        stored = key if mark is None else key | mark
        writer = self._take(self.writer, rows, parts)
        suspect = (writer >= since) & (writer != stored)
        if suspect.any():
            for part in range(parts):
                one, other = column(part, suspect), column(part, writer)
                self._judge_write(site, one, rows * parts + part, other, flat, lanes, atomic=mark == ATOMIC)
        reader = self._take(self.reader, rows, parts)
        suspect = reader >= since
        if suspect.any():
            for part in range(parts):
                one, other = column(part, suspect), column(part, reader)
                self._judge_write_after_read(site, one, rows * parts + part, other, flat, lanes)
        self.writer.reshape(-1, parts)[rows] = stored.reshape(-1, 1)
        if mark != ATOMIC:
            lost = self.writer.take(rows * parts) != stored.ravel()
            if lost.any():
                message = "several threads write the same location in one instruction"
                self.chunk.report("shared race", site, lost, lanes, message)

    def land(self, index: Indices, keys: Keys, size: int) -> None:
        """Copies have arrived; from now on they are writes by their thread."""
        self.writer.reshape(-1, size // self.granule)[index >> shift(size)] = keys[:, None]

    def _remember(self, granule: Indices, which: Any, other: Keys, key: Keys) -> None:
        """Note a second reader of each granule, ``other``, if it isn't the thread of ``key``."""
        which = np.flatnonzero(which)
        granule, other = granule[which], other[which]
        difference = other ^ key[which]
        another_warp = (difference & WARP) != 0
        self.other_warps[granule[another_warp]] = other[another_warp] >> TIME
        same_warp = ((difference & THREAD) != 0) & ~another_warp & ((other & ATOMIC) == 0)
        self.warp_readers[granule[same_warp]] = other[same_warp] >> TIME

    def _warp_since(self, lanes: LaneList, which: Indices) -> Keys:
        chosen = which if lanes is None else lane_indices(lanes)[which]
        return self.chunk.clock.warp_since[chosen].astype(np.uint32)

    def _judge_read(self, site: Site, suspect: Any, granule: Indices, writer: Keys, key: Keys, lanes: LaneList) -> None:
        self._report(site, suspect & (writer == 0), "uninitialised read", "shared memory never written", lanes)
        flying = suspect & (writer >= IN_FLIGHT)
        self._report(site, flying, "copy not waited for", "reads the target of a cp.async in flight", lanes)
        suspect = suspect & (writer != 0) & ~flying
        bad = self._unordered(suspect, writer, key, lanes)
        self._report(site, bad, "shared race", "reads what {} wrote, no barrier between", lanes, writer)

    def _judge_write(
        self, site: Site, suspect: Any, granule: Indices, writer: Keys, key: Keys, lanes: LaneList, atomic: bool
    ) -> None:
        flying = suspect & (writer >= IN_FLIGHT)
        self._report(site, flying, "copy not waited for", "overwrites the target of a cp.async in flight", lanes)
        suspect = suspect & ~flying
        if atomic:
            suspect &= (writer & ATOMIC) == 0
        bad = self._unordered(suspect, writer, key, lanes)
        self._report(site, bad, "shared race", "overwrites what {} wrote, no barrier between", lanes, writer)

    def _judge_write_after_read(
        self, site: Site, suspect: Any, granule: Indices, reader: Keys, key: Keys, lanes: LaneList
    ) -> None:
        bad = self._unordered(suspect, reader, key, lanes, collective=True)
        rest = np.flatnonzero(suspect & ~bad)
        if rest.size:
            chosen = rest if lanes is None else lane_indices(lanes)[rest]
            barrier = spread(self.since, self.chunk.lane_count)[chosen] >> TIME
            bad[rest] = self.other_warps[granule[rest]] >= barrier
            mine = (((reader[rest] ^ key[rest]) & THREAD) == 0) | ((reader[rest] & ATOMIC) != 0)
            times = self.warp_readers[granule[rest]]
            bad[rest] |= mine & (times >= barrier) & (times >= self._warp_since(lanes, rest))
        self._report(site, bad, "shared race", "overwrites what {} read, no barrier between", lanes, reader)

    def _unordered(self, suspect: Any, other: Keys, key: Keys, lanes: LaneList, *, collective: bool = False) -> Any:
        """Of the accesses since the last barrier: those of other threads that no warp barrier orders either."""
        bad = np.zeros(len(key), np.bool_)
        which = np.flatnonzero(suspect)
        if which.size:
            difference = other[which] ^ key[which]
            same_warp = (difference & WARP) == 0
            ordered = same_warp & ((other[which] >> TIME) < self._warp_since(lanes, which))
            if collective:
                ordered |= same_warp & ((other[which] & ATOMIC) != 0)
            bad[which] = ((difference & THREAD) != 0) & ~ordered
        return bad

    def _report(
        self, site: Site, bad: Any, kind: str, message: str, lanes: LaneList, other: Keys | None = None
    ) -> None:
        if not bad.any():
            return
        if other is not None:
            thread = self.chunk.thread_index(int(other[int(np.argmax(bad))] & THREAD))
            message = message.format(f"thread {thread}")
        self.chunk.report(kind, site, bad, lanes, message)


def column(part: int, table: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One granule of every access."""
    return table if table.ndim == 1 else table[:, part]
