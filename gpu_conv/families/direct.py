"""Host half of ``kernels/direct.cu``: any layout, floating-point or 8-bit dtype, up to three spatial axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..epilogue import Activation
from ..launch import CTYPES, Launch, Target, pack, struct
from ..problem import ConvProblem, Tensor
from . import Row

PARAMS = struct(
    "DirectParams",
    [
        ("threads", "int64"),
        ("x_strides", "int64", 6),
        ("w_strides", "int64", 6),
        ("y_strides", "int64", 6),
        ("residual_strides", "int64", 6),
        ("groups", "int64"),
        ("in_per_group", "int64"),
        ("out_per_group", "int64"),
        ("in", "int64", 3),
        ("filter", "int64", 3),
        ("out", "int64", 3),
        ("strides", "int64", 3),
        ("padding", "int64", 3),
        ("dilations", "int64", 3),
        ("input_dilations", "int64", 3),
        ("tap_steps", "int64", 3),
        ("in_steps", "int64", 3),
        ("column_step", "int64"),
        ("column_stride", "int64"),
        ("alpha", "float64"),
        ("beta", "float64"),
    ],
)

THREADS = 128  # kDirectThreads
INPUTS = ("float32", "float16", "bfloat16", "float64", "int8", "uint8")
ACCUMULATORS = ("float32", "float64", "int32")
INT32_LIMIT = 2**31

# (outputs per thread, blocks per multiprocessor that it must leave): four outputs share one load, but a small problem
# is better spread over the whole device.
TILES = ((4, 4), (1, 0))


def activation_parameters(activation: Activation | None, accumulate: str) -> tuple[int, float, float]:
    """Code and parameters of an activation as the kernels take them.

    The bounds of a clip of integers become the nearest integers inside, and infinite ones the limits of int32.
    """
    if activation is None:
        return 0, 0.0, 0.0
    alpha, beta = activation.alpha, activation.beta
    if accumulate == "int32" and activation.name == "clip":
        alpha, beta = math.ceil(max(alpha, -INT32_LIMIT)), math.floor(min(beta, INT32_LIMIT - 1))
    return activation.code, alpha, beta


def term_type(p: ConvProblem) -> str:
    """How the kernels spell what the epilogue takes of a channel: the type of the bias, or ``Requantization``."""
    return f"Requantization<{CTYPES[p.y.dtype]}>" if p.requantizes else CTYPES[p.bias or p.accumulate]


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why the kernel cannot run the problem, or None."""
    if p.rank > 3:
        return f"it has {p.rank} spatial axes; direct runs 1, 2 or 3"
    for name, tensor in (("x", p.x), ("w", p.w)):
        if tensor.dtype not in INPUTS:
            return f"{name} is {tensor.dtype}; direct runs {', '.join(INPUTS)}"
    if p.accumulate not in ACCUMULATORS:
        return f"sums are {p.accumulate}; direct sums in {', '.join(ACCUMULATORS)}"
    if p.y.dtype not in CTYPES:
        return f"y is {p.y.dtype}; direct stores {', '.join(CTYPES)}"
    if p.bias is not None and p.bias not in CTYPES and not p.requantizes:
        return f"bias is {p.bias}; direct takes {', '.join(CTYPES)}"
    return None


class _Axis(NamedTuple):
    """One spatial axis, with the sizes of the problem and the strides of the tensors."""

    size: int = 1
    taps: int = 1
    out: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    input_dilation: int = 1
    x: int = 0
    w: int = 0
    y: int = 0
    residual: int = 0

    @property
    def tap_step(self) -> int:
        return self.input_dilation // math.gcd(self.dilation, self.input_dilation)

    @property
    def in_step(self) -> int:
        return self.tap_step * self.dilation // self.input_dilation

    @property
    def column_step(self) -> int:
        return self.input_dilation // math.gcd(self.stride, self.input_dilation)

    @property
    def farthest(self) -> int:
        """Bound on the magnitude of every coordinate that the kernel computes along this axis."""
        reach = (self.out + 8 * self.column_step) * self.stride + (self.taps + self.tap_step) * self.dilation
        return reach + abs(self.padding) + self.size


def _axes(p: ConvProblem) -> tuple[_Axis, ...]:
    """Three axes, the one whose outputs lie closest together last."""
    residual = p.residual or p.y
    axes = [
        _Axis(
            size=p.in_spatial[a],
            taps=p.filter[a],
            out=p.out_spatial[a],
            stride=p.strides[a],
            padding=p.padding[a][0],
            dilation=p.dilations[a],
            input_dilation=p.input_dilations[a],
            x=p.x.strides[3 + a],
            w=p.w.strides[3 + a],
            y=p.y.strides[3 + a],
            residual=residual.strides[3 + a],
        )
        for a in range(p.rank)
    ]
    axes.sort(key=lambda a: -_distance(a.out, a.y))
    return (*[_Axis()] * (3 - len(axes)), *axes)


