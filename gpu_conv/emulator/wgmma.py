"""``wgmma``: asynchronous matrix products of a warpgroup, four neighbouring warps.

The product is computed when it is issued; what may go wrong until it is waited for is checked: its registers
(:class:`Flights`) and the shared memory that it reads (:class:`async_shadow.AsyncShadow`).
Lane = 32 * warp + 4 * group + member holds of the 64 x N result, in register ``4 i + 2 h + e``, row
``16 warp + 8 h + group`` and column ``8 i + 2 member + e``.
"""

from __future__ import annotations

from operator import is_
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import descriptor
from .async_shadow import Reading
from .cfg import WARPGROUP
from .errors import UnsupportedPtx
from .lanes import Indices, Lanes, Value, spread
from .numeric import bfloat_to_float
from .product import DEPTHS, Product
from .tensor_map import swizzled

if TYPE_CHECKING:
    from .chunk import Chunk
    from .flights import Flights
    from .shared import SharedMemory
    from .site import Site

Matrix = npt.NDArray[np.float32]
ROWS = 64
_KEPT = 8  # accumulators whose matrix is remembered


class Wgmma:
    """State: products in flight and, for speed, which registers are the rows of one matrix."""

    def __init__(self, chunk: Chunk, shared: SharedMemory, flights: Flights) -> None:
        self.chunk = chunk
        self.shared = shared
        self.flights = flights
        self._known: list[tuple[tuple[Value, ...], npt.NDArray[Any]]] = []
        self._reading: dict[int, int] = {}  # warpgroup -> reading of its open group
        self._groups: dict[int, list[int]] = {}  # warpgroup -> readings of its committed groups, 0 for none

    def _warpgroups(self, lanes: Lanes) -> Indices:
        """First lane of each warpgroup that takes part; the scheduler has seen to it that they are complete."""
        lane = np.arange(self.chunk.lane_count) if lanes is None else lanes.indices
        return np.asarray(lane.reshape(-1, WARPGROUP)[:, 0])

    # ---- groups

    def fence(self, lanes: Lanes) -> None:
        """``wgmma.fence``."""
        self.flights.fence(self._warpgroups(lanes))

    def commit(self, lanes: Lanes) -> None:
        """``wgmma.commit_group``."""
        first = self._warpgroups(lanes)
        self.flights.commit(first)
        for lane in first.tolist():
            self._groups.setdefault(lane, []).append(self._reading.pop(lane, 0))

    def wait(self, lanes: Lanes, pending: int) -> None:
        """``wgmma.wait_group``."""
        first = self._warpgroups(lanes)
        self.flights.wait(first, pending)
        shadow, now = self.shared.asynchronous, self.chunk.clock.tick()
        for lane in first.tolist():
            groups = self._groups.get(lane, [])
            cut = max(0, len(groups) - pending)
            for number in groups[:cut]:
                if shadow and number:
                    shadow.readings[number].seen.append((lane, WARPGROUP, now))
            self._groups[lane] = groups[cut:]

    # ---- the product

    def multiply(
        self, site: Site, product: Product, results: tuple[Value, ...], a: Any, b: Value, keep: Value, lanes: Lanes
    ) -> Any:
        """``D = A @ B + D``, or without the sum where ``keep`` is false; rows are the accumulator registers.

        ``a`` is a descriptor, or the four registers that hold A.
        """
        chunk, first = self.chunk, self._warpgroups(lanes)
        depth = DEPTHS[product.kinds[0]]
        launch = chunk.launched
        launch.wgmma[product.name] += len(first)
        chunk.macs += len(first) * ROWS * product.columns * depth
        self.flights.issue(site, product, first)
        if isinstance(a, tuple):
            left = self._from_registers(a, product.kinds[0], first)
        else:
            left = self._from_shared(site, a, first, ROWS, product.kinds[0], product.across_a)
        right = self._from_shared(site, b, first, product.columns, product.kinds[1], product.across_b)
        if product.negate_a != product.negate_b:
            left = -left
        total = np.matmul(left, right.swapaxes(1, 2))
        integers = product.kinds[0] in ("s8", "u8")
        if integers:  # at most 32 * 255 * 255 < 2**24: exact
            total = total.astype(np.int32)
        # (group, warp, h, group of lanes, i, member, e) -> (i, h, e, lanes)
        parts = total.reshape(len(first), 4, 2, 8, product.columns // 8, 4, 2).transpose(4, 2, 6, 0, 1, 3, 5)
        fragments = parts.reshape(product.columns // 2, -1)
        return self._accumulate(site, results, fragments, keep, first, lanes)

    def _accumulate(
        self, site: Site, results: tuple[Value, ...], fragments: Any, keep: Value, first: Indices, lanes: Lanes
    ) -> Any:
        count = self.chunk.lane_count
        if lanes is not None:
            whole = np.zeros((len(fragments), count), fragments.dtype)
            whole[:, lanes.indices] = fragments
            fragments = whole
        keep = self._uniform(site, spread(keep, count), first, "scale-d")
        if keep.any():
            old = self._matrix(results)
            if not keep.all():
                kept = np.zeros(count, np.bool_)
                kept.reshape(-1)[(first[:, None] + np.arange(WARPGROUP)).ravel()] = np.repeat(keep, WARPGROUP)
                old = np.where(kept, old, old.dtype.type(0))
            fragments = fragments + old
        rows = tuple(fragments)
        self._known = [*self._known[-_KEPT + 1 :], (rows, fragments)]
        return rows

    def _matrix(self, results: tuple[Value, ...]) -> npt.NDArray[Any]:
        """Registers as rows of one matrix; those of an earlier product are that already."""
        for rows, matrix in reversed(self._known):
            if len(rows) == len(results) and rows[0] is results[0] and all(map(is_, rows, results)):
                return np.asarray(matrix)
        stacked: npt.NDArray[Any] = np.stack([spread(r, self.chunk.lane_count) for r in results])
        return stacked

    def _uniform(self, site: Site, values: npt.NDArray[Any], first: Indices, what: str) -> npt.NDArray[Any]:
        """The value of each warpgroup; its lanes must agree."""
        rows = values[first[:, None] + np.arange(WARPGROUP)]
        differ = (rows != rows[:, :1]).any(axis=1)
        if differ.any():
            text = f"the {what} differs within the warpgroup"
            self.chunk.report("undefined operand", site, differ, first, text)
        return np.asarray(rows[:, 0])

    # ---- operands

    def _from_registers(self, registers: tuple[Value, ...], kind: str, first: Indices) -> Matrix:
        """Register j holds rows ``group + 8 * (j % 2)`` and bytes ``16 * (j // 2) + 4 * member``."""
        lanes = first[:, None] + np.arange(WARPGROUP)
        words = np.stack([spread(r, self.chunk.lane_count)[lanes] for r in registers])
        parts = words.reshape(2, 2, len(first), 4, 8, 4).transpose(
            2, 3, 1, 4, 0, 5
        )  # (.., warp, h, group, half, member)
        return _decode(np.ascontiguousarray(parts).reshape(len(first), ROWS, 8), kind)

    def _from_shared(self, site: Site, bits: Value, first: Indices, rows: int, kind: str, across: bool) -> Matrix:
        """(warpgroups, rows, depth), as float32."""
        chunk = self.chunk
        values = self._uniform(site, spread(bits, chunk.lane_count), first, "matrix descriptor")
        if (values == values[0]).all():
            address = self._pieces(site, int(values[0]), rows, kind, across)
            address = np.broadcast_to(address, (len(first), *address.shape))
        else:
            address = np.stack([self._pieces(site, v, rows, kind, across) for v in values.tolist()])
        flat = address.reshape(len(first), -1)
        lane = np.repeat(first, flat.shape[1])
        safe = self.shared.check(site, flat.ravel(), lane, descriptor.PIECE, write=False)
        index = safe.reshape(flat.shape) + self.shared.block_row[chunk.local_block[first]][:, None]
        if self.shared.asynchronous:
            self._record(site, index, first)
        if chunk.counting:
            counter = chunk.access(site)
            counter.requests += len(first)
            counter.lanes += len(first) * WARPGROUP
            counter.bytes += index.size * descriptor.PIECE
        words = self.shared.words[8].reshape(-1, 2).take(index >> 4, axis=0)
        if not across:
            return _decode(words.view(np.uint32).reshape(len(first), rows, 8), kind)
        halves = words.view(np.uint16).reshape(len(first), DEPTHS[kind], rows).swapaxes(1, 2)
        return _decode(np.ascontiguousarray(halves).view(np.uint32), kind)

    def _pieces(self, site: Site, bits: int, rows: int, kind: str, across: bool) -> Indices:
        fields = descriptor.decode(bits)
        if fields.base or fields.rest:
            text = f"matrix descriptor {bits:#018x}: a base offset or unknown bits"
            raise UnsupportedPtx(f"{text} are not implemented: PTX line {site.instruction.line}")
        offsets = descriptor.offsets(rows, fields.swizzle, fields.leading, fields.stride, across, DEPTHS[kind])
        return swizzled(fields.start + offsets, fields.swizzle)

    def _record(self, site: Site, index: Indices, first: Indices) -> None:
        """These bytes must have arrived, and be left alone until the group has been waited for."""
        shadow = self.shared.asynchronous
        assert shadow is not None
        numbers = []
        for lane in first.tolist():
            if lane not in self._reading:
                shadow.readings.append(Reading("a wgmma", "no wgmma.wait_group and barrier"))
                self._reading[lane] = len(shadow.readings) - 1
            numbers.append(self._reading[lane])
        agents = first % self.chunk.block_lanes // WARPGROUP
        shadow.read_by_warpgroups(site, shadow.spans(index, descriptor.PIECE), first, agents, np.array(numbers))


def _decode(words: npt.NDArray[np.uint32], kind: str) -> Matrix:
    """The last axis holds 32 bytes of k; as float32, in which 8-bit integers are exact."""
    match kind:
        case "f16":
            return np.asarray(words.view(np.float16).astype(np.float32))
        case "bf16":
            return np.asarray(bfloat_to_float(words.view(np.uint16)))
        case "tf32":  # the hardware ignores the low 13 bits
            return np.asarray((words & np.uint32(0xFFFFE000)).view(np.float32))
    return np.asarray(words.view(np.int8 if kind == "s8" else np.uint8).astype(np.float32))
