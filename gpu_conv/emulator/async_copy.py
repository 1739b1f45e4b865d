"""``cp.async``: fetched when issued, landing when its thread waits for its group.

Landing as late as the rules allow is what exposes a missing wait; with a random schedule a copy may also land at
once. Groups are counted per thread: a divergent commit is legal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .lanes import Active, Empty, Indices, Lanes, Value, compact, intersect, spread
from .memory import Bytes, shift
from .shadow import IN_FLIGHT

if TYPE_CHECKING:
    from .chunk import Chunk
    from .global_memory import GlobalMemory
    from .shared import SharedMemory
    from .site import Site


@dataclass
class _Copy:
    """Copies of one instruction that nobody has waited for: one row per lane."""

    lanes: Indices
    target: Indices
    data: Bytes
    group: npt.NDArray[np.int64]
    landed: bool = False

    def subset(self, rows: npt.NDArray[np.bool_]) -> _Copy:
        return _Copy(self.lanes[rows], self.target[rows], self.data[rows], self.group[rows], self.landed)


class AsyncCopies:
    """The copies in flight of a chunk."""

    def __init__(self, chunk: Chunk, memory: GlobalMemory, shared: SharedMemory) -> None:
        self.chunk = chunk
        self.memory = memory
        self.shared = shared
        self.queue: list[_Copy] = []
        self.groups = np.zeros(chunk.lane_count, np.int64)  # committed so far, per lane

    def issue(
        self, source_site: Site, target_site: Site, target: Value, target_offset: int, source: Value,
        source_offset: int, size: int, source_size: Value, lanes: Active,
    ) -> None:  # fmt: skip
        """Copy ``source_size`` of ``size`` bytes per lane and fill the rest with zeros."""
        if isinstance(lanes, Empty):
            return
        chunk, shared = self.chunk, self.shared
        address, index = shared.locate(target_site, target, lanes, target_offset, size, write=True)
        shared.count(target_site, address, lanes, size)
        if index is None:
            index = spread(address, chunk.lane_count) + shared.row
        active = np.arange(chunk.lane_count) if lanes is None else lanes.indices
        data = np.zeros((chunk.lane_count, size), np.uint8)
        for wanted in _distinct_sizes(compact(lanes, source_size), size):
            part = intersect(lanes, source_size == wanted)
            if isinstance(part, Empty):
                continue
            if wanted > size:
                text = f"source size {wanted} of a copy of {size} bytes"
                chunk.report("invalid copy", source_site, np.bool_(True), part, text)
            else:
                self._fetch(source_site, source, part, source_offset, size, wanted, data)
        if shared.shadow:
            shared.shadow.write(target_site, index, lanes, size, mark=IN_FLIGHT)
        copy = _Copy(active, index, data if lanes is None else data[active], self.groups[active])
        if chunk.random is not None and chunk.random.integers(2):
            self._store(copy)
            copy.landed = True
        self.queue.append(copy)

    def _fetch(self, site: Site, source: Value, lanes: Lanes, offset: int, size: int, wanted: int, data: Any) -> None:
        memory = self.memory
        for allocation, start, part in memory.locate(site, source, lanes, offset, wanted, write=False, align=size):
            memory.check_read(site, allocation, start, part, wanted)
            start = spread(start, self.chunk.active(part))
            rows = slice(None) if part is None else part.indices
            if wanted == size:
                data[rows] = allocation.bytes.reshape(-1, size).take(start >> shift(size), axis=0)
            else:
                data[rows, :wanted] = allocation.bytes.take(start[:, None] + np.arange(wanted))

    def commit(self, lanes: Active) -> None:
        """``cp.async.commit_group``."""
        if lanes is None:
            self.groups += 1
        elif not isinstance(lanes, Empty):
            self.groups[lanes.indices] += 1

    def wait(self, lanes: Active, pending: int | None) -> None:
        """``wait_group pending``; ``None`` is ``wait_all``: the open group too."""
        if isinstance(lanes, Empty):
            return
        limit = self.groups + 1 if pending is None else self.groups - pending
        if lanes is not None:
            limit = np.where(lanes.active, limit, -1)
        remaining = []
        for copy in self.queue:
            done = copy.group < limit[copy.lanes]
            if done.all():
                self._finish(copy)
                continue
            if done.any():
                self._finish(copy.subset(done))
                copy = copy.subset(~done)
            remaining.append(copy)
        self.queue = remaining

    def _store(self, copy: _Copy) -> None:
        size = copy.data.shape[1]
        self.shared.bytes.view("u4").reshape(-1, size // 4)[copy.target >> shift(size)] = copy.data.view("u4")

    def _finish(self, copy: _Copy) -> None:
        if not copy.landed:
            self._store(copy)
        shadow = self.shared.shadow
        if shadow:
            shadow.land(copy.target, shadow.keys[copy.lanes], copy.data.shape[1])


def _distinct_sizes(sizes: Value, full: int) -> list[int]:
    """The source sizes that read something; nearly always ``full`` and nothing else, so a sort is avoided."""
    sizes = np.atleast_1d(sizes)
    odd = (sizes != full) & (sizes != 0)
    return [full, *np.unique(sizes[odd]).tolist()] if odd.any() else [full]
