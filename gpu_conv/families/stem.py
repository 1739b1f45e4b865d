"""Host half of ``kernels/conv_stem.cu``: the first layer of a network, 1 to 4 input channels, channels last."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from ..launch import CTYPES, Launch, Target, pack, struct
from ..problem import ITEMSIZE, ConvProblem
from . import Row
from .direct import INT32_LIMIT, activation_parameters, term_type

PARAMS = struct(
    "ConvStemParams",
    [
        *((name, "i8") for name in ("x_image", "y_image")),
        *((name, "f8") for name in ("alpha", "beta")),
        *((name, "i4") for name in ("x_row", "y_row", "y_column", "w_out", "w_channel", "w_row", "w_column")),
        *((name, "i4") for name in ("in_rows", "in_run", "out_rows", "out_columns", "out_channels")),
        *((name, "i4") for name in ("padding_rows", "first", "lead", "tile_rows", "tile_units", "row_tiles")),
        *((name, "i4") for name in ("column_tiles", "pitch")),
    ],
)

THREADS = 256  # kStemThreads
UNIT = 16  # pixels: kUnit
GROUP = 32  # output channels: kGroup
_CHUNK = 8  # channels of one store
_UNITS = 8  # of one tile: at most
_STEP = 16  # elements of a run that one product takes
# Products of one unit and group: their filters take two registers each, and 56 are a 7x7 filter of 3 channels.
_MOST_PRODUCTS = 56
_REGISTERS = 56  # of a thread beside the filter
_REGISTERS_BLACKWELL = 72  # what ptxas takes for sm_120, where 56 spill


class Tile(NamedTuple):
    """Output rows of a block: many share input rows, few make more blocks."""

    rows: int


TILES = (Tile(16), Tile(8), Tile(4), Tile(2), Tile(1))
_BLOCKS = 1  # per multiprocessor: a taller tile must leave so many


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why the kernel cannot run the problem, or None."""
    if p.x.dtype not in ("float16", "bfloat16") or p.accumulate != "float32":
        return f"computes float16 and bfloat16 summed in float32, got {p.x.dtype} summed in {p.accumulate}"
    if target.capability < 80:
        return f"asynchronous copies need compute capability 8.0, {target.arch} has less"
    if p.rank != 2 or p.groups != 1 or not 1 <= p.in_channels <= 4:
        return f"has 2 spatial axes, 1 group, 1 to 4 input channels; got {p.rank}, {p.groups}, {p.in_channels}"
    if p.residual is not None:
        return "adds no residual"
    if p.strides[0] != p.strides[1] or p.strides[1] * p.in_channels % 2:
        return f"needs equal strides, even ones for odd channels: got {p.strides} for {p.in_channels} channels"
    if set(p.dilations) != {1} or set(p.input_dilations) != {1}:
        return f"has no dilations, got {p.dilations} and {p.input_dilations}"
    if not p.y.size:
        return "needs at least one output"
    if p.filter[0] * _steps(p) * 4 > _MOST_PRODUCTS:
        return f"keeps the filter in registers: {p.filter} of {p.in_channels} channels is too large"
    return _refuses_memory(p)


def _refuses_memory(p: ConvProblem) -> str | None:
    x, y = p.x, p.y
    pixel = [s for n, s in zip((x.shape[2], x.shape[4]), (x.strides[2], x.strides[4]), strict=True) if n > 1]
    if pixel != [1, p.in_channels][2 - len(pixel) :] or _copy_bytes(p) < 4:
        return f"rows of x must be dense, aligned to 4 bytes and multiples of them, got {x.shape} with {x.strides}"
    if p.out_channels % _CHUNK or y.strides[2] != 1 or y.align < 16 or any(s % _CHUNK for s in _steps_of_y(p)):
        return (
            f"stores {_CHUNK} neighbouring channels of y, aligned to 16 bytes: got {p.out_channels} with strides "
            f"{y.strides}, align {y.align}"
        )
    spans = [sum((n - 1) * abs(s) for n, s in zip(t.shape[1:], t.strides[1:], strict=True)) for t in (x, y, p.w)]
    reach = [abs(lo) + abs(hi) for lo, hi in p.padding]
    if max(spans) + 1024 * max(abs(s) for t in (x, y) for s in t.strides[2:]) >= INT32_LIMIT or max(reach) >= 1 << 20:
        return "an image and the padding must be below 2**31 elements"
    return None


