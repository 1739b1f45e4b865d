"""The layout of the whole graph: channels last, decided in one place.

Convolution, pooling and normalisation work channels last (``nhwc`` and its siblings): on the CPU a depthwise layer is
then one contiguous multiply-add per tap, on the GPU it vectorises over channels. The layout spreads from those
operators through everything that works element by element or along one axis, so data are moved only at the borders of
the graph and around operators that need ONNX's order of axes (``Reshape``, ``MatMul``). The way back is a strided view.
"""

from __future__ import annotations

import numpy as np

from ..families import channels_last
from .ir import Array, Node
from .ops.launch import in_one_launch
from .ops.registry import Call, Op

FEW = 8  # channels up to which NumPy moves them one by one: for the three of a picture 4 times faster


def wanted(row: Op, node: Node, ranks: list[int | None], last: list[bool]) -> tuple[bool, int, list[bool | None]]:
    """Which layout a node runs in.

    Args:
        ranks: number of axes of each operand, None for an absent one.
        last: whether each operand is channels last.

    Returns:
        Whether the node runs channels last, the number of axes that its channels-last operands are aligned to, and for
        each operand the layout to bring it to (None: leave it).
    """
    kind = row.layout(node)
    if kind == "any":
        return bool(last and last[0]), 0, [None] * len(ranks)
    if kind == "last":
        rank = ranks[0] or 0
        return rank >= 3, rank, [rank >= 3 and i in row.data for i in range(len(ranks))]
    read = [r or 0 for i, r in enumerate(ranks) if i not in row.host]
    rank = max(read, default=0)
    run = kind == "aligned" and any(
        flag and r == rank for i, (flag, r) in enumerate(zip(last, ranks, strict=True)) if i not in row.host
    )
    return run, rank, [run and i not in row.host for i in range(len(ranks))]


def moved(call: Call, x: Array) -> Array:
    """ONNX's order to channels last: the one operation on layouts that copies. It may round to ``attrs["dtype"]``."""
    y = call.out
    if y is None:
        y = call.xp.empty((x.shape[0], *x.shape[2:], x.shape[1]), call.attrs.get("dtype", x.dtype))
    if in_one_launch(call, channels_last, x, y):
        return y
    if call.xp is np and x.shape[1] <= FEW:
        for channel in range(x.shape[1]):
            y[..., channel] = x[:, channel]
    else:
        y[...] = call.xp.moveaxis(x, 1, -1)
    return y


def viewed(call: Call, x: Array) -> Array:
    """Channels last to ONNX's order: a view."""
    return call.xp.moveaxis(x, -1, 1)


def widened(call: Call, x: Array) -> Array:
    """An operand of fewer axes (ONNX's order) aligned with channels-last ones of rank ``attrs["rank"]``."""
    full = x.reshape((1,) * (call.attrs["rank"] - x.ndim) + x.shape)
    return call.xp.moveaxis(full, 1, -1)
