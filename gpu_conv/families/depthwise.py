"""Depthwise kernels: one input channel per group, any number of outputs of it (the multiplier).

The rows from the most special to ``depthwise``, the host half of ``kernels/depthwise.cu``.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..launch import Launch, Target, pack, struct
from ..problem import ITEMSIZE, ConvProblem
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

# (channels, columns) of one thread of ``depthwise``; the first whose channels are side by side, aligned and enough.
TILES = ((4, 4), (2, 4), (1, 8))


def _tile(p: ConvProblem) -> tuple[int, int]:
    tensors = [t for t in (p.x, p.y, p.residual) if t is not None]

    def fits(vector: int) -> bool:
        return vector == 1 or (
            p.out_per_group == 1
            and p.groups % vector == 0
            and all(t.strides[1] == 1 for t in tensors)
            and all(s % vector == 0 for t in tensors for s in (t.strides[0], *t.strides[3:]))
            and all(t.align >= min(16, vector * ITEMSIZE[t.dtype]) for t in tensors)
        )

    return next(tile for tile in TILES if fits(tile[0]))


def _tiles(p: ConvProblem) -> int:
    vector, width = _tile(p)
    step = _column_step(p)
    columns = p.out_spatial[-1]
    return p.y.size // columns // vector * (-(-columns // (width * step)) * step)


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
    return "y has too many elements for 32-bit thread indices" if _tiles(p) + THREADS >= INT32_LIMIT else None


def _axes(p: ConvProblem) -> Iterator[tuple[int, int, int, int, tuple[int, int]]]:
    sizes = map(max, p.out_spatial, p.in_spatial)
    return zip(sizes, p.strides, p.filter, p.dilations, p.padding, strict=True)


def plan(p: ConvProblem, target: Target) -> Launch:
    """The launch for a problem with at least one output element."""
    vector, width = _tile(p)
    channels_fast = vector > 1 or 0 < abs(p.y.strides[1]) <= abs(p.y.strides[-1])
    residual = p.residual or p.y
    tiles = _tiles(p)
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
        template=(*ctypes(p), vector, width, channels_fast, p.strides[-1] == 1, code),
        grid=(-(-tiles // THREADS), 1, 1),
        block=(THREADS, 1, 1),
        params=params,
    )


ROWS = (
    *depthwise_ncw.ROWS,
    *depthwise_nhwc_mma.ROWS,
    *depthwise_nhwc_tile.ROWS,
    *depthwise_nhwc.ROWS,
    *depthwise_nhwc_int8.ROWS,
    *depthwise_nchw_tile.ROWS,
    *depthwise_nchw.ROWS,
    Row("depthwise", refuses, plan),
)
