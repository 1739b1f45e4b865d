"""Dense and grouped K x K convolution, 16-bit floats and 8-bit integers: the host half of ``kernels/conv_tile.cu``."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..launch import CTYPES, Launch, Target, pack, struct
from ..problem import ITEMSIZE, ConvProblem, Tensor
from . import Row, phased
from .direct import activation_parameters, term_type
from .phased import Launched, launched
from .tile_model import Demand, Tile, candidates, choose, fitting

PARAMS = struct(
    "ConvTileParams",
    [
        *((name, "i8") for name in ("x_image", "x_channel", "y_image", "residual_image")),
        *((name, "i8") for name in ("w_group", "w_out", "w_channel", "w_row", "w_column")),
        *((name, "f8") for name in ("alpha", "beta")),
        *((f"x_{axis}", "i4") for axis in ("row", "column")),
        *((f"{name}_{axis}", "i4") for name in ("y", "residual") for axis in ("row", "column", "channel")),
        *((name, "i4") for name in ("images", "in_rows", "in_columns", "out_rows", "out_columns")),
        *((name, "i4") for name in ("padding_rows", "padding_columns")),
        *((name, "i4") for name in ("out_per_group", "units", "unit_channels", "unit_chunks")),
        *((name, "i4") for name in ("unit_outputs", "parts", "slabs")),
        *((name, "i4") for name in ("row_tiles", "column_tiles", "workers")),
        *((name, "i4") for name in ("step_images", "step_rows", "step_columns")),
    ],
)

_DTYPES = ("float16", "bfloat16")
_INTEGERS = ("int8", "uint8")
_LIMIT = 2**31
_MOST_TAPS = 49  # every tap of a slab is unrolled


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why the kernel cannot run the problem, or None."""
    if target.capability < 80:
        return f"asynchronous copies and 16-row products need compute capability 8.0, {target.arch} has none"
    if p.x.dtype not in (*_DTYPES, *_INTEGERS) or p.accumulate not in ("float32", "int32"):
        return f"computes float16, bfloat16, int8 and uint8, got x {p.x.dtype}, w {p.w.dtype}"
    if p.y.dtype not in ((*_INTEGERS, "int32") if p.accumulate == "int32" else (*_DTYPES, "float32")):
        return f"stores float16, bfloat16 and float32, of integers int8, uint8 and int32, got {p.y.dtype}"
    if p.accumulate == "int32" and (p.w_zero_point or p.residual):
        return "of integers, it takes no residual and no filter with zero points; 0 on the host is none"
    if p.rank not in (1, 2):
        return f"has 1 or 2 spatial axes, got {p.rank}"
    if not p.y.size or not p.taps:
        return "needs at least one output and one input channel"
    if reason := phased.refuses(p):
        return reason
    one = launched(p).problem
    if prod(one.filter) > _MOST_TAPS:
        return f"unrolls at most {_MOST_TAPS} taps, got {one.filter}"
    return _refuses_channels(p) or _refuses_memory(one) or _refuses_tiles(p, target)


def _refuses_channels(p: ConvProblem) -> str | None:
    if p.in_per_group == 1 and p.groups > 1:
        return "a group has one input channel: that is depthwise"
    return None


def _refuses_memory(p: ConvProblem) -> str | None:
    if abs(p.w.strides[2]) >= _LIMIT:
        return f"the channels of w must lie less than 2**31 elements apart, got strides {p.w.strides}"
    for name, t in (("x", p.x), ("y", p.y), ("residual", p.residual)):
        if t is None:
            continue
        _, groups, per_group = t.shape[:3]
        if groups > 1 and per_group > 1 and t.strides[1] != per_group * t.strides[2]:
            return f"the channels of {name} must have one stride across groups, got strides {t.strides}"
        if _image_span(t) + sum(abs(s) * 1024 for s in t.strides[3:]) >= _LIMIT:
            return f"one image of {name} must be below 2**31 elements"
    return None


def _refuses_tiles(p: ConvProblem, target: Target) -> str | None:
    demand = demand_of(p)
    if not any(demand.blocks(tile, target) for tile in candidates(demand)):
        return f"a tile needs more than the {target.shared_per_block} bytes of shared memory of one block"
    return None


def _image_span(t: Tensor) -> int:
    return sum((n - 1) * abs(s) for n, s in zip(t.shape[1:], t.strides[1:], strict=True))


def demand_of(p: ConvProblem) -> Demand:
    """The convolution as far as the choice of a tile depends on it."""
    phases = launched(p)
    p = phases.problem
    shared = p.in_per_group in (2, 4) and p.in_channels % 8 == 0 and p.x.dtype in _DTYPES
    sharing = 8 // p.in_per_group if shared else 1
    return Demand(
        images=p.batch,
        sizes=_pair(p.in_spatial, 1),
        out=_pair(p.out_spatial, 1),
        filter=_pair(p.filter, 1),
        strides=_pair(p.strides, 1),
        dilations=_pair(p.dilations, 1),
        units=p.groups // sharing,
        unit_channels=p.in_per_group * sharing,
        unit_outputs=p.out_per_group * sharing,
        sharing=sharing,
        y_size=ITEMSIZE[p.y.dtype],
        residual=p.residual is not None,
        x_gathered=not _Access(p).x_copy,
        w_gathered=not _Access(p).w_copy,
        chunk=16 // ITEMSIZE[p.x.dtype],
        term_size=16 if p.requantizes else 4,
        costly=p.activation is not None and p.activation.name in ("gelu", "softplus"),
        phases=phases.count,
    )


def tiles(p: ConvProblem, target: Target) -> list[Tile]:
    """Those that fit, the shortest predicted time first."""
    return fitting(demand_of(p), target)


