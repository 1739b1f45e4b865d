"""Host half of ``kernels/depthwise_ncw.cu``: 1-D, channels first, as many outputs as inputs."""

from __future__ import annotations

from ..launch import Launch, Target, pack, struct
from ..problem import ITEMSIZE, ConvProblem
from . import Row, depthwise_common
from .depthwise_common import ctypes
from .direct import INT32_LIMIT, activation_parameters

PARAMS = struct(
    "DepthwiseNcwParams",
    [
        ("w_group", "int64"),
        ("w_tap", "int64"),
        ("rows", "int32"),
        ("channels", "int32"),
        ("length", "int32"),
        ("segments", "int32"),
        ("alpha", "float64"),
        ("beta", "float64"),
    ],
)

THREADS = 256  # kNcwThreads
LANES = 32
TAPS = 9
# Units of 16 bytes that a lane has in flight: 2 fill an H100 (64 KB per multiprocessor, 97 % of its copy bandwidth);
# rows that one unit per lane covers take 1.
UNITS = 2


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why the kernel cannot run the problem, or None."""
    if reason := depthwise_common.refuses(p):
        return reason
    if p.rank != 1:
        return f"it has {p.rank} spatial axes; depthwise_ncw runs 1"
    if p.out_per_group != 1:
        return f"a group has {p.out_per_group} outputs; depthwise_ncw takes 1"
    if p.strides != (1,) or p.dilations != (1,) or p.out_spatial != p.in_spatial:
        return (
            f"strides {p.strides}, dilations {p.dilations} and padding {p.padding} turn {p.in_spatial} into "
            f"{p.out_spatial}; depthwise_ncw gives as many outputs as inputs, undilated"
        )
    before, after = p.padding[0]
    reach = 16 // ITEMSIZE[p.x.dtype]
    if not (0 <= before <= reach and 0 <= after <= reach and p.filter[0] <= TAPS):
        return f"the filter is {p.filter} with padding {p.padding}; depthwise_ncw reaches {reach} elements to each side"
    for name, tensor in (("x", p.x), ("y", p.y), ("residual", p.residual)):
        if tensor is not None and not (tensor.channels_first and tensor.align >= 16):
            return f"{name} is not dense with channels first and aligned to 16 bytes (strides {tensor.strides})"
    if p.in_spatial[0] * 2 >= INT32_LIMIT or p.batch * p.groups * _segments(p)[0] >= INT32_LIMIT - LANES:
        return "x has too many elements for 32-bit indices"
    return None


def _segments(p: ConvProblem) -> tuple[int, int]:
    """Segments of one row, one warp each, and units per lane."""
    length, reach = p.in_spatial[0], 16 // ITEMSIZE[p.x.dtype]
    reached = length if length % reach == 0 else length + reach - 1  # with the phase of the row
    units = UNITS if reached > LANES * reach else 1
    return -(-reached // (LANES * reach * units)), units


def plan(p: ConvProblem, target: Target) -> Launch:
    """The launch for a problem with at least one output element."""
    length, rows = p.in_spatial[0], p.batch * p.groups
    aligned = length % (16 // ITEMSIZE[p.x.dtype]) == 0
    segments, units = _segments(p)
    code, alpha, beta = activation_parameters(p.activation, p.accumulate)
    params = pack(
        PARAMS,
        w_group=p.w.strides[0],
        w_tap=p.w.strides[3],
        rows=rows,
        channels=p.groups,
        length=length,
        segments=segments,
        alpha=alpha,
        beta=beta,
    )
    return Launch(
        source="depthwise_ncw.cu",
        kernel="depthwise_ncw",
        template=(*ctypes(p), p.filter[0], p.padding[0][0], units, aligned, p.residual is not None, code),
        grid=(-(-rows * segments * LANES // THREADS), 1, 1),
        block=(THREADS, 1, 1),
        params=params,
    )


ROWS = (Row("depthwise_ncw", refuses, plan),)
