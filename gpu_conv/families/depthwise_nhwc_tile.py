"""Host half of ``kernels/depthwise_nhwc_tile.cu``: channels last, through shared memory."""

from __future__ import annotations

from typing import NamedTuple

from ..launch import Launch, Target, pack, struct
from ..problem import ITEMSIZE, ConvProblem
from . import Row, depthwise_common
from .depthwise_common import ctypes
from .direct import INT32_LIMIT, activation_parameters

PARAMS = struct(
    "DepthwiseNhwcTileParams",
    [
        ("w_group", "int64"),
        ("w_row", "int64"),
        ("w_column", "int64"),
        ("channels", "int32"),
        ("in", "int32", 2),
        ("out", "int32", 2),
        ("padding", "int32", 2),
        ("dilations", "int32", 2),
        ("channel_blocks", "int32"),
        ("column_tiles", "int32"),
        ("row_tiles", "int32"),
        ("alpha", "float64"),
        ("beta", "float64"),
    ],
)

COPY = 16  # bytes of one asynchronous copy
BANK_LINE = 128  # bytes of all banks of shared memory
LARGEST = 7  # filter


class Tile(NamedTuple):
    """Outputs of one block: channels, columns and rows, as threads times what a thread computes.

    Attributes:
        taps: largest filter, rows and columns.
        vector, width, height: channels, columns and rows of one thread.
        lanes, strips, bands: threads along channels, columns and rows.
        min_blocks: blocks per multiprocessor to compile for.
    """

    taps: int
    vector: int
    width: int
    height: int
    lanes: int
    strips: int
    bands: int
    min_blocks: int

    @property
    def threads(self) -> int:
        return self.lanes * self.strips * self.bands

    @property
    def channels(self) -> int:
        return self.lanes * self.vector

    @property
    def columns(self) -> int:
        return self.strips * self.width

    @property
    def rows(self) -> int:
        return self.bands * self.height


# Issue slots per output of a block, sm_90a, full tile: 3x3 25, 5x5 54, 7x7 81.
TILES = (
    Tile(3, 4, 4, 7, 16, 4, 2, 4),  # 64 channels x 16 columns x 14 rows
    Tile(3, 4, 4, 7, 32, 2, 1, 8),  # 128 x 8 x 7
    Tile(3, 4, 4, 7, 8, 7, 2, 4),  # 32 x 28 x 14
    Tile(3, 4, 4, 4, 16, 4, 2, 4),  # 64 x 16 x 8
    Tile(5, 2, 4, 7, 16, 4, 2, 3),  # 32 x 16 x 14
    Tile(5, 2, 4, 7, 32, 2, 1, 6),  # 64 x 8 x 7
    Tile(5, 2, 4, 7, 16, 7, 1, 3),  # 32 x 28 x 7
    Tile(5, 2, 4, 4, 16, 4, 2, 3),  # 32 x 16 x 8
    Tile(7, 2, 4, 7, 16, 4, 2, 2),  # 32 x 16 x 14
    Tile(7, 2, 4, 7, 32, 2, 1, 4),  # 64 x 8 x 7
    Tile(7, 2, 4, 7, 16, 7, 1, 2),  # 32 x 28 x 7
    Tile(7, 2, 4, 4, 16, 4, 2, 2),  # 32 x 16 x 8
)

# Cost of a block: one unit per tap and output, ROW per output for the rest, STAGE per input element copied.
ROW, STAGE = 12, 2


