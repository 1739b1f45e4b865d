"""Convolution of IEEE float32 as a matrix product: the host half of ``kernels/implicit_gemm.cu``.

Dense 3x3 layers of ResNet-50 run at 36 to 43 TFLOP/s on an H100, where ``direct`` has 1.7 to 5.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from ..launch import CTYPES, Launch, Target, pack, struct
from ..problem import ITEMSIZE, ConvProblem, Tensor
from . import Row, phased
from .direct import term_type
from .implicit_gemm_tiles import Convolution
from .outputs import GATHER_CHUNKS, GATHER_LINES, Outputs
from .phased import launched
from .pointwise_model import choose, fitting
from .pointwise_tiles import Engine, Tile

PARAMS = struct(
    "ImplicitGemmParams",
    [
        *((name, "i8") for name in ("x_image", "x_group", "w_group", "y_group", "y_channel")),
        *((name, "i8") for name in ("residual_group", "residual_channel")),
        *((name, "i8", 4) for name in ("y_stride", "residual_stride")),
        *((name, "f8") for name in ("alpha", "beta")),
        ("y_size", "i4", 4),
        *((name, "i4") for name in ("pixels", "out_channels", "groups", "pixel_tiles", "channel_tiles", "splits")),
        *((name, "i4") for name in ("depth", "inner", "inner_taps", "x_channel", "w_out", "w_channel")),
        *((name, "i4", 3) for name in ("x_stride", "w_stride", "in", "out", "filter")),
        *((name, "i4", 3) for name in ("strides", "padding", "dilations")),
    ],
)

_DTYPES = ("float32", "float16", "bfloat16")
_LIMIT = 2**31
_REACH = 2**30  # of coordinates: -kNowhere


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why the kernel cannot run the problem, or None."""
    if p.rank not in (1, 2, 3):
        return f"has 1, 2 or 3 spatial axes, got {p.rank}"
    if p.x.dtype not in _DTYPES or p.w.dtype != p.x.dtype or p.accumulate != "float32":
        return f"sums float32, float16 and bfloat16 in float32, got x {p.x.dtype}, w {p.w.dtype}"
    if p.y.dtype not in _DTYPES:
        return f"stores {', '.join(_DTYPES)}, got {p.y.dtype}"
    if p.is_depthwise:
        return "a group has one input channel: that is depthwise"
    if p.is_pointwise:
        return f"a filter of {p.filter} without padding has nothing implicit: that is pointwise"
    if not p.y.size or not p.taps:
        return "needs at least one output and one input channel"
    if p.batch * prod(p.out_spatial) >= _LIMIT - 2**9:
        return f"counts pixels in 32 bits, got {p.batch} x {p.out_spatial}"
    return phased.refuses(p) or _refuses_memory(launched(p).problem)


def _refuses_memory(p: ConvProblem) -> str | None:
    axes = zip(p.in_spatial, p.filter, p.out_spatial, p.strides, p.padding, p.dilations, p.x.strides[3:], strict=True)
    image = p.in_per_group * abs(p.x.strides[2])
    for size, k, out, step, (lo, hi), dilation, stride in axes:
        reach = size + out * step + k * dilation + abs(lo) + abs(hi)
        if reach >= _REACH:
            return f"needs coordinates below 2**30, got an input of {p.in_spatial}, padding {p.padding}"
        image += reach * abs(stride)
    if image >= _LIMIT:
        return f"one image of x, padding included, must be below 2**31 elements, got {p.in_spatial}, {p.x.strides}"
    if sum(n * abs(s) for n, s in zip(p.w.shape[1:], p.w.strides[1:], strict=True)) >= _LIMIT:
        return f"the filters of one group must span less than 2**31 elements, got {p.w.shape}, {p.w.strides}"
    return None


def plan(p: ConvProblem, target: Target, tile: Tile | None = None) -> Launch:
    """The launch with a given tile, or with the one that the model in ``pointwise_model`` finds fastest."""
    demand, phases = demand_of(p), launched(p)
    access, tile, p = _Access(phases), tile or choose(demand, target), phases.problem
    pixel_tiles, channel_tiles = demand.tiles(tile)
    splits = demand.splits(tile, target)
    params = pack(
        PARAMS,
        x_image=p.x.strides[0],
        x_group=p.x.strides[1],
        w_group=p.w.strides[0],
        w_out=p.w.strides[1] if p.out_per_group > 1 else 0,
        **access.fields,
        pixels=demand.pixels,
        out_channels=p.out_per_group,
        groups=p.groups,
        pixel_tiles=pixel_tiles,
        channel_tiles=channel_tiles,
        splits=splits,
        depth=p.taps,
        inner=prod(p.filter) if access.inner_taps else p.in_per_group,
        inner_taps=access.inner_taps,
        x_channel=p.x.strides[2] if p.in_per_group > 1 else 0,
        w_channel=p.w.strides[2] if p.in_per_group > 1 else 0,
        x_stride=_three(p.x.strides[3:], 0),
        w_stride=_three(p.w.strides[3:], 0),
        out=_three(p.out_spatial, 1),
        filter=_three(p.filter, 1),
        strides=_three(p.strides, 1),
        padding=_three(tuple(lo for lo, _ in p.padding), 0),
        dilations=_three(p.dilations, 1),
        **{"in": _three(p.in_spatial, 1)},
    )
    types = (CTYPES[p.x.dtype], CTYPES[p.w.dtype], term_type(p), CTYPES[p.y.dtype])
    return Launch(
        source="implicit_gemm.cu",
        kernel="implicit_gemm",
        template=(*types, p.activation.code if p.activation else 0, tile.cpp, access.cpp),
        grid=(channel_tiles * splits * pixel_tiles * demand.groups, 1, 1),
        block=(tile.threads, 1, 1),
        params=params + phases.params,
        shared_bytes=demand.shared_bytes(tile),
        workspace_bytes=demand.workspace_bytes(tile, splits),
        ticket_bytes=demand.ticket_bytes(tile),
    )


