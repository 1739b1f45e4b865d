"""Three convolutions in one launch: the host half of ``kernels/inverted_residual.cu``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any

from ..arrays import Array
from ..launch import CTYPES, Launch, Target, pack, struct
from ..problem import ConvProblem
from .direct import INT32_LIMIT, activation_parameters

PARAMS = struct(
    "InvertedResidualParams",
    [
        ("in", "int32", 2),
        ("out", "int32", 2),
        ("padding", "int32", 2),
        ("expanded", "int32"),
        ("column_tiles", "int32"),
        ("row_tiles", "int32"),
        ("slabs", "int32"),
        ("alpha", "float64", 3),
        ("beta", "float64", 3),
    ],
)

THREADS = 256
REGISTERS = 168  # of sums and filters that a thread keeps; at most 214 registers in all


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

    @property
    def in_channels(self) -> int:
        return self.first.in_channels

    @property
    def expanded(self) -> int:
        return self.depthwise.out_channels

    @property
    def out_channels(self) -> int:
        return self.project.out_channels

    @property
    def stride(self) -> int:
        return self.depthwise.strides[0]

    @property
    def bytes(self) -> int:
        """The fewest that device memory must move: input, output and filters, nothing between."""
        steps = [p for p in (self.expand, self.depthwise, self.project) if p]
        return self.first.x.nbytes + self.project.y.nbytes + sum(p.w.nbytes for p in steps)


@dataclass(frozen=True)
class Tile:
    """What a block computes.

    Attributes:
        rows, columns: outputs.
        slab: expanded channels at a time.
        pixel_warps: of the 8 warps of the projection, how many share the pixels; the others share its channels.
        run: neighbouring outputs that a thread computes of the depthwise convolution.
    """

    rows: int
    columns: int
    slab: int
    pixel_warps: int
    run: int

    @property
    def pixels(self) -> int:
        return self.rows * self.columns


# Those that prototypes used on the maps of MobileNetV2, and long runs for small maps.
TILES = (
    Tile(8, 8, 32, 4, 2),
    Tile(14, 8, 32, 8, 4),
    Tile(14, 4, 32, 4, 2),
    Tile(7, 14, 32, 8, 2),
    Tile(7, 14, 32, 4, 2),
    Tile(7, 7, 32, 2, 1),
    Tile(7, 14, 64, 8, 7),
    Tile(7, 14, 64, 4, 7),
    Tile(7, 7, 64, 4, 7),
    Tile(7, 7, 64, 2, 7),
    Tile(14, 14, 64, 4, 7),
)


@dataclass(frozen=True)
class Shape:
    """A chain cut into tiles: the sizes that ``ResidualTile`` in ``kernels/inverted_residual.cuh`` counts too."""

    chain: Chain
    tile: Tile

    @property
    def in_pixels(self) -> int:
        """Input pixels of a block, halo included."""
        rows, columns = ((n - 1) * self.chain.stride + 3 for n in (self.tile.rows, self.tile.columns))
        return rows * columns

    @property
    def in_steps(self) -> int:
        """Of 16 input channels."""
        return ceil(self.chain.in_channels / 16)

    @property
    def in_line(self) -> int:
        return line_bytes(self.in_steps * 16)

    @property
    def slab_line(self) -> int:
        return line_bytes(self.tile.slab)

    @property
    def slabs(self) -> int:
        return ceil(self.chain.expanded / self.tile.slab)

    @property
    def pixel_tiles(self) -> int:
        """Of 16 outputs, per warp."""
        return ceil(self.tile.pixels / (16 * self.tile.pixel_warps))

    @property
    def channel_tiles(self) -> int:
        """Of 8 output channels, per warp."""
        return ceil(ceil(self.chain.out_channels / 8) / (8 // self.tile.pixel_warps))

    @property
    def tiles(self) -> tuple[int, int]:
        """Blocks along the rows and columns of an image."""
        rows, columns = self.chain.project.out_spatial
        return ceil(rows / self.tile.rows), ceil(columns / self.tile.columns)

    @property
    def blocks(self) -> int:
        return self.chain.project.batch * self.tiles[0] * self.tiles[1]

    @property
    def weights(self) -> int:
        """Bytes of one slab of weights."""
        expand = self.tile.slab * (self.in_line + 4) if self.chain.expand else 0
        return expand + self.chain.out_channels * self.slab_line + 10 * 4 * self.tile.slab

    @property
    def shared_bytes(self) -> int:
        """SHARED of the kernel."""
        x = self.in_pixels * self.in_line
        expanded = self.in_pixels * self.slab_line + ceil(self.in_pixels / 16) * 32 if self.chain.expand else 0
        depthwise = self.pixel_tiles * 16 * self.tile.pixel_warps * self.slab_line
        return max(
            x + expanded + depthwise + 2 * self.weights,
            x + self.tile.pixels * line_bytes(self.chain.out_channels),
        )

    @property
    def kept(self) -> int:
        """Registers of a thread for sums and for filters of the expansion."""
        return 4 * self.pixel_tiles * self.channel_tiles + (8 * self.in_steps if self.chain.expand else 0)

    def fits(self, target: Target) -> bool:
        return self.shared_bytes <= target.shared_per_block and self.kept <= REGISTERS

    def clocks(self, target: Target) -> float:
        """Predicted duration: what a multiprocessor issues, or the barriers of its blocks one after the other."""
        shared = (target.shared_per_block + 1024) // (self.shared_bytes + 1024)
        together = max(1, min(shared, 65536 // (THREADS * (self.kept + 44)), 6))
        each = ceil(self.blocks / target.multiprocessors)
        issue = self._instructions / _ISSUE
        return max(each * issue, ceil(each / together) * (issue + self.slabs * _SLAB_LATENCY))

    @property
    def _instructions(self) -> float:
        """Of warps, for one block."""
        tile, stride = self.tile, self.chain.stride
        expand = ceil(self.in_pixels / 16) * (tile.slab / 32) * (5 * self.in_steps + 90) if self.chain.expand else 0
        reads = 3 * (3 + 5 * ((tile.run - 1) * stride + 3))
        depthwise = tile.pixels / tile.run * tile.slab / 128 * (reads + tile.run * (36 + 14) + 25)
        products = tile.slab / 16 * (self.pixel_tiles + self.channel_tiles * (0.5 + self.pixel_tiles)) * 8
        return self.slabs * (expand + depthwise + products + self.weights / 512 * 8)


# Fitted to the times of the prototypes at batch 256 on an H100, within 1.35 but for block 14
# (59 us predicted, 90 measured of another tile). This kernel itself has not been timed.
_ISSUE = 1.8  # instructions of warps per clock of a multiprocessor
_BYTES = 10.0  # that a multiprocessor moves per clock in a launch that does little else
_LAUNCH = 2500  # clocks: start and end of a launch, and the least that its threads wait for memory
_SLAB_LATENCY = 2000  # clocks: three barriers, the first loads of three stages


def line_bytes(channels: int) -> int:
    """Bytes of a line of 16-bit elements in shared memory: an odd number of 16-byte chunks."""
    return (ceil(channels / 8) | 1) * 16


def refuses(chain: Chain, target: Target) -> str | None:
    """Why one launch cannot run the chain, or None."""
    steps = [p for p in (chain.expand, chain.depthwise, chain.project) if p]
    d = chain.depthwise
    if target.capability < 80:
        return f"needs compute capability 8.0, {target.arch} has less"
    if d.x.dtype not in ("float16", "bfloat16") or any(p.y.dtype != d.x.dtype for p in steps):
        return f"computes float16 and bfloat16, got {d.x.dtype} -> {chain.project.y.dtype}"
    if d.rank != 2 or d.filter != (3, 3) or d.out_per_group != 1 or not d.is_depthwise or set(d.dilations) != {1}:
        return f"needs an undilated 3x3 depthwise convolution of multiplier 1, got filter {d.filter}, {d.groups} groups"
    if d.strides not in ((1, 1), (2, 2)) or min(min(d.padding)) < 0 or max(max(d.padding)) > 2:
        return f"needs stride 1 or 2 and padding 0 to 2, got {d.strides} and {d.padding}"
    if any(not p.is_pointwise or p.groups != 1 or set(p.strides) != {1} for p in steps if p is not d):
        return "needs 1x1 convolutions without groups and strides around the depthwise one"
    if any(n % 8 for n in (chain.in_channels, chain.expanded, chain.out_channels)):
        channels = (chain.in_channels, chain.expanded, chain.out_channels)
        return f"moves 8 channels at a time, got {' -> '.join(map(str, channels))}"
    if any(not t.channels_last or t.align < 16 for t in (chain.first.x, chain.project.y)):
        return "needs input and output channels last, dense and aligned to 16 bytes"
    same = chain.in_channels == chain.out_channels and d.in_spatial == d.out_spatial
    if chain.project.residual and not (same and chain.stride == 1):
        return "adds its input, which has another shape than the output"
    if max(chain.first.x.size, chain.project.y.size) // max(1, d.batch) >= INT32_LIMIT or not chain.project.y.size:
        return "counts the elements of an image in 32 bits, from 1"
    if not tiles(chain, target):
        return f"keeps sums and filters in registers: too many channels for {target.arch}"
    return None


def slower(chain: Chain, target: Target) -> str | None:
    """Why three launches are predicted to be faster than one; None if they are not."""
    one = Shape(chain, tiles(chain, target)[0]).clocks(target)
    steps = [p for p in (chain.expand, chain.depthwise, chain.project) if p]
    three = sum(max(_LAUNCH, p.bytes / (_BYTES * target.multiprocessors)) + _LAUNCH for p in steps)
    return f"{one:.0f} clocks in one launch, {three:.0f} in {len(steps)}" if one > three else None


@lru_cache(maxsize=1024)
def tiles(chain: Chain, target: Target) -> tuple[Tile, ...]:
    """Those that fit, the shortest predicted time first."""
    fitting = (tile for tile in TILES if Shape(chain, tile).fits(target))
    return tuple(sorted(fitting, key=lambda tile: Shape(chain, tile).clocks(target)))


def plan(chain: Chain, target: Target, tile: Tile | None = None) -> Launch:
    """The launch with a given tile, or with the one that is predicted fastest. Its filter is that of ``weights``."""
    tile = tile or tiles(chain, target)[0]
    shape, d = Shape(chain, tile), chain.depthwise
    steps = (chain.expand, d, chain.project)
    codes, alpha, beta = zip(
        *(activation_parameters(p.activation if p else None, "float32") for p in steps), strict=True
    )
    params = pack(
        PARAMS,
        **{"in": d.in_spatial},
        out=d.out_spatial,
        padding=[lo for lo, _ in d.padding],
        expanded=chain.expanded,
        column_tiles=shape.tiles[1],
        row_tiles=shape.tiles[0],
        slabs=shape.slabs,
        alpha=alpha,
        beta=beta,
    )
    flags = (chain.expand is not None, chain.project.residual is not None)
    return Launch(
        source="inverted_residual.cu",
        kernel="inverted_residual",
        template=(
            *(CTYPES[d.x.dtype], chain.in_channels, chain.out_channels, chain.stride, *flags, *codes),
            *(tile.rows, tile.columns, tile.slab, tile.pixel_warps, tile.run, shape.shared_bytes),
        ),
        grid=(shape.blocks, 1, 1),
        block=(THREADS, 1, 1),
        params=params,
        shared_bytes=shape.shared_bytes,
    )


def weights(chain: Chain, tile: Tile, filters: Mapping[str, Array | None], xp: Any) -> Array:
    """All filters and the inner biases as the kernel reads them: uint8 ``[slabs, bytes]``, the end filled with zeros.

    Args:
        filters: ``expand`` ``[e, i]``, ``depthwise`` ``[e, 3, 3]``, ``project`` ``[o, e]``, ``expand_bias`` and
            ``depthwise_bias`` ``[e]`` or None.
        xp: the module of the arrays.
    """
    shape = Shape(chain, tile)
    slabs, slab = shape.slabs, tile.slab

    def part(array: Array | None, dtype: Any, line: int, expanded_axis: int = 0) -> Array:
        """One of the parts, lines of ``line`` elements, slab by slab."""
        lines = xp.zeros((slabs * slab, line), dtype)
        if array is not None:
            matrix = array.reshape(array.shape[0], -1) if expanded_axis == 0 else array.T
            lines[: matrix.shape[0], : matrix.shape[1]] = matrix
        return lines.reshape(slabs, slab, line)

    def raw(array: Array) -> Array:
        return xp.ascontiguousarray(array).reshape(slabs, -1).view(xp.uint8)

    dtype, depthwise, project = filters["project"].dtype, filters["depthwise"], filters["project"]  # type: ignore[union-attr]
    lines = part(project, dtype, chain.out_channels, 1).transpose(0, 2, 1)
    padded = xp.zeros((slabs, chain.out_channels, shape.slab_line // 2), dtype)
    padded[:, :, :slab] = lines
    parts = [raw(padded), raw(part(depthwise, xp.float32, 9).transpose(0, 2, 1))]
    if chain.expand:
        parts.insert(0, raw(part(filters["expand"], dtype, shape.in_line // 2)))
        parts.append(raw(part(filters["expand_bias"], xp.float32, 1)))
    parts.append(raw(part(filters["depthwise_bias"], xp.float32, 1)))
    return xp.concatenate(parts, axis=1)
