"""1x1 convolutions as matrix products: the host half of ``kernels/pointwise.cu``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from ..launch import CTYPES, Launch, Target, pack, struct
from ..problem import ITEMSIZE, ConvProblem
from . import Row, phased
from .direct import term_type
from .outputs import GATHER_CHUNKS, GATHER_LINES, Axis, Outputs, access_width, collapse, field_of
from .phased import launched
from .pointwise_model import Demand, choose, fitting
from .pointwise_tiles import Engine, Tile

PARAMS = struct(
    "PointwiseParams",
    [
        *((name, "i8") for name in ("x_group", "x_channel", "w_group", "w_out", "w_channel", "y_group", "y_channel")),
        *((name, "i8") for name in ("residual_group", "residual_channel")),
        *((name, "i8", 4) for name in ("x_stride", "y_stride", "residual_stride")),
        *((name, "f8") for name in ("alpha", "beta")),
        *((name, "i4", 4) for name in ("x_size", "y_size")),
        *((name, "i4") for name in ("pixels", "in_channels", "out_channels", "pixel_tiles", "channel_tiles")),
        *((name, "i4") for name in ("workers", "splits")),
    ],
)

_INPUTS = ("float32", "float16", "bfloat16", "int8", "uint8")


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why this family cannot run the problem, or None."""
    if reason := phased.refuses(p) or _refuses_filter(p):
        return reason
    if p.x.dtype not in _INPUTS or p.accumulate not in ("float32", "int32") or p.y.dtype not in CTYPES:
        return f"computes float32, float16, bfloat16 and 8-bit integers, got {p.x.dtype} -> {p.y.dtype}"
    if target.capability < 80 and p.x.dtype == "bfloat16":
        return f"bfloat16 products need compute capability 8.0, {target.arch} has none"
    if target.capability < 80 and _engine(p) is Engine.TENSOR_CORES and p.x.dtype == "float32":
        return f"TF32 products need compute capability 8.0, {target.arch} has none"
    if not p.y.size or not p.taps:
        return "needs at least one output and one input channel"
    if p.batch * prod(p.out_spatial) >= 2**31 - 2**9:
        return f"counts pixels in 32 bits, got {p.batch} x {p.out_spatial}"
    access = _Access(launched(p))
    if max(len(access.x_axes), len(access.y_axes)) > 4:
        return f"walks over at most 4 strided axes, batch included, got the output {p.out_spatial}"
    if any(stride < 0 for _, stride in access.x_axes):
        return f"takes a negative offset of a pixel for one outside of the input, got strides {p.x.strides} of x"
    return None


def _refuses_filter(p: ConvProblem) -> str | None:
    phases = launched(p)
    if phases.problem.is_pointwise and all(not any(lo) for lo, _ in phases.windows) and phases.same_taps:
        return None
    what = "filters of ones in all phases of a dilated input" if phases.starts else "a filter of ones"
    return f"needs {what} and no padding, got filter {p.filter}, padding {p.padding}"


def plan(p: ConvProblem, target: Target, tile: Tile | None = None) -> Launch:
    """The launch with a given tile, or with the one that the model in ``pointwise_model`` finds fastest."""
    demand, phases = demand_of(p), launched(p)
    access, tile, p = _Access(phases), tile or choose(demand, target), phases.problem
    pixel_tiles, channel_tiles = demand.tiles(tile)
    workers, splits = demand.workers(tile, target), demand.splits(tile, target)
    params = pack(
        PARAMS,
        x_group=p.x.strides[1],
        x_channel=p.x.strides[2],
        w_group=p.w.strides[0],
        w_out=p.w.strides[1],
        w_channel=p.w.strides[2],
        **access.fields,
        x_stride=field_of(access.x_axes, 1, 0),
        x_size=field_of(access.x_axes, 0, 1),
        pixels=demand.pixels,
        in_channels=p.in_per_group,
        out_channels=p.out_per_group,
        pixel_tiles=pixel_tiles,
        channel_tiles=channel_tiles,
        workers=workers,
        splits=splits,
    )
    return Launch(
        source="pointwise.cu",
        kernel="pointwise",
        template=(
            *(CTYPES[p.x.dtype], CTYPES[p.w.dtype], term_type(p), CTYPES[p.y.dtype]),
            demand.engine.value,
            p.activation.code if p.activation else 0,
            tile.cpp,
            access.cpp,
        ),
        grid=(channel_tiles * splits * workers * demand.groups, 1, 1),
        block=(tile.threads, 1, 1),
        params=params + phases.params,
        shared_bytes=demand.shared_bytes(tile),
        workspace_bytes=demand.workspace_bytes(tile, splits),
        ticket_bytes=demand.ticket_bytes(tile),
    )


