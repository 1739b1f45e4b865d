"""``ldmatrix`` and ``mma.sync``.

A warp holds a matrix in fragments: lane = 4 * group + member. With e elements per register (4 bytes, or one value in
TF32), register j of A holds rows ``group + 8 * (j % 2)`` and columns ``4e * (j // 2) + e * member ...``; B the same by
columns; an accumulator register c[j] holds row ``group + 8 * (j // 2)``, column ``2 * member + j % 2``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .lanes import WARP, Lanes, Value, per_warp
from .numeric import bfloat_to_float

if TYPE_CHECKING:
    from .chunk import Chunk
    from .shared import SharedMemory
    from .site import Site

_CACHE_SIZE = 96  # decoded fragments: operands are used by several instructions of a tile

Matrix = npt.NDArray[np.float32]

# (shape, A type) -> multiply-adds per element of the result; the B type may differ in signedness only
MMA_SHAPES = {
    ("m16n8k16", "f16"): 16,
    ("m16n8k8", "f16"): 8,
    ("m16n8k16", "bf16"): 16,
    ("m16n8k8", "bf16"): 8,
    ("m16n8k8", "tf32"): 8,
    ("m16n8k4", "tf32"): 4,
    ("m16n8k16", "s8"): 16,
    ("m16n8k16", "u8"): 16,
    ("m16n8k32", "s8"): 32,
    ("m16n8k32", "u8"): 32,
}


def _decode(rows: npt.NDArray[np.uint32], kind: str) -> Matrix:
    """(warps, 32) registers -> (warps, 8, 4, e) float32; 8-bit integers are exact in float32."""
    shape = (len(rows), 8, 4, -1)
    match kind:
        case "f16":
            return rows.view(np.float16).astype(np.float32).reshape(shape)
        case "bf16":
            return np.asarray(bfloat_to_float(rows.view(np.uint16))).reshape(shape)
        case "tf32":  # the hardware ignores the low 13 bits
            return (rows & np.uint32(0xFFFFE000)).view(np.float32).reshape(shape)
    return rows.view(np.int8 if kind == "s8" else np.uint8).astype(np.float32).reshape(shape)


class TensorCore:
    """State: a cache of decoded operand fragments, by the identity of their registers."""

    def __init__(self, chunk: Chunk, shared: SharedMemory) -> None:
        self.chunk = chunk
        self.shared = shared
        self._cache: dict[tuple[Any, ...], tuple[tuple[Value, ...], Matrix]] = {}

    def _operand(self, registers: tuple[Value, ...], kind: str, is_a: bool) -> Matrix:
        key = (kind, is_a, *map(id, registers))
        known = self._cache.get(key)
        if known is not None:  # the cache keeps the registers alive, so an identity cannot be reused
            return known[1]
        parts = [_decode(per_warp(r, self.chunk.lane_count), kind) for r in registers]
        warps, elements = len(parts[0]), parts[0].shape[-1]
        if is_a:
            depth = len(parts) // 2
            blocks = np.empty((warps, 2, 8, depth, 4, elements), np.float32)
            for j, part in enumerate(parts):
                blocks[:, j % 2, :, j // 2] = part
            matrix = blocks.reshape(warps, 16, depth * 4 * elements)
        else:
            columns = np.stack(parts, axis=2)  # (warp, column, register, member, element)
            matrix = columns.reshape(warps, 8, -1).swapaxes(1, 2)
        if len(self._cache) >= _CACHE_SIZE:
            self._cache.pop(next(iter(self._cache)))
        self._cache[key] = (registers, matrix)
        return matrix

    def mma(
        self, site: Site, types: tuple[str, str], depth: int, a: tuple[Value, ...], b: tuple[Value, ...],
        c: tuple[Value, ...], lanes: Lanes,
    ) -> list[Value]:  # fmt: skip
        """``d = a @ b + c`` of every warp; float32 or int32 accumulators."""
        chunk = self.chunk
        warps = chunk.warps(lanes)
        chunk.mma_count += warps
        chunk.macs += warps * 16 * 8 * depth
        product: Any = np.matmul(self._operand(a, types[0], True), self._operand(b, types[1], False))
        if types[0] in ("s8", "u8"):  # at most 32 * 255 * 255 < 2**24: exact
            product = product.astype(np.int32)
        product = product.reshape(-1, 2, 8, 4, 2)
        return [product[:, j // 2, :, :, j % 2].reshape(-1) + c[j] for j in range(4)]

    def load_matrix(
        self, site: Site, address: Value, immediate: int, count: int, transposed: bool, lanes: Lanes
    ) -> list[Value]:
        """``ldmatrix``: ``count`` 8x8 matrices of 16-bit elements; lane 8j + r gives the address of row r of j."""
        chunk, shared = self.chunk, self.shared
        rows = per_warp(address, chunk.lane_count)[:, : 8 * count].astype(np.int64) + immediate
        warps = np.arange(len(rows)) if lanes is None else np.flatnonzero(lanes.warps)
        lanes_of_rows = (warps[:, None] * WARP + np.arange(rows.shape[1])).ravel()
        rows = shared.check(site, rows[warps].ravel(), lanes_of_rows, 16, write=False).reshape(len(warps), -1)
        if chunk.counting:
            counter = chunk.access(site)
            counter.requests += len(warps)
            counter.lanes += len(warps) * WARP
            counter.bytes += len(warps) * count * 128
            counter.ideal_wavefronts += len(warps) * count
            counter.wavefronts += _matrix_wavefronts(rows.reshape(-1, 8) >> 4)
        index = rows + shared.block_row[chunk.local_block[warps * WARP]][:, None]
        if shared.shadow:
            self._shadow(site, index, warps)
        words = shared.bytes.view("u4").reshape(-1, 4).take(index >> 4, axis=0).reshape(len(warps), count, 8, 4)
        if transposed:
            halves = words.view(np.uint16).swapaxes(2, 3)
            words = np.ascontiguousarray(halves).view(np.uint32)
        out = []
        for j in range(count):
            matrix = np.ascontiguousarray(words[:, j]).reshape(len(warps), WARP)
            if len(warps) < chunk.lane_count // WARP:
                full = np.zeros((chunk.lane_count // WARP, WARP), np.uint32)
                full[warps] = matrix
                matrix = full
            out.append(matrix.reshape(-1))
        return out

    def _shadow(self, site: Site, index: npt.NDArray[np.int64], warps: Any) -> None:
        """Word w of row r reaches lane 4r + w of the warp (without ``.trans``; with it the same lanes in sum)."""
        shadow = self.shared.shadow
        assert shadow is not None
        parts = np.arange(0, 16, shadow.granule)
        lane = (np.arange(index.shape[1])[:, None] % 8 * 4 + parts // 4)[None] + warps[:, None, None] * WARP
        shadow.read_collectively(site, shadow.granules(index[:, :, None] + parts).ravel(), lane.ravel())


def _matrix_wavefronts(rows: npt.NDArray[np.int64]) -> int:
    """Each 8x8 matrix needs one pass if its 8 rows of 16 bytes fall into different bank groups."""
    groups = np.sort(rows, axis=1)
    fresh = np.ones(groups.shape, np.bool_)
    fresh[:, 1:] = groups[:, 1:] != groups[:, :-1]
    slots = np.arange(len(groups))[:, None] * 8 + (groups & 7)
    return int(np.bincount(slots[fresh], minlength=len(groups) * 8).reshape(-1, 8).max(axis=1).sum())