def _distance(size: int, stride: int) -> float:
    """How far apart neighbours lie along an axis; an axis of one element has none."""
    return abs(stride) if size > 1 else math.inf


def _channels_fast(p: ConvProblem, column: _Axis) -> bool:
    _, groups, per_group = p.y.shape[:3]
    channel = min(_distance(groups, p.y.strides[1]), _distance(per_group, p.y.strides[2]))
    return channel <= _distance(column.out, column.y)


def _span(t: Tensor) -> int:
    """Elements between the first and the last one in memory."""
    return sum((n - 1) * abs(s) for n, s in zip(t.shape, t.strides, strict=True) if n)


def _tile(p: ConvProblem, channels_fast: bool, column: _Axis, target: Target) -> tuple[int, int]:
    """Outputs per thread, and threads."""
    if p.y.size == 0:
        return 1, 0
    for tile, blocks in TILES:
        if channels_fast:
            tiles = -(-column.out // (tile * column.column_step)) * column.column_step
            threads = p.y.size // column.out * tiles
        else:
            tiles = -(-p.out_per_group // tile)
            threads = p.y.size // p.out_per_group * tiles
        if threads >= blocks * target.multiprocessors * THREADS:
            break
    return tile, threads


def _products(p: ConvProblem) -> int:
    """``enum Products`` of the kernel."""
    tensors = (p.x, p.w)
    if any(t.dtype not in ("int8", "uint8") or t.align < 4 for t in tensors) or p.in_per_group % 4:
        return 0

    def aligned(t: Tensor) -> bool:
        return all(n == 1 or s % 4 == 0 for a, (n, s) in enumerate(zip(t.shape, t.strides, strict=True)) if a != 2)

    if any(t.strides[2] != 1 or not aligned(t) for t in tensors):
        return 0
    return 2 if p.x_zero_point or p.w_zero_point else 1


def plan(p: ConvProblem, target: Target) -> Launch:
    """The launch; its grid is empty if y is."""
    axes = _axes(p)
    channels_fast = _channels_fast(p, axes[2])
    tile, threads = _tile(p, channels_fast, axes[2], target)
    residual = p.residual or p.y
    spans = [_span(t) for t in (p.x, p.w, p.y, residual)]
    wide = max(*spans, threads + THREADS, p.out_channels + 8, *(a.farthest for a in axes)) >= INT32_LIMIT
    # One step past an end is computed, never read: leave room for it.
    wide = wide or max(abs(s) for t in (p.x, p.w, p.y, residual) for s in t.strides) * 8 + max(spans) >= INT32_LIMIT
    code, alpha, beta = activation_parameters(p.activation, p.accumulate)

    def values(name: str) -> list[int]:
        return [getattr(a, name) for a in axes]

    def strides(t: Tensor, name: str) -> Sequence[int]:
        return [*t.strides[:3], *values(name)]

    params = pack(
        PARAMS,
        threads=threads,
        x_strides=strides(p.x, "x"),
        w_strides=strides(p.w, "w"),
        y_strides=strides(p.y, "y"),
        residual_strides=strides(residual, "residual"),
        groups=p.groups,
        in_per_group=p.in_per_group,
        out_per_group=p.out_per_group,
        filter=values("taps"),
        out=values("out"),
        strides=values("stride"),
        padding=values("padding"),
        dilations=values("dilation"),
        input_dilations=values("input_dilation"),
        tap_steps=values("tap_step"),
        in_steps=values("in_step"),
        column_step=axes[2].column_step,
        column_stride=axes[2].column_step * axes[2].stride // axes[2].input_dilation,
        alpha=alpha,
        beta=beta,
        **{"in": values("size")},
    )
    types = [CTYPES[p.x.dtype], CTYPES[p.w.dtype], term_type(p), CTYPES[p.y.dtype], CTYPES[p.accumulate]]
    index = "int64" if wide else "int32"
    return Launch(
        source="direct.cu",
        kernel="direct",
        template=(*types, index, _products(p), channels_fast, tile, code),
        grid=(-(-threads // THREADS), 1, 1),
        block=(THREADS, 1, 1),
        params=params,
    )


ROWS = (Row("direct", refuses, plan),)