def plan(p: ConvProblem, target: Target, tile: Tile | None = None) -> Launch:
    """The launch with the tile that the model finds fastest, or with a given one.

    Filters whose input channels are contiguous (``ohwi``) are copied as they lie; others are gathered element by
    element, which costs little where the filter stays in shared memory, about a third of the time where it is streamed.
    """
    demand, phases = demand_of(p), launched(p)
    tile, p = tile or choose(demand, target), phases.problem
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
    code, alpha, beta = activation_parameters(p.activation, p.accumulate)
    params = pack(
        PARAMS,
        x_image=p.x.strides[0],
        x_channel=_channel_stride(p.x),
        y_image=p.y.strides[0],
        residual_image=residual.strides[0],
        w_group=p.w.strides[0],
        w_out=p.w.strides[1],
        w_channel=p.w.strides[2],
        w_row=w_row,
        w_column=w_column,
        alpha=alpha,
        beta=beta,
        x_row=x_row,
        x_column=x_column,
        y_row=y_row,
        y_column=y_column,
        y_channel=_channel_stride(p.y),
        residual_row=r_row,
        residual_column=r_column,
        residual_channel=_channel_stride(residual),
        images=p.batch,
        in_rows=in_rows,
        in_columns=in_columns,
        out_rows=out_rows,
        out_columns=out_columns,
        padding_rows=low[0],
        padding_columns=low[1],
        out_per_group=p.out_per_group,
        units=demand.units,
        unit_channels=demand.unit_channels,
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
    return Launch(
        source="conv_tile.cu",
        kernel="conv_tile",
        template=(
            *(CTYPES[p.x.dtype], CTYPES[p.w.dtype], term_type(p), CTYPES[p.y.dtype]),
            code,
            f"Filter<{', '.join(map(str, (*demand.filter, *demand.strides, *demand.dilations)))}>",
            tile.cpp(demand.blocks(tile, target)),
            _Access(p).cpp(demand.sharing, phases),
        ),
        grid=(blocks * workers, 1, 1),
        block=(tile.threads, 1, 1),
        params=params + phases.params,
        shared_bytes=demand.shared_bytes(tile),
    )


def _pair(values: tuple[int, ...], fill: int) -> tuple[int, int]:
    """Rows and columns of a problem with one or two spatial axes."""
    rows, columns = (fill, *values) if len(values) == 1 else values
    return rows, columns


def _channel_stride(t: Tensor) -> int:
    """Elements between channels, across groups where a group has one."""
    return t.strides[2] if t.shape[2] > 1 else t.strides[1] if t.shape[1] > 1 else 1


def _pixel_strides(t: Tensor) -> list[int]:
    """Strides over images and pixels that are taken at all."""
    return [s for n, s in zip((t.shape[0], *t.shape[3:]), (t.strides[0], *t.strides[3:]), strict=True) if n > 1]


@dataclass(frozen=True)
class _Access:
    """How the kernel reads and writes: the template ``Access``."""

    p: ConvProblem

    @property
    def x_copy(self) -> bool:
        """Whether chunks of 16 bytes of a pixel can be copied."""
        p, chunk = self.p, 16 // ITEMSIZE[self.p.x.dtype]
        whole = p.in_per_group % chunk == 0 or (chunk == 8 and p.in_channels % 8 == 0 and p.in_per_group in (2, 4))
        aligned = p.x.align == 16 and all(s % chunk == 0 for s in _pixel_strides(p.x))
        return whole and aligned and _channel_stride(p.x) == 1

    @property
    def w_copy(self) -> bool:
        """Whether chunks of 16 bytes of input channels of the filter can be copied."""
        w, chunk = self.p.w, 16 // ITEMSIZE[self.p.w.dtype]
        strides = [s for axis, (n, s) in enumerate(zip(w.shape, w.strides, strict=True)) if n > 1 and axis != 2]
        whole = self.p.in_per_group % chunk == 0 and w.strides[2] == 1 and w.align == 16
        return whole and all(s % chunk == 0 for s in strides)

    @property
    def y_channels(self) -> bool:
        """Whether stores run along the channels."""
        return _channel_stride(self.p.y) == 1

    @property
    def y_bytes(self) -> int:
        """Bytes per store: the widest that stays aligned wherever it begins, also in a residual read along channels."""
        p, size = self.p, ITEMSIZE[self.p.y.dtype]
        if self.y_channels:
            run, tensors = demand_of(p).unit_outputs, [p.y, *([p.residual] if p.residual else [])]
            if any(_channel_stride(t) != 1 for t in tensors):
                return size
            steps = [s for t in tensors for s in _pixel_strides(t)]
        elif p.y.strides[-1] != 1 and p.y.shape[-1] > 1:
            return size
        else:
            run, tensors = p.y.shape[-1], [p.y]
            spatial = zip(p.y.shape[:-1], p.y.strides[:-1], strict=True)
            steps = [s for n, s in spatial if n > 1]
        width = min(16, 8 * size)  # a tile of 8 outputs or columns
        while width > size and (any(t.align % width for t in tensors) or any(s * size % width for s in (*steps, run))):
            width //= 2
        return width

    def cpp(self, sharing: int, phases: Launched) -> str:
        """The template argument."""
        phased = [2 - phases.same_taps] if phases.starts else []
        flags = (self.x_copy, self.w_copy, self.p.residual is not None, self.y_channels)
        return f"Access<{', '.join(str(int(n)) for n in (sharing, *flags, self.y_bytes, *phased))}>"


ROWS = (Row("conv_tile", refuses, plan, tiles),)