def _steps_of_y(p: ConvProblem) -> list[int]:
    y = p.y
    return [s for n, s in zip((y.shape[0], *y.shape[3:]), (y.strides[0], *y.strides[3:]), strict=True) if n > 1]


def _steps(p: ConvProblem) -> int:
    """Products that a run takes."""
    return ceil((_shift(p) + p.filter[1] * p.in_channels) / _STEP)


def _shift(p: ConvProblem) -> int:
    """Elements before the run of a pixel, that begins at an odd element, to an even one."""
    return p.padding[1][0] * p.in_channels % 2


def _copy_bytes(p: ConvProblem) -> int:
    """The widest copies to which all rows of x are aligned."""
    size = ITEMSIZE[p.x.dtype]
    steps = [s * size for n, s in zip((p.batch, p.x.shape[3]), (p.x.strides[0], p.x.strides[3]), strict=True) if n > 1]
    row = p.x.shape[4] * p.in_channels * size
    return next((n for n in (16, 8, 4) if p.x.align % n == 0 and not any(s % n for s in (row, *steps))), 2)


def tiles(p: ConvProblem, target: Target) -> list[Tile]:
    """The tallest that leaves blocks for every multiprocessor first; where none does, the lowest."""
    wanted = _BLOCKS * target.multiprocessors
    enough = [tile for tile in TILES if p.batch * ceil(p.out_spatial[0] / tile.rows) >= wanted]
    return enough + [tile for tile in reversed(TILES) if tile not in enough]


def plan(p: ConvProblem, target: Target, tile: Tile | None = None) -> Launch:
    """The launch with the preferred tile, or with a given one."""
    rows = min((tile or tiles(p, target)[0]).rows, p.out_spatial[0])
    stride, steps, copy, size = p.strides[0], _steps(p), _copy_bytes(p), ITEMSIZE[p.x.dtype]
    units = ceil(p.out_spatial[1] / UNIT)
    column_tiles = ceil(units / _UNITS)
    tile_units = ceil(units / column_tiles)
    row_tiles = ceil(p.out_spatial[0] / rows)
    begin = -p.padding[1][0] * p.in_channels - _shift(p)  # of the run of pixel 0
    lead = begin % (copy // size)
    width = lead + (tile_units * UNIT - 1) * stride * p.in_channels + steps * _STEP
    pitch = ceil(width * size / 16) * 16
    code, alpha, beta = activation_parameters(p.activation, p.accumulate)
    params = pack(
        PARAMS,
        x_image=p.x.strides[0],
        y_image=p.y.strides[0],
        alpha=alpha,
        beta=beta,
        x_row=p.x.strides[3],
        y_row=p.y.strides[3],
        y_column=p.y.strides[4],
        w_out=p.w.strides[1],
        w_channel=p.w.strides[2],
        w_row=p.w.strides[3],
        w_column=p.w.strides[4],
        in_rows=p.in_spatial[0],
        in_run=p.in_spatial[1] * p.in_channels,
        out_rows=p.out_spatial[0],
        out_columns=p.out_spatial[1],
        out_channels=p.out_channels,
        padding_rows=p.padding[0][0],
        first=begin - lead,
        lead=lead,
        tile_rows=rows,
        tile_units=tile_units,
        row_tiles=row_tiles,
        column_tiles=column_tiles,
        pitch=pitch,
    )
    registers = 8 * p.filter[0] * steps + (_REGISTERS if target.capability < 100 else _REGISTERS_BLACKWELL)
    types = (CTYPES[p.x.dtype], term_type(p), CTYPES[p.y.dtype])
    shape = (p.in_channels, *p.filter, stride, _shift(p), copy)
    return Launch(
        source="conv_stem.cu",
        kernel="conv_stem",
        template=(*types, *shape, code, max(1, 65536 // THREADS // registers)),
        grid=(p.batch * row_tiles * column_tiles, ceil(p.out_channels / GROUP), 1),
        block=(THREADS, 1, 1),
        params=params,
        shared_bytes=((rows - 1) * stride + p.filter[0]) * pitch,
    )


ROWS = (Row("conv_stem", refuses, plan, tiles),)
