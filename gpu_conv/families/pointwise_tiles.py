"""Tiles of the pointwise kernel."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Engine(Enum):
    """Arithmetic of a kernel, the last for filters with zero points; ``enum Engine`` of ``pointwise_plan.cuh``."""

    IEEE = 0
    TENSOR_CORES = 1
    TENSOR_CORES_ZERO_POINTS = 2


class Tile(NamedTuple):
    """The template ``Tile``: what one block computes and how.

    Attributes:
        rows, columns: of the product; pixels are the rows where the output is channels-last, else the columns.
        slab: bytes of k fetched at a time.
        warp_rows, warp_columns: part of one warp.
        stages: slabs in the ring.
        k_warps: warps that share a slab's k.
        resident: whether the filter stays in shared memory while the block walks over pixel tiles.
        blocks: blocks per multiprocessor for which registers are allotted.
        split: whether several blocks share the k of a tile.
        one_axis: whether registers suffice only where the pixels of x, and those of y, have one stride.
    """

    rows: int
    columns: int
    slab: int
    warp_rows: int
    warp_columns: int
    stages: int
    k_warps: int
    resident: bool
    blocks: int
    split: bool = False
    one_axis: bool = False

    @property
    def warps(self) -> int:
        """Warps side by side on the tile."""
        return (self.rows // self.warp_rows) * (self.columns // self.warp_columns)

    @property
    def threads(self) -> int:
        return self.warps * self.k_warps * 32

    @property
    def cpp(self) -> str:
        """The template argument."""
        numbers = (self.rows, self.columns, self.slab, self.warp_rows, self.warp_columns, self.stages, self.k_warps)
        return f"Tile<{', '.join(map(str, (*numbers, int(self.resident), int(self.split), self.blocks)))}>"


def _resident(
    rows: int, columns: int, slab: int, warp_rows: int, warp_columns: int, blocks: int, stages: int = 4
) -> Tile:
    return Tile(rows, columns, slab, warp_rows, warp_columns, stages, 1, True, blocks)


def _streaming(
    rows: int,
    columns: int,
    slab: int,
    warp_rows: int,
    warp_columns: int,
    blocks: int,
    stages: int = 4,
    one_axis: bool = False,
) -> Tile:
    return Tile(rows, columns, slab, warp_rows, warp_columns, stages, 1, False, blocks, one_axis=one_axis)


def _few(rows: int, columns: int, slab: int, k_warps: int, blocks: int, split: bool = False) -> Tile:
    return Tile(rows, columns, slab, rows, columns, 4, k_warps, False, blocks, split)


_WIDE = (_streaming(128, 128, 128, 64, 64, 2, stages=3), _streaming(128, 96, 128, 32, 48, 2, stages=3))
_FLAT, _TALL = _streaming(96, 128, 128, 48, 32, 2, stages=3), _resident(192, 64, 64, 48, 32, 2)

# Bytes of an element, tile -> capabilities for which it is not offered, because ptxas spilled (13.5's only TF32).
_AMPERE, _BLACKWELL = range(80, 90), range(100, 130)  # the latter begins the loads of later steps early
SPILLING: dict[tuple[int, Tile], tuple[range, ...]] = {
    (4, _WIDE[0]): (_BLACKWELL,),  # TF32, 16 to 44 bytes
    (4, _WIDE[1]): (_BLACKWELL,),
    (4, _FLAT): (_BLACKWELL,),  # planes of odd size: sm_120, 13.0
    (1, _WIDE[1]): (_BLACKWELL,),  # clip, 24 bytes: sm_120, 12.9
    (1, _TALL): (_AMPERE, _BLACKWELL),  # clip, 12 to 16 bytes: 12.9 and 13.0
}

# Keyed by the engine and by whether pixels are in the rows. Registers decide the warp tiles: 2 blocks of 256 threads
# leave 128 registers a thread, of which the sums may take about 64. `blocks` is what the cubins reach without spills.
TILES: dict[tuple[Engine, bool], tuple[Tile, ...]] = {
    (Engine.TENSOR_CORES, True): (
        _resident(256, 16, 64, 32, 16, 2),
        _resident(128, 16, 64, 16, 16, 2),
        _resident(128, 24, 64, 16, 24, 2),
        _resident(256, 32, 64, 32, 32, 2, stages=3),
        _resident(128, 24, 128, 16, 24, 2),
        _resident(128, 32, 128, 16, 32, 2),
        _resident(128, 48, 64, 32, 24, 2),
        _resident(128, 64, 64, 32, 32, 2),
        _resident(128, 64, 128, 32, 32, 2),
        _resident(128, 96, 32, 32, 48, 2),
        _resident(128, 96, 64, 32, 48, 2),
        _resident(64, 144, 64, 32, 48, 2),
        _resident(64, 160, 64, 32, 40, 2),
        _resident(64, 192, 64, 32, 48, 2),
        _resident(128, 128, 64, 64, 64, 2),
        *_WIDE,
        _streaming(64, 160, 128, 32, 40, 2, stages=3),
        _streaming(128, 64, 128, 32, 32, 2, stages=3),
        _streaming(64, 64, 128, 32, 32, 4, stages=3),
        _few(32, 32, 128, 4, 4),
        _few(16, 32, 256, 8, 2),
        _few(16, 16, 256, 8, 2),
        _few(32, 32, 128, 4, 4, split=True),
    ),
    (Engine.TENSOR_CORES, False): (
        _resident(16, 256, 64, 16, 32, 2),
        _resident(32, 256, 64, 32, 32, 2, stages=3),
        _resident(32, 128, 128, 32, 16, 2),
        _resident(48, 128, 64, 48, 16, 2),
        _resident(64, 128, 64, 32, 32, 2),
        _resident(96, 128, 32, 48, 32, 2),
        _resident(96, 128, 64, 48, 32, 2),
        _resident(144, 64, 64, 48, 32, 2),
        _TALL,
        _resident(128, 128, 64, 64, 64, 2),
        _streaming(128, 128, 128, 64, 64, 2, stages=3),
        _FLAT,
        _streaming(160, 64, 128, 32, 32, 1, stages=3),
        _streaming(64, 128, 128, 32, 32, 2, stages=3),
        _streaming(64, 64, 128, 32, 32, 4, stages=3),
        _few(32, 32, 128, 4, 4),
        _few(16, 32, 256, 8, 2),
        _few(32, 32, 128, 4, 4, split=True),
    ),
    (Engine.TENSOR_CORES_ZERO_POINTS, True): (
        _resident(64, 64, 64, 16, 32, 2),
        _streaming(64, 64, 64, 32, 32, 3),
        _few(16, 32, 256, 8, 2),
    ),
    (Engine.TENSOR_CORES_ZERO_POINTS, False): (
        _resident(64, 64, 64, 16, 32, 2),
        _streaming(64, 64, 64, 32, 32, 3),
        _few(16, 32, 256, 8, 2),
    ),
    (Engine.IEEE, True): (
        _resident(256, 16, 64, 32, 16, 2),
        _resident(256, 24, 64, 32, 24, 2),
        _resident(256, 32, 64, 32, 32, 2),
        _resident(128, 64, 64, 32, 32, 2),
        _resident(128, 96, 64, 32, 48, 2),
        _resident(128, 144, 64, 32, 72, 1),
        _streaming(128, 128, 64, 32, 64, 2, stages=3, one_axis=True),
        _streaming(128, 64, 64, 32, 32, 2),
        _streaming(64, 64, 64, 16, 32, 2),
        _few(16, 32, 256, 8, 2),
        _few(32, 32, 128, 8, 2),
        _few(32, 32, 128, 8, 2, split=True),
    ),
    (Engine.IEEE, False): (
        _resident(16, 256, 64, 16, 32, 2),
        _resident(32, 256, 64, 32, 32, 2),
        _resident(64, 128, 64, 32, 32, 2),
        _resident(96, 128, 64, 24, 64, 2),
        _resident(144, 64, 64, 24, 32, 1),
        _streaming(128, 128, 64, 64, 32, 2, stages=3, one_axis=True),
        _streaming(64, 128, 64, 32, 32, 2),
        _streaming(64, 64, 64, 16, 32, 2),
        _few(16, 32, 256, 8, 2),
        _few(32, 32, 128, 8, 2),
        _few(32, 32, 128, 8, 2, split=True),
    ),
}
