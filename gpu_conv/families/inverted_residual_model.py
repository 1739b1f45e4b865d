"""Which tile the kernel of inverted residuals gets, and whether it is faster than three kernels: predicted times."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import ceil
from typing import NamedTuple

from ..launch import Target
from ..layout import contiguous_strides
from ..problem import ConvProblem, Tensor
from . import pointwise, pointwise_model, wgmma, wgmma_model

THREADS = 256
REGISTERS = 168  # of sums and filters that a thread keeps; at most 214 registers in all
LINE = 32  # tickets of a workspace are padded to this many


@dataclass(frozen=True)
class Chain:
    """An inverted residual as the convolutions that it consists of.

    Attributes:
        expand: 1x1, or None.
        depthwise: 3x3; its input is the result of ``expand``.
        project: 1x1; its residual, if any, is the input of the chain.
    """

    expand: ConvProblem | None
    depthwise: ConvProblem
    project: ConvProblem

    @property
    def first(self) -> ConvProblem:
        return self.expand or self.depthwise

    @cached_property
    def in_channels(self) -> int:
        return self.first.in_channels

    @cached_property
    def expanded(self) -> int:
        return self.depthwise.out_channels

    @cached_property
    def out_channels(self) -> int:
        return self.project.out_channels

    @cached_property
    def stride(self) -> int:
        return self.depthwise.strides[0]

    @cached_property
    def has_gelu(self) -> bool:
        """Whether the error function needs its registers before the last stage."""
        return any(p.activation is not None and p.activation.name == "gelu" for p in (self.first, self.depthwise))

    @cached_property
    def bytes(self) -> int:
        """The fewest that device memory must move: input, output and filters, nothing between."""
        steps = [p for p in (self.expand, self.depthwise, self.project) if p]
        return self.first.x.nbytes + self.project.y.nbytes + sum(p.w.nbytes for p in steps)


class Tile(NamedTuple):
    """What a block computes.

    Attributes:
        rows, columns: outputs.
        slab: expanded channels at a time.
        pixel_warps: of the 8 warps of the projection, how many share the pixels; the others share its channels.
        splits: blocks that share the slabs of a tile.
    """

    rows: int
    columns: int
    slab: int
    pixel_warps: int
    splits: int = 1

    @property
    def pixels(self) -> int:
        return self.rows * self.columns


# Those that prototypes used on the maps of MobileNetV2, and low tiles for a small batch.
TILES = (
    Tile(8, 8, 32, 4),
    Tile(14, 8, 32, 8),
    Tile(14, 4, 32, 4),
    Tile(7, 14, 32, 8),
    Tile(7, 14, 32, 4),
    Tile(7, 7, 32, 2),
    Tile(7, 14, 64, 8),
    Tile(7, 14, 64, 4),
    Tile(7, 7, 64, 4),
    Tile(7, 7, 64, 2),
    Tile(14, 14, 64, 4),
    Tile(4, 14, 64, 4),
    Tile(4, 7, 64, 2),
    Tile(2, 7, 64, 1),
)


@dataclass(frozen=True)
class Shape:
    """A chain cut into tiles: the sizes that ``ResidualTile`` in ``kernels/inverted_residual.cuh`` counts too.

    What is cached does not depend on ``tile.splits``: each shape is ranked with many.
    """

    chain: Chain
    tile: Tile

    @cached_property
    def in_pixels(self) -> int:
        """Input pixels of a block, halo included."""
        rows, columns = ((n - 1) * self.chain.stride + 3 for n in (self.tile.rows, self.tile.columns))
        return rows * columns

    @cached_property
    def in_steps(self) -> int:
        """Of 16 input channels."""
        return ceil(self.chain.in_channels / 16)

    @property
    def in_line(self) -> int:
        return line_bytes(self.in_steps * 16)

    @property
    def slab_line(self) -> int:
        return line_bytes(self.tile.slab)

    @cached_property
    def slabs(self) -> int:
        return ceil(self.chain.expanded / self.tile.slab)

    @cached_property
    def pixel_tiles(self) -> int:
        """Of 16 outputs, per warp."""
        return ceil(self.tile.pixels / (16 * self.tile.pixel_warps))

    @cached_property
    def channel_tiles(self) -> int:
        """Of 8 output channels, per warp."""
        return ceil(ceil(self.chain.out_channels / 8) / (8 // self.tile.pixel_warps))

    @cached_property
    def tiles(self) -> tuple[int, int]:
        """Blocks along the rows and columns of an image."""
        rows, columns = self.chain.project.out_spatial
        return ceil(rows / self.tile.rows), ceil(columns / self.tile.columns)

    @cached_property
    def all_tiles(self) -> int:
        """Of all images."""
        return self.chain.project.batch * self.tiles[0] * self.tiles[1]

    @property
    def blocks(self) -> int:
        return self.all_tiles * self.tile.splits

    @cached_property
    def weights(self) -> int:
        """Bytes of one slab of weights."""
        expand = self.tile.slab * (self.in_line + 4) if self.chain.expand else 0
        return expand + self.chain.out_channels * self.slab_line + (9 * 2 + 4) * self.tile.slab

    @cached_property
    def shared_bytes(self) -> int:
        """SHARED of the kernel."""
        x = self.in_pixels * self.in_line
        expanded = self.in_pixels * self.slab_line + ceil(self.in_pixels / 16) * 32 if self.chain.expand else 0
        depthwise = self.pixel_tiles * 16 * self.tile.pixel_warps * self.slab_line
        return max(
            x + expanded + depthwise + 2 * self.weights,
            x + self.tile.pixels * line_bytes(self.chain.out_channels),
        )

    @cached_property
    def sums(self) -> int:
        """Of the projection, per thread."""
        return 4 * self.pixel_tiles * self.channel_tiles

    @property
    def workspace_bytes(self) -> int:
        """The tickets, then the sums of every block."""
        return self.ticket_bytes + 4 * self.blocks * THREADS * self.sums if self.tile.splits > 1 else 0

    @property
    def ticket_bytes(self) -> int:
        """One ticket per tile."""
        return 4 * ceil(self.all_tiles / LINE) * LINE if self.tile.splits > 1 else 0

    @cached_property
    def kept(self) -> int:
        """Registers of a thread for sums and for filters of the expansion."""
        return self.sums + (8 * self.in_steps if self.chain.expand else 0)

    def fits(self, target: Target, splits: int = 1) -> bool:
        """In shared memory and registers, with so many blocks for a tile."""
        static = 16 if splits > 1 else 0  # whether this block is the last of its tile
        return self.shared_bytes + static <= target.shared_per_block and self.kept <= REGISTERS

    @cached_property
    def band(self) -> tuple[int, int]:
        """Units of the depthwise convolution in a slab, of two bands of rows each, and the rows of a band."""
        strips, groups = ceil(self.tile.columns / 8), self.tile.slab // 8
        bands = max(1, 16 // (groups * strips))
        return groups * strips * bands // 2, ceil(self.tile.rows / bands)

    def together(self, target: Target, splits: int) -> int:
        """Blocks that a multiprocessor holds with the fewest registers that 788 instantiations took without spills."""
        shared = (target.shared_per_block + 1024) // (self.shared_bytes + 1024)
        _, rows = self.band
        low = 20 if self.chain.stride == 2 and (rows == 1 or self.kept > 56) else 0
        more = (10 if splits > 1 else 0) + (20 if self.chain.has_gelu else 0)
        more += 8 if target.capability == 100 else 0  # ptxas for it spilled 8 to 16 bytes of 6 of 788
        registers = max(1.25 * self.kept + 34 + low, self.sums + 18 + 7 * rows) + more
        return max(1, min(shared, 65536 // THREADS // (ceil(registers / 8) * 8), 6))

    def clocks(self, target: Target, splits: int) -> float:
        """Predicted duration: what a multiprocessor issues, its blocks one after the other, or the memory."""
        each, slabs = ceil(self.all_tiles * splits / target.multiprocessors), ceil(self.slabs / splits)
        once, slab = self._instructions
        issue = (once + slabs * slab) / _ISSUE
        alone = issue + slabs * _SLAB_LATENCY
        memory = self.chain.bytes / (_BYTES * target.multiprocessors)
        work = max(each * issue, ceil(each / self.together(target, splits)) * alone, memory)
        if splits > 1:
            work += _HAND_OVER + splits * THREADS * self.sums * 4 / _READ
        return _START + work

    @cached_property
    def _instructions(self) -> tuple[float, float]:
        """Of warps, for one block and for each of its slabs; counted in what the compiler makes of each stage."""
        tile, steps, out_chunks = self.tile, self.in_steps, self.chain.out_channels / 8
        expand = ceil(self.in_pixels / 16) * (tile.slab / 32) * (5 * steps + 60) + 130 if self.chain.expand else 0
        units, rows = self.band
        depthwise = units * (60 + 2 * ((rows - 1) * self.chain.stride + 3) + 20 * rows)
        products = tile.slab / 16 * (self.pixel_tiles + self.channel_tiles * (0.5 + self.pixel_tiles)) * 8
        once = self.in_pixels * steps * 2 / 32 * 26 + tile.pixels * out_chunks / 32 * 22 + 32 * self.sums + 256
        return once, expand + depthwise + products + self.weights / 512 * 12


# Fitted to 558 times on an H100 (MobileNetV2 at batch 1, 32 and 256, cold L2, replayed as a graph) of this kernel when
# its depthwise stage took the ordinary cores, with the counts of that stage: half were within 7 %, and the tile that it
# chose took 3 % more than the fastest, in the geometric mean. With the counts above it predicts: not measured yet.
_ISSUE = 1.9  # instructions of warps per clock of a multiprocessor
_SLAB_LATENCY = 1160  # clocks: three barriers, the first loads of three stages
_START = 3050  # clocks: start and end of a launch
_HAND_OVER = 3630  # clocks: fence, ticket and the last block's start
_READ = 62  # bytes per clock that the last block of a tile reads of the partial sums
# What three launches take instead: 50 layers of MobileNetV2 in 16 bits, channels last, measured on the same GPU. A
# product that its arithmetic or latency binds takes what its own model says.
_BYTES = 11.7  # that a multiprocessor moves per clock in a launch that does little else
_LAUNCH = 5300  # clocks: start and end of a launch, and what its threads wait for memory


def line_bytes(channels: int) -> int:
    """Bytes of a line of 16-bit elements in shared memory: an odd number of 16-byte chunks."""
    return (ceil(channels / 8) | 1) * 16


@lru_cache(maxsize=1024)
def slower(chain: Chain, target: Target) -> str | None:
    """Why separate launches are predicted to be faster than one; None if they are not."""
    tile = tiles(chain, target)[0]
    one = Shape(chain, tile).clocks(target, tile.splits)
    steps = [p for p in (chain.expand, chain.depthwise, chain.project) if p]
    if one <= sum(_moving(p, target) for p in steps):  # most chains: their products need not be predicted
        return None
    apart = sum(_separate(p, target) for p in steps)
    return f"{one:.0f} clocks in one launch, {apart:.0f} in {len(steps)}" if one > apart else None


def _moving(problem: ConvProblem, target: Target) -> float:
    """The least clocks of a convolution in a launch of its own: those in which its bytes are moved."""
    return problem.bytes / (_BYTES * target.multiprocessors) + _LAUNCH


def _separate(problem: ConvProblem, target: Target) -> float:
    """Predicted clocks of one of the convolutions in a launch of its own."""
    clocks = _moving(problem, target)
    problem = replace(problem, x=_channels_last(problem.x), y=_channels_last(problem.y))
    if pointwise.refuses(problem, target):
        return clocks
    demand = pointwise.demand_of(problem)
    product = pointwise_model.clocks(demand, pointwise_model.choose(demand, target), target)
    if not wgmma.refuses(problem, target):
        product = min(product, wgmma_model.fastest(wgmma.demand_of(problem), target))
    return max(clocks, product)


def _channels_last(tensor: Tensor) -> Tensor:
    """What lies between the convolutions as it would lie in memory: in a chain it has none."""
    order = (0, *range(3, len(tensor.shape)), 1, 2)
    strides = contiguous_strides(tuple(tensor.shape[a] for a in order))
    return replace(tensor, strides=tuple(strides[order.index(a)] for a in range(len(order))), align=16)


@lru_cache(maxsize=1024)
def tiles(chain: Chain, target: Target) -> tuple[Tile, ...]:
    """Those that fit, the shortest predicted time first. Only tiles that leave multiprocessors idle are split."""
    found: list[tuple[float, Tile]] = []
    for shape in (Shape(chain, tile) for tile in TILES):
        if not shape.fits(target):
            continue
        for splits in sorted({ceil(shape.slabs / each) for each in range(1, shape.slabs + 1)}):  # no part is empty
            idle = shape.all_tiles * splits <= target.multiprocessors * shape.together(target, splits)
            if splits == 1 or (idle and shape.fits(target, splits)):
                found.append((shape.clocks(target, splits), shape.tile._replace(splits=splits)))
    return tuple(tile for _, tile in sorted(found, key=lambda pair: pair[0]))
