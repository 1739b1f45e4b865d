"""Shapes, moves and indexing."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from ..errors import ModelError
from ..ir import Array, Host
from .registry import Call, check_axis, check_size, host, ints, op, physical


@op("Shape", layout="any", shape_only=True)
def shape(call: Call, x: Array) -> Host:
    """The sizes, or some of them."""
    sizes = logical_shape(x, call.last)
    return np.asarray(sizes[call.attrs.get("start", 0) : call.attrs.get("end")], np.int64)


@op("Size", layout="any", shape_only=True)
def size(call: Call, x: Array) -> Host:
    """Number of elements."""
    return np.asarray(x.size, np.int64)


def logical_shape(x: Array, last: bool) -> tuple[int, ...]:
    """The shape as ONNX has it."""
    return tuple(x.shape[physical(a, x.ndim, last)] for a in range(x.ndim))


@op("Reshape", host=(1,), views=True)
def reshape(call: Call, x: Array, target: Array) -> Array:
    """0 copies the input's size (unless ``allowzero``), one -1 takes what is left."""
    wanted = ints(target)
    if not call.attrs.get("allowzero", 0):
        if any(n == 0 and i >= x.ndim for i, n in enumerate(wanted)):
            raise ModelError(f"shape {wanted} copies an axis that the input of shape {x.shape} does not have")
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    known = prod(n for n in wanted if n != -1)
    fits = x.size == known if -1 not in wanted else wanted.count(-1) == 1 and known > 0 and x.size % known == 0
    if not fits or min(wanted, default=0) < -1:
        raise ModelError(f"cannot reshape {x.shape} to {wanted}")
    return x.reshape(wanted)


