"""Shared memory of the blocks of a chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .async_shadow import AsyncShadow
from .counters import count_wavefronts
from .lanes import Active, Empty, Indices, LaneList, Lanes, Value, compact, expand, spread
from .memory import make_aligned, shift
from .shadow import ATOMIC, Shadow

if TYPE_CHECKING:
    from .chunk import Chunk
    from .ir import Kernel
    from .knowledge import Knowledge
    from .site import Site

BASE = 1024  # the first address, so that a null pointer is out of bounds


class SharedMemory:
    """One row of bytes per block. Fresh memory reads as NaN (all bits set).

    Attributes:
        size: bytes that a block uses on a GPU; ``stride``: distance of the rows, with the guards between variables.
        extents: name, first and last-plus-one address of each variable, ascending.
        shadow: the race check, if it is on; ``asynchronous``: the same one in a kernel that needs that kind.
        row: per lane (or uniform if there is one block), what turns an address into an index of ``bytes``.
    """

    def __init__(
        self, chunk: Chunk, kernel: Kernel, dynamic: int, granule: int, knowledge: Knowledge | None, *,
        warp_barriers: bool,
    ) -> None:  # fmt: skip
        self.chunk = chunk
        self.size = kernel.shared_bytes(dynamic)
        self.extents = [(name, BASE + start, BASE + end) for name, start, end in kernel.shared_extents(dynamic)]
        self.stride = max(1, -(-(self.extents[-1][2] - BASE) // 128)) * 128
        self.bytes = make_aligned(chunk.block_count * self.stride)
        self.bytes[:] = 0xFF
        self.words = {n: self.bytes.view(t) for n, t in ((1, "u1"), (2, "u2"), (4, "u4"), (8, "u8"))}
        self.block_row = np.arange(chunk.block_count) * self.stride - BASE
        self.row: Value = self.block_row[chunk.local_block] if chunk.block_count > 1 else self.block_row[0]
        self.asynchronous: AsyncShadow | None = None
        self.shadow: Shadow | None = None
        if knowledge:
            self.shadow = self.asynchronous = AsyncShadow(chunk, len(self.bytes), granule, knowledge)
        elif chunk.checking:
            self.shadow = Shadow(chunk, len(self.bytes), granule, warp_barriers=warp_barriers)

    def locate(
        self, site: Site, address: Value, lanes: Lanes, immediate: int, size: int, *, write: bool
    ) -> tuple[Value, Indices | None]:
        """Addresses of the active lanes, checked, and their indices of ``bytes``.

        The indices are ``None`` if the address is uniform and all lanes are active.
        """
        address = self.check(site, compact(lanes, address).astype(np.int64) + immediate, lanes, size, write=write)
        if np.ndim(address) == 0 and lanes is None:
            return address, None
        count = self.chunk.lane_count if lanes is None else lanes.count
        return address, spread(address, count) + compact(lanes, self.row)

    def check(self, site: Site, address: Value, lanes: LaneList, size: int, *, write: bool) -> Value:
        """Check addresses; a bad one is reported and becomes a good one."""
        uniform = np.ndim(address) == 0
        _, low, high = self._extent(int(address if uniform else address.flat[0]))
        if uniform:
            fine = low <= address <= high - size and address % size == 0
        else:
            fine = address.max() <= high - size and address.min() >= low
            fine = fine and not int(np.bitwise_or.reduce(address)) & (size - 1)
        if fine:
            return address
        outside = np.ones(np.shape(address), np.bool_)
        for _, low, high in self.extents:  # lanes may use different variables
            outside &= (address < low) | (address > high - size)
        crooked = (address & (size - 1)) != 0
        verb = "writes" if write else "reads"

        def message(bad: int) -> str:
            name, low, high = self._extent(bad)
            return f"{verb} {size} bytes at {name} + {bad - low}, which has {high - low} bytes"

        for kind, bad in (("out of bounds", outside), ("misaligned", crooked & ~outside)):
            if np.any(bad):
                self.chunk.report(kind, site, bad, lanes, message, address)
        return np.where(outside | crooked, self.extents[0][1], address)[()]

    def describe(self, address: int) -> str:
        """Variable and offset of an address."""
        name, low, _ = self._extent(address)
        return f"{name} + {address - low}"

    def _extent(self, address: int) -> tuple[str, int, int]:
        """The variable at an address, or the next one below."""
        return next((extent for extent in reversed(self.extents) if address >= extent[1]), self.extents[0])

    def count(self, site: Site, address: Value, lanes: Lanes, size: int) -> None:
        if not self.chunk.counting:
            return
        counter = self.chunk.access(site)
        requests, active = self.chunk.warps(lanes), self.chunk.active(lanes)
        wavefronts, ideal = count_wavefronts(address, size, lanes, requests)
        counter.requests += requests
        counter.lanes += active
        counter.bytes += active * size
        counter.wavefronts += wavefronts
        counter.ideal_wavefronts += ideal

    def load(self, site: Site, address: Value, lanes: Active, immediate: int, element: int, count: int) -> list[Value]:
        """``count`` elements of ``element`` bytes per lane, unsigned."""
        if isinstance(lanes, Empty):
            return [self.words[element].dtype.type(0)] * count
        size = element * count
        address, index = self.locate(site, address, lanes, immediate, size, write=False)
        self.count(site, address, lanes, size)
        if index is None:
            return self._load_uniform(site, int(address), element, count)
        if self.shadow:
            self.shadow.read(site, index, lanes, size)
        if count == 1:
            return [expand(lanes, self.words[element].take(index >> shift(size)))]
        rows = self.words[element].reshape(-1, count).take(index >> shift(size), axis=0)
        return [expand(lanes, np.ascontiguousarray(rows[:, i])) for i in range(count)]

    def _load_uniform(self, site: Site, address: int, element: int, count: int) -> list[Value]:
        first = address + self.block_row
        if self.shadow and not self.shadow.read_by_all(site, self.shadow.granules(first), element * count):
            self.shadow.read(site, np.repeat(first, self.chunk.block_lanes), None, element * count)
        words = [self.words[element].take(first // element + i) for i in range(count)]
        if self.chunk.block_count == 1:
            return [w[0] for w in words]
        return [np.repeat(w, self.chunk.block_lanes) for w in words]

    def store(
        self, site: Site, address: Value, lanes: Active, immediate: int, element: int, values: tuple[Value, ...]
    ) -> None:
        """Store unsigned elements."""
        if isinstance(lanes, Empty):
            return
        size = element * len(values)
        address, index = self.locate(site, address, lanes, immediate, size, write=True)
        self.count(site, address, lanes, size)
        if index is None:
            index = spread(address, self.chunk.lane_count) + self.row
        if self.shadow:
            self.shadow.write(site, index, lanes, size)
        rows, index = self.words[element].reshape(-1, len(values)), index >> shift(size)
        for i, value in enumerate(values):
            rows[:, i][index] = compact(lanes, value)

    def atomic_index(self, site: Site, address: Value, lanes: Lanes, immediate: int, size: int) -> Indices:
        """Check and record an atomic; indices of ``bytes`` per active lane."""
        address, index = self.locate(site, address, lanes, immediate, size, write=True)
        self.count(site, address, lanes, size)
        if index is None:
            index = spread(address, self.chunk.lane_count) + self.row
        if self.shadow:
            self.shadow.write(site, index, lanes, size, mark=ATOMIC)
        return index
