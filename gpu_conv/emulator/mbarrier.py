"""Mbarriers: objects in shared memory that count arriving threads and the bytes of bulk copies, phase by phase.

A phase completes when no arrival and no byte is missing. What its arriving threads had done, and the copies that it
counted, are then ordered before whoever waits for it (:class:`knowledge.Knowledge`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .knowledge import Knowledge, Times
from .lanes import Active, Empty, Indices, Lanes, Value, compact, spread

if TYPE_CHECKING:
    from .chunk import Chunk
    from .shared import SharedMemory
    from .site import Site

MOST_ARRIVALS = 2**20 - 1
Bools = npt.NDArray[np.bool_]


@dataclass(eq=False)
class Mbarrier:
    """One object.

    Attributes:
        expected, pending: arrivals of a phase, and those still missing of this one; ``bytes``: those still missing.
        phase: phases completed.
        creator, created: thread that initialised it, and when.
        gathered: what the arrivals of this phase hand on; ``known``: what those of the completed ones have.
        copies: bulk copies whose bytes have arrived in this phase.
        fenced: its initialisation is visible to the asynchronous proxy.
    """

    block: int
    address: int
    expected: int
    pending: int
    creator: int
    created: int
    bytes: int = 0
    phase: int = 0
    gathered: Times | None = None
    known: Times | None = None
    copies: list[int] = field(default_factory=list)
    fenced: bool = False


class Mbarriers:
    """All mbarriers of a chunk. ``version`` counts their changes."""

    def __init__(self, chunk: Chunk, shared: SharedMemory, knowledge: Knowledge | None) -> None:
        self.chunk = chunk
        self.shared = shared
        self.knowledge = knowledge
        self.version = 0
        self.objects: dict[tuple[int, int], Mbarrier] = {}

    # ---- which objects

    def _by_object(
        self, site: Site, address: Value, lanes: Lanes, immediate: int
    ) -> Iterator[tuple[int, int, Indices]]:
        """Block, address and lanes of each object that the active lanes name."""
        chunk = self.chunk
        where = compact(lanes, address).astype(np.int64) + immediate
        where = self.shared.check(site, where, lanes, 8, write=True)
        indices = np.arange(chunk.lane_count) if lanes is None else lanes.indices
        keys = chunk.local_block[indices] << 32 | spread(where, len(indices))
        if (keys == keys[0]).all():
            yield int(keys[0]) >> 32, int(keys[0]) & 0xFFFFFFFF, indices
            return
        for key in np.unique(keys).tolist():
            yield key >> 32, key & 0xFFFFFFFF, indices[keys == key]

    def _found(self, site: Site, address: Value, lanes: Lanes, immediate: int) -> Iterator[tuple[Mbarrier, Indices]]:
        """The objects that exist; a use of another address, or before all threads may know of it, is reported."""
        for block, place, indices in self._by_object(site, address, lanes, immediate):
            known = self.at(site, block, place, indices)
            if known is not None:
                yield known, indices

    def at(self, site: Site, block: int, address: int, lanes: Indices) -> Mbarrier | None:
        """The object at an address; ``None``, reported, if there is none."""
        chunk = self.chunk
        known = self.objects.get((block, address))
        if known is None:
            text = f"there is no initialised mbarrier at {self.shared.describe(address)}"
            chunk.report("invalid mbarrier", site, np.bool_(True), lanes, text, address)
        elif self.knowledge:
            ordered = self.knowledge.ordered(lanes, known.creator, known.created)
            if not ordered.all():
                thread = chunk.thread_index(known.creator)
                text = f"uses the mbarrier that thread {thread} initialised, no barrier between"
                chunk.report("shared race", site, ~ordered, lanes, text, address)
        return known

    # ---- changes

    def initialise(self, site: Site, address: Value, lanes: Active, immediate: int, count: Value) -> None:
        """``mbarrier.init``."""
        if isinstance(lanes, Empty):
            return
        chunk = self.chunk
        for block, place, indices in self._by_object(site, address, lanes, immediate):
            expected = int(spread(count, chunk.lane_count)[indices[0]])
            where = self.shared.describe(place)
            if not 1 <= expected <= MOST_ARRIVALS:
                text = f"{expected} arrivals for the mbarrier at {where}; 1 to {MOST_ARRIVALS} are possible"
                chunk.report("invalid mbarrier", site, np.bool_(True), indices, text, place)
            if (block, place) in self.objects:
                text = f"the mbarrier at {where} is initialised again without mbarrier.inval"
                chunk.report("invalid mbarrier", site, np.bool_(True), indices, text, place)
            if self.shared.asynchronous:
                index = place + self.shared.block_row[block]
                self.shared.asynchronous.write(site, np.repeat(index, len(indices)), chunk.mask_of(indices), 8)
                self.shared.asynchronous.reserve(index, 8)
            now = chunk.clock.now
            creator = int(indices[0]) % chunk.block_lanes
            self.objects[block, place] = Mbarrier(block, place, expected, expected, creator, now)
        self.version += 1

    def invalidate(self, site: Site, address: Value, lanes: Active, immediate: int) -> None:
        """``mbarrier.inval``: its memory is undefined afterwards."""
        if isinstance(lanes, Empty):
            return
        for known, _ in self._found(site, address, lanes, immediate):
            del self.objects[known.block, known.address]
            if self.shared.asynchronous:
                self.shared.asynchronous.forget(known.address + self.shared.block_row[known.block], 8)
        self.version += 1

    def arrive(
        self, site: Site, address: Value, lanes: Active, immediate: int, count: Value, expected_bytes: Value | None,
        release: bool,
    ) -> Value:  # fmt: skip
        """``mbarrier.arrive``, after the bytes that it announces; returns the phase in which each lane arrived."""
        chunk = self.chunk
        phases = np.zeros(chunk.lane_count, np.uint64)
        if isinstance(lanes, Empty):
            return phases
        if expected_bytes is not None:
            self.expect(site, address, lanes, immediate, expected_bytes)
        counts = spread(count, chunk.lane_count).astype(np.int64)
        for known, indices in self._found(site, address, lanes, immediate):
            left = indices
            while left.size:
                sums = np.cumsum(counts[left])
                fit = max(1, int(np.searchsorted(sums, known.pending, "right")))
                now, left, total = left[:fit], left[fit:], int(sums[fit - 1])
                phases[now] = known.phase
                if total > known.pending or not counts[now].all():
                    text = f"{total} arrivals where the phase has {known.pending} left of {known.expected}"
                    chunk.report("invalid mbarrier", site, np.bool_(True), now, text, known.address)
                known.pending = max(0, known.pending - total)
                if self.knowledge and release:
                    chunk.clock.tick()
                    given = self.knowledge.release(now)
                    known.gathered = _join(known.gathered, given)
                self._complete(known)
        self.version += 1
        return phases

    def expect(self, site: Site, address: Value, lanes: Active, immediate: int, count: Value) -> None:
        """``mbarrier.expect_tx``: more bytes belong to this phase."""
        if isinstance(lanes, Empty):
            return
        counts = spread(count, self.chunk.lane_count)
        for known, indices in self._found(site, address, lanes, immediate):
            known.bytes += int(counts[indices].astype(np.int64).sum())
            if abs(known.bytes) > MOST_ARRIVALS:
                text = f"{known.bytes} bytes are expected in one phase; the limit is {MOST_ARRIVALS}"
                self.chunk.report("invalid mbarrier", site, np.bool_(True), indices, text, known.address)
        self.version += 1

    def arrived(self, known: Mbarrier, count: int, copy: int) -> None:
        """A bulk copy has brought ``count`` bytes (``complete_tx``)."""
        known.bytes -= count
        known.copies.append(copy)
        self._complete(known)
        self.version += 1

    def _complete(self, known: Mbarrier) -> None:
        if known.pending or known.bytes:
            return
        known.phase += 1
        known.pending = known.expected
        knowledge, shadow = self.knowledge, self.shared.asynchronous
        if knowledge and shadow:
            now = self.chunk.clock.tick()
            column = knowledge.column(known.address)
            known.known = _join(known.known, known.gathered)
            known.known = np.pad(known.known, (0, max(0, column + 1 - len(known.known))))
            known.known[column] = now
            shadow.complete(known.copies, now)
        known.gathered, known.copies = None, []

    def fence(self, lanes: Active) -> None:
        """``fence.mbarrier_init``."""
        if not isinstance(lanes, Empty):
            for known in self.objects.values():
                lane = known.block * self.chunk.block_lanes + known.creator
                known.fenced |= lanes is None or bool(lanes.active[lane])

    def check_fence(self, site: Site, known: Mbarrier, lane: int) -> None:
        """A bulk copy by ``lane`` is about to use the object."""
        knowledge = self.knowledge
        if knowledge and not known.fenced:
            lanes = np.array([lane])
            if not knowledge.visible(lanes, known.creator, known.created).all():
                text = f"uses the mbarrier at {self.shared.describe(known.address)}, initialised without a"
                text += " fence.proxy.async or fence.mbarrier_init between"
                self.chunk.report("missing proxy fence", site, np.bool_(True), lanes, text, known.address)
            known.fenced = True

    # ---- waiting

    def poll(
        self, site: Site, address: Value, lanes: Lanes, immediate: int, phase: Value, parity: bool, acquire: bool
    ) -> Bools:
        """For every lane: has its phase completed? Those whose phase has learn what it hands on."""
        chunk = self.chunk
        done = np.ones(chunk.lane_count, np.bool_)
        wanted = spread(phase, chunk.lane_count)
        for known, indices in self._found(site, address, lanes, immediate):
            mine = wanted[indices].astype(np.int64)
            over = mine & 1 != known.phase & 1
            if not parity:
                self._check_state(site, known, indices, mine)
            done[indices] = over
            if over.any() and self.knowledge and known.known is not None and acquire:
                self.knowledge.acquire(indices[over], known.known)
        return done

    def _check_state(self, site: Site, known: Mbarrier, lanes: Indices, phases: Indices) -> None:
        """Hardware keeps the parity of a state's phase alone: of the phase before the last it says the contrary."""
        foreign = (phases != known.phase) & (phases != known.phase - 1)
        if foreign.any():
            text = f"asks for phase {int(phases[foreign][0])} of the mbarrier at {self.shared.describe(known.address)}"
            text += f", which is in phase {known.phase}: a state is of this phase or of the one before"
            self.chunk.report("invalid mbarrier", site, foreign, lanes, text, known.address)

    def describe(self, site: Site, address: Value, lanes: Lanes, immediate: int) -> str:
        """What the objects that these lanes wait for still miss."""
        for known, _ in self._found(site, address, lanes, immediate):
            where = self.shared.describe(known.address)
            missing = f"{known.bytes} bytes are missing" if known.bytes >= 0 else f"{-known.bytes} bytes too many came"
            return (
                f"phase {known.phase} of the mbarrier at {where} never completes:"
                f" {known.pending} of {known.expected} arrivals are missing, {missing}"
            )
        return "there is no mbarrier"


def _join(first: Times | None, second: Times | None) -> Times:
    if first is None or second is None:
        known = first if second is None else second
        return np.zeros(1, np.int32) if known is None else known.copy()
    size = max(len(first), len(second))
    padded = [np.pad(v, (0, size - len(v))) for v in (first, second)]
    joined: Times = np.maximum(*padded)
    return joined