def tiles(p: ConvProblem, target: Target) -> list[Tile]:
    """Those that fit, the shortest predicted time first."""
    return fitting(demand_of(p), target)


def demand_of(p: ConvProblem) -> Demand:
    """The product that a problem asks for."""
    phases = launched(p)
    access, p = _Access(phases), phases.problem
    return Demand(
        pixels=p.batch * prod(p.out_spatial),
        channels=p.out_per_group,
        groups=p.groups * phases.count,
        k=p.in_per_group,
        rereads=phases.count,
        x_size=ITEMSIZE[p.x.dtype],
        y_size=ITEMSIZE[p.y.dtype],
        bias_size=16 if p.requantizes else 4,
        residual=p.residual is not None,
        engine=_engine(p),
        pixels_in_rows=access.pixels_in_rows,
        x_copy=access.x_copy,
        w_copy=access.w_copy,
        one_axis=max(len(access.x_axes), len(access.y_axes)) == 1,
    )


def _engine(p: ConvProblem) -> Engine:
    if p.w_zero_point:
        return Engine.TENSOR_CORES_ZERO_POINTS
    if p.x.dtype == "float32" and p.precision != "tf32":
        return Engine.IEEE
    return Engine.TENSOR_CORES


@dataclass(frozen=True)
class _Access(Outputs):
    """How the kernel walks over pixels and how wide it reads and writes: the template ``Access``."""

    @cached_property
    def x_axes(self) -> tuple[Axis, ...]:
        """Pixel axes of x as (size, stride), collapsed, the fastest last."""
        p = self.p
        spatial = (s * step for s, step in zip(p.x.strides[3:], p.strides, strict=True))
        return collapse(zip((p.batch, *p.out_spatial), (p.x.strides[0], *spatial), strict=True))

    @cached_property
    def transposed(self) -> bool:
        """Whether x has contiguous pixels, columns of the product, and can be copied as it lies."""
        p = self.p
        possible = not self.pixels_in_rows and p.x.strides[2] != 1 and ITEMSIZE[p.x.dtype] > 1
        return possible and self._pixel_width >= 4

    @property
    def _pixel_width(self) -> int:
        size, stride = self.x_axes[-1]
        others = (*(s for _, s in self.x_axes[:-1]), *self.p.x.strides[1:3])
        return access_width(self.p.x, size, others) if stride == 1 else 0

    @property
    def x_copy(self) -> int:
        """Bytes per asynchronous copy, or how the elements are gathered."""
        p = self.p
        if self.transposed:
            return self._pixel_width
        if p.x.strides[2] == 1:
            width = access_width(p.x, p.in_per_group, (p.x.strides[1], *(s for _, s in self.x_axes)))
            return width if width >= 4 else GATHER_CHUNKS
        return GATHER_LINES

    @property
    def w_copy(self) -> int:
        """The same for the filter."""
        w = self.p.w
        if w.strides[2] == 1:
            width = access_width(w, self.p.in_per_group, w.strides[:2])
            return width if width >= 4 else GATHER_CHUNKS
        return GATHER_LINES

    @property
    def cpp(self) -> str:
        """The template argument."""
        x_axes, y_axes = (1 if len(a) <= 1 else 2 if len(a) == 2 else 4 for a in (self.x_axes, self.y_axes))
        numbers = (self.pixels_in_rows, self.transposed, self.x_copy, x_axes, self.w_copy, self.y_bytes, y_axes)
        return f"Access<{', '.join(str(int(n)) for n in (*numbers, *self.phases.template))}>"


ROWS = (Row("pointwise", refuses, plan, tiles),)
