"""Dense and grouped K x K convolution, channels last, 16-bit: the host half of ``kernels/conv_tile.cu``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from ..launch import CTYPES, Launch, Target, pack, struct
from ..problem import ITEMSIZE, ConvProblem, Tensor
from . import Row
from .tile_model import Demand, Tile, choose

PARAMS = struct(
    "ConvTileParams",
    [
        *((name, "i8") for name in ("x_image", "y_image", "residual_image")),
        *((name, "i8") for name in ("w_group", "w_out", "w_channel", "w_row", "w_column")),
        *((name, "f8") for name in ("alpha", "beta")),
        *((f"{name}_{axis}", "i4") for name in ("x", "y", "residual") for axis in ("row", "column")),
        *((name, "i4") for name in ("images", "in_rows", "in_columns", "out_rows", "out_columns")),
        *((name, "i4") for name in ("padding_rows", "padding_columns")),
        *((name, "i4") for name in ("out_per_group", "units", "unit_chunks", "unit_outputs", "parts", "slabs")),
        *((name, "i4") for name in ("row_tiles", "column_tiles", "workers")),
        *((name, "i4") for name in ("step_images", "step_rows", "step_columns")),
    ],
)

_DTYPES = ("float16", "bfloat16")
_LIMIT = 2**31
_MOST_TAPS = 49  # every tap of a slab is unrolled


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why the kernel cannot run the problem, or None."""
    if target.capability < 80:
        return f"asynchronous copies and 16-row products need compute capability 8.0, {target.arch} has none"
    if p.x.dtype not in _DTYPES or p.w.dtype != p.x.dtype or p.accumulate != "float32":
        return f"computes float16 and bfloat16, got x {p.x.dtype}, w {p.w.dtype}"
    if p.y.dtype not in (*_DTYPES, "float32"):
        return f"stores float16, bfloat16 and float32, got {p.y.dtype}"
    if p.rank not in (1, 2):
        return f"has 1 or 2 spatial axes, got {p.rank}"
    if any(d != 1 for d in p.input_dilations):
        return f"does not dilate the input, got {p.input_dilations}"
    if not p.y.size:
        return "needs at least one output"
    if prod(p.filter) > _MOST_TAPS:
        return f"unrolls at most {_MOST_TAPS} taps, got {p.filter}"
    return _refuses_channels(p) or _refuses_memory(p) or _refuses_tiles(p, target)


def _refuses_channels(p: ConvProblem) -> str | None:
    if p.in_channels % 8:
        return f"reads 8 channels at a time, got {p.in_channels}"
    if p.in_per_group % 8 and p.in_per_group not in (2, 4):
        return f"groups have 2, 4 or a multiple of 8 channels, got {p.in_per_group}"
    return None


def _refuses_memory(p: ConvProblem) -> str | None:
    _, groups, per_group = p.x.shape[:3]
    if (per_group > 1 and p.x.strides[2] != 1) or (groups > 1 and p.x.strides[1] != per_group):
        return "the channels of x must lie side by side (nhwc); give input_layout='nhwc' or let pointwise or direct run"
    if p.x.align < 16 or any(
        s % 8 for n, s in zip(p.x.shape, p.x.strides, strict=True) if s != 1 and n > 1 and s != per_group
    ):
        return f"pixels of x must start at multiples of 16 bytes, got strides {p.x.strides}, alignment {p.x.align}"
    for name, t in (("y", p.y), ("residual", p.residual)):
        _, groups, per_group = p.y.shape[:3]
        if t and ((per_group > 1 and t.strides[2] != 1) or (groups > 1 and t.strides[1] != per_group)):
            return f"the channels of {name} must lie side by side (nhwc)"
        if t and _image_span(t) >= _LIMIT:
            return f"one image of {name} must be below 2**31 elements"
    if _image_span(p.x) + sum(abs(s) * 1024 for s in p.x.strides[3:]) >= _LIMIT:
        return "one image of x must be below 2**31 elements"
    return None


def _refuses_tiles(p: ConvProblem, target: Target) -> str | None:
    if choose(demand_of(p), target) is None:
        return f"a tile needs more than the {target.shared_per_block} bytes of shared memory of one block"
    return None


def _image_span(t: Tensor) -> int:
    return sum((n - 1) * abs(s) for n, s in zip(t.shape[1:], t.strides[1:], strict=True))


