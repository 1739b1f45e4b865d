"""Reductions along axes: means and sums, softmax, arg max."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir import Array, Node
from .registry import Call, Layout, check_axis, ints, op


def _keeps_rank(node: Node) -> Layout:
    return "aligned" if node.attrs["keepdims"] else "first"


_REDUCTIONS = {
    "ReduceMean": "mean",
    "ReduceSum": "sum",
    "ReduceMax": "max",
    "ReduceMin": "min",
    "ReduceProd": "prod",
}


@op(*_REDUCTIONS, "ReduceL2", "ReduceSumSquare", layout=_keeps_rank, host=(1,), views=True)
def reduce(call: Call, x: Array, axes: Array | None = None) -> Array:
    """A reduction over some axes, or over all of them."""
    given = call.attrs.get("axes") if axes is None else ints(axes)
    if not given:
        if call.attrs.get("noop_with_empty_axes", 0):
            return x
        given = range(x.ndim)
    where = call.axes(given, x.ndim)
    keep = bool(call.attrs["keepdims"])
    name = call.node.op
    if name in ("ReduceMax", "ReduceMin") and not x.size:
        result = call.xp.full([1 if a in where else n for a, n in enumerate(x.shape)], _identity(name, x.dtype))
        result = result if keep else result.squeeze(where)
    elif name in _REDUCTIONS:
        result = getattr(call.xp, _REDUCTIONS[name])(x, axis=where, keepdims=keep)
    else:
        result = (x * x).sum(axis=where, keepdims=keep)
        result = call.xp.sqrt(result) if name == "ReduceL2" else result
    return call.xp.asarray(result).astype(x.dtype, copy=False)


def _identity(name: str, dtype: Any) -> Any:
    """What the largest (smallest) of no elements is."""
    if dtype.kind == "b":
        return name == "ReduceMin"
    info = None if dtype.kind == "f" else np.iinfo(dtype)
    low, high = (-np.inf, np.inf) if info is None else (info.min, info.max)
    return low if name == "ReduceMax" else high


@op("ArgMax", "ArgMin")
def arg_extreme(call: Call, x: Array) -> Array:
    """Position of the largest (smallest) element, the first one unless ``select_last_index``."""
    axis = check_axis(call.attrs["axis"], x.ndim)
    find = call.xp.argmax if call.node.op == "ArgMax" else call.xp.argmin
    if call.attrs.get("select_last_index", 0):
        found = x.shape[axis] - 1 - find(call.xp.flip(x, axis), axis=axis)
    else:
        found = find(x, axis=axis)
    found = call.xp.asarray(found)
    return call.xp.expand_dims(found, axis) if call.attrs["keepdims"] else found


def _softmax_layout(node: Node) -> Layout:
    return "aligned" if node.version >= 13 else "first"


@op("Softmax", "LogSoftmax", layout=_softmax_layout)
def softmax(call: Call, x: Array) -> Array:
    """Along one axis; before opset 13, along all axes from ``axis`` on."""
    if call.version >= 13:
        return _softmax(call, x, call.axis(call.attrs["axis"], x.ndim))
    axis = check_axis(call.attrs["axis"], x.ndim)
    return _softmax(call, x, tuple(range(axis, x.ndim)))


def _softmax(call: Call, x: Array, axis: Any) -> Array:
    if not x.size:
        return x.copy()
    shifted = x - x.max(axis=axis, keepdims=True)
    if call.node.op == "LogSoftmax":
        return shifted - call.xp.log(call.xp.exp(shifted).sum(axis=axis, keepdims=True))
    call.xp.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=axis, keepdims=True)
    return shifted
