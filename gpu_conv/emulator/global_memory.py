"""Loads and stores of global memory (and of the constant and parameter windows, which live in the same space)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .counters import count_distinct
from .lanes import Active, Empty, Indices, LaneList, Lanes, Value, compact, expand, spread
from .memory import Allocation, shift

if TYPE_CHECKING:
    from .chunk import Chunk
    from .order import BlockOrder
    from .site import Site

_SECTOR_SHIFT = 5
_U64 = 2**64 - 1


class GlobalMemory:
    """What the blocks of a chunk see of the address space of the launch."""

    def __init__(self, chunk: Chunk, order: BlockOrder) -> None:
        self.chunk = chunk
        self.order = order
        self.space = chunk.launched.space

    def locate(
        self, site: Site, address: Value, lanes: Lanes, immediate: int, size: int, *, write: bool,
        align: int | None = None,
    ) -> list[tuple[Allocation, Value, Lanes]]:  # fmt: skip
        """Check the addresses of the active lanes and sort them by allocation.

        Returns (allocation, offsets of its active lanes, those lanes). One entry if all is well and every lane uses
        the same allocation; faulty lanes are reported and left out. ``align`` defaults to the size.
        """
        align = align or size
        address = compact(lanes, address)
        first = int(address if np.ndim(address) == 0 else address[0]) + immediate & _U64
        allocation = self.space.at(first)
        if allocation is not None and (allocation.writable or not write):
            offset = address - np.uint64((allocation.base - immediate) & _U64)
            if self._inside(allocation, offset, size, align):
                return [(allocation, offset.astype(np.int64), lanes)]
        return self._locate_each(site, address + np.uint64(immediate & _U64), lanes, size, align, write)

    def _inside(self, allocation: Allocation, offset: Value, size: int, align: int) -> bool:
        if np.ndim(offset) == 0:
            return allocation.low <= int(offset) <= allocation.high - size and int(offset) % align == 0
        if offset.max() > max(allocation.high - size, -1) or (allocation.low and offset.min() < allocation.low):
            return False
        return not int(np.bitwise_or.reduce(offset)) & (align - 1)

    def _locate_each(
        self, site: Site, address: Value, lanes: Lanes, size: int, align: int, write: bool
    ) -> list[tuple[Allocation, Value, Lanes]]:
        chunk = self.chunk
        indices = np.arange(chunk.lane_count) if lanes is None else lanes.indices
        address = spread(address, len(indices))
        legal = np.zeros(len(indices), np.bool_)
        protected = np.zeros(len(indices), np.bool_)
        crooked = (address & np.uint64(align - 1)) != 0
        parts = []
        for allocation in self.space.allocations:
            offset = (address - np.uint64(allocation.base)).view(np.int64)
            inside = (offset >= allocation.low) & (offset <= allocation.high - size)
            legal |= inside
            if write and not allocation.writable:
                protected |= inside
            elif (inside & ~crooked).any():
                parts.append((allocation, offset, inside & ~crooked))
        verb = "writes" if write else "reads"

        def message(bad: int) -> str:
            return f"{verb} {self.space.describe(bad, size)}"

        if not legal.all():
            chunk.report("out of bounds", site, ~legal, lanes, message, address)
        if (crooked & legal).any():
            chunk.report("misaligned", site, crooked & legal, lanes, message, address)
        if protected.any():
            chunk.report("write to read-only memory", site, protected, lanes, message, address)
        return [(a, offset[mine], chunk.mask_of(indices[mine])) for a, offset, mine in parts]

    def _touch(self, site: Site, allocation: Allocation, offset: Value, lanes: Lanes, size: int, write: bool) -> None:
        if not self.chunk.counting:
            return
        sector = offset >> _SECTOR_SHIFT
        (allocation.sectors_written if write else allocation.sectors_read)[sector] = True
        counter = self.chunk.access(site)
        requests, active = self.chunk.warps(lanes), self.chunk.active(lanes)
        counter.requests += requests
        counter.lanes += active
        counter.bytes += active * size
        counter.sectors += count_distinct(sector, lanes, requests)

    def check_read(self, site: Site, allocation: Allocation, offset: Value, lanes: Lanes, size: int) -> None:
        """Was the memory written before, by somebody that the reader is ordered after? Then count the access."""
        if self.chunk.checking:
            self.check_written(site, allocation, offset, lanes, size)
        self._touch(site, allocation, offset, lanes, size, write=False)

    def check_written(self, site: Site, allocation: Allocation, offset: Value, lanes: LaneList, size: int) -> None:
        """Was the memory written before, by somebody that the reader is ordered after?"""
        if allocation.written is not None:
            bad = allocation.is_unwritten(offset, size)
            if np.any(bad):
                text = f"reads {size} bytes of {allocation.name} that nobody has written"
                self.chunk.report("uninitialised read", site, bad, lanes, text, offset + allocation.base)
        if allocation.writable:
            self.order.read(site, allocation, offset, lanes, size)

    def load(self, site: Site, address: Value, lanes: Active, immediate: int, element: int, count: int) -> list[Value]:
        """``count`` elements of ``element`` bytes per lane, unsigned. Lanes with a bad address read zero."""
        if isinstance(lanes, Empty):
            return [np.dtype(f"u{element}").type(0)] * count
        size = element * count
        parts = self.locate(site, address, lanes, immediate, size, write=False)
        if len(parts) == 1 and parts[0][2] is lanes:
            allocation, offset, _ = parts[0]
            self.check_read(site, allocation, offset, lanes, size)
            return self._gather(allocation, offset, lanes, element, count)
        out = [np.zeros(self.chunk.lane_count, f"u{element}") for _ in range(count)]
        for allocation, offset, part in parts:
            self.check_read(site, allocation, offset, part, size)
            for total, value in zip(out, self._gather(allocation, offset, part, element, count), strict=True):
                total |= value
        return out

    def _gather(self, allocation: Allocation, offset: Value, lanes: Lanes, element: int, count: int) -> list[Value]:
        row = offset >> shift(element * count)
        if count == 1:
            return [expand(lanes, allocation.words[element].take(row))]
        rows = allocation.vectors(element, count).take(row, axis=0)
        if rows.ndim == 1:
            return list(rows)
        return [expand(lanes, np.ascontiguousarray(rows[:, i])) for i in range(count)]

    def store(
        self, site: Site, address: Value, lanes: Active, immediate: int, element: int, values: tuple[Value, ...]
    ) -> None:
        """Store unsigned elements."""
        if isinstance(lanes, Empty):
            return
        size = element * len(values)
        for allocation, offset, part in self.locate(site, address, lanes, immediate, size, write=True):
            offset = spread(offset, self.chunk.active(part))
            if self.chunk.checking:
                self.order.write(site, allocation, offset, part, size)
            self._touch(site, allocation, offset, part, size, write=True)
            row = offset >> shift(size)
            allocation.mark_written(row, size)
            rows = allocation.vectors(element, len(values))
            for i, value in enumerate(values):
                rows[:, i][row] = compact(part, value)

    def load_strong(self, site: Site, address: Value, lanes: Active, immediate: int, element: int, count: int,
                    acquire: bool) -> list[Value]:  # fmt: skip
        """``ld.volatile``, ``.relaxed`` or ``.acquire``: may see what another block hands over here."""
        if isinstance(lanes, Empty):
            return self.load(site, address, lanes, immediate, element, count)
        for allocation, offset, part in self.locate(site, address, lanes, immediate, element * count, write=False):
            offset = spread(offset, self.chunk.active(part))
            self.order.synchronise(allocation, offset, part, np.arange(len(offset)), release=False)
            if acquire:
                self.order.fence(part)
        return self.load(site, address, lanes, immediate, element, count)

    def store_strong(self, site: Site, address: Value, lanes: Active, immediate: int, element: int,
                     values: tuple[Value, ...], release: bool) -> None:  # fmt: skip
        """``st.volatile``, ``.relaxed`` or ``.release``: hands over what was fenced before."""
        if isinstance(lanes, Empty):
            return
        size = element * len(values)
        for allocation, offset, part in self.locate(site, address, lanes, immediate, size, write=True):
            if release:
                self.order.fence(part)
            offset = spread(offset, self.chunk.active(part))
            self.order.atomic(site, allocation, offset, part, size, np.arange(len(offset)))
            self._touch(site, allocation, offset, part, size, write=True)
            allocation.mark_written(offset >> shift(size), size)
            for i, value in enumerate(values):
                allocation.vectors(element, len(values))[:, i][offset >> shift(size)] = compact(part, value)

    def atomic_rows(
        self, site: Site, address: Value, lanes: Lanes, immediate: int, size: int
    ) -> list[tuple[Allocation, Indices, Lanes, Indices]]:
        """Check and record an atomic: allocation, indices of words of ``size`` bytes, lanes, their turns."""
        out = []
        for allocation, offset, part in self.locate(site, address, lanes, immediate, size, write=True):
            offset = spread(offset, self.chunk.active(part))
            random = self.chunk.random
            turns = np.arange(len(offset)) if random is None else random.permutation(len(offset))
            if self.chunk.checking:
                if allocation.written is not None and np.any(allocation.is_unwritten(offset, size)):
                    text = f"changes {allocation.name} where nobody has written"
                    bad = allocation.is_unwritten(offset, size)
                    self.chunk.report("uninitialised read", site, bad, part, text, offset + allocation.base)
                self.order.atomic(site, allocation, offset, part, size, turns)
            self._touch(site, allocation, offset, part, size, write=True)
            allocation.mark_written(offset >> shift(size), size)
            out.append((allocation, offset >> shift(size), part, turns))
        return out
