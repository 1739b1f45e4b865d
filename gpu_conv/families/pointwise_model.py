"""Which tile of the pointwise kernel a product gets: the one with the shortest predicted time."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from ..launch import Target
from .pointwise_tiles import SPILLING, TILES, Engine, Tile


@dataclass(frozen=True)
class Demand:
    """One product per group, as far as the choice of a tile depends on it.

    Attributes:
        pixels, channels, k: sizes of the product of one group.
        groups: how many products: phases of a dilated input count.
        x_size, y_size: bytes per element.
        bias_size: bytes per channel of what the epilogue takes.
        residual: whether a tensor like the output is read as well.
        engine, pixels_in_rows: as in the kernel's templates.
        x_copy, w_copy: bytes per asynchronous copy of x and w; less than 4: gathered element by element.
        one_axis: whether the pixels of x, and those of y, have one stride.
        rereads: how often an element of x is read by one tile or by phases, from device memory once.
    """

    pixels: int
    channels: int
    groups: int
    k: int
    x_size: int
    y_size: int
    residual: bool
    engine: Engine
    pixels_in_rows: bool
    x_copy: int = 16
    w_copy: int = 16
    bias_size: int = 4
    one_axis: bool = True
    rereads: int = 1

    def tile_sizes(self, tile: Tile) -> tuple[int, int]:
        """Pixels and channels of a tile."""
        return (tile.rows, tile.columns) if self.pixels_in_rows else (tile.columns, tile.rows)

    def tiles(self, tile: Tile) -> tuple[int, int]:
        """Tiles along the pixels and along the channels."""
        pixels, channels = self.tile_sizes(tile)
        return ceil(self.pixels / pixels), ceil(self.channels / channels)

    def slabs(self, tile: Tile) -> int:
        """Slabs of k."""
        return ceil(self.k * self.x_size / tile.slab)

    def shared_bytes(self, tile: Tile) -> int:
        """Dynamic shared memory of a block, as ``kernels/pointwise.cu`` divides it."""
        pixels, channels = self.tile_sizes(tile)
        bias = ceil(channels * self.bias_size / 128) * 128
        chunks = ceil(tile.warp_columns * self.y_size / 16)
        pitch = 16 * (chunks | 1 if self.y_size < 4 else (chunks + 1) // 4 * 4 + 2)
        staging = tile.warps * tile.warp_rows * pitch
        if tile.resident:
            return bias + staging + (tile.stages * pixels + self.slabs(tile) * channels) * tile.slab
        sums = (tile.k_warps - 1) * tile.rows * tile.columns * 4
        return bias + max(tile.stages * (pixels + channels) * tile.slab, staging + sums)

    def blocks(self, tile: Tile, target: Target) -> int:
        """Blocks of the tile that one multiprocessor holds; 0 if its shared memory or registers are too few."""
        shared, spilling = self.shared_bytes(tile), SPILLING.get((self.x_size, tile), ())
        if shared > target.shared_per_block or any(target.capability in some for some in spilling):
            return 0
        return min(tile.blocks, (target.shared_per_block + 1024) // (shared + 1024))

    def workers(self, tile: Tile, target: Target) -> int:
        """Blocks that share the pixel tiles of one channel tile: resident ones fill the device once."""
        pixel_tiles, channel_tiles = self.tiles(tile)
        if not tile.resident:
            return pixel_tiles
        slots = target.multiprocessors * self.blocks(tile, target)
        return min(pixel_tiles, max(1, slots // (channel_tiles * self.groups)))

    def splits(self, tile: Tile, target: Target) -> int:
        """Blocks that share the k of one tile: as many as fill the device once with at least two slabs each."""
        if not tile.split:
            return 1
        slots = target.multiprocessors * self.blocks(tile, target)
        pixel_tiles, channel_tiles = self.tiles(tile)
        return max(1, min(slots // (pixel_tiles * channel_tiles * self.groups), self.slabs(tile) // 2))

    def workspace_bytes(self, tile: Tile, splits: int) -> int:
        """The tickets, then the partial sums of every block."""
        if not tile.split:
            return 0
        tiles = self.groups * prod(self.tiles(tile))
        return self.ticket_bytes(tile) + 4 * tiles * splits * tile.rows * tile.columns

    def ticket_bytes(self, tile: Tile) -> int:
        """One ticket per tile, padded to 32 of them."""
        return 4 * ceil(self.groups * prod(self.tiles(tile)) / 32) * 32 if tile.split else 0

    def joining(self, tile: Tile, splits: int) -> float:
        """Clocks in which the last block of a tile adds the sums of the others; few here, and left out."""
        return 0.0

    @property
    def choices(self) -> tuple[Tile, ...]:
        """The tiles of this kind of product."""
        tiles = TILES[self.engine, self.pixels_in_rows]
        return tuple(tile for tile in tiles if self.one_axis or not tile.one_axis)


def fitting(demand: Demand, target: Target) -> list[Tile]:
    """The tiles that fit, the shortest predicted time first."""
    found = [tile for tile in demand.choices if demand.blocks(tile, target)]
    return sorted(found, key=lambda tile: clocks(demand, tile, target))


def choose(demand: Demand, target: Target) -> Tile:
    """The tile with the shortest predicted time."""
    return fitting(demand, target)[0]


# Rates of one multiprocessor per clock: those of an H100 at 1.755 GHz. Only their ratios decide, and those of the other
# architectures lie close by.
_DRAM, _L2 = 13.0, 24.0  # bytes, with all multiprocessors at work
_PRODUCT = 1.53  # clocks of one 16 x 8 x 32-byte mma.sync
_ISSUE = 128 * 0.8  # instructions of threads
_SECOND = 0.15  # how much of what does not bind adds to what binds
# The next four lines fit 149 layers and tiles measured on an H100, 44 pairs of tiles of one layer among them.
_LOAD_LATENCY, _SLAB_LATENCY, _TILE_LATENCY = 1200, 100, 2000  # clocks: first slab, each slab, epilogue
_GATHER_LATENCY = 3500  # clocks, of two 16-byte chunks of a thread
_DEPENDENT = 5.0  # a block of one warp waits that much longer for its own products than it computes them, others less
_WORKSPACE = 3000  # clocks: fence and ticket, and the partial sums come back from the second-level cache


def clocks(demand: Demand, tile: Tile, target: Target) -> float:
    """Predicted duration in clocks: what the busiest multiprocessor moves and computes, or waits for."""
    pixel_tiles, channel_tiles = demand.tiles(tile)
    blocks, slabs = demand.blocks(tile, target), demand.slabs(tile)
    splits = demand.splits(tile, target)
    terms = _terms(demand, tile)
    busy = max(terms) + _SECOND * (sum(terms) - max(terms))
    _, _, arithmetic, shared, _ = terms
    alone = max(arithmetic * max(1.0, 4 * 32 / tile.threads), shared)  # one block cannot do better
    alone *= 1 + _DEPENDENT * 32 / tile.threads
    chain = (alone + slabs * (_SLAB_LATENCY + _wait(demand, tile))) / splits + _TILE_LATENCY
    chain += demand.joining(tile, splits)
    if not tile.resident:
        each = ceil(pixel_tiles * channel_tiles * demand.groups * splits / target.multiprocessors)
        start = _LOAD_LATENCY + (_WORKSPACE if tile.split else 0)
        return start + max(ceil(each / blocks) * (_LOAD_LATENCY + chain), each * busy / splits)
    workers = demand.workers(tile, target)
    each = ceil(workers * channel_tiles * demand.groups / target.multiprocessors)
    rounds = ceil(pixel_tiles / workers)
    filter_load = each * demand.tile_sizes(tile)[1] * slabs * tile.slab / _L2
    return _LOAD_LATENCY + filter_load + rounds * max(ceil(each / blocks) * chain, each * busy)


def _wait(demand: Demand, tile: Tile) -> float:
    """Clocks per slab that a thread waits for elements that it gathers itself."""
    pixels, channels = demand.tile_sizes(tile)
    lines = (pixels if demand.x_copy < 4 else 0) + (channels if demand.w_copy < 4 and not tile.resident else 0)
    return ceil(lines * tile.slab / 16 / tile.threads / 2) * _GATHER_LATENCY


def _terms(demand: Demand, tile: Tile) -> tuple[float, ...]:
    """Clocks of one tile: device memory, second-level cache, arithmetic, shared memory, instructions."""
    pixels, channels = demand.tile_sizes(tile)
    pixel_tiles, channel_tiles = demand.tiles(tile)
    k_bytes, slab_bytes = demand.k * demand.x_size, demand.slabs(tile) * tile.slab
    pixels_used, channels_used = demand.pixels / pixel_tiles, demand.channels / channel_tiles
    output = pixels_used * channels_used * demand.y_size * (2 if demand.residual else 1)
    x, w = pixels_used * k_bytes, 0 if tile.resident else channels_used * k_bytes
    computed = tile.rows * tile.columns
    if demand.engine is Engine.IEEE:
        multiply_adds = computed * slab_bytes / 4
        arithmetic, instructions = multiply_adds / 128, multiply_adds * 1.12
        fragments = (tile.warp_rows / 4 + tile.warp_columns / 8) * 1.5 / 16
    else:
        products = computed / 128 * slab_bytes / 32
        products *= 1.25 if demand.engine is Engine.TENSOR_CORES_ZERO_POINTS else 1
        arithmetic, instructions = products * _PRODUCT, products * 32 * 2
        fragments = (tile.warp_rows / 4 + tile.warp_columns / 4) / 32
    staged = slab_bytes * (pixels + (0 if tile.resident else channels))
    shared = slab_bytes * fragments * tile.warps + staged / 128 + 2 * computed * demand.y_size / 128
    instructions += slab_bytes * pixels * _per_byte(demand.x_copy, demand.x_size)
    instructions += 0 if tile.resident else slab_bytes * channels * _per_byte(demand.w_copy, demand.x_size)
    instructions += computed * 8 + tile.threads * (60 if tile.resident else 250)
    dram = x / demand.rereads / channel_tiles + output
    return dram / _DRAM, (x + w + output) / _L2, arithmetic, shared, instructions / _ISSUE


def _per_byte(copy: int, size: int) -> float:
    """Instructions that stage one byte."""
    return 12 / copy if copy >= 4 else 6 / size + 2
