"""What the parts of a machine share: the blocks that run together, their lanes, findings and counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .clock import Clock
from .counters import AccessCounter
from .lanes import WARP, Empty, Indices, LaneList, Lanes, Mask, Value, intersect, lane_indices
from .memory import AddressSpace
from .report import Coordinates, Recorder
from .site import Site


@dataclass(kw_only=True)
class Launched:
    """What all blocks of a launch share."""

    grid: Coordinates
    block: Coordinates
    space: AddressSpace
    recorder: Recorder
    checking: bool
    random: np.random.Generator | None
    accesses: dict[int, AccessCounter] = field(default_factory=dict)
    wgmma: Counter[str] = field(default_factory=Counter)


class Chunk:
    """Some blocks. Lane l is thread ``l % block_lanes`` of block ``block_ids[l // block_lanes]``."""

    def __init__(self, launched: Launched, block_ids: Indices) -> None:
        self.launched = launched
        self.block_ids = block_ids
        self.block_count = len(block_ids)
        self.threads = int(np.prod(launched.block))
        self.block_lanes = -(-self.threads // WARP) * WARP
        self.lane_count = self.block_count * self.block_lanes
        self.local_block = np.repeat(np.arange(self.block_count), self.block_lanes)
        self.checking = self.counting = launched.checking
        self.random = launched.random
        self.clock = Clock(self.block_count, self.lane_count)
        self.mma_count = self.macs = 0
        self._narrowed: dict[tuple[int, int, bool], tuple[Value, Lanes, Mask | Empty | None]] = {}

    # ---- lanes

    @property
    def existing(self) -> Lanes:
        """The lanes that are threads; the rest fills up the last warp of each block."""
        if self.threads == self.block_lanes:
            return None
        return Mask(np.arange(self.lane_count) % self.block_lanes < self.threads)

    def narrow(self, lanes: Lanes, predicate: Value, negated: bool) -> Mask | Empty | None:
        """The lanes with the predicate. Several instructions often share a guard, so the last answers are kept."""
        key = (id(lanes), id(predicate), negated)
        known = self._narrowed.get(key)
        if known is None or known[0] is not predicate or known[1] is not lanes:
            if len(self._narrowed) > 16:
                self._narrowed.clear()
            known = self._narrowed[key] = predicate, lanes, intersect(lanes, ~predicate if negated else predicate)
        return known[2]

    def mask_of(self, indices: Indices) -> Mask:
        active = np.zeros(self.lane_count, np.bool_)
        active[indices] = True
        return Mask(active)

    def warps(self, lanes: Lanes) -> int:
        return self.lane_count // WARP if lanes is None else lanes.warp_count

    def active(self, lanes: Lanes) -> int:
        return self.lane_count if lanes is None else lanes.count

    def thread_index(self, thread: int) -> Coordinates:
        return split_index(thread, self.launched.block)

    # ---- findings and counters

    def access(self, site: Site) -> AccessCounter:
        counter = self.launched.accesses.get(site.index)
        if counter is None:
            counter = self.launched.accesses[site.index] = AccessCounter(site.instruction, site.kind)
        return counter

    def report(
        self, kind: str, site: Site, bad: Value, lanes: LaneList, message: str | Callable[[int], str],
        address: Value = None,
    ) -> None:  # fmt: skip
        """Record a finding; ``bad`` and ``address`` have one entry per lane of ``lanes`` or are uniform."""
        first = int(np.argmax(bad)) if np.ndim(bad) else 0
        lane = first if lanes is None else int(lane_indices(lanes)[first])
        if np.ndim(bad):
            count = int(np.count_nonzero(bad))
        else:
            count = self.lane_count if lanes is None else len(lane_indices(lanes))
        if self.launched.recorder.add_lanes(kind, site.instruction, count):
            return
        where = None if address is None else int(address[first] if np.ndim(address) else address)
        text = message if isinstance(message, str) else message(where or 0)
        block = split_index(int(self.block_ids[lane // self.block_lanes]), self.launched.grid)
        thread = self.thread_index(lane % self.block_lanes)
        self.launched.recorder.add(
            kind, site.instruction, text, block=block, thread=thread, address=where, lanes=count
        )  # fmt: skip


def split_index(index: int, sizes: Coordinates) -> Coordinates:
    """The coordinates of a linear index."""
    return index % sizes[0], index // sizes[0] % sizes[1], index // (sizes[0] * sizes[1])
