"""Three convolutions in one launch: the host half of ``kernels/inverted_residual.cu``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..arrays import Array
from ..launch import CTYPES, Launch, Target, pack, struct
from .direct import INT32_LIMIT, activation_parameters
from .inverted_residual_model import THREADS, Chain, Shape, Tile, tiles

MOST = 65535  # blocks along the second and third axis of a grid: rows of tiles and images
MOST_CHANNELS = 8 * THREADS  # of a pixel, 16 bytes for each thread of a block

PARAMS = struct(
    "InvertedResidualParams",
    [
        ("in", "int32", 2),
        ("out", "int32", 2),
        ("padding", "int32", 2),
        ("expanded", "int32"),
        ("slabs", "int32"),
        ("splits", "int32"),
        ("alpha", "float64", 3),
        ("beta", "float64", 3),
    ],
)

DTYPES = ("float16", "bfloat16")


def refuses(chain: Chain, target: Target) -> str | None:
    """Why one launch cannot run the chain, or None."""
    steps = [p for p in (chain.expand, chain.depthwise, chain.project) if p]
    d = chain.depthwise
    if target.capability < 80:
        return f"needs compute capability 8.0, {target.arch} has less"
    if d.x.dtype not in DTYPES or any(p.y.dtype != d.x.dtype for p in steps):
        return f"computes float16 and bfloat16, got {d.x.dtype} -> {chain.project.y.dtype}"
    if d.rank != 2 or d.filter != (3, 3) or d.out_per_group != 1 or not d.is_depthwise or set(d.dilations) != {1}:
        return f"needs an undilated 3x3 depthwise convolution of multiplier 1, got filter {d.filter}, {d.groups} groups"
    if d.strides not in ((1, 1), (2, 2)) or min(min(d.padding)) < 0 or max(max(d.padding)) > 2:
        return f"needs stride 1 or 2 and padding 0 to 2, got {d.strides} and {d.padding}"
    if any(not p.is_pointwise or p.groups != 1 or set(p.strides) != {1} for p in steps if p is not d):
        return "needs 1x1 convolutions without groups and strides around the depthwise one"
    if any(n % 8 for n in (chain.in_channels, chain.expanded, chain.out_channels)):
        channels = (chain.in_channels, chain.expanded, chain.out_channels)
        return f"moves 8 channels at a time, got {' -> '.join(map(str, channels))}"
    if any(not t.channels_last or t.align < 16 for t in (chain.first.x, chain.project.y)):
        return "needs input and output channels last, dense and aligned to 16 bytes"
    same = chain.in_channels == chain.out_channels and d.in_spatial == d.out_spatial
    if chain.project.residual and not (same and chain.stride == 1):
        return "adds its input, which has another shape than the output"
    if max(chain.first.x.size, chain.project.y.size) // max(1, d.batch) >= INT32_LIMIT or not chain.project.y.size:
        return "counts the elements of an image in 32 bits, from 1"
    if max(chain.in_channels, chain.out_channels) > MOST_CHANNELS:
        return f"moves up to {MOST_CHANNELS} channels of a pixel, got {chain.in_channels} -> {chain.out_channels}"
    if max(d.batch, d.out_spatial[0]) > MOST:
        return f"a launch takes {MOST} images and rows of the output, got {d.batch} and {d.out_spatial[0]}"
    if not tiles(chain, target):
        return f"keeps sums and filters in registers: too many channels for {target.arch}"
    return None


def plan(chain: Chain, target: Target, tile: Tile | None = None) -> Launch:
    """The launch with a given tile, or with the one that is predicted fastest. Its filter is that of ``weights``."""
    tile = tile or tiles(chain, target)[0]
    shape, d = Shape(chain, tile), chain.depthwise
    steps = (chain.expand, d, chain.project)
    codes, alpha, beta = zip(
        *(activation_parameters(p.activation if p else None, "float32") for p in steps), strict=True
    )
    params = pack(
        PARAMS,
        **{"in": d.in_spatial},
        out=d.out_spatial,
        padding=[lo for lo, _ in d.padding],
        expanded=chain.expanded,
        slabs=shape.slabs,
        splits=tile.splits,
        alpha=alpha,
        beta=beta,
    )
    flags = (chain.expand is not None, chain.project.residual is not None)
    return Launch(
        source="inverted_residual.cu",
        kernel="inverted_residual",
        template=(
            *(CTYPES[d.x.dtype], chain.in_channels, chain.out_channels, chain.stride, *flags, *codes),
            *(tile.rows, tile.columns, tile.slab, tile.pixel_warps, tile.splits > 1, shape.shared_bytes),
            shape.together(target, tile.splits),
        ),
        grid=(shape.tiles[1] * tile.splits, shape.tiles[0], d.batch),
        block=(THREADS, 1, 1),
        params=params,
        shared_bytes=shape.shared_bytes,
        workspace_bytes=shape.workspace_bytes,
        ticket_bytes=shape.ticket_bytes,
    )


def weights(chain: Chain, tile: Tile, filters: Mapping[str, Array | None], xp: Any) -> Array:
    """All filters and the inner biases as the kernel reads them: uint8 ``[slabs, bytes]``, the end filled with zeros.

    Args:
        filters: ``expand`` ``[e, i]``, ``depthwise`` ``[e, 3, 3]``, ``project`` ``[o, e]``, ``expand_bias`` and
            ``depthwise_bias`` ``[e]`` or None.
        xp: the module of the arrays.
    """
    shape = Shape(chain, tile)
    slabs, slab = shape.slabs, tile.slab

    def part(array: Array | None, dtype: Any, line: int, expanded_axis: int = 0) -> Array:
        """One of the parts, lines of ``line`` elements, slab by slab."""
        lines = xp.zeros((slabs * slab, line), dtype)
        if array is not None:
            matrix = array.reshape(array.shape[0], -1) if expanded_axis == 0 else array.T
            lines[: matrix.shape[0], : matrix.shape[1]] = matrix
        return lines.reshape(slabs, slab, line)

    def raw(array: Array) -> Array:
        return xp.ascontiguousarray(array).reshape(slabs, -1).view(xp.uint8)

    dtype, depthwise, project = filters["project"].dtype, filters["depthwise"], filters["project"]  # type: ignore[union-attr]
    lines = part(project, dtype, chain.out_channels, 1).transpose(0, 2, 1)
    padded = xp.zeros((slabs, chain.out_channels, shape.slab_line // 2), dtype)
    padded[:, :, :slab] = lines
    parts = [raw(padded), raw(part(depthwise, dtype, 9).transpose(0, 2, 1))]
    if chain.expand:
        parts.insert(0, raw(part(filters["expand"], dtype, shape.in_line // 2)))
        parts.append(raw(part(filters["expand_bias"], xp.float32, 1)))
    parts.append(raw(part(filters["depthwise_bias"], xp.float32, 1)))
    return xp.concatenate(parts, axis=1)
