"""Depthwise kernels: one input channel per group, any number of outputs of it (the multiplier).

The rows from the most special to ``depthwise``, the host half of ``kernels/depthwise.cu``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..launch import Launch, Target, pack, struct
from ..problem import ITEMSIZE, ConvProblem, Tensor
from . import (
    Row,
    depthwise_common,
    depthwise_nchw,
    depthwise_nchw_tile,
    depthwise_ncw,
    depthwise_nhwc,
    depthwise_nhwc_int8,
    depthwise_nhwc_mma,
    depthwise_nhwc_tile,
    depthwise_nhwc_toeplitz,
)
from .depthwise_common import THREADS, ctypes, three
from .direct import INT32_LIMIT, activation_parameters

PARAMS = struct(
    "DepthwiseParams",
    [
        ("x_strides", "int64", 5),
        ("w_strides", "int64", 5),
        ("y_strides", "int64", 6),
        ("residual_strides", "int64", 6),
        ("tiles", "int32"),
        ("groups", "int32"),
        ("multiplier", "int32"),
        ("in", "int32", 3),
        ("filter", "int32", 3),
        ("out", "int32", 3),
        ("strides", "int32", 3),
        ("padding", "int32", 3),
        ("dilations", "int32", 3),
        ("column_step", "int32"),
        ("alpha", "float64"),
        ("beta", "float64"),
    ],
)


class Tile(NamedTuple):
    """What one thread computes: channels x columns, so many taps at a time; x is loaded ``along`` columns at once."""

    channels: int
    columns: int
    chunk: int
    along: int


# The first that fits is taken.
TILES = (Tile(4, 4, 4, 1), Tile(2, 4, 4, 1), Tile(1, 8, 4, 1))
# From LONG taps along columns of stride 1 on: wide windows, for whose products loads are few. Machine instructions and
# 128-byte wavefronts of L1 per 256 products of a warp in the inner loop, float32 on sm_90a: 440 and 32 for the first
# tile, 526 and 80 for the third; the first and the last of TILES take 696 and 128, 880 and 288.
LONG = 9
WIDE = 16  # columns: of longer rows than half of them, and where they leave FULL blocks for every multiprocessor
FULL = 2
LONG_TILES = (
    Tile(2, 16, 8, 1), Tile(2, 8, 8, 1), Tile(1, 16, 8, 4), Tile(1, 8, 8, 4), Tile(1, 8, 8, 1),
)  # fmt: skip


def _tile(p: ConvProblem, target: Target) -> Tile:
    tiles = LONG_TILES if p.strides[-1] == 1 and p.filter[-1] >= LONG else TILES
    fitting = (tile for tile in tiles if _fits(p, tile))
    return next(tile for tile in fitting if tile.columns < WIDE or _fills(p, tile, target))


def _fills(p: ConvProblem, tile: Tile, target: Target) -> bool:
    """Whether the columns of a tile are not half empty, and its threads enough."""
    columns = -(-p.out_spatial[-1] // _column_step(p))
    return columns > tile.columns // 2 and _tiles(p, tile) >= FULL * THREADS * target.multiprocessors


def _fits(p: ConvProblem, tile: Tile) -> bool:
    """Whether vectors of the tile are side by side and aligned."""
    tensors = [t for t in (p.x, p.y, p.residual) if t is not None]
    channels = tile.channels == 1 or (
        p.out_per_group == 1
        and p.groups % tile.channels == 0
        and all(t.strides[1] == 1 for t in tensors)
        and all(_whole(t, (t.strides[0], *t.strides[3:]), tile.channels) for t in tensors)
    )
    along = tile.along == 1 or (
        p.dilations[-1] == 1
        and p.x.strides[-1] == 1
        and p.in_spatial[-1] % tile.along == 0
        and _whole(p.x, p.x.strides[:2] + p.x.strides[3:-1], tile.along)
    )
    return channels and along


def _whole(tensor: Tensor, strides: tuple[int, ...], vector: int) -> bool:
    """Whether all these steps lead from vector to vector, the first of which is aligned."""
    return all(s % vector == 0 for s in strides) and tensor.align >= min(16, vector * ITEMSIZE[tensor.dtype])


def _filter_fast(p: ConvProblem, tile: Tile) -> bool:
    """Whether the channels of a thread are one vector of the filter."""
    return tile.channels > 1 and p.w.strides[0] == 1 and _whole(p.w, p.w.strides[3:], tile.channels)


def _tiles(p: ConvProblem, tile: Tile) -> int:
    step, columns = _column_step(p), p.out_spatial[-1]
    return p.y.size // columns // tile.channels * (-(-columns // (tile.columns * step)) * step)


def _column_step(p: ConvProblem) -> int:
    """Columns of one thread lie a dilation apart where the stride is 1: they share the window of inputs."""
    return p.dilations[-1] if p.strides[-1] == 1 else 1


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why the kernel cannot run the problem, or None."""
    if reason := depthwise_common.refuses(p):
        return reason
    tensors = [t for t in (p.x, p.w, p.y, p.residual) if t is not None]
    reach = [n * s + k * d + abs(lo) for n, s, k, d, (lo, _) in _axes(p)]
    if max(*reach, *(n * abs(s) for t in tensors for n, s in zip(t.shape[3:], t.strides[3:], strict=True))) * 16 >= (
        INT32_LIMIT
    ):
        return "one row has too many elements for 32-bit offsets"
    tile = _tile(p, target)
    return "y has too many elements for 32-bit thread indices" if _tiles(p, tile) + THREADS >= INT32_LIMIT else None