def _tiles(p: ConvProblem, tile: Tile) -> tuple[int, int, int]:
    """Blocks along channels, and along columns and rows of one phase."""
    rows, columns = (-(-out // d) for out, d in zip(p.out_spatial, p.dilations, strict=True))
    return -(-p.groups // tile.channels), -(-columns // tile.columns), -(-rows // tile.rows)


def _blocks(p: ConvProblem, tile: Tile) -> int:
    channels, columns, rows = _tiles(p, tile)
    return p.batch * channels * columns * rows * p.dilations[0] * p.dilations[1]


def _staged(p: ConvProblem, tile: Tile) -> int:
    """Input pixels of one block."""
    return (tile.rows - 1 + p.filter[0]) * (tile.columns - 1 + p.filter[1])


def _shared_bytes(p: ConvProblem, tile: Tile) -> int:
    """The input tile and the filter as float32: SHARED, which the kernel compares with its own count."""
    pixel = tile.channels * ITEMSIZE[p.x.dtype]
    pixel += COPY if pixel < BANK_LINE else 0
    return _staged(p, tile) * pixel + p.filter[0] * p.filter[1] * tile.channels * 4


def tiles(p: ConvProblem, target: Target) -> list[Tile]:
    """Those for the filter, the cheapest first; fewer blocks than the device holds cost as much as a full device."""
    taps = max(p.filter)
    size = min(t.taps for t in TILES if t.taps >= taps)

    def cost(tile: Tile) -> int:
        outputs = tile.channels * tile.columns * tile.rows
        one = outputs * (p.filter[0] * p.filter[1] + ROW) + _staged(p, tile) * tile.channels * STAGE
        return max(_blocks(p, tile), target.multiprocessors * tile.min_blocks) * one

    return sorted((t for t in TILES if t.taps == size and _fits(p, t, target)), key=cost)


def _fits(p: ConvProblem, tile: Tile, target: Target) -> bool:
    return _shared_bytes(p, tile) <= target.shared_per_block


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why the kernel cannot run the problem, or None."""
    if reason := depthwise_common.refuses(p):
        return reason
    if p.rank != 2:
        return f"it has {p.rank} spatial axes; depthwise_nhwc_tile runs 2"
    if p.out_per_group != 1:
        return f"a group has {p.out_per_group} outputs; depthwise_nhwc_tile takes 1"
    if p.strides != (1, 1):
        return f"strides are {p.strides}; depthwise_nhwc_tile takes 1"
    if max(p.filter) > LARGEST:
        return f"the filter is {p.filter}; depthwise_nhwc_tile is unrolled up to {LARGEST}x{LARGEST}"
    if max(p.filter) <= TILES[0].taps and p.x.dtype == "float32":
        return f"float32 with a filter of {p.filter} is as fast as a copy without shared memory: depthwise_nhwc"
    for name, tensor in (("x", p.x), ("y", p.y), ("residual", p.residual)):
        if tensor is not None and not (tensor.channels_last and tensor.align >= COPY):
            return f"{name} is not dense with channels last and aligned to {COPY} bytes (strides {tensor.strides})"
    if p.groups * ITEMSIZE[p.x.dtype] % COPY:
        return f"{p.groups} channels of {p.x.dtype} are no multiple of {COPY} bytes"
    if max(p.x.size // p.batch, p.y.size // p.batch, _blocks(p, TILES[-1]) * 32) >= INT32_LIMIT:
        return "x or y has too many elements for 32-bit offsets"
    if not tiles(p, target):
        return f"a block needs more shared memory than the {target.shared_per_block} bytes of the device"
    return None


def plan(p: ConvProblem, target: Target, tile: Tile | None = None) -> Launch:
    """The launch for a problem with at least one output element, with the cheapest tile or with a given one."""
    tile = tile or tiles(p, target)[0]
    channel_blocks, column_tiles, row_tiles = _tiles(p, tile)
    shared = _shared_bytes(p, tile)
    code, alpha, beta = activation_parameters(p.activation, p.accumulate)
    params = pack(
        PARAMS,
        w_group=p.w.strides[0],
        w_row=p.w.strides[3],
        w_column=p.w.strides[4],
        channels=p.groups,
        out=p.out_spatial,
        padding=[lo for lo, _ in p.padding],
        dilations=p.dilations,
        channel_blocks=channel_blocks,
        column_tiles=column_tiles,
        row_tiles=row_tiles,
        alpha=alpha,
        beta=beta,
        **{"in": p.in_spatial},
    )
    sizes = (tile.vector, tile.width, tile.lanes, tile.strips, tile.bands, tile.height, *p.filter, 1, shared)
    return Launch(
        source="depthwise_nhwc_tile.cu",
        kernel="depthwise_nhwc_tile",
        template=(*ctypes(p), *sizes, p.residual is not None, code, tile.min_blocks),
        grid=(_blocks(p, tile), 1, 1),
        block=(tile.threads, 1, 1),
        params=params,
        shared_bytes=shared,
    )


ROWS = (Row("depthwise_nhwc_tile", refuses, plan, tiles),)
