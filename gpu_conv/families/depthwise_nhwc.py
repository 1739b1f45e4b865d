"""Host half of ``kernels/depthwise_nhwc.cu``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..launch import Launch, Target, pack, struct
from ..problem import ITEMSIZE, ConvProblem
from . import Row, depthwise_common
from .depthwise_common import THREADS, ctypes, height, three
from .direct import INT32_LIMIT, activation_parameters

PARAMS = struct(
    "DepthwiseNhwcParams",
    [
        ("w_group", "int64"),
        ("w_multiplier", "int64"),
        ("w_taps", "int64", 3),
        ("channels", "int32"),
        ("multiplier", "int32"),
        ("in", "int32", 3),
        ("out", "int32", 3),
        ("padding", "int32", 3),
        ("dilations", "int32", 3),
        ("depth_stride", "int32"),
        ("bands", "int32"),
        ("blocks_per_band", "int32"),
        ("alpha", "float64"),
        ("beta", "float64"),
    ],
)


class Tile(NamedTuple):
    """What one thread of ``depthwise_nhwc`` computes, for filters up to a size.

    Attributes:
        depth, rows, columns: largest filter.
        stride: of rows and columns.
        vector: channels.
        width: output columns.
        ahead: input rows in flight beyond the one in use.
        min_blocks: blocks per multiprocessor to compile for; it caps the registers at 65536 / (128 * min_blocks).
        itemsize: of the elements that the row is for; 0 for any.
        at_least, below: compute capabilities that the row is for.
    """

    depth: int
    rows: int
    columns: int
    stride: int
    vector: int
    width: int
    ahead: int
    min_blocks: int
    itemsize: int = 0
    at_least: int = 0
    below: int = 1000


# The first row that covers the filter. Registers are the weights and rolling sums, depth * rows * columns * vector +
# ceil(rows / stride) * width * vector, and the rows in flight; min_blocks is the most that compiles without spills for
# every activation with every NVRTC from 12.9. Issue slots per output of a whole band, sm_90a: 3x3 24, stride 2 33.
TILES = (
    Tile(1, 1, 7, 1, 4, 4, 1, 3),
    Tile(1, 1, 7, 2, 4, 4, 1, 3),
    Tile(1, 3, 3, 1, 4, 4, 1, 4, itemsize=2),
    Tile(1, 3, 3, 1, 2, 4, 2, 4),  # 48 KB of loads in flight per multiprocessor: 83 to 87 % of the copy bandwidth
    Tile(1, 3, 3, 2, 4, 2, 1, 4, itemsize=2),
    Tile(1, 3, 3, 2, 4, 2, 1, 3),
    Tile(1, 7, 1, 1, 4, 2, 1, 3),
    Tile(1, 7, 1, 2, 4, 2, 1, 3),
    Tile(1, 5, 5, 1, 1, 4, 1, 3),
    Tile(1, 5, 5, 2, 2, 2, 1, 3),
    Tile(1, 7, 7, 1, 1, 4, 1, 2),
    Tile(1, 7, 7, 2, 1, 2, 1, 2),
    Tile(3, 3, 3, 1, 1, 4, 1, 2, at_least=100, below=110),  # two channels: 64 bytes spilled with NVRTC 12.9
    Tile(3, 3, 3, 1, 2, 4, 1, 2, itemsize=2),
    Tile(3, 3, 3, 1, 1, 4, 1, 2),  # two channels of float32: 254 registers, and 16 bytes spilled with NVRTC 13.0
    Tile(3, 3, 3, 2, 1, 2, 1, 2, at_least=100, below=110),  # four columns: 104 to 896 bytes, three: up to 112
    Tile(3, 3, 3, 2, 1, 3, 1, 2, itemsize=2, below=90),  # four columns: 72 bytes spilled on sm_80, 68 us against 54
    Tile(3, 3, 3, 2, 1, 4, 1, 2),
)


def tiles(p: ConvProblem, target: Target) -> list[Tile]:
    """The rows that cover the filter."""
    depth, rows, columns = three(p.filter, 1)
    stride, sizes = three(p.strides, 1)[2], (0, ITEMSIZE[p.x.dtype])
    fitting = [t for t in TILES if t.stride == stride and t.itemsize in sizes]
    fitting = [t for t in fitting if t.at_least <= target.capability < t.below]
    return [t for t in fitting if depth <= t.depth and rows <= t.rows and columns <= t.columns]


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why the kernel cannot run the problem, or None."""
    if reason := depthwise_common.refuses(p) or depthwise_common.refuses_slices(p):
        return reason
    for name, tensor in (("x", p.x), ("y", p.y), ("residual", p.residual)):
        if tensor is not None and not tensor.channels_last:
            return f"{name} is not dense with channels last (strides {tensor.strides}); depthwise_nhwc needs that"
    _, row_stride, column_stride = three(p.strides, 1)
    row_stride = column_stride if three(p.out_spatial, 1)[1] == 1 and three(p.filter, 1)[1] == 1 else row_stride
    if row_stride != column_stride or column_stride > 2:
        return f"strides are {p.strides}; depthwise_nhwc takes 1 or 2, the same along rows and columns"
    if column_stride == 2 and max(three(p.dilations, 1)[1:]) > 1:
        return f"dilations are {p.dilations} with strides {p.strides}; depthwise_nhwc dilates at stride 1 only"
    if not tiles(p, target):
        return f"the filter is {p.filter}; depthwise_nhwc is unrolled up to 7x7 and 3x3x3"
    row = max(p.in_channels * p.in_spatial[-1], p.out_channels * p.out_spatial[-1])
    if row * max(p.dilations) >= INT32_LIMIT or max(p.x.shape + p.y.shape) * 16 >= INT32_LIMIT:
        return "one row of x or y has too many elements for 32-bit offsets"
    return None


