"""Host half of ``kernels/depthwise_toeplitz.cu`` and ``depthwise_toeplitz_tall.cu``: depthwise on the tensor cores."""

from __future__ import annotations

from ..launch import CTYPES, Launch, Target, pack, struct
from ..problem import ConvProblem
from . import Row
from .direct import INT32_LIMIT, activation_parameters
from .toeplitz_tiles import WARPS, Geometry, two

PARAMS = struct(
    "DepthwiseToeplitzParams",
    [
        *((name, "int64") for name in ("x_image", "x_channel", "w_group", "w_multiplier", "w_row", "w_column")),
        *((name, "int64") for name in ("y_image", "y_group", "y_multiplier")),
        *((name, "int64") for name in ("residual_image", "residual_group", "residual_multiplier")),
        *((name, "float64") for name in ("alpha", "beta")),
        *((name, "int32") for name in ("x_row", "y_row", "residual_row", "multiplier")),
        *((name, "int32", 2) for name in ("in", "out", "padding", "filter")),
        *((name, "int32") for name in ("lead", "blocks", "reciprocal", "per_group", "streams", "groups")),
        *((name, "int32") for name in ("bands", "band", "chunks", "groups_per_warp", "stream_pitch", "shift")),
    ],
)

_OUTPUTS = ("float16", "bfloat16", "float32")


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why the kernel cannot run the problem, or None."""
    if p.in_per_group != 1:
        return f"a group has {p.in_per_group} input channels; depthwise kernels take 1"
    if not 1 <= p.rank <= 2:
        return f"it has {p.rank} spatial axes; depthwise_toeplitz runs 1 or 2"
    if p.x.dtype not in ("float16", "bfloat16") or p.w.dtype != p.x.dtype or p.y.dtype not in _OUTPUTS:
        return f"it computes float16 and bfloat16, got x {p.x.dtype}, w {p.w.dtype}, y {p.y.dtype}"
    if target.capability < 80:
        return f"its products need compute capability 8.0, {target.arch} has less"
    if p.y.size == 0 or p.x.size == 0:
        return "x or y is empty"
    for name, tensor in (("x", p.x), ("y", p.y), ("residual", p.residual)):
        if tensor is not None and tensor.shape[-1] > 1 and tensor.strides[-1] != 1:
            return f"the last axis of {name} has stride {tensor.strides[-1]}; depthwise_toeplitz needs 1"
    if max(p.dilations + p.input_dilations) > 1:
        return f"dilations are {p.dilations}, input_dilations {p.input_dilations}; depthwise_toeplitz takes 1"
    if len(set(p.strides)) > 1 or p.strides[-1] > 2:
        return f"strides are {p.strides}; depthwise_toeplitz takes 1 or 2, the same along rows and columns"
    geometry = Geometry(p, target)
    if geometry.tile is None:
        return f"the filter is {p.filter}; depthwise_toeplitz takes up to 63x73, 150 in a row (11x11 with stride 2)"
    if geometry.shared_bytes > target.shared_per_block:
        return f"its ring of rows needs {geometry.shared_bytes} bytes of shared memory, {target.name} has less"
    row = max(abs(geometry.row_stride(t)) for t in (p.x, p.y, p.residual or p.y))
    indices = (row, p.y.size // p.out_spatial[-1], *(16 * n for n in (*geometry.size, *geometry.out)))
    if geometry.strips >= 2**16 or max(indices) >= INT32_LIMIT:
        return "it has too many rows, or elements in a row, for 32-bit indices"
    return None


def plan(p: ConvProblem, target: Target) -> Launch:
    """The launch for a problem that is not refused."""
    geometry = Geometry(p, target)
    split = geometry.split
    code, alpha, beta = activation_parameters(p.activation, p.accumulate)
    residual = p.residual or p.y
    params = pack(
        PARAMS,
        x_image=p.x.strides[0],
        x_channel=p.x.strides[1],
        w_group=p.w.strides[0],
        w_multiplier=p.w.strides[1],
        w_row=two(p.w.strides[3:], 0)[0],
        w_column=p.w.strides[-1],
        y_image=p.y.strides[0],
        y_group=p.y.strides[1],
        y_multiplier=p.y.strides[2],
        residual_image=residual.strides[0],
        residual_group=residual.strides[1],
        residual_multiplier=residual.strides[2],
        alpha=alpha,
        beta=beta,
        x_row=geometry.row_stride(p.x),
        y_row=geometry.row_stride(p.y),
        residual_row=geometry.row_stride(residual),
        multiplier=p.out_per_group,
        out=geometry.out,
        padding=geometry.padding,
        filter=(geometry.rows, p.filter[-1]),
        lead=geometry.lead,
        blocks=geometry.blocks,
        reciprocal=-(-(2**16) // geometry.blocks),
        per_group=geometry.per_group,
        streams=split.streams,
        groups=split.groups,
        bands=split.bands,
        band=split.band,
        chunks=split.chunks,
        groups_per_warp=split.groups_per_warp,
        stream_pitch=geometry.stream_pitch,
        shift=geometry.shift,
        **{"in": geometry.size},
    )
    types = [CTYPES[t] for t in (p.x.dtype, p.bias or "float32", p.y.dtype)]
    copies = (geometry.steps, geometry.vector, geometry.copies, geometry.y_vector, geometry.stages)
    if geometry.tall:
        sizes: tuple[int, ...] = (geometry.band, geometry.tiles, *copies)
    else:
        sizes = (geometry.rows, geometry.stride, geometry.repeats, *copies, geometry.shift > 0)
    name = "depthwise_toeplitz_tall" if geometry.tall else "depthwise_toeplitz"
    return Launch(
        source=f"{name}.cu",
        kernel=name,
        template=(*types, *sizes, p.residual is not None, code, geometry.min_blocks),
        grid=(p.out_channels, -(-split.groups // (WARPS * split.groups_per_warp)), geometry.strips),
        block=(32 * WARPS, 1, 1),
        params=params,
        shared_bytes=geometry.shared_bytes,
    )


ROWS = (Row("depthwise_toeplitz", refuses, plan),)
