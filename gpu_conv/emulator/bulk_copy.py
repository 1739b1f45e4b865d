"""Bulk copies: boxes of a tensor or runs of bytes between global and shared memory, done by the asynchronous proxy.

A load is fetched when issued and lands, counted by its mbarrier, once no thread can go on without it (with a random
schedule at any time): as late as the rules allow. A store is done at once, but what it reads stays in use until its
thread has waited for its group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import tensor_map
from .async_shadow import Reading
from .errors import UnsupportedPtx
from .lanes import Active, Empty, Indices, Value, spread
from .memory import Bytes
from .tensor_map import Tiles, swizzled

if TYPE_CHECKING:
    from .chunk import Chunk
    from .global_memory import GlobalMemory
    from .mbarrier import Mbarrier, Mbarriers
    from .memory import Allocation
    from .shared import SharedMemory
    from .site import Site

CHUNK = 16  # bytes that stay together
_ALIGNMENT = 128  # of a box in shared memory


@dataclass(eq=False)
class _Load:
    site: Site
    lane: int
    rows: Indices  # of 16 bytes, of all shared memory
    data: Bytes
    mbarrier: Mbarrier
    copy: int


class BulkCopies:
    """The bulk copies of a chunk."""

    def __init__(self, chunk: Chunk, memory: GlobalMemory, shared: SharedMemory, mbarriers: Mbarriers) -> None:
        self.chunk = chunk
        self.memory = memory
        self.shared = shared
        self.mbarriers = mbarriers
        self.queue: list[_Load] = []
        self.groups: dict[int, list[list[tuple[int, Site]]]] = {}  # lane -> groups of stores -> readings
        self._maps: dict[int, Tiles | None] = {}

    def _each(self, lanes: Active, *values: Value) -> Iterator[list[int]]:
        """Lane and its values, one active lane after the other."""
        if isinstance(lanes, Empty):
            return
        indices = np.arange(self.chunk.lane_count) if lanes is None else lanes.indices
        rows = [spread(v, self.chunk.lane_count)[indices].tolist() for v in values]
        for row in zip(indices.tolist(), *rows, strict=True):
            yield list(row)

    # ---- loads

    def load_tensor(
        self, source: Site, target: Site, lanes: Active, to: Value, to_offset: int, where: Value, where_offset: int,
        corner: tuple[Value, ...], mbarrier: Value, mbarrier_offset: int,
    ) -> None:  # fmt: skip
        """``cp.async.bulk.tensor`` from global to shared memory; what lies outside of the tensor is zero."""
        for lane, place, at, counter, *corner_of in self._each(lanes, to, where, mbarrier, *corner):
            tiles = self._tiles(source, lane, at + where_offset, corner_of)
            if tiles is None:
                continue
            offset, inside, low, high = tiles.rows(tuple(corner_of))
            data = np.zeros((len(offset), tiles.row_bytes), np.uint8)
            if high > low:
                found = self._global(source, lane, tiles.address + offset[inside], high - low, write=False)
                if found is not None:
                    allocation, start, kept = found
                    rows = np.flatnonzero(inside)[kept]
                    data[rows, low:high] = self._words(allocation, start, high - low)
            self._issue(target, lane, place + to_offset, data, tiles.swizzle, counter + mbarrier_offset)

    def load_linear(
        self, source: Site, target: Site, lanes: Active, to: Value, to_offset: int, where: Value, where_offset: int,
        size: Value, mbarrier: Value, mbarrier_offset: int,
    ) -> None:  # fmt: skip
        """``cp.async.bulk`` from global to shared memory."""
        for lane, place, at, count, counter in self._each(lanes, to, where, size, mbarrier):
            if not self._whole_chunks(source, lane, at + where_offset, place + to_offset, count):
                continue
            found = self._global(source, lane, np.array([at + where_offset]), count, write=False)
            data = np.zeros((1, count), np.uint8)
            if found is not None and found[1].size:
                data[:] = self._words(found[0], found[1], count)
            self._issue(target, lane, place + to_offset, data, 0, counter + mbarrier_offset)

    def _issue(self, site: Site, lane: int, place: int, data: Bytes, swizzle: int, counter: int) -> None:
        chunk = self.chunk
        block = int(chunk.local_block[lane])
        address = self._shared(site, lane, place, data.size, swizzle, write=True)
        known = self.mbarriers.at(site, block, counter, np.array([lane]))
        if known is None or address is None:
            return
        self.mbarriers.check_fence(site, known, lane)
        index = address + self.shared.block_row[block]
        shadow, copy = self.shared.asynchronous, 0
        if shadow:
            copy = shadow.new_copy(shadow.knowledge.column(known.address))
            shadow.write_by_copy(site, shadow.spans(index, CHUNK), lane, copy)
        self.queue.append(_Load(site, lane, index // CHUNK, data.reshape(-1, CHUNK), known, copy))

    def land(self) -> bool:
        """Let the copies arrive, all or, with a random schedule, some of them; ``False`` if there are none."""
        if not self.queue:
            return False
        chunk = self.chunk
        landing, self.queue = self.queue, []
        if chunk.random is not None:
            chosen = chunk.random.integers(0, 2, len(landing))
            chosen[chunk.random.integers(len(landing))] = 1
            self.queue = [load for load, now in zip(landing, chosen, strict=True) if not now]
            landing = [load for load, now in zip(landing, chosen, strict=True) if now]
        memory = self.shared.words[8].reshape(-1, 2)
        for load in landing:
            memory[load.rows] = load.data.view("u8")
            self.mbarriers.arrived(load.mbarrier, load.data.size, load.copy)
        return True

    # ---- stores

    def store_tensor(
        self, target: Site, source: Site, lanes: Active, where: Value, where_offset: int, corner: tuple[Value, ...],
        of: Value, of_offset: int,
    ) -> None:  # fmt: skip
        """``cp.async.bulk.tensor`` from shared to global memory; whole pieces outside of the tensor are dropped."""
        for lane, at, place, *corner_of in self._each(lanes, where, of, *corner):
            tiles = self._tiles(target, lane, at + where_offset, corner_of)
            if tiles is None or not self._storable(target, lane, tiles, tuple(corner_of)):
                continue
            data = self._take(source, lane, place + of_offset, tiles.box_bytes, tiles.swizzle)
            if data is None:
                continue
            offset, inside, _, size = tiles.rows(tuple(corner_of))
            if size:
                found = self._global(target, lane, tiles.address + offset[inside], size, write=True)
                if found is not None:
                    allocation, start, kept = found
                    rows = data.reshape(-1, tiles.row_bytes)[np.flatnonzero(inside)[kept], :size]
                    self._put(allocation, start, rows)

    def _storable(self, site: Site, lane: int, tiles: Tiles, corner: tuple[int, ...]) -> bool:
        """Whether the copy engine stores a box at this corner, and nothing outside of the tensor.

        Measured on an H100: any negative corner is an illegal instruction (the CUDA programming guide forbids it too,
        of stores only), and what a row leaves of its last 16 bytes is written with it.
        """
        _, inside, low, high = tiles.rows(corner)
        behind = -high % CHUNK if high > low and inside.any() else 0
        if min(corner) < 0:
            text = f"corner {corner} of a store is negative, an illegal instruction on hardware: "
            text += "only loads may begin before the tensor"
        elif behind:
            text = f"rows of {tiles.shape[0]} elements end inside {CHUNK} bytes, which a store writes as a whole: "
            text += f"{behind} bytes behind each row"
        elif max(tiles.steps) > 1:  # only seen with negative corners: hardware may refuse the steps too
            raise UnsupportedPtx(f"a store with steps of {tiles.steps} elements is not implemented")
        else:
            return True
        self.chunk.report("out of bounds", site, np.bool_(True), np.array([lane]), text, tiles.address)
        return False

    def store_linear(
        self, target: Site, source: Site, lanes: Active, where: Value, where_offset: int, of: Value, of_offset: int,
        size: Value,
    ) -> None:  # fmt: skip
        """``cp.async.bulk`` from shared to global memory."""
        for lane, at, place, count in self._each(lanes, where, of, size):
            if not self._whole_chunks(target, lane, at + where_offset, place + of_offset, count):
                continue
            data = self._take(source, lane, place + of_offset, count, 0)
            found = self._global(target, lane, np.array([at + where_offset]), count, write=True)
            if data is not None and found is not None and found[1].size:
                self._put(found[0], found[1], data.reshape(1, -1))

    def _take(self, site: Site, lane: int, place: int, size: int, swizzle: int) -> Bytes | None:
        """What a store reads from shared memory."""
        chunk = self.chunk
        address = self._shared(site, lane, place, size, swizzle, write=False)
        if address is None:
            return None
        index = address + self.shared.block_row[chunk.local_block[lane]]
        shadow = self.shared.asynchronous
        if shadow:
            shadow.readings.append(Reading("a bulk copy", "no cp.async.bulk.wait_group"))
            number = len(shadow.readings) - 1
            granule = shadow.spans(index, CHUNK)
            agent = -1 - lane % chunk.block_lanes
            shadow.read_asynchronously(site, granule, np.full(len(granule), lane), agent, number)
            self.groups.setdefault(lane, [[]])[-1].append((number, site))
        rows = self.shared.words[8].reshape(-1, 2).take(index // CHUNK, axis=0)
        data: Bytes = rows.view(np.uint8).reshape(-1)
        return data

    def commit(self, lanes: Active) -> None:
        """``cp.async.bulk.commit_group``."""
        for (lane,) in self._each(lanes):
            self.groups.setdefault(lane, [[]]).append([])

    def wait(self, lanes: Active, pending: int) -> None:
        """``cp.async.bulk.wait_group``: the sources of all but the last ``pending`` groups may be overwritten."""
        shadow = self.shared.asynchronous
        for (lane,) in self._each(lanes):
            groups = self.groups.get(lane, [[]])
            cut = max(0, len(groups) - 1 - pending)
            now = self.chunk.clock.tick()
            for number, _ in (entry for group in groups[:cut] for entry in group):
                if shadow:
                    shadow.readings[number].seen.append((lane, 1, now))
            self.groups[lane] = groups[cut:]

    def finish(self) -> None:
        """The threads have exited: nothing may still use the shared memory, which goes to another block."""
        left = [(load.site, load.lane, "writes shared memory after its threads have exited") for load in self.queue]
        for lane, groups in self.groups.items():
            text = "may read shared memory after its threads have exited: no cp.async.bulk.wait_group"
            left += [(site, lane, text) for group in groups for _, site in group]
        for site, lane, text in left:
            self.chunk.report("bulk copy not waited for", site, np.bool_(True), np.array([lane]), text)

    # ---- the two memories

    def _tiles(self, site: Site, lane: int, address: int, corner: list[int]) -> Tiles | None:
        """The tensor map at an address, if it takes a box at this corner."""
        chunk, rank = self.chunk, len(corner)
        if address not in self._maps:
            allocation = chunk.launched.space.at(address)
            start = address - allocation.base if allocation else 0
            legal = allocation and allocation.low <= start <= allocation.high - tensor_map.SIZE
            if address % tensor_map.ALIGNMENT or not legal or allocation is None:
                self._maps[address] = None
            else:
                self._maps[address] = tensor_map.decode(allocation.bytes[start : start + tensor_map.SIZE].tobytes())
        tiles = self._maps[address]
        if tiles is None or len(tiles.shape) != rank:
            what = "no tensor map" if tiles is None else f"a tensor map of rank {len(tiles.shape)}, not {rank},"
            text = f"there is {what} at {chunk.launched.space.describe(address, tensor_map.SIZE)}"
            chunk.report("invalid tensor map", site, np.bool_(True), np.array([lane]), text, address)
            return None
        if tiles.swizzle and tiles.row_bytes != tiles.swizzle:
            raise UnsupportedPtx(f"rows of {tiles.row_bytes} bytes in a swizzle of {tiles.swizzle} are not implemented")
        if corner[0] * tiles.element % CHUNK:
            text = f"corner {corner[0]} on the innermost axis is no multiple of {CHUNK // tiles.element} elements, "
            text += f"{CHUNK} bytes: an illegal instruction on hardware"
            chunk.report("misaligned", site, np.bool_(True), np.array([lane]), text, address)
            return None
        return tiles

    def _shared(self, site: Site, lane: int, place: int, size: int, swizzle: int, *, write: bool) -> Indices | None:
        """The address of each 16 bytes in shared memory."""
        chunk = self.chunk
        tensor = "tensor" in site.instruction.modifiers
        if place % (_ALIGNMENT if tensor else CHUNK):
            text = f"shared address {place:#x} is no multiple of {_ALIGNMENT if tensor else CHUNK}"
            chunk.report("misaligned", site, np.bool_(True), np.array([lane]), text, place)
            return None
        if chunk.counting:
            counter = chunk.access(site)
            counter.requests += 1
            counter.lanes += 1
            counter.bytes += size
        address = place + np.arange(0, size, CHUNK)
        checked = self.shared.check(site, address, np.full(len(address), lane), CHUNK, write=write)
        if (checked != address).any():
            return None
        return swizzled(address, swizzle)

    def _whole_chunks(self, site: Site, lane: int, address: int, place: int, size: int) -> bool:
        fine = size > 0 and not size % CHUNK and not address % CHUNK and not place % CHUNK
        if not fine:
            text = f"{size} bytes between {address:#x} and {place:#x}: all are multiples of {CHUNK} in a bulk copy"
            self.chunk.report("misaligned", site, np.bool_(True), np.array([lane]), text, address)
        return fine

    def _global(
        self, site: Site, lane: int, address: Indices, size: int, *, write: bool
    ) -> tuple[Allocation, Indices, Indices] | None:
        """Allocation, offsets and numbers of the rows of ``size`` bytes that lie in it; the others are reported."""
        chunk = self.chunk
        if not address.size:
            return None
        allocation = chunk.launched.space.at(int(address[0]))
        verb = "writes" if write else "reads"
        offset = address - allocation.base if allocation else address
        legal = np.zeros(len(address), np.bool_)
        if allocation:
            legal = (offset >= allocation.low) & (offset <= allocation.high - size)
        lanes = np.full(len(address), lane)

        def message(bad: int) -> str:
            return f"{verb} {chunk.launched.space.describe(bad, size)}"

        if not legal.all():
            chunk.report("out of bounds", site, ~legal, lanes, message, address)
        if allocation is None or not legal.any():
            return None
        if write and not allocation.writable:
            chunk.report("write to read-only memory", site, legal, lanes, message, address)
            return None
        kept = np.flatnonzero(legal)
        self._note(site, allocation, offset[kept], size, lane, write)
        return allocation, offset[kept], kept

    def _note(self, site: Site, allocation: Allocation, start: Indices, size: int, lane: int, write: bool) -> None:
        """Counters and the checks of global memory, in pieces that no row shares with another."""
        chunk = self.chunk
        if chunk.checking and allocation.writable:
            piece = _piece(start, size)
            offsets = (start[:, None] + np.arange(0, size, piece)).ravel()
            lanes = np.full(len(offsets), lane)
            if write:
                self.memory.order.write(site, allocation, offsets, lanes, piece)
            else:
                self.memory.check_written(site, allocation, offsets, lanes, piece)
        if chunk.counting:
            first, last = start >> 5, start + size - 1 >> 5
            sectors = np.unique((first[:, None] + np.arange(int((last - first).max()) + 1)).ravel())
            sectors = sectors[sectors <= last.max()]
            (allocation.sectors_written if write else allocation.sectors_read)[sectors] = True
            counter = chunk.access(site)
            counter.requests += 1
            counter.lanes += 1
            counter.bytes += size * len(start)
            counter.sectors += len(sectors)

    def _words(self, allocation: Allocation, start: Indices, size: int) -> Any:
        """Rows of ``size`` bytes."""
        piece = _piece(start, size)
        rows = allocation.words[piece].take((start // piece)[:, None] + np.arange(size // piece))
        return rows.view(np.uint8)

    def _put(self, allocation: Allocation, start: Indices, rows: Bytes) -> None:
        size = rows.shape[1]
        piece = _piece(start, size)
        words = np.ascontiguousarray(rows).view(f"u{piece}")
        index = (start // piece)[:, None] + np.arange(size // piece)
        allocation.words[piece][index] = words
        allocation.mark_written(index.ravel(), piece)


def _piece(start: Indices, size: int) -> int:
    """The largest word of at most 8 bytes of which rows consist."""
    bits = int(np.bitwise_or.reduce(start)) | size | 8
    return bits & -bits