def _axes(p: ConvProblem) -> Iterator[tuple[int, int, int, int, tuple[int, int]]]:
    sizes = map(max, p.out_spatial, p.in_spatial)
    return zip(sizes, p.strides, p.filter, p.dilations, p.padding, strict=True)


def plan(p: ConvProblem, target: Target) -> Launch:
    """The launch for a problem with at least one output element."""
    tile = _tile(p, target)
    channels_fast = tile.channels > 1 or 0 < abs(p.y.strides[1]) <= abs(p.y.strides[-1])
    residual = p.residual or p.y
    tiles = _tiles(p, tile)
    code, alpha, beta = activation_parameters(p.activation, p.accumulate)
    params = pack(
        PARAMS,
        x_strides=[*p.x.strides[:2], *three(p.x.strides[3:], 0)],
        w_strides=[*p.w.strides[:2], *three(p.w.strides[3:], 0)],
        y_strides=[*p.y.strides[:3], *three(p.y.strides[3:], 0)],
        residual_strides=[*residual.strides[:3], *three(residual.strides[3:], 0)],
        tiles=tiles,
        groups=p.groups,
        multiplier=p.out_per_group,
        filter=three(p.filter, 1),
        out=three(p.out_spatial, 1),
        strides=three(p.strides, 1),
        padding=three(tuple(lo for lo, _ in p.padding), 0),
        dilations=three(p.dilations, 1),
        column_step=_column_step(p),
        alpha=alpha,
        beta=beta,
        **{"in": three(p.in_spatial, 1)},
    )
    return Launch(
        source="depthwise.cu",
        kernel="depthwise",
        template=(*ctypes(p), *tile, channels_fast, _filter_fast(p, tile), p.strides[-1] == 1, code),
        grid=(-(-tiles // THREADS), 1, 1),
        block=(THREADS, 1, 1),
        params=params,
    )


ROWS = (
    *depthwise_ncw.ROWS,
    *depthwise_nhwc_mma.ROWS,
    *depthwise_nhwc_tile.ROWS,
    *depthwise_nhwc_toeplitz.ROWS,
    *depthwise_nhwc.ROWS,
    *depthwise_nhwc_int8.ROWS,
    *depthwise_nchw_tile.ROWS,
    *depthwise_nchw.ROWS,
    Row("depthwise", refuses, plan),
)
