"""Host half of ``kernels/depthwise_nhwc_int8.cu``."""

from __future__ import annotations

from typing import NamedTuple

from ..launch import CTYPES, Launch, Target, pack, struct
from ..problem import ITEMSIZE, ConvProblem
from . import Row
from .depthwise_common import THREADS, height, three
from .direct import INT32_LIMIT, activation_parameters, term_type

PARAMS = struct(
    "DepthwiseNhwcInt8Params",
    [
        ("w_group", "int32"),
        ("w_taps", "int32", 2),
        ("channels", "int32"),
        ("in", "int32", 2),
        ("out", "int32", 2),
        ("padding", "int32", 2),
        ("bands", "int32"),
        ("blocks_per_band", "int32"),
        ("alpha", "float64"),
        ("beta", "float64"),
    ],
)

DTYPES = ("int8", "uint8")
VECTOR = 4  # channels of a word
LARGEST_GATHERED = 5  # a larger filter does not compile without spills if its bytes are loaded one by one


class Tile(NamedTuple):
    """What one thread computes, for filters up to a size.

    Attributes:
        rows, columns: largest filter.
        stride: of rows and columns.
        width: output columns.
        ahead: input rows in flight beyond the one in use.
        min_blocks: blocks per multiprocessor to compile for: the most that compiles without spills.
    """

    rows: int
    columns: int
    stride: int
    width: int
    ahead: int
    min_blocks: int


# The first row that covers the filter.
TILES = (
    Tile(1, 7, 1, 4, 2, 4),
    Tile(1, 7, 2, 4, 2, 4),
    Tile(3, 3, 1, 4, 2, 4),
    Tile(3, 3, 2, 4, 2, 3),
    Tile(5, 5, 1, 4, 1, 2),
    Tile(5, 5, 2, 4, 1, 2),
    Tile(7, 7, 1, 2, 1, 2),
    Tile(7, 7, 2, 2, 1, 2),
)


def _tile(p: ConvProblem) -> Tile | None:
    _, rows, columns = three(p.filter, 1)
    stride = three(p.strides, 1)[2]
    return next((t for t in TILES if rows <= t.rows and columns <= t.columns and stride == t.stride), None)


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why the kernel cannot run the problem, or None."""
    if p.x.dtype not in DTYPES or p.accumulate != "int32" or p.y.dtype not in (*DTYPES, "int32"):
        return f"computes 8-bit integers, got {p.x.dtype} -> {p.y.dtype}"
    if p.in_per_group != 1 or p.out_per_group != 1:
        return f"a group has {p.in_per_group} input and {p.out_per_group} output channels; it takes 1 of each"
    if p.rank not in (1, 2):
        return f"it has {p.rank} spatial axes; depthwise_nhwc_int8 runs 1 or 2"
    if p.w_zero_point:
        return "w has a zero point; a filter whose zero points are known to be 0 has none"
    if p.residual is not None:
        return "it adds no residual"
    if p.x.size == 0 or p.y.size == 0:
        return "x or y is empty"
    return _refuses_geometry(p) or _refuses_memory(p)


def _refuses_geometry(p: ConvProblem) -> str | None:
    if any(d != 1 for d in (*p.dilations, *p.input_dilations)):
        return f"dilations are {p.dilations}, input_dilations {p.input_dilations}; it takes 1"
    if len(set(p.strides)) > 1 or p.strides[0] > 2:
        return f"strides are {p.strides}; it takes 1 or 2, the same along rows and columns"
    return None if _tile(p) else f"the filter is {p.filter}; it is unrolled up to 7x7"


def _filter_words(p: ConvProblem) -> bool:
    """Whether a tap of four channels is one aligned word."""
    return p.w.strides[0] == 1 and all(s % VECTOR == 0 for s in p.w.strides[3:]) and p.w.align >= VECTOR


def _refuses_memory(p: ConvProblem) -> str | None:
    for name, tensor in (("x", p.x), ("y", p.y)):
        if not tensor.channels_last or tensor.align < min(16, VECTOR * ITEMSIZE[tensor.dtype]):
            return f"{name} is not dense with channels last and aligned to {VECTOR} elements (strides {tensor.strides})"
    if p.groups % VECTOR:
        return f"{p.groups} channels are no multiple of {VECTOR}"
    if max(p.filter) > LARGEST_GATHERED and not _filter_words(p):
        return f"a filter of {p.filter} must have its channels side by side and aligned (strides {p.w.strides})"
    row = p.groups * max(p.in_spatial[-1], p.out_spatial[-1])
    if row * 8 >= INT32_LIMIT or max(*p.x.shape, *p.y.shape, *map(abs, p.w.strides)) * 16 >= INT32_LIMIT:
        return "one row of x or y, or a stride of w, is too long for 32-bit offsets"
    return None


def plan(p: ConvProblem, target: Target) -> Launch:
    """The launch for a problem with at least one output element."""
    tile = _tile(p)
    assert tile is not None
    (_, *sizes), (_, *out) = three(p.in_spatial, 1), three(p.out_spatial, 1)
    (_, *filter_sizes), (_, *taps) = three(p.filter, 1), three(p.w.strides[3:], 0)
    blocks_per_band = -(-(-(-out[1] // tile.width) * (p.groups // VECTOR)) // THREADS)
    each = height(out[0], blocks_per_band * p.batch * out[0], target.multiprocessors * tile.min_blocks)
    bands = -(-out[0] // each)
    code, alpha, beta = activation_parameters(p.activation, p.accumulate)
    params = pack(
        PARAMS,
        w_group=p.w.strides[0],
        w_taps=taps,
        channels=p.groups,
        out=out,
        padding=three(tuple(lo for lo, _ in p.padding), 0)[1:],
        bands=bands,
        blocks_per_band=blocks_per_band,
        alpha=alpha,
        beta=beta,
        **{"in": sizes},
    )
    types = (CTYPES[p.x.dtype], CTYPES[p.w.dtype], term_type(p), CTYPES[p.y.dtype])
    numbers = (tile.width, each, tile.ahead, *filter_sizes, tile.stride, _filter_words(p), code, tile.min_blocks)
    return Launch(
        source="depthwise_nhwc_int8.cu",
        kernel="depthwise_nhwc_int8",
        template=(*types, *numbers),
        grid=(blocks_per_band * bands * p.batch, 1, 1),
        block=(THREADS, 1, 1),
        params=params,
    )


ROWS = (Row("depthwise_nhwc_int8", refuses, plan),)
