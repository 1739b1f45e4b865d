"""Host half of ``kernels/depthwise_nchw.cu``."""

from __future__ import annotations

from typing import NamedTuple

from ..launch import Launch, Target, pack, struct
from ..problem import ITEMSIZE, ConvProblem, Tensor
from . import Row, depthwise_common
from .depthwise_common import THREADS, ctypes, height, three
from .direct import INT32_LIMIT, activation_parameters

PARAMS = struct(
    "DepthwiseNchwParams",
    [
        ("threads", "int64"),
        ("w_group", "int64"),
        ("w_multiplier", "int64"),
        ("w_taps", "int64", 3),
        ("channels", "int32"),
        ("multiplier", "int32"),
        ("in", "int32", 3),
        ("out", "int32", 3),
        ("padding", "int32", 2),
        ("dilations", "int32", 2),
        ("depth_stride", "int32"),
        ("bands", "int32"),
        ("alpha", "float64"),
        ("beta", "float64"),
    ],
)


class Strip(NamedTuple):
    """What one thread of ``depthwise_nchw`` computes, for filters up to a size.

    Attributes:
        depth, rows, columns: largest filter.
        width: output columns.
        ahead: input rows in flight beyond the one in use.
        min_blocks: blocks per multiprocessor to compile for; it caps the registers at 65536 / (128 * min_blocks).
        itemsize: of the elements that the row is for; 0 for any.
    """

    depth: int
    rows: int
    columns: int
    width: int
    ahead: int
    min_blocks: int
    itemsize: int = 0


# Of the rows for the smallest size that covers the filter: one whose strip is one or two vectors, or nearest to that
# (else the loads of a warp are not coalesced: 14 columns in vectors of 2 reached 14 % of the copy bandwidth of an H100;
# and 7x7 with 8 columns of single elements spills), then one that wastes the fewest columns, then the first. 8 columns
# cost 18 (3x3), 34 (5x5) and 59 (7x7) issue slots per output. min_blocks is the most that compiles without spills with
# every NVRTC from 12.9.
STRIPS = (
    Strip(1, 3, 3, 8, 2, 4, itemsize=2),  # 79 registers, 6 blocks: 24 KB of loads in flight per multiprocessor
    Strip(1, 3, 3, 4, 2, 4),
    Strip(1, 5, 5, 8, 2, 3, itemsize=2),
    Strip(1, 5, 5, 4, 2, 3),
    Strip(1, 7, 7, 8, 2, 2, itemsize=2),
    Strip(1, 7, 7, 4, 2, 2),
    Strip(3, 3, 3, 8, 1, 2, itemsize=2),
    Strip(3, 3, 3, 4, 1, 2),
)


def _strip(p: ConvProblem, vector: int) -> Strip | None:
    """The strip for a problem whose rows of x are read in vectors of ``vector`` elements."""
    depth, rows, columns = three(p.filter, 1)
    stride, width = p.strides[-1], p.out_spatial[-1]
    fitting = [s for s in STRIPS if s.itemsize in (0, ITEMSIZE[p.x.dtype])]
    fitting = [s for s in fitting if depth <= s.depth and rows <= s.rows and columns <= s.columns]
    size = [(s.depth, s.rows, s.columns) for s in fitting[:1]]
    fitting = [s for s in fitting if (s.depth, s.rows, s.columns) in size and s.width * stride % vector == 0]
    return min(
        fitting, key=lambda s: (max(0, s.width * stride - 2 * vector), -(-width // s.width) * s.width), default=None
    )


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why the kernel cannot run the problem, or None."""
    if reason := depthwise_common.refuses(p) or depthwise_common.refuses_slices(p):
        return reason
    for name, tensor in (("x", p.x), ("y", p.y), ("residual", p.residual)):
        if tensor is not None and not tensor.channels_first:
            return f"{name} is not dense with channels first (strides {tensor.strides}); depthwise_nchw needs that"
    _, row_stride, column_stride = three(p.strides, 1)
    row_stride = column_stride if p.rank == 1 else row_stride
    if row_stride != column_stride or column_stride > 2:
        return f"strides are {p.strides}; depthwise_nchw takes 1 or 2, the same along rows and columns"
    if p.dilations[-1] > 1 and p.filter[-1] > 1:
        return f"dilations are {p.dilations}; depthwise_nchw does not dilate along the last axis"
    if column_stride == 2 and p.rank > 1 and p.dilations[-2] > 1:
        return f"dilations are {p.dilations} with strides {p.strides}; depthwise_nchw dilates at stride 1 only"
    if not 0 <= p.padding[-1][0] <= 7:
        return f"padding is {p.padding}; depthwise_nchw takes 0 to 7 before the last axis"
    if _strip(p, _row_vector(p.x, p.in_spatial[-1])) is None:
        return f"the filter is {p.filter}; depthwise_nchw is unrolled up to 7x7 and 3x3x3"
    if p.y.size // 4 >= INT32_LIMIT or max(p.x.shape + p.y.shape) * 16 >= INT32_LIMIT:
        return "y has too many elements for 32-bit thread indices"
    return None


def _row_vector(t: Tensor, length: int, limit: int = 16) -> int:
    """Elements per access: they divide a row and ``limit``, and every row is aligned to them."""
    size = ITEMSIZE[t.dtype]
    return next(v for v in (16 // size, 4, 2, 1) if limit % v == 0 and length % v == 0 and t.align >= v * size)


def plan(p: ConvProblem, target: Target) -> Launch:
    """The launch for a problem with at least one output element."""
    x_vector = _row_vector(p.x, p.in_spatial[-1])
    strip = _strip(p, x_vector)
    assert strip is not None
    outputs = [t for t in (p.y, p.residual) if t is not None]
    y_vector = min(_row_vector(t, p.out_spatial[-1], strip.width) for t in outputs)
    out, dilations = three(p.out_spatial, 1), three(p.dilations, 1)[:2]
    phase_rows = -(-out[1] // dilations[1])
    threads = -(-out[2] // strip.width) * dilations[1] * out[0] * p.batch * p.out_channels
    blocks = -(-threads * phase_rows // THREADS)
    min_blocks = strip.min_blocks - (p.residual is not None)  # its registers
    each = height(phase_rows, blocks, target.multiprocessors * min_blocks)
    bands = -(-phase_rows // each)
    code, alpha, beta = activation_parameters(p.activation, p.accumulate)
    params = pack(
        PARAMS,
        threads=threads * bands,
        w_group=p.w.strides[0],
        w_multiplier=p.w.strides[1],
        w_taps=three(p.w.strides[3:], 0),
        channels=p.out_channels,
        multiplier=p.out_per_group,
        out=out,
        padding=three(tuple(lo for lo, _ in p.padding), 0)[:2],
        dilations=dilations,
        depth_stride=three(p.strides, 1)[0],
        bands=bands,
        alpha=alpha,
        beta=beta,
        **{"in": three(p.in_spatial, 1)},
    )
    sizes = (x_vector, y_vector, strip.width, each, strip.ahead, *three(p.filter, 1), p.strides[-1], p.padding[-1][0])
    return Launch(
        source="depthwise_nchw.cu",
        kernel="depthwise_nchw",
        template=(*ctypes(p), *sizes, p.residual is not None, code, min_blocks),
        grid=(-(-threads * bands // THREADS), 1, 1),
        block=(THREADS, 1, 1),
        params=params,
    )


ROWS = (Row("depthwise_nchw", refuses, plan),)
