"""Pointwise, dense and grouped convolution with the warpgroup products of sm_90a: host half of ``kernels/wgmma.cu``."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ..launch import CTYPES, Launch, Target, TensorMap, pack, struct
from ..problem import ITEMSIZE, ConvProblem
from . import Row
from .direct import activation_parameters, term_type
from .outputs import collapse
from .wgmma_model import SLAB, Demand, Pixels, Tile, choose, fitting

PARAMS = struct(
    "WgmmaParams",
    [
        *((f"{name}_{axis}", "i8") for name in ("y", "residual") for axis in ("group", "image", "row", "column")),
        *((name, "f8") for name in ("alpha", "beta")),
        *((name, "i4") for name in ("images", "rows", "columns", "channels", "log_rows", "log_columns")),
        *((name, "i4") for name in ("image_tiles", "row_tiles", "column_tiles", "channel_tiles", "tiles")),
        *((name, "i4") for name in ("slabs", "filter_rows", "filter_columns", "steps")),
        *((f"{name}_{axis}", "i4") for name in ("stride", "dilation", "padding") for axis in ("rows", "columns")),
    ],
)

_CHUNK = 8  # channels of one store
_MOST_STEP = 8  # elements between those of a box
_LIMIT = 2**31
_SWIZZLE = 128
# Without parameters and transcendental functions: the epilogues of the others need more registers.
_CHEAP = (None, "relu", "relu6", "hard_swish")


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why the kernel cannot run the problem, or None."""
    if target.arch != "sm_90a":
        return f"products of warpgroups are what sm_90a has, {target.arch} has none"
    if p.x.dtype not in ("float16", "bfloat16") or p.accumulate != "float32":
        return f"computes float16 and bfloat16 summed in float32, got {p.x.dtype} summed in {p.accumulate}"
    if p.rank not in (1, 2) or any(d != 1 for d in p.input_dilations):
        return f"has 1 or 2 spatial axes and no dilated input, got {p.rank} and {p.input_dilations}"
    if not p.y.size or not p.taps:
        return "needs at least one output and one input channel"
    if p.out_per_group % _CHUNK:
        return f"stores {_CHUNK} channels at a time, got {p.out_per_group} output channels per group"
    return _refuses_strides(p) or _refuses_sizes(p, target)


def _refuses_strides(p: ConvProblem) -> str | None:
    repairs = {"w": "filter_layout ohwi, or gpu_conv.Conv, which packs the filter"}
    for name, t in (("x", p.x), ("w", p.w), ("y", p.y), ("residual", p.residual)):
        if t is None:
            continue
        if t.shape[2] > 1 and t.strides[2] != 1:
            repair = repairs.get(name, "channels last")
            return f"the channels of {name} must lie side by side ({repair}), got strides {t.strides}"
        others = [s for axis, (n, s) in enumerate(zip(t.shape, t.strides, strict=True)) if n > 1 and axis != 2]
        unit = 16 // ITEMSIZE[t.dtype]
        if t.align < 16 or any(s % unit for s in others):
            return f"{name} must begin and go on at multiples of 16 bytes, got strides {t.strides}, align {t.align}"
        if name in ("x", "w") and min(others, default=1) <= 0:
            return f"the copy engine goes through {name} in one direction, got strides {t.strides}"
    if p.groups > 1 and p.w.strides[0] != p.w.strides[1] * p.out_per_group:
        return f"the groups of w must follow each other like its output channels, got strides {p.w.strides}"
    return None


def _refuses_sizes(p: ConvProblem, target: Target) -> str | None:
    if max((*p.x.shape, *p.y.shape, *p.w.shape)) >= _LIMIT or any(
        (k - 1) * d + abs(lo) >= _LIMIT // 2 for k, d, (lo, _) in zip(p.filter, p.dilations, p.padding, strict=True)
    ):
        return "counts along an axis in 32 bits"
    axes = _axes(p)
    if max(a.step for a in axes) > _MOST_STEP:
        return f"the copy engine takes at most every {_MOST_STEP}th pixel, got strides {p.strides}"
    if choose(demand_of(p), target) is None:
        return f"no tile fits the {target.shared_per_block} bytes of shared memory and the strides of y {p.y.strides}"
    return None


def tiles(p: ConvProblem, target: Target) -> list[Tile]:
    """Those that fit, the shortest predicted time first."""
    return fitting(demand_of(p), target)


class _Axis(NamedTuple):
    """Images, rows or columns: sizes of x and of the output, strides, and how the filter moves along it."""

    size: int
    out: int
    x: int
    y: int
    residual: int
    step: int = 1
    taps: int = 1
    dilation: int = 1
    padding: int = 0


@lru_cache(maxsize=64)  # three times per problem
def _axes(p: ConvProblem) -> tuple[_Axis, _Axis, _Axis]:
    """Images, rows and columns. Where no filter mixes pixels, as many as possible become columns."""
    residual = (p.residual or p.y).strides
    found = [_Axis(p.batch, p.batch, p.x.strides[0], p.y.strides[0], residual[0])]
    for i, (size, out, k, step, (lo, hi), dilation) in enumerate(
        zip(p.in_spatial, p.out_spatial, p.filter, p.strides, p.padding, p.dilations, strict=True), start=3
    ):
        lies = p.y.strides[i], residual[i]
        if k == 1 and lo == hi == 0:
            found.append(_Axis(out, out, p.x.strides[i] * step, *lies))
        else:
            found.append(_Axis(size, out, p.x.strides[i], *lies, step, k, dilation, lo))
    if p.is_pointwise:
        merged = collapse((a.out, a.x, a.y, a.residual) for a in found)
        found = [_Axis(size, size, *strides) for size, *strides in merged]
    found = [_Axis(1, 1, 0, 0, 0)] * (3 - len(found)) + found
    return found[0], found[1], found[2]