def demand_of(p: ConvProblem) -> Demand:
    """The convolution as far as the choice of a tile depends on it."""
    sharing = 8 // p.in_per_group if p.in_per_group < 8 else 1
    return Demand(
        images=p.batch,
        sizes=_pair(p.in_spatial, 1),
        out=_pair(p.out_spatial, 1),
        filter=_pair(p.filter, 1),
        strides=_pair(p.strides, 1),
        dilations=_pair(p.dilations, 1),
        units=p.groups // sharing,
        unit_chunks=max(1, p.in_per_group // 8),
        unit_outputs=p.out_per_group * sharing,
        sharing=sharing,
        y_size=ITEMSIZE[p.y.dtype],
        residual=p.residual is not None,
    )


def plan(p: ConvProblem, target: Target, tile: Tile | None = None) -> Launch:
    """The launch with the tile that the model finds fastest, or with a given one.

    Filters whose input channels are contiguous (``ohwi``) are copied as they lie; others are gathered element by
    element, which costs little where the filter stays in shared memory, about a third of the time where it is streamed.
    """
    demand = demand_of(p)
    tile = tile or choose(demand, target)
    assert tile is not None, "refused"
    residual = p.residual or p.y
    row_tiles, column_tiles, _ = demand.tiles(tile)
    blocks, workers = demand.channel_blocks(tile), demand.workers(tile, target)

    def spatial(t: Tensor) -> tuple[int, int]:
        return _pair(t.strides[3:], 0)

    (x_row, x_column), (y_row, y_column), (r_row, r_column) = spatial(p.x), spatial(p.y), spatial(residual)
    w_row, w_column = spatial(p.w)
    in_rows, in_columns = demand.sizes
    out_rows, out_columns = demand.out
    low = _pair(tuple(lo for lo, _ in p.padding), 0)
    params = pack(
        PARAMS,
        x_image=p.x.strides[0],
        y_image=p.y.strides[0],
        residual_image=residual.strides[0],
        w_group=p.w.strides[0],
        w_out=p.w.strides[1],
        w_channel=p.w.strides[2],
        w_row=w_row,
        w_column=w_column,
        alpha=p.activation.alpha if p.activation else 0.0,
        beta=p.activation.beta if p.activation else 0.0,
        x_row=x_row,
        x_column=x_column,
        y_row=y_row,
        y_column=y_column,
        residual_row=r_row,
        residual_column=r_column,
        images=p.batch,
        in_rows=in_rows,
        in_columns=in_columns,
        out_rows=out_rows,
        out_columns=out_columns,
        padding_rows=low[0],
        padding_columns=low[1],
        out_per_group=p.out_per_group,
        units=demand.units,
        unit_chunks=demand.unit_chunks,
        unit_outputs=demand.unit_outputs,
        parts=demand.parts(tile),
        slabs=demand.slabs(tile),
        row_tiles=row_tiles,
        column_tiles=column_tiles,
        workers=workers,
        step_images=workers // column_tiles // row_tiles,
        step_rows=workers // column_tiles % row_tiles,
        step_columns=workers % column_tiles,
    )
    copies = _Access(p)
    return Launch(
        source="conv_tile.cu",
        kernel="conv_tile",
        template=(
            *(CTYPES[t] for t in (p.x.dtype, p.bias or "float32", p.y.dtype)),
            p.activation.code if p.activation else 0,
            f"Filter<{', '.join(map(str, (*demand.filter, *demand.strides, *demand.dilations)))}>",
            tile.cpp(demand.blocks(tile, target)),
            f"Access<{demand.sharing}, {int(copies.filter)}, {int(p.residual is not None)}, {copies.y_bytes}>",
        ),
        grid=(blocks * workers, 1, 1),
        block=(tile.threads, 1, 1),
        params=params,
        shared_bytes=demand.shared_bytes(tile),
    )


def _pair(values: tuple[int, ...], fill: int) -> tuple[int, int]:
    """Rows and columns of a problem with one or two spatial axes."""
    rows, columns = (fill, *values) if len(values) == 1 else values
    return rows, columns


@dataclass(frozen=True)
class _Access:
    """How wide the kernel reads and writes."""

    p: ConvProblem

    @cached_property
    def filter(self) -> bool:
        """Whether chunks of 8 input channels of the filter can be copied."""
        w = self.p.w
        others = [s for n, s in zip(w.shape, w.strides, strict=True) if n > 1]
        whole = self.p.in_per_group % 8 == 0 and w.strides[2] == 1 and w.align == 16
        return whole and all(s % 8 == 0 for s in others if s != 1)

    @property
    def y_bytes(self) -> int:
        """Bytes per store: the widest that stays aligned for y and the residual, for every pixel and unit."""
        p = self.p
        size = ITEMSIZE[p.y.dtype]
        unit = demand_of(p).unit_outputs
        width = 16
        for t in (p.y, p.residual):
            if t is not None:
                pixels = [
                    s for n, s in zip((t.shape[0], *t.shape[3:]), (t.strides[0], *t.strides[3:]), strict=True) if n > 1
                ]
                while width > size and (t.align % width or any(s * size % width for s in (*pixels, unit))):
                    width //= 2
        return width


ROWS = (Row("conv_tile", refuses, plan),)
