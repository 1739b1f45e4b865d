"""Local memory: one private row of bytes per lane."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .lanes import Active, Empty, Indices, Lanes, Value, compact, expand
from .memory import make_aligned, shift

if TYPE_CHECKING:
    from .chunk import Chunk
    from .site import Site

BASE = 16  # the first address, so that a null pointer is out of bounds


class LocalMemory:
    """Rows of ``size`` bytes; bytes that were never written are tracked."""

    def __init__(self, chunk: Chunk, size: int) -> None:
        self.chunk = chunk
        self.size = size
        self.stride = -(-size // 16) * 16
        self.bytes = make_aligned(chunk.lane_count * self.stride)
        self.written = make_aligned(len(self.bytes))
        self.row = np.arange(chunk.lane_count) * self.stride - BASE

    def locate(self, site: Site, address: Value, lanes: Lanes, immediate: int, size: int, *, write: bool) -> Indices:
        """Byte indices of the active lanes; a bad address is reported and becomes the start of the row."""
        address = compact(lanes, address).astype(np.int64) + immediate
        outside = (address < BASE) | (address > BASE + self.size - size)
        crooked = ~outside & ((address & (size - 1)) != 0)
        verb = "writes" if write else "reads"

        def message(bad: int) -> str:
            return f"{verb} {size} bytes at local memory + {bad - BASE}; a thread has {self.size} bytes"

        for kind, bad in (("out of bounds", outside), ("misaligned", crooked)):
            if np.any(bad):
                self.chunk.report(kind, site, bad, lanes, message, address)
        address = np.where(outside | crooked, BASE, address)
        self._count(site, lanes, size)
        index: Indices = address + compact(lanes, self.row)
        return index

    def _count(self, site: Site, lanes: Lanes, size: int) -> None:
        if self.chunk.counting:
            counter = self.chunk.access(site)
            counter.requests += self.chunk.warps(lanes)
            counter.lanes += self.chunk.active(lanes)
            counter.bytes += self.chunk.active(lanes) * size

    def load(self, site: Site, address: Value, lanes: Active, immediate: int, element: int, count: int) -> list[Value]:
        """``count`` elements of ``element`` bytes per lane, unsigned."""
        words = self.bytes.view(f"u{element}")
        if isinstance(lanes, Empty):
            return [words.dtype.type(0)] * count
        size = element * count
        index = self.locate(site, address, lanes, immediate, size, write=False)
        bad = self.written.reshape(-1, element)[index >> shift(element)].min(axis=1) == 0
        for i in range(1, count):
            bad |= self.written.reshape(-1, element)[(index >> shift(element)) + i].min(axis=1) == 0
        if bad.any() and self.chunk.checking:
            self.chunk.report("uninitialised read", site, bad, lanes, "local memory never written")
        return [expand(lanes, words.take((index >> shift(element)) + i)) for i in range(count)]

    def store(
        self, site: Site, address: Value, lanes: Active, immediate: int, element: int, values: tuple[Value, ...]
    ) -> None:
        """Store unsigned elements."""
        if isinstance(lanes, Empty):
            return
        index = self.locate(site, address, lanes, immediate, element * len(values), write=True) >> shift(element)
        for i, value in enumerate(values):
            self.bytes.view(f"u{element}")[index + i] = compact(lanes, value)
            self.written.reshape(-1, element)[index + i] = 255
