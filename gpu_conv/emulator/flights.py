"""Registers of ``wgmma`` products in flight: who may touch them, and when.

Which instructions could touch such a register at all is known before the kernel runs (:class:`hazards.Hazards`); only
those ask :class:`Flights`, so a correct kernel pays nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .cfg import WARPGROUP
from .lanes import WARP, Active, Empty, Indices

if TYPE_CHECKING:
    from .chunk import Chunk
    from .product import Product
    from .site import Site


class Flights:
    """Per register and warp, the group of the last product that changes it (``results``) or reads A from it."""

    def __init__(self, chunk: Chunk, names: list[str]) -> None:
        self.chunk = chunk
        self.names = names  # of the registers, by number; empty if there are no products
        warps = chunk.lane_count // WARP
        self.results = np.zeros((len(names), warps), np.int32)
        self.fragments = np.zeros((len(names), warps), np.int32)
        self.committed = np.zeros(warps, np.int32)
        self.complete = np.zeros(warps, np.int32)
        self.fenced = np.zeros(warps, np.bool_)

    def _warps(self, first: Indices) -> Indices:
        return (first[:, None] // WARP + np.arange(WARPGROUP // WARP)).ravel()

    def fence(self, first: Indices) -> None:
        self.fenced[self._warps(first)] = True

    def commit(self, first: Indices) -> None:
        self.committed[self._warps(first)] += 1

    def wait(self, first: Indices, pending: int) -> None:
        warps = self._warps(first)
        self.complete[warps] = np.maximum(self.complete[warps], self.committed[warps] - pending)

    def issue(self, site: Site, product: Product, first: Indices) -> None:
        """A product of these warpgroups takes its registers."""
        warps = self._warps(first)
        if not self.fenced[warps].all() or product.unfenced:
            what = f"register {product.unfenced[0]} was used" if product.unfenced else "this is the first product"
            text = f"{what}, and no wgmma.fence orders this wgmma.mma_async after it"
            self.chunk.report("missing wgmma fence", site, np.bool_(True), first, text)
        if product.fragments:  # several products may read them, but none may be changing them
            self._check(site, product.fragments, warps, self.results)
            self.fragments[np.array(product.fragments)[:, None], warps] = self.committed[warps] + 1
        self._check(site, product.results, warps, self.fragments)
        self.results[np.array(product.results)[:, None], warps] = self.committed[warps] + 1

    def touch(self, site: Site, lanes: Active, registers: tuple[int, ...]) -> None:
        """An instruction uses registers that may be in flight."""
        if not isinstance(lanes, Empty):
            warps = np.arange(len(self.complete)) if lanes is None else np.flatnonzero(lanes.warps)
            self._check(site, registers, warps, self.results, self.fragments)

    def _check(self, site: Site, registers: tuple[int, ...], warps: Indices, *tables: npt.NDArray[np.int32]) -> None:
        rows = np.array(registers)[:, None]
        flying = np.zeros((len(registers), len(warps)), np.bool_)
        for table in tables:
            flying |= table[rows, warps] > self.complete[warps]
        if flying.any():
            name = self.names[registers[int(np.argmax(flying.any(axis=1)))]]
            bad = flying.any(axis=0)
            text = f"uses register {name} of a wgmma in flight, no wgmma.wait_group between"
            self.chunk.report("wgmma not waited for", site, bad, warps * WARP, text)

    def move(self, lanes: Active, target: int, source: int) -> None:
        """A copy of a register in flight, which the assembler makes the same register."""
        if not isinstance(lanes, Empty):
            warps = slice(None) if lanes is None else lanes.warps
            for table in (self.results, self.fragments):
                table[target, warps] = table[source, warps]