@op("Flatten", views=True)
def flatten(call: Call, x: Array) -> Array:
    """Two axes: those before ``axis``, and the rest."""
    axis = call.attrs["axis"]
    if not -x.ndim <= axis <= x.ndim:
        raise ModelError(f"axis {axis} is out of range for {x.ndim} axes")
    head = prod(x.shape[: axis if axis >= 0 else axis + x.ndim])
    return x.reshape(head, x.size // head if head else prod(x.shape[axis:]))


def _axes(call: Call, axes: Array | None) -> list[int] | None:
    """The axes of an operator that had them as an attribute in old opsets and has them as an operand now."""
    return call.attrs.get("axes") if axes is None else ints(axes)


@op("Squeeze", host=(1,), views=True)
def squeeze(call: Call, x: Array, axes: Array | None = None) -> Array:
    """Remove axes of size 1."""
    given = _axes(call, axes)
    chosen = tuple(check_axis(a, x.ndim) for a in given) if given is not None else None
    if chosen is not None and any(x.shape[a] != 1 for a in chosen):
        raise ModelError(f"axes {given} of shape {x.shape} are not all 1")
    return x.squeeze(chosen)


@op("Unsqueeze", host=(1,), views=True)
def unsqueeze(call: Call, x: Array, axes: Array | None = None) -> Array:
    """Insert axes of size 1."""
    given = _axes(call, axes) or []
    rank = x.ndim + len(given)
    chosen = {check_axis(a, rank) for a in given}
    if len(chosen) != len(given):
        raise ModelError(f"axes {given} name an axis twice")
    old = iter(x.shape)
    return x.reshape([1 if a in chosen else next(old) for a in range(rank)])


@op("Transpose", layout="any", views=True)
def transpose(call: Call, x: Array) -> Array:
    """Permute the axes: a view."""
    order = call.attrs.get("perm", list(reversed(range(x.ndim))))
    if sorted(order) != list(range(x.ndim)):
        raise ModelError(f"perm {order} does not fit {x.ndim} axes")
    return x.transpose(call.axes(order, x.ndim))


@op("Concat", layout="aligned", out=True)
def concat(call: Call, *operands: Array) -> Array:
    """Join along an axis."""
    rank = operands[0].ndim
    if any(o.ndim != rank for o in operands) or not rank:
        raise ModelError(f"cannot concatenate shapes {[o.shape for o in operands]}")
    return call.xp.concatenate(operands, axis=call.axis(call.attrs["axis"], rank), out=call.out)


@op("Split", layout="aligned", host=(1,), views=True)
def split(call: Call, x: Array, sizes: Array | None = None) -> tuple[Array, ...]:
    """Views of parts along an axis."""
    axis = call.axis(call.attrs["axis"], x.ndim)
    parts = ints(sizes) if sizes is not None else call.attrs.get("split")
    if parts is None:
        count = call.attrs.get("num_outputs") or len(call.node.outputs)
        each = -(-x.shape[axis] // count)
        parts = [max(0, min(each, x.shape[axis] - i * each)) for i in range(count)]
    if sum(parts) != x.shape[axis] or min(parts) < 0 or len(parts) != len(call.node.outputs):
        raise ModelError(f"cannot split {x.shape[axis]} into {parts} for {len(call.node.outputs)} outputs")
    ends = np.cumsum([0, *parts]).tolist()
    before = (slice(None),) * axis
    return tuple(x[(*before, slice(a, b))] for a, b in pairwise(ends))


@op("Slice", layout="aligned", host=(1, 2, 3, 4), views=True)
def slice_(call: Call, x: Array, *operands: Array | None) -> Array:
    """A view; see ``_span`` for what ONNX does at the ends."""
    if call.version < 10:
        starts, ends = call.attrs["starts"], call.attrs["ends"]
        axes, steps = call.attrs.get("axes"), None
    else:
        starts, ends, axes, steps = ([None if o is None else ints(o) for o in operands] + [None] * 2)[:4]
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise ModelError(f"slice of starts {starts}, ends {ends}, axes {axes}, steps {steps}")
    index = [slice(None)] * x.ndim
    for a, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis = call.axis(a, x.ndim)
        index[axis] = _span(start, end, step, x.shape[axis])
    return x[tuple(index)]


def _span(start: int, end: int, step: int, size: int) -> slice:
    """ONNX clamps where Python would wrap: an end below ``-size`` counts down to the first element."""
    low, high = (0, size) if step > 0 else (-1, size - 1)
    start, end = (min(max(v + size if v < 0 else v, low), high) for v in (start, end))
    return slice(max(start, 0), None if end < 0 else end, step) if start >= 0 else slice(0, 0)


@op("Gather")
def gather(call: Call, x: Array, indices: Array) -> Array:
    """``indices`` may come as shape arithmetic on the host. Results are as ONNX has them."""
    axis = check_axis(call.attrs["axis"], x.ndim)
    where = host(indices) if x.__class__ is np.ndarray else indices
    if (
        where.__class__ is np.ndarray
        and where.size
        and not -x.shape[axis] <= where.min() <= where.max() < x.shape[axis]
    ):
        raise ModelError(f"indices {where.min()} to {where.max()} are out of range for axis {axis} of shape {x.shape}")
    return x.take(where, axis=axis)


@op("GatherElements")
def gather_elements(call: Call, x: Array, indices: Array) -> Array:
    """One element along the axis for each index."""
    axis = check_axis(call.attrs["axis"], x.ndim)
    return call.xp.take_along_axis(x, call.xp.where(indices < 0, indices + x.shape[axis], indices), axis=axis)


@op("Expand", host=(1,), views=True)
def expand(call: Call, x: Array, target: Array) -> Array:
    """Broadcast to a shape, or further than it."""
    wanted = check_size(np.broadcast_shapes(x.shape, check_size(ints(target))))
    return call.xp.broadcast_to(x, wanted)


@op("Tile", host=(1,))
def tile(call: Call, x: Array, repeats: Array) -> Array:
    """Repeat along each axis."""
    times = ints(repeats)
    if len(times) != x.ndim:
        raise ModelError(f"repeats {times} do not fit shape {x.shape}")
    check_size(n * t for n, t in zip(x.shape, times, strict=True))
    return call.xp.tile(x, times)


@op("ConstantOfShape", host=(0,))
def constant_of_shape(call: Call, sizes: Array) -> Host:
    """One value in a given shape."""
    value = call.attrs.get("value", np.zeros(1, np.float32))
    return np.full(check_size(ints(sizes)), value.reshape(-1)[0], value.dtype)


@op("Range", host=(0, 1, 2))
def arange(call: Call, start: Array, limit: Array, delta: Array) -> Host:
    """Numbers from start to limit."""
    first, stop, step = (host(v).reshape(()).item() for v in (start, limit, delta))
    if step == 0:
        raise ModelError("a range needs a delta other than 0")
    check_size([max(0, int(np.ceil((stop - first) / step)))])
    numbers: Host = np.arange(first, stop, step, dtype=host(start).dtype)
    return numbers


@op("Pad", layout="aligned", host=(1, 2, 3))
def pad(call: Call, x: Array, *operands: Array | None) -> Array:
    """Constant, reflect, edge or wrap; negative sizes crop."""
    amounts, value, axes = _pad_operands(call, operands)
    chosen = call.axes(range(x.ndim) if axes is None else axes, x.ndim)
    if len(amounts) != 2 * len(chosen):
        raise ModelError(f"pads {amounts} need a begin and an end for each of {len(chosen)} axes")
    widths = [(0, 0)] * x.ndim
    for axis, low, high in zip(chosen, amounts[: len(chosen)], amounts[len(chosen) :], strict=True):
        widths[axis] = (low, high)
    x = x[tuple(slice(max(0, -a), n - max(0, -b)) for n, (a, b) in zip(x.shape, widths, strict=True))]
    grow = [(max(0, a), max(0, b)) for a, b in widths]
    check_size(n + a + b for n, (a, b) in zip(x.shape, grow, strict=True))
    mode = call.attrs["mode"]
    if mode == "constant":
        return call.xp.pad(x, grow, constant_values=x.dtype.type(value))
    if mode not in ("reflect", "edge", "wrap"):
        raise ModelError(f"pad mode {mode!r} is unknown")
    return call.xp.pad(x, grow, mode=mode)


def _pad_operands(call: Call, operands: tuple[Array | None, ...]) -> tuple[list[int], Any, list[int] | None]:
    if call.version < 11:
        return call.attrs["pads"], call.attrs["value"], None
    pads, value, axes = (*operands, None, None)[:3]
    fill = 0 if value is None else host(value).reshape(())[()]
    return ints(pads), fill, None if axes is None else ints(axes)


@op("DepthToSpace")
def depth_to_space(call: Call, x: Array) -> Array:
    """Channels to blocks of pixels."""
    n, c, h, w = x.shape
    b = call.attrs["blocksize"]
    if b < 1 or c % (b * b):
        raise ModelError(f"{c} channels are not a multiple of blocksize {b} squared")
    if call.attrs.get("mode", "DCR") == "DCR":
        split = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        split = x.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return split.reshape(n, c // (b * b), h * b, w * b)


@op("SpaceToDepth")
def space_to_depth(call: Call, x: Array) -> Array:
    """Blocks of pixels to channels."""
    n, c, h, w = x.shape
    b = call.attrs["blocksize"]
    if b < 1 or h % b or w % b:
        raise ModelError(f"{h} x {w} is not a multiple of blocksize {b}")
    order = (0, 3, 5, 1, 2, 4) if call.attrs.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return x.reshape(n, c, h // b, b, w // b, b).transpose(order).reshape(n, c * b * b, h // b, w // b)
