"""Tiles of ``kernels/conv_tile.cu``, and the model that chooses among them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import ceil
from operator import itemgetter
from typing import NamedTuple

from ..launch import Target


class Tile(NamedTuple):
    """The template ``Tile``: what one block computes.

    Attributes:
        images, row_strips, column_strips: strips of 8 columns x ``bars`` rows; a warp owns two.
        bars: rows of a strip.
        units: groups, or chunks of small groups, of one block.
        chunks: of 8 input channels of a unit fetched at a time.
        unit_tiles: tiles of 8 outputs of each unit.
        warps_n: warps that share the outputs.
        stages: slabs in the ring.
        resident: whether the filter stays in shared memory.
        along_row: whether strips continue along the row instead of down the column.
    """

    images: int
    row_strips: int
    column_strips: int
    bars: int
    units: int
    chunks: int
    unit_tiles: int
    warps_n: int
    stages: int
    resident: bool
    along_row: bool = False

    @property
    def warps(self) -> int:
        return self.images * self.row_strips * self.column_strips // 2 * self.warps_n

    @property
    def threads(self) -> int:
        return self.warps * 32

    @property
    def rows(self) -> int:
        """Output rows."""
        return 1 if self.along_row else self.row_strips * self.bars

    @property
    def columns(self) -> int:
        """Output columns."""
        return self.column_strips * 8 * (self.bars if self.along_row else 1)

    @property
    def takes_turns(self) -> bool:
        """Whether half of the warps fetch while the other half multiply."""
        return self.units == 1 and self.warps == 8

    @property
    def warp_tiles(self) -> int:
        """Tiles of 8 outputs of one warp, of all its units."""
        return self.units * self.unit_tiles // self.warps_n

    def cpp(self, blocks: int) -> str:
        """The template argument, for ``blocks`` blocks per multiprocessor."""
        numbers = (self.images, self.row_strips, self.column_strips, self.bars, self.units, self.chunks)
        more = (self.unit_tiles, self.warps_n, self.stages, int(self.resident), int(self.along_row), blocks)
        return f"Tile<{', '.join(map(str, (*numbers, *more)))}>"


class Demand(NamedTuple):
    """One convolution, as far as the choice of a tile depends on it. Pairs are rows and columns.

    Attributes:
        images: batch.
        sizes, out, filter, strides, dilations: as in the problem.
        units: sets of outputs that share input channels.
        unit_channels, unit_outputs: input channels and outputs of each.
        sharing: groups in one chunk of channels.
        y_size: bytes per output element.
        chunk: channels of 16 bytes.
        term_size: bytes per output of what the epilogue takes.
        residual: whether a tensor like the output is read as well.
        x_gathered, w_gathered: whether they are read element by element.
        costly: whether the activation is one of those that need most registers.
        phases: convolutions in one launch, those of a dilated input.
    """

    images: int
    sizes: tuple[int, int]
    out: tuple[int, int]
    filter: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    units: int
    unit_channels: int
    unit_outputs: int
    sharing: int
    y_size: int
    residual: bool
    x_gathered: bool
    w_gathered: bool
    chunk: int = 8
    term_size: int = 4
    costly: bool = False
    phases: int = 1

    @property
    def unit_chunks(self) -> int:
        """Chunks of input channels of a unit."""
        return ceil(self.unit_channels / self.chunk)

    @property
    def taps(self) -> int:
        return self.filter[0] * self.filter[1]

    def tiles(self, tile: Tile) -> tuple[int, int, int]:
        """Tiles down a column, along a row, and in all."""
        rows, columns = ceil(self.out[0] / tile.rows), ceil(self.out[1] / tile.columns)
        return rows, columns, rows * columns * ceil(self.images / tile.images)

    def parts(self, tile: Tile) -> int:
        """Blocks that share the outputs of a unit."""
        return ceil(self.unit_outputs / (tile.unit_tiles * 8))

    def slabs(self, tile: Tile) -> int:
        """Slabs of the input channels."""
        return ceil(self.unit_chunks / tile.chunks)

    def channel_blocks(self, tile: Tile) -> int:
        """Blocks for one tile of pixels."""
        return ceil(self.units / tile.units) * self.parts(tile) * self.phases

    def input_pixels(self, tile: Tile) -> tuple[int, int]:
        """Rows and columns of the input under a tile."""
        (down, along), (high, wide), (over, beyond) = self.strides, self.filter, self.dilations
        rows = (tile.rows - 1) * down + (high - 1) * over + 1
        columns = (tile.columns - 1) * along + (wide - 1) * beyond + 1
        return rows, ceil(columns / along) * along

    def input_bytes(self, tile: Tile) -> int:
        """Shared memory of one slab of pixels."""
        rows, columns = self.input_pixels(tile)
        return tile.images * rows * columns * (tile.units * tile.chunks | 1) * 16

    def filter_bytes(self, tile: Tile) -> int:
        """Shared memory of one slab of the filter."""
        return tile.units * tile.unit_tiles * 8 * (self.taps * tile.chunks | 1) * 16

    def shared_bytes(self, tile: Tile) -> int:
        """Dynamic shared memory of a block, as ``kernels/conv_tile.cu`` divides it."""
        bias = ceil(tile.units * tile.unit_tiles * 8 * self.term_size / 128) * 128
        staging = tile.warps * 16 * (ceil(tile.warp_tiles * 8 * self.y_size / 16) | 1) * 16
        ring = tile.stages * self.input_bytes(tile)
        return bias + staging + ring + self.filter_bytes(tile) * (self.slabs(tile) if tile.resident else tile.stages)

    def registers(self, tile: Tile) -> int:
        """Estimate per thread: sums, the filter of one step, and what the cubins show for all else."""
        unit = tile.warp_tiles if tile.units == 1 else tile.unit_tiles
        residual = 0 if not self.residual else 64 if self.x_gathered else 8  # of channels-first layouts: by element
        costly = 14 * tile.warp_tiles if self.costly else 0  # the compiler computes many of them side by side
        least = 100 if self.x_gathered else 0  # addresses and bounds of the elements
        return max(least, 4 * tile.bars * tile.warp_tiles + 2 * self.filter[0] * unit + 70 + residual + costly)

    def blocks(self, tile: Tile, target: Target) -> int:
        """Blocks of the tile that one multiprocessor holds; 0 if it does not fit."""
        if (registers := self.registers(tile)) > 240 or (shared := self.shared_bytes(tile)) > target.shared_per_block:
            return 0
        warps = 48 if target.capability in (86, 89, 120) else 64
        warps = min(warps, 4 * (512 // (ceil(registers / 8) * 8)))  # four register files of 512 x 32 registers
        return min((target.shared_per_block + 1024) // (shared + 1024), warps // tile.warps)

    def workers(self, tile: Tile, target: Target) -> int:
        """Blocks that share the pixel tiles of one block of channels: together they fill the device once."""
        slots = target.multiprocessors * self.blocks(tile, target)
        return _workers(self.tiles(tile)[2], self.channel_blocks(tile), slots)


def _workers(tiles: int, channel_blocks: int, slots: int) -> int:
    return min(tiles, max(1, slots // channel_blocks))


# Strips of a tile: images, rows, columns. A warp owns two, a block has 1 to 8 warps.
_STRIPS = (
    (1, 1, 2), (1, 2, 1), (1, 2, 2), (1, 1, 4), (1, 4, 1), (1, 4, 2), (1, 2, 4), (1, 8, 1), (1, 1, 8),
    (2, 1, 1), (2, 1, 2), (2, 2, 1), (4, 1, 1), (4, 1, 2), (4, 2, 1), (8, 1, 1),
)  # fmt: skip
_BARS = (4, 7)  # 7 divides the maps of 56, 28, 14 and 7 rows; 4 leaves registers for twice the blocks


def candidates(d: Demand) -> Iterator[Tile]:
    """Every tile worth a prediction."""
    along = d.filter[0] == 1 and d.out[0] == 1
    for strips in _strips(d, along):
        for units, chunks, unit_tiles, warps_n in _channels(d):
            if not 2 <= strips[0] * strips[1] * strips[2] // 2 * warps_n <= 8:
                continue
            for bars in _BARS:
                for stages in (2, 3, 4) if units == 1 else (2, 3):
                    yield Tile(*strips, bars, units, chunks, unit_tiles, warps_n, stages, True, along)
                    if units == 1 and d.sharing == 1:
                        yield Tile(*strips, bars, units, chunks, unit_tiles, warps_n, stages, False, along)


def _strips(d: Demand, along: bool) -> Iterator[tuple[int, int, int]]:
    for images, rows, columns in _STRIPS:
        if along:
            fits = images == 1 and rows == 1
        else:  # several images where one is smaller than the tile
            fits = images == 1 or (rows * 7 >= d.out[0] and columns * 8 >= d.out[1] and images <= 2 * d.images)
        if fits:
            yield images, rows, columns


def _channels(d: Demand) -> Iterator[tuple[int, int, int, int]]:
    """Units, chunks of a slab, tiles of 8 outputs of a unit, warps that share them."""
    unit_tiles = ceil(d.unit_outputs / 8)
    if unit_tiles <= 4 and d.unit_chunks <= 4:  # several units, up to four tiles of outputs per warp
        for warp_units in (1, 2, 4):
            for warps_n in (1, 2, 4):
                units = warp_units * warps_n
                if warp_units * unit_tiles <= 4 and 1 < units < 2 * d.units and units * d.unit_chunks <= 16:
                    yield units, d.unit_chunks, unit_tiles, warps_n
    if d.sharing > 1:  # one chunk of small groups
        yield 1, 1, unit_tiles, 1
        return
    for chunks in sorted({c for c in (1, 2, 3, 4, 6, 8) if d.unit_chunks % c == 0} | {min(d.unit_chunks, 4)}):
        for tiles in (1, 2, 3, 4, 6, 8):
            for warps_n in (1, 2, 4):
                if tiles * (warps_n - 1) < unit_tiles:
                    yield 1, chunks, tiles * warps_n, warps_n


def fitting(d: Demand, target: Target) -> list[Tile]:
    """The tiles that fit, the shortest predicted time first."""
    found = [(clocks(d, tile, target, blocks), tile) for tile in candidates(d) if (blocks := d.blocks(tile, target))]
    return [tile for _, tile in sorted(found, key=itemgetter(0))]


@lru_cache(maxsize=1024)
def choose(d: Demand, target: Target) -> Tile | None:
    """The tile with the shortest predicted time, None if none fits."""
    return next(iter(fitting(d, target)), None)


# Rates of one multiprocessor per clock, as in ``pointwise_tiles``: an H100 at 1.755 GHz.
_DRAM, _L2 = 12.9, 32.0  # bytes, with all multiprocessors at work: 2983 GB/s copied, 7.5 TB/s
_PRODUCT = 1.46  # clocks of one 16 x 8 x 16 mma.sync: 651 TFLOP/s
_ISSUE = 4 * 0.8  # instructions of warps
_SECOND = 0.15  # how much of what does not bind adds to what binds
_FLIGHT = 40 * 1024  # bytes under way that hide the latency of device memory
_LATENCY, _BARRIER = 1500, 200  # clocks: first slab and epilogue; each slab
_DEPENDENT = 2.5  # clocks between instructions of one warp
_LONELY = 2.0  # warps' worth of time lost where nothing else is ready
_TURNS = 0.08  # the same where half of the warps fetch and half multiply: 151 us against 194 (28x28x128, batch 256)
_ALONE = 0.25  # share of the time in which one block on its own fetches or stores but does not multiply
_ELEMENT = 80  # instructions' worth of time for one element of x on its own: 14 layers, channels first, took that
_LINE = 12  # bytes of a memory access lost on its ends: 32-byte pieces took 1.5 times as long as 128-byte ones


def clocks(d: Demand, tile: Tile, target: Target, blocks: int) -> float:
    """Predicted duration in clocks of the busiest multiprocessor, which holds so many ``blocks``."""
    (_, _, tiles), channel_blocks = d.tiles(tile), d.channel_blocks(tile)
    workers = _workers(tiles, channel_blocks, target.multiprocessors * blocks)
    rounds = ceil(tiles / workers)
    together = min(blocks, ceil(workers * channel_blocks / target.multiprocessors))
    terms = _terms(d, tile, tiles, together)
    busy = max(terms) + _SECOND * (sum(terms) - max(terms))
    busy *= 1 + (_TURNS if tile.takes_turns else _LONELY / (together * tile.warps) + (_ALONE if together == 1 else 0))
    waves = ceil(workers * channel_blocks / (target.multiprocessors * blocks))
    latency = d.slabs(tile) * _BARRIER + _LATENCY + terms[-1] * _ISSUE / tile.warps * _DEPENDENT
    filter_load = d.filter_bytes(tile) * d.slabs(tile) / _L2 * together if tile.resident else 0
    return waves * (_LATENCY + filter_load + rounds * max(latency, together * busy))


def _terms(d: Demand, tile: Tile, tiles: int, together: int) -> tuple[float, ...]:
    """Clocks of one of the ``tiles``: device memory, L2 cache, products, shared memory, instructions."""
    slabs, warp_tiles = d.slabs(tile), tile.warp_tiles
    in_rows, in_columns = d.input_pixels(tile)
    channels = min(tile.units, d.units) * d.unit_chunks * 16
    outputs = min(tile.units * min(tile.unit_tiles * 8, d.unit_outputs), d.units * d.unit_outputs)
    moved = d.images * d.sizes[0] * d.sizes[1] / tiles * channels / (d.parts(tile) * d.phases)
    loaded = tile.images * min(in_rows, d.sizes[0]) * min(in_columns, d.sizes[1]) * channels
    written = d.images * d.out[0] * d.out[1] / tiles * outputs * d.y_size * (2 if d.residual else 1)
    weights = 0 if tile.resident else slabs * d.filter_bytes(tile)
    flight = together * (tile.stages - 1) * d.input_bytes(tile)
    part = (
        min(tile.units * min(tile.chunks, d.unit_chunks) * 16, 512),
        min(tile.units * tile.unit_tiles * 8 * d.y_size, 512),
    )
    ends = _LINE if d.unit_chunks <= tile.chunks else _LINE / 2  # other slabs find the rest of a line in the L2 cache
    moved, written = moved * (1 + ends / part[0]), written * (1 + _LINE / part[1])
    dram = (moved + written) / _DRAM * max(1.0, _FLIGHT / flight)
    unit_tiles = tile.unit_tiles if tile.units > 1 else warp_tiles
    per_row = d.filter[1] * tile.chunks  # chunks of k of one filter row
    steps = slabs * ceil(per_row / 2) * (tile.units // tile.warps_n if tile.units > 1 else 1)
    products = tile.warps * slabs * d.filter[0] * per_row / 2 * tile.bars * warp_tiles
    inputs = tile.bars if tile.along_row else (tile.bars - 1) * d.strides[0] + (d.filter[0] - 1) * d.dilations[0] + 1
    reads = tile.warps * steps * (4 * inputs + 2 * d.filter[0] * unit_tiles)
    pixels = tile.images * in_rows * in_columns * tile.units * d.unit_chunks  # chunks of 16 bytes
    staged = pixels * 16 + weights
    lines = pixels / (1 if d.x_gathered else min(8, tile.units * tile.chunks))  # one per clock
    lines += weights / 16 / (1 if d.w_gathered else min(8, tile.chunks))
    stored = tile.warps * tile.bars * warp_tiles
    shared = reads + staged / 128 + lines + stored * 4 * d.y_size / 2
    gathered = _ELEMENT * min(d.chunk, d.unit_channels)
    copies = pixels / 32 * (gathered if d.x_gathered else 9) + weights / 16 / 32 * (60 if d.w_gathered else 9)
    instructions = products + reads / 4 + copies + stored * 18 + tile.warps * slabs * 60
    return dram, (loaded + written + weights) / _L2, products * _PRODUCT, shared, instructions / _ISSUE
