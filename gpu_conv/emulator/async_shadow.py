"""The race check of shared memory in kernels with mbarriers, bulk copies or ``wgmma``.

There a barrier of the block is not the only order, so a granule remembers more: the last reader of each warp, the
bulk copy that wrote it, and the asynchronous readers (``wgmma``, bulk stores) that may still be under way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .lanes import WARP as LANES
from .lanes import Indices, LaneList, Lanes, lane_indices
from .shadow import ATOMIC, IN_FLIGHT, THREAD, TIME, Keys, Shadow, column

if TYPE_CHECKING:
    from .chunk import Chunk
    from .knowledge import Knowledge
    from .site import Site

Bools = npt.NDArray[np.bool_]

BULK = np.uint32(0x1FFFFE << 11)  # the "time" of a granule whose last writer is a bulk copy
MBARRIER = np.uint32(0x1FFFFD << 11)  # and of one that holds an mbarrier
_FOREVER = np.iinfo(np.int32).max
# Readers are kept per warp, so a key has bits to spare: time << 11 | several lanes << 6 | collectively << 5 | lane.
_SEVERAL = np.uint32(1 << 6)
_COLLECTIVE = np.uint32(1 << 5)
_LANE = np.uint32(31)

_FLYING = "the target of a cp.async in flight"
_COPY = "the target of a bulk copy, no completed wait for its mbarrier between"
_EARLY = ("bulk copy read before wait", f"reads {_COPY}")


@dataclass(eq=False)
class Reading:
    """Asynchronous reads of shared memory that end together.

    Attributes:
        what: how findings call it; ``wait``: what ends it.
        seen: (first lane, lanes, time): when these lanes observed the end. Whoever is ordered after one of them is
            ordered after the reads.
    """

    what: str
    wait: str
    seen: list[tuple[int, int, int]] = field(default_factory=list)


class AsyncShadow(Shadow):
    """See the module."""

    def __init__(self, chunk: Chunk, size: int, granule: int, knowledge: Knowledge) -> None:
        super().__init__(chunk, size, granule, warp_barriers=True)
        self.knowledge = knowledge
        self.readers = np.zeros((chunk.block_lanes // LANES, len(self.writer)), np.uint32)
        self.reading_warps = np.zeros(len(self.readers), np.bool_)
        self.copy = np.zeros(len(self.writer), np.int32)  # the bulk copy of granules marked BULK
        self.copies = 1
        self.copy_column = np.zeros(64, np.int64)
        self.copy_done = np.zeros(64, np.int64)
        self.layers: dict[int, npt.NDArray[np.int32]] = {}  # asynchronous reader -> granule -> its reading
        self.readings: list[Reading] = [Reading("nobody", "")]

    # ---- marks

    def reserve(self, index: int, size: int) -> None:
        """An mbarrier lives here."""
        self.writer[index // self.granule : (index + size) // self.granule] = MBARRIER

    def forget(self, index: int, size: int) -> None:
        """What lies here is undefined."""
        self.writer[index // self.granule : (index + size) // self.granule] = 0

    def spans(self, index: Indices, size: int) -> Indices:
        """The granules of accesses of ``size`` bytes, one after the other."""
        parts = size // self.granule
        first = self.granules(index)
        return first if parts == 1 else (first[..., None] + np.arange(parts)).reshape(*index.shape[:-1], -1)

    # ---- plain accesses

    def _update_readers(self, granule: Indices, key: Keys) -> None:
        """``granule`` and ``key`` have one entry per lane that reads."""
        warp = (key & THREAD) // LANES
        self.reading_warps[warp] = True
        table = self.readers.reshape(-1)
        slot = warp.astype(np.int64) * len(self.writer) + granule
        old = table.take(slot)
        mine = (key & ~THREAD & ~ATOMIC) | (key & _LANE) | np.where((key & ATOMIC) != 0, _COLLECTIVE, np.uint32(0))
        shared = (old != 0) & (((old ^ mine) & (_LANE | _SEVERAL)) != 0) & ((old & _COLLECTIVE) == 0)
        table[slot] = np.where(shared, mine | _SEVERAL, mine)
        lost = ((table.take(slot) ^ mine) & _LANE) != 0
        if lost.any():
            together = lost & ((mine & _COLLECTIVE) == 0)
            table[slot[together]] |= _SEVERAL

    def read(self, site: Site, index: Indices, lanes: Lanes, size: int) -> None:
        """Check and record a read; ``index`` is the first byte of each active lane."""
        parts, rows, _, since, flat = self._parts(index, size, lanes)
        writer = self._take(self.writer, rows, parts)
        suspect = (writer - np.uint32(1)) >= (since - np.uint32(1))
        for part in range(parts):
            granule = rows * parts + part
            if suspect.any():
                self._judge_read(site, column(part, suspect), granule, column(part, writer), flat, lanes)
            self._update_readers(granule, flat)

    def read_collectively(self, site: Site, granule: Indices, lane: Indices) -> None:
        """``ldmatrix``: ``lane`` (of the chunk) receives what is in ``granule``."""
        key, since = self.keys[lane], self.since if np.ndim(self.since) == 0 else self.since[lane]
        writer = self.writer.take(granule)
        suspect = (writer - np.uint32(1)) >= (since - np.uint32(1))
        if suspect.any():
            self._judge_read(site, suspect, granule, writer, key, lane)
        self._update_readers(granule, key | ATOMIC)

    def read_by_all(self, site: Site, first: Indices, size: int) -> bool:
        """Too coarse here."""
        return False

    def write(self, site: Site, index: Indices, lanes: Lanes, size: int, *, mark: np.uint32 | None = None) -> None:
        """Check and record a write, an atomic or the issue of a ``cp.async``; see :class:`shadow.Shadow`."""
        mine = np.arange(len(self.thread)) if lanes is None else lane_indices(lanes)
        parts = size // self.granule
        granule = (self.granules(index)[:, None] + np.arange(parts)).ravel()
        self._after_readers(site, granule, np.repeat(mine, parts))
        super().write(site, index, lanes, size, mark=mark)

    def _after_readers(self, site: Site, granule: Indices, lanes: Indices) -> None:
        """Is a write by each lane ordered after those who have read its granule? Then they may be forgotten."""
        since = self.since if np.ndim(self.since) == 0 else self.since[lanes]
        alone = lanes[0] == lanes[-1]  # they ascend, so there is only one
        for warp in np.flatnonzero(self.reading_warps).tolist():
            reader = self.readers[warp].take(granule)
            which = np.flatnonzero(reader >= since)
            if which.size:
                early = np.zeros(len(granule), np.bool_)
                early[which] = ~self._reader_over(warp, reader[which], lanes[which])
                other = (reader & _LANE) | np.uint32(warp * LANES)
                self._report(site, early, "shared race", "overwrites what {} read, no barrier between", lanes, other)
            self.readers[warp][granule] = 0
        for layer in self.layers.values():
            number = layer.take(granule)
            if not number.any():
                continue
            for chosen in np.unique(number[number > 0]).tolist():
                reading = self.readings[chosen]
                mine = number == chosen
                early = mine & ~self._reading_over(reading, lanes[:1] if alone else lanes)
                text = f"overwrites what {reading.what} reads, {reading.wait} between"
                self._report(site, early, "shared race", text, lanes)
            layer[granule] = 0

    def _reader_over(self, warp: int, reader: Keys, lanes: Indices) -> Bools:
        times, several = (reader >> TIME).astype(np.int64), (reader & _SEVERAL) != 0
        threads = (reader & _LANE).astype(np.int64) + warp * LANES
        over = self.knowledge.ordered(lanes, threads, times)
        same_warp = self.knowledge.thread[lanes] // LANES == warp
        collective = ((reader & _COLLECTIVE) != 0) & ~several
        if several.any() or collective.any():
            known = self.knowledge.rows[self.knowledge.row[lanes], warp * LANES : (warp + 1) * LANES]
            here = same_warp & (times < self.chunk.clock.warp_since[lanes])
            over = np.where(several, here | (times < known.min(axis=1)), over)
            over |= collective & (same_warp | (times < known.max(axis=1)))
        return np.asarray(over)

    def _reading_over(self, reading: Reading, lanes: Indices) -> Bools:
        over = np.zeros(len(lanes), np.bool_)
        clock, knowledge = self.chunk.clock, self.knowledge
        block, width = self.chunk.local_block[lanes], self.chunk.block_lanes
        for first, count, time in reading.seen:
            thread = first % width
            here = (lanes >= first) & (lanes < first + count)
            here |= (lanes // LANES == first // LANES) & (time < clock.warp_since[lanes])
            known = knowledge.rows[knowledge.row[lanes], thread : thread + count].max(axis=1, initial=0)
            over |= here | ((block == first // width) & ((time < clock.block_since[block]) | (time < known)))
        return over

    def _unordered(self, suspect: Any, other: Keys, key: Keys, lanes: LaneList, *, collective: bool = False) -> Any:
        bad = np.zeros(len(key), np.bool_)
        which = np.flatnonzero(suspect)
        if which.size:
            mine = which if lanes is None else lane_indices(lanes)[which]
            threads = (other[which] & THREAD).astype(np.int64)
            bad[which] = ~self.knowledge.ordered(mine, threads, (other[which] >> TIME).astype(np.int64))
        return bad

    def _judge_read(self, site: Site, suspect: Any, granule: Indices, writer: Keys, key: Keys, lanes: LaneList) -> None:
        suspect = self._judge_marks(site, suspect, granule, writer, lanes, "reads")
        super()._judge_read(site, suspect, granule, writer, key, lanes)

    def _judge_write(
        self, site: Site, suspect: Any, granule: Indices, writer: Keys, key: Keys, lanes: LaneList, atomic: bool
    ) -> None:
        suspect = self._judge_marks(site, suspect, granule, writer, lanes, "overwrites")
        super()._judge_write(site, suspect, granule, writer, key, lanes, atomic)

    def _judge_marks(self, site: Site, suspect: Any, granule: Indices, writer: Keys, lanes: LaneList, verb: str) -> Any:
        """Report what is wrong with bulk copies and mbarriers; returns what else is to be looked at."""
        object_ = suspect & (writer == MBARRIER)
        self._report(site, object_, "invalid mbarrier", f"{verb} an mbarrier with an ordinary instruction", lanes)
        copied = np.flatnonzero(suspect & (writer == BULK))
        if copied.size:
            mine = copied if lanes is None else lane_indices(lanes)[copied]
            bad = np.zeros(len(writer), np.bool_)
            bad[copied] = ~self.copies_known(mine, granule[copied])
            kind = _EARLY[0] if verb == "reads" else "bulk copy not waited for"
            self._report(site, bad, kind, f"{verb} {_COPY}", lanes)
        return suspect & (writer != MBARRIER) & (writer != BULK)

    # ---- bulk copies and wgmma

    def copies_known(self, lanes: Any, granule: Indices) -> Bools:
        """Has each lane waited for the bulk copy that wrote its granule (or been ordered after someone who has)?"""
        number = self.copy.take(granule)
        return np.asarray(self.knowledge.phase(lanes, self.copy_column[number]) >= self.copy_done[number])

    def new_copy(self, column: int) -> int:
        """A bulk copy into shared memory that an mbarrier counts; ``column`` is the mbarrier's."""
        number, self.copies = self.copies, self.copies + 1
        if number == len(self.copy_done):
            self.copy_column, self.copy_done = (np.pad(t, (0, number)) for t in (self.copy_column, self.copy_done))
        self.copy_column[number], self.copy_done[number] = column, _FOREVER
        return number

    def complete(self, copies: list[int], now: int) -> None:
        """The phase that counts these copies has completed."""
        self.copy_done[copies] = now

    def write_by_copy(self, site: Site, granule: Indices, lane: int, copy: int) -> None:
        """Check and record a bulk copy that ``lane`` issues."""
        lanes = np.full(len(granule), lane)
        self._after_readers(site, granule, lanes)
        writer = self.writer.take(granule)
        self._generic_before(site, writer, writer != 0, lanes, "overwrites")
        self._judge_marks(site, writer != 0, granule, writer, lanes, "overwrites")
        self._report(site, writer >= IN_FLIGHT, "copy not waited for", f"overwrites {_FLYING}", lanes)
        self.writer[granule] = BULK
        self.copy[granule] = copy

    def read_asynchronously(self, site: Site, granule: Indices, lanes: Indices, agent: int, reading: int) -> None:
        """Check and record reads of the asynchronous proxy; ``agent`` is whose reads end in order."""
        self._judge_asynchronous_read(site, granule, self.writer.take(granule), lanes)
        self._layer(agent)[granule] = reading

    def _judge_asynchronous_read(self, site: Site, granule: Indices, writer: Keys, lanes: Indices) -> None:
        self._report(site, writer == 0, "uninitialised read", "shared memory never written", lanes)
        self._generic_before(site, writer, writer != 0, lanes, "reads")
        self._judge_marks(site, writer != 0, granule, writer, lanes, "reads")
        self._report(site, writer >= IN_FLIGHT, "copy not waited for", f"reads {_FLYING}", lanes)

    def read_by_warpgroups(
        self, site: Site, granule: Indices, first: Indices, agents: Indices, readings: Indices
    ) -> None:
        """The same for ``wgmma``: one row of granules per warpgroup, which begins at lane ``first``.

        Every warp of it must be ordered after the writers; lanes of a warp that know the same are asked once.
        """
        writer = self.writer.take(granule)
        if (writer == BULK).all():
            copy = self.copy.take(granule)
            known = self.knowledge.phase_of_all(first, 4 * LANES, self.copy_column[copy])
            early = known < self.copy_done[copy]
            if early.any():
                self._report(site, early.ravel(), *_EARLY, np.repeat(first, granule.shape[1]))
        else:
            for lane, row, written in zip(first, granule, writer, strict=True):
                for asked in self.knowledge.representatives(lane, 4 * LANES):
                    self._judge_asynchronous_read(site, row, written, np.full(len(row), asked))
        for agent in np.unique(agents).tolist():
            rows = agents == agent
            self._layer(agent)[granule[rows]] = readings[rows, None]

    def _layer(self, agent: int) -> npt.NDArray[np.int32]:
        if agent not in self.layers:
            self.layers[agent] = np.zeros(len(self.writer), np.int32)
        return self.layers[agent]

    def _generic_before(self, site: Site, writer: Keys, suspect: Any, lanes: Indices, verb: str) -> None:
        """An asynchronous access after ordinary writes: ordered, and a proxy fence between?"""
        which = np.flatnonzero(suspect & (writer < MBARRIER))
        if not which.size:
            return
        times = (writer[which] >> TIME).astype(np.int64)
        threads, mine = (writer[which] & THREAD).astype(np.int64), lanes[which]
        hidden = ~self.knowledge.visible(mine, threads, times)
        if not hidden.any():
            return
        late = ~self.knowledge.ordered(mine, threads, times)
        for bad, kind, rule in (
            (late, "shared race", "no barrier between"),
            (hidden & ~late, "missing proxy fence", "no fence.proxy.async between"),
        ):
            full = np.zeros(len(writer), np.bool_)
            full[which] = bad
            self._report(site, full, kind, f"{verb} what {{}} wrote, {rule}", lanes, writer)