def tiles(p: ConvProblem, target: Target) -> list[Tile]:
    """Those that fit, the shortest predicted time first."""
    return fitting(demand_of(p), target)


def demand_of(p: ConvProblem) -> Convolution:
    """The product that a problem asks for. In shared memory all elements are float32."""
    phases = launched(p)
    taps = [prod(filter_) for _, filter_ in phases.windows]
    access, p = _Access(phases), phases.problem
    return Convolution(
        pixels=p.batch * prod(p.out_spatial),
        channels=p.out_per_group,
        groups=p.groups * phases.count,
        k=p.in_per_group * sum(taps) // phases.count,
        x_size=4,
        y_size=ITEMSIZE[p.y.dtype],
        residual=p.residual is not None,
        engine=Engine.IEEE,
        pixels_in_rows=access.pixels_in_rows,
        x_copy=16 if access.x_copy == 16 else 4,
        w_copy=16 if access.w_copy == 16 else 4,
        rereads=sum(taps),
        axes=access.axes,
        phased=bool(phases.starts),
    )


def _three(values: tuple[int, ...], fill: int) -> tuple[int, ...]:
    return (fill,) * (3 - len(values)) + values


@dataclass(frozen=True)
class _Access(Outputs):
    """How the kernel reads and writes: the template ``Access``, and the order in which it counts k."""

    @cached_property
    def axes(self) -> int:
        """Spatial axes, from the first padded one on; at least one."""
        padded = [self._is_padded(axis) for axis in range(self.p.rank)]
        return self.p.rank - padded.index(True) if any(padded) else 1

    def _is_padded(self, axis: int) -> bool:
        p = self.p
        last = (p.out_spatial[axis] - 1) * p.strides[axis]  # where the window of the last output begins, unpadded
        return any(
            low[axis] > 0 or last - low[axis] + (taps[axis] - 1) * p.dilations[axis] >= p.in_spatial[axis]
            for low, taps in self.phases.windows
        )

    @cached_property
    def x_copy(self) -> int:
        """16: four channels at a time; else how single elements are gathered."""
        x = self.p.x
        if x.strides[2] != 1:
            return GATHER_LINES
        others = (x.strides[0], x.strides[1], *x.strides[3:])
        return 16 if self._fours(x, self.p.in_per_group, others) else GATHER_CHUNKS

    @cached_property
    def transposed(self) -> bool:
        """Whether the tile of x is stored with its pixels side by side."""
        return self.x_copy == GATHER_LINES and not self.pixels_in_rows

    @cached_property
    def inner_taps(self) -> bool:
        """Whether k counts the taps of a channel first: as the filter lies, unless four channels are copied at once."""
        if self.x_copy == 16 or self._w_fours(inner_taps=False):
            return False
        return self._contiguous(inner_taps=True) or self.p.x.strides[2] != 1

    @cached_property
    def w_copy(self) -> int:
        """The same as ``x_copy`` for the filter."""
        if self._w_fours(self.inner_taps):
            return 16
        return GATHER_LINES if self.p.w.strides[1] == 1 and not self._contiguous(self.inner_taps) else GATHER_CHUNKS

    def _w_fours(self, inner_taps: bool) -> bool:
        """Whether the filter can be copied four k at a time: all of it in order, or four channels of each tap."""
        p, w = self.p, self.p.w
        if self._contiguous(inner_taps):
            return self._fours(w, p.taps, w.strides[:2])
        return not inner_taps and w.strides[2] == 1 and self._fours(w, p.in_per_group, (*w.strides[:2], *w.strides[3:]))

    def _contiguous(self, inner_taps: bool) -> bool:
        """Whether all that one output reads of the filter lies in the order of k."""
        channel, *taps = zip(self.p.w.shape[2:], self.p.w.strides[2:], strict=True)
        expected = 1
        for size, stride in reversed([channel, *taps] if inner_taps else [*taps, channel]):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return True

    @staticmethod
    def _fours(tensor: Tensor, count: int, strides: tuple[int, ...]) -> bool:
        aligned = tensor.align >= 4 * ITEMSIZE[tensor.dtype]
        return aligned and all(n % 4 == 0 for n in (count, *strides))

    @property
    def cpp(self) -> str:
        """The template argument."""
        y_axes = 1 if len(self.y_axes) <= 1 else 2 if len(self.y_axes) == 2 else 4
        x_copy = 4 if self.transposed else self.x_copy
        numbers = (self.pixels_in_rows, self.transposed, x_copy, self.axes, self.w_copy, self.y_bytes, y_axes)
        return f"Access<{', '.join(str(int(n)) for n in (*numbers, *self.phases.template))}>"


ROWS = (Row("implicit_gemm", refuses, plan, tiles),)
