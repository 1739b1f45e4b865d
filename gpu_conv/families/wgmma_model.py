"""Tiles of ``kernels/wgmma.cu``, and the model that chooses among them."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, prod
from typing import NamedTuple

from ..launch import Target

SLAB = 64  # input channels of one step: kSlabChannels
_LINE_BYTES = 128  # of an operand in shared memory
_BARRIER_BYTES = 8
_PART_BYTES = 32  # of a note, beside the bias of its columns
_LIMIT = 2**31
_MOST = 256  # elements of a side of a box

Pixels = tuple[int, int, int]  # images, rows, columns


class Tile(NamedTuple):
    """The template ``Tile``: what one block computes.

    Attributes:
        warpgroups: of 64 pixels each.
        columns: output channels.
        stages: steps in the ring.
        blocks: blocks per multiprocessor: while one stores, another one multiplies.
    """

    warpgroups: int
    columns: int
    stages: int
    blocks: int

    @property
    def rows(self) -> int:
        """Pixels."""
        return self.warpgroups * 64

    @property
    def threads(self) -> int:
        """Those that multiply, and a warp of which one lane fetches."""
        return self.warpgroups * 128 + 32

    @property
    def stage_bytes(self) -> int:
        return (self.rows + self.columns) * _LINE_BYTES

    @property
    def shared_bytes(self) -> int:
        """The ring, its barriers, and a note per warp that multiplies."""
        ring = self.stages * (self.stage_bytes + 2 * _BARRIER_BYTES)
        return ring + self.warpgroups * 4 * (self.columns * 4 + _PART_BYTES)

    @property
    def spare_registers(self) -> int:
        """Per thread, beside the sums: each of the four register files has 512 for its lanes."""
        warps = ceil(self.blocks * self.threads / 32 / 4)
        return 512 // warps // 8 * 8 - self.columns // 2

    @property
    def cpp(self) -> str:
        """The template argument."""
        return f"Tile<{self.warpgroups}, {self.columns}, {self.stages}, {self.blocks}>"


# Wide tiles fetch least: a step of 128 x 256 brings 48 KB for 1024 clocks of products, of 128 x 128 32 KB for 512. One
# block per multiprocessor does not multiply while it stores, but fills its ring. Tiles of one warpgroup are for few
# pixels.
TILES = (
    Tile(2, 256, 4, 1),
    Tile(2, 192, 5, 1),
    Tile(2, 128, 3, 2),
    Tile(2, 128, 6, 1),
    Tile(4, 128, 4, 1),
    Tile(2, 64, 4, 2),
    Tile(1, 128, 3, 3),
    Tile(1, 64, 3, 4),
    Tile(1, 64, 6, 2),
)
# Beside the sums, without spills, with every NVRTC from 12.9: epilogues of cheap activations, and all others.
_SPARE, _SPARE_COSTLY = 32, 64


class Demand(NamedTuple):
    """One convolution, as far as the choice of a tile depends on it.

    Attributes:
        pixels: of the output.
        steps: elements of the input between neighbouring pixels of the output.
        reach: largest stride of the output and the residual, in elements.
        taps: of the filter.
        k, channels: input and output channels of a group.
        groups: how many.
        moved: bytes that device memory must move at least.
        y_size: bytes per output element.
        residual: whether a tensor like the output is read as well.
        costly: whether the epilogue needs more registers.
    """

    pixels: Pixels
    steps: Pixels
    reach: Pixels
    taps: int
    k: int
    channels: int
    groups: int
    moved: int
    y_size: int
    residual: bool
    costly: bool

    def box(self, tile: Tile) -> Pixels | None:
        """The pixels of a tile: the powers of two that leave the fewest tiles, most square; None if none can."""
        return _box(self, tile.rows)

    def counts(self, box: Pixels) -> Pixels:
        """Tiles along the axes of the pixels."""
        images, rows, columns = (ceil(n / side) for n, side in zip(self.pixels, box, strict=True))
        return images, rows, columns

    def sides(self, axis: int, most: int) -> dict[int, tuple[int, int]]:
        """Powers of two that the copy engine fetches along an axis: tiles, and how far apart outputs lie."""
        n, step, far = self.pixels[axis], self.steps[axis], self.reach[axis]
        found = [1 << i for i in range(most.bit_length()) if step << i <= _MOST]
        return {side: (ceil(n / side), side * far) for side in found}

    def channel_tiles(self, tile: Tile) -> int:
        """Of a group."""
        return ceil(self.channels / tile.columns)

    def tiles(self, tile: Tile, box: Pixels) -> int:
        """All."""
        return prod(self.counts(box)) * self.channel_tiles(tile) * self.groups

    @property
    def slabs(self) -> int:
        """Of the input channels of a group."""
        return ceil(self.k / SLAB)


@lru_cache(maxsize=1024)
def _box(d: Demand, pixels: int) -> Pixels | None:
    images, rows, columns = (d.sides(axis, pixels) for axis in range(3))
    found = []
    for r, (row_tiles, row_far) in rows.items():
        for c, (column_tiles, column_far) in columns.items():
            n = pixels // (r * c)
            if n in images and images[n][1] + row_far + column_far < _LIMIT - _MOST:
                found.append((images[n][0] * row_tiles * column_tiles, n, max(r, c), r, c))
    _, n, _, r, c = min(found, default=(0,) * 5)
    return (n, r, c) if n else None


def fitting(d: Demand, target: Target) -> list[Tile]:
    """The tiles that fit, the shortest predicted time first."""
    spare = _SPARE_COSTLY if d.costly else _SPARE
    found = []
    for tile in TILES:
        box = d.box(tile)
        fits = tile.shared_bytes <= target.shared_per_block and tile.spare_registers >= spare
        if box and fits and d.tiles(tile, box) < _LIMIT // 2:
            found.append((clocks(d, tile, box, target), tile))
    return [tile for _, tile in sorted(found, key=lambda pair: pair[0])]


@lru_cache(maxsize=1024)
def choose(d: Demand, target: Target) -> Tile | None:
    """The tile with the shortest predicted time, None if none fits."""
    return next(iter(fitting(d, target)), None)


def fastest(d: Demand, target: Target) -> float:
    """Predicted clocks with the chosen tile, of a demand that one fits."""
    tile = choose(d, target)
    box = tile and d.box(tile)
    assert tile and box, "refused"
    return clocks(d, tile, box, target)


# Rates of one multiprocessor per clock of 1.755 GHz; the GPU goes up to 1.98. Fitted to 486 times on an H100 (64
# channels and more, every tile, cold L2): 80 % are within 29 %, the median is off by 12 %, and the tile that it chooses
# takes 3 % more than the fastest, in the geometric mean.
_MULTIPLY_ADDS = 1950.0  # 800 TFLOP/s at the highest clock
_DRAM, _L2 = 13.0, 49.0  # bytes, with all multiprocessors at work
_ISSUE = 54.0  # instructions of threads
_OUTPUT, _RESIDUAL = 6.2, 11.6  # instructions of the epilogue per output, and for a residual, its latency among them
_SECOND = 0.12  # how much of what does not bind adds to what binds
_START, _FETCH, _TILE = 1900, 2200, 2200  # clocks: first barrier and step; from request to arrival; epilogue


def clocks(d: Demand, tile: Tile, box: Pixels, target: Target) -> float:
    """Predicted duration in clocks of the busiest multiprocessor."""
    tiles, steps = d.tiles(tile, box), d.slabs * d.taps
    together = min(tile.blocks, ceil(tiles / target.multiprocessors))
    outputs = tile.rows * tile.columns
    stored = outputs * d.y_size * (2 if d.residual else 1)
    products = steps * outputs * SLAB / _MULTIPLY_ADDS
    cache = (steps * tile.stage_bytes + stored) / _L2
    epilogue = outputs * (_OUTPUT + _RESIDUAL * d.residual) / _ISSUE
    terms = products, cache, d.moved / tiles / _DRAM, epilogue
    busy = max(terms) + _SECOND * (sum(terms) - max(terms))
    alone = steps * max(products / steps, _FETCH / tile.stages) + _TILE + epilogue
    rounds = ceil(tiles / (target.multiprocessors * tile.blocks))
    return _START + rounds * max(together * busy, alone)