def _vector(p: ConvProblem, widest: int) -> int:
    """Channels per thread: they divide the channels, and every pixel is aligned to that many elements."""
    if p.out_per_group != 1:
        return 1
    tensors = [t for t in (p.x, p.y, p.residual) if t is not None]

    def fits(vector: int) -> bool:
        return p.out_channels % vector == 0 and all(t.align >= min(16, vector * ITEMSIZE[t.dtype]) for t in tensors)

    return next(v for v in _halves(widest) if fits(v))


def _halves(n: int) -> Iterator[int]:
    while n >= 1:
        yield n
        n //= 2


def plan(p: ConvProblem, target: Target, tile: Tile | None = None) -> Launch:
    """The launch for a problem with at least one output element, with the first tile or with a given one."""
    tile = tile or tiles(p, target)[0]
    depth, rows, columns = three(p.filter, 1)
    # A residual takes registers: fewer channels where they are all in use, else fewer blocks.
    vector = _vector(p, tile.vector if p.residual is None or depth == 1 else 1)
    out, dilations = three(p.out_spatial, 1), three(p.dilations, 1)
    strips = -(-out[2] // (tile.width * dilations[2])) * dilations[2]
    blocks_per_band = -(-strips * (p.out_channels // vector) // THREADS)
    phase_rows = -(-out[1] // dilations[1])
    blocks = blocks_per_band * dilations[1] * out[0] * p.batch
    taps = three(p.w.strides[3:], 0)
    w_vector = (
        vector > 1
        and p.w.strides[0] == 1
        and all(s % vector == 0 for s in taps)
        and p.w.align >= min(16, vector * ITEMSIZE[p.w.dtype])
    )
    # The compiler for sm_100 and later wants a few more too, and so does the error function of gelu.
    gelu = p.activation is not None and p.activation.name == "gelu"
    # Those for sm_80 to sm_89 spill 8 to 32 bytes of four channels of 3x3 at 128 registers, and all of them 28 bytes
    # where weights of bfloat16 are read one by one.
    single = p.w.dtype == "bfloat16" and not w_vector
    full = (tile.rows, tile.vector, tile.stride) == (3, 4, 1) and (80 <= target.capability < 90 or single)
    min_blocks = max(1, tile.min_blocks - (p.residual is not None) - (target.capability >= 100) - gelu - full)
    each = height(phase_rows, blocks * phase_rows, target.multiprocessors * min_blocks)
    bands = -(-phase_rows // each)
    code, alpha, beta = activation_parameters(p.activation, p.accumulate)
    params = pack(
        PARAMS,
        w_group=p.w.strides[0],
        w_multiplier=p.w.strides[1],
        w_taps=taps,
        channels=p.out_channels,
        multiplier=p.out_per_group,
        out=out,
        padding=three(tuple(lo for lo, _ in p.padding), 0),
        dilations=dilations,
        depth_stride=three(p.strides, 1)[0],
        bands=bands,
        blocks_per_band=blocks_per_band,
        alpha=alpha,
        beta=beta,
        **{"in": three(p.in_spatial, 1)},
    )
    sizes = (vector, tile.width, each, tile.ahead, depth, rows, columns, tile.stride)
    return Launch(
        source="depthwise_nhwc.cu",
        kernel="depthwise_nhwc",
        template=(*ctypes(p), *sizes, w_vector, p.residual is not None, code, min_blocks),
        grid=(blocks * bands, 1, 1),
        block=(THREADS, 1, 1),
        params=params,
    )


ROWS = (Row("depthwise_nhwc", refuses, plan, tiles),)
