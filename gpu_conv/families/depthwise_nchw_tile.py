"""Host half of ``kernels/depthwise_nchw_tile.cu``: channels first, rows of any length, through shared memory."""

from __future__ import annotations

from ..launch import Launch, Target, pack, struct
from ..problem import ITEMSIZE, ConvProblem
from . import Row, depthwise_common
from .depthwise_common import ctypes
from .direct import INT32_LIMIT, activation_parameters

PARAMS = struct(
    "DepthwiseNchwTileParams",
    [
        ("w_group", "int64"),
        ("w_row", "int64"),
        ("w_column", "int64"),
        ("planes", "int32"),
        ("channels", "int32"),
        ("in", "int32", 2),
        ("out", "int32", 2),
        ("padding", "int32", 2),
        ("group", "int32"),
        ("band", "int32"),
        ("bands", "int32"),
        ("out_at", "int32"),
        ("alpha", "float64"),
        ("beta", "float64"),
    ],
)

COPY = 16  # bytes of one asynchronous copy
WARP = 32
MOST_THREADS = 128  # kMostThreads
# Outputs of one thread along an axis: the first that wastes least. 7 fits maps of 7, 14, 28, 56 and 112.
EDGES = (7, 6, 5, 4)
# Shared memory of one block: 8 blocks on an H100, so that some load while others compute.
BLOCK_BYTES = 28 * 1024
# (largest filter, blocks per multiprocessor to compile for with outer elements only masked, and with all masked): the
# most that compiles without spills. Issue slots per output of a block, sm_90a: 3x3 25, stride 2 33, 5x5 46, 7x7 76.
MIN_BLOCKS = ((3, 7, 5), (5, 3, 3), (7, 2, 2))


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why the kernel cannot run the problem, or None."""
    if reason := depthwise_common.refuses(p):
        return reason
    if p.rank != 2:
        return f"it has {p.rank} spatial axes; depthwise_nchw_tile runs 2"
    if p.in_spatial[1] * ITEMSIZE[p.x.dtype] % COPY == 0:
        return (
            f"rows of {p.in_spatial[1]} {p.x.dtype} are whole {COPY}-byte vectors: depthwise_nchw reads them directly"
        )
    if p.out_per_group != 1:
        return f"a group has {p.out_per_group} outputs; depthwise_nchw_tile takes 1"
    if p.strides not in ((1, 1), (2, 2)) or p.dilations != (1, 1):
        return f"strides are {p.strides}, dilations {p.dilations}; depthwise_nchw_tile takes strides 1 or 2, undilated"
    if max(p.filter) > MIN_BLOCKS[-1][0]:
        return f"the filter is {p.filter}; depthwise_nchw_tile is unrolled up to {MIN_BLOCKS[-1][0]}"
    for name, tensor in (("x", p.x), ("y", p.y), ("residual", p.residual)):
        if tensor is not None and not (tensor.channels_first and tensor.align >= COPY):
            return f"{name} is not dense with channels first and aligned to {COPY} bytes (strides {tensor.strides})"
    group, band = _block(p, target)
    if sum(_shared_bytes(p, group, band)) > min(target.shared_per_block, 4 * BLOCK_BYTES):
        return f"rows of {p.in_spatial[1]} {p.x.dtype} are too long for shared memory"
    if p.batch * p.groups * -(-p.out_spatial[0] // band) >= INT32_LIMIT:
        return "x has too many planes for 32-bit indices"
    return None


def _edge(size: int) -> int:
    """Outputs of one thread along an axis of ``size`` outputs."""
    return min(EDGES, key=lambda e: -(-size // e) * e) if size >= EDGES[-1] else size


def _block(p: ConvProblem, target: Target) -> tuple[int, int]:
    """Planes and output rows of one block: whole planes, or one band of one plane."""
    out, edges = p.out_spatial, [_edge(n) for n in p.out_spatial]
    strips, bands = (-(-n // e) for n, e in zip(out, edges, strict=True))
    most = max(1, p.batch * p.groups // (2 * target.multiprocessors))  # planes: a small problem fills the device first
    one = sum(_shared_bytes(p, 1, out[0]))
    group = min(MOST_THREADS // (strips * bands), BLOCK_BYTES // one, most)
    if group >= 1:
        return group, out[0]
    band = max(1, min(MOST_THREADS // strips, BLOCK_BYTES * bands // one)) * edges[0]
    return 1, min(band, out[0])


def _shared_bytes(p: ConvProblem, group: int, band: int) -> tuple[int, int]:
    """Bytes for the inputs and for the outputs of a block, each with one unit more at both ends."""
    rows = p.in_spatial[0] if group > 1 else min(p.in_spatial[0], (band - 1) * p.strides[0] + p.filter[0])
    inputs = ((group - 1) * p.in_spatial[0] + rows) * p.in_spatial[1]
    outputs = ((group - 1) * p.out_spatial[0] + band) * p.out_spatial[1]
    pairs = ((inputs, p.x), (outputs, p.y))
    in_bytes, out_bytes = ((-(-n * ITEMSIZE[t.dtype] // COPY) + 2) * COPY for n, t in pairs)
    return in_bytes, out_bytes


def plan(p: ConvProblem, target: Target) -> Launch:
    """The launch for a problem with at least one output element."""
    group, band = _block(p, target)
    in_bytes, out_bytes = _shared_bytes(p, group, band)
    bands = -(-p.out_spatial[0] // band)
    height, width = (_edge(n) for n in p.out_spatial)
    before = [lo for lo, _ in p.padding]
    # Only elements before and after the inner window of a thread can lie outside: threads tile the outputs exactly.
    sizes = list(zip(p.out_spatial, (height, width), p.in_spatial, before, strict=True))
    exact = all(n % e == 0 and lo >= 0 and (n - 1) * p.strides[0] < size for n, e, size, lo in sizes)
    exact = exact and band % height == 0
    items = group * -(-band // height) * -(-p.out_spatial[1] // width)
    _, few, many = next(row for row in MIN_BLOCKS if max(p.filter) <= row[0])
    if p.residual is not None and p.strides[0] == 2 and p.activation is not None and p.activation.name == "softplus":
        few = min(few, 3)  # with 4 to 7 the compiler for sm_90a spills 8 to 40 bytes
    code, alpha, beta = activation_parameters(p.activation, p.accumulate)
    params = pack(
        PARAMS,
        w_group=p.w.strides[0],
        w_row=p.w.strides[3],
        w_column=p.w.strides[4],
        planes=p.batch * p.groups,
        channels=p.groups,
        out=p.out_spatial,
        padding=before,
        group=group,
        band=band,
        bands=bands,
        out_at=in_bytes,
        alpha=alpha,
        beta=beta,
        **{"in": p.in_spatial},
    )
    outer = before if exact else (-1, -1)
    return Launch(
        source="depthwise_nchw_tile.cu",
        kernel="depthwise_nchw_tile",
        template=(
            *(*ctypes(p), width, height, *p.filter, p.strides[0], *outer),
            *(p.residual is not None, code, few if exact else many),
        ),
        grid=(-(-p.batch * p.groups // group) * bands, 1, 1),
        block=(min(MOST_THREADS, max(2, -(-items // WARP)) * WARP), 1, 1),
        params=params,
        shared_bytes=in_bytes + out_bytes,
    )


ROWS = (Row("depthwise_nchw_tile", refuses, plan),)
