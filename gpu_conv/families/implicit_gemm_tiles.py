"""Tiles of the implicit GEMM, and what a convolution asks of them: the model of the pointwise kernel with taps."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

from ..launch import Target
from .pointwise_model import Demand
from .pointwise_tiles import Tile

_JOINED = 40  # bytes of sums per clock that one block reads back from the L2 cache; estimated


def _tile(
    rows: int,
    columns: int,
    warp_rows: int,
    warp_columns: int,
    blocks: int,
    slab: int = 64,
    stages: int = 3,
    split: bool = False,
) -> Tile:
    return Tile(rows, columns, slab, warp_rows, warp_columns, stages, 1, False, blocks, split)


def _few(rows: int, columns: int, split: bool = False) -> Tile:
    return Tile(rows, columns, 128, rows, columns, 3, 8, False, 2, split)


# With channels first, phases leave it out: it spilled 32 to 64 bytes on sm_80 and sm_90a.
WIDEST = _tile(128, 128, 32, 64, 2, slab=128, stages=2)

# Keyed by whether pixels are in the rows. A warp tile of 32 x 64 is 8 x 8 sums a thread: of 128 registers, the share of
# 16 warps on a multiprocessor, they take half. The narrow tiles are for small groups.
TILES: dict[bool, tuple[Tile, ...]] = {
    True: (
        WIDEST,
        _tile(128, 96, 32, 48, 2),
        _tile(128, 64, 32, 64, 4),
        _tile(128, 64, 32, 64, 4, split=True),
        _tile(64, 64, 32, 32, 4),
        _tile(64, 64, 32, 32, 4, split=True),
        _tile(128, 48, 32, 48, 4),
        _tile(128, 32, 32, 32, 4),
        _tile(128, 24, 32, 24, 4),
        _tile(128, 16, 32, 16, 4),
        _tile(128, 8, 32, 8, 4),
        _few(32, 32),
        _few(32, 32, split=True),
    ),
    False: (
        WIDEST,
        _tile(96, 128, 24, 64, 2),
        _tile(64, 128, 32, 64, 4),
        _tile(64, 128, 32, 64, 4, split=True),
        _tile(64, 64, 32, 32, 4),
        _tile(64, 64, 32, 32, 4, split=True),
        _tile(48, 128, 24, 64, 4),
        _tile(32, 128, 32, 32, 4),
        _tile(24, 256, 24, 64, 4),
        _tile(16, 256, 16, 64, 4),
        _tile(8, 256, 8, 64, 4),
        _few(32, 32),
        _few(32, 32, split=True),
    ),
}

# What takes the place of a tile where several axes are padded, and where there are phases: with 4 blocks, 8 to 16 and
# 8 to 32 bytes were spilled.
ROOMY = {_tile(64, 128, 32, 64, 4, split=True): _tile(64, 128, 32, 64, 3, split=True)}
ROOMY_PHASED = ROOMY | {_tile(64, 128, 32, 64, 4): _tile(64, 128, 32, 64, 3)}


@dataclass(frozen=True)
class Convolution(Demand):
    """A product whose rows or columns are patches of x.

    Attributes:
        axes: spatial axes with padding, as the kernel counts them.
        phased: whether one launch computes all phases of a dilated input.
    """

    axes: int = 1
    phased: bool = False

    @property
    def choices(self) -> tuple[Tile, ...]:
        roomy = ROOMY_PHASED if self.phased else ROOMY if self.axes > 1 else {}
        spilling = {WIDEST} if self.phased and not self.pixels_in_rows else set()
        return tuple(roomy.get(tile, tile) for tile in TILES[self.pixels_in_rows] if tile not in spilling)

    def splits(self, tile: Tile, target: Target) -> int:
        """Where more blocks would cost the last one more than they save, fewer than fill the device."""
        work = tile.rows * tile.columns * self.k / 128  # clocks of one multiprocessor
        return min(super().splits(tile, target), max(1, round(sqrt(work / self.joining(tile, 1)))))

    def joining(self, tile: Tile, splits: int) -> float:
        return splits * tile.rows * tile.columns * 4 / _JOINED if tile.split else 1.0

    def shared_bytes(self, tile: Tile) -> int:
        entry = 24 if self.axes == 3 else 16
        tables = (tile.stages * tile.slab // 4 + self.tile_sizes(tile)[0]) * entry
        return super().shared_bytes(tile) + ceil(tables / 128) * 128