def demand_of(p: ConvProblem) -> Demand:
    """The convolution as far as the choice of a tile depends on it."""
    images, rows, columns = _axes(p)
    residual = p.residual is not None

    def reach(axis: _Axis) -> int:
        return max(abs(axis.y), abs(axis.residual)) if axis.out > 1 else 0

    return Demand(
        pixels=(images.out, rows.out, columns.out),
        steps=(images.step, rows.step, columns.step),
        reach=(reach(images), reach(rows), reach(columns)),
        taps=rows.taps * columns.taps,
        k=p.in_per_group,
        channels=p.out_per_group,
        groups=p.groups,
        moved=p.bytes,
        y_size=ITEMSIZE[p.y.dtype],
        residual=residual,
        costly=(p.activation and p.activation.name) not in _CHEAP or ITEMSIZE[p.y.dtype] == 4,
    )


def plan(p: ConvProblem, target: Target, tile: Tile | None = None) -> Launch:
    """The launch with the tile that the model finds fastest, or with a given one."""
    demand = demand_of(p)
    tile = tile or choose(demand, target)
    assert tile is not None, "refused"
    box = demand.box(tile)
    assert box is not None, "refused"
    images, rows, columns = _axes(p)
    image_tiles, row_tiles, column_tiles = demand.counts(box)
    total = demand.tiles(tile, box)
    code, alpha, beta = activation_parameters(p.activation, p.accumulate)
    params = pack(
        PARAMS,
        y_group=p.y.strides[1],
        y_image=images.y,
        y_row=rows.y,
        y_column=columns.y,
        residual_group=(p.residual or p.y).strides[1],
        residual_image=images.residual,
        residual_row=rows.residual,
        residual_column=columns.residual,
        alpha=alpha,
        beta=beta,
        images=images.out,
        rows=rows.out,
        columns=columns.out,
        channels=p.out_per_group,
        log_rows=box[1].bit_length() - 1,
        log_columns=box[2].bit_length() - 1,
        image_tiles=image_tiles,
        row_tiles=row_tiles,
        column_tiles=column_tiles,
        channel_tiles=demand.channel_tiles(tile),
        tiles=total,
        slabs=demand.slabs,
        filter_rows=rows.taps,
        filter_columns=columns.taps,
        steps=demand.slabs * demand.taps,
        stride_rows=rows.step,
        stride_columns=columns.step,
        dilation_rows=rows.dilation,
        dilation_columns=columns.dilation,
        padding_rows=rows.padding,
        padding_columns=columns.padding,
    )
    return Launch(
        source="wgmma.cu",
        kernel="wgmma",
        template=(CTYPES[p.x.dtype], term_type(p), CTYPES[p.y.dtype], code, tile.cpp, int(demand.residual)),
        grid=(min(total, target.multiprocessors * tile.blocks), 1, 1),
        block=(tile.threads, 1, 1),
        params=params,
        shared_bytes=tile.shared_bytes,
        tensor_maps=(_pixels_map(p, (images, rows, columns), box), _filter_map(p, rows, columns, tile)),
    )


def _pixels_map(p: ConvProblem, axes: tuple[_Axis, _Axis, _Axis], box: Pixels) -> TensorMap:
    """Of x: channels of a group, groups, columns, rows, images. Channels end with their group: zeros follow."""
    steps = tuple(a.step for a in axes)
    return _map(
        "x",
        p.x.dtype,
        (p.in_per_group, p.groups, *(a.size for a in reversed(axes))),
        (p.x.strides[1], *(a.x for a in reversed(axes))),
        (SLAB, 1, *(n * step for n, step in zip(reversed(box), reversed(steps), strict=True))),
        (1, 1, *reversed(steps)),
    )


def _filter_map(p: ConvProblem, rows: _Axis, columns: _Axis, tile: Tile) -> TensorMap:
    """Of w: input channels, output channels modulo 8 and, of all groups, divided by 8, columns, rows."""
    row, column = p.w.strides[3:] if p.rank == 2 else (0, p.w.strides[3])
    return _map(
        "w",
        p.w.dtype,
        (p.in_per_group, _CHUNK, p.out_channels // _CHUNK, columns.taps, rows.taps),
        (p.w.strides[1], _CHUNK * p.w.strides[1], column, row),
        (SLAB, 2, tile.columns // _CHUNK, 1, 1),
        (1,) * 5,
    )


def _map(
    operand: str,
    dtype: str,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    box: tuple[int, ...],
    element_strides: tuple[int, ...],
) -> TensorMap:
    """Axes of one element have no stride of their own: any will do."""
    outer = tuple(s if n > 1 else _CHUNK for n, s in zip(shape[1:], strides, strict=True))
    return TensorMap(operand, dtype, 0, shape, outer, box, element_strides, _SWIZZLE)


ROWS = (Row("wgmma", refuses, plan, tiles),)
