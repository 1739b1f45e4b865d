"""A planned convolution: all that a call has in common with the next one of the same geometry."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import execute
from .arguments import Call
from .arrays import Array, address
from .packing import Filters

_PLAIN = (int, str, type(None))
Empty = Any  # (shape, dtype) -> array


def at_home(x: Any, *others: Any) -> str | None:
    """The library of these arrays (others may be None) where nothing is to convert or enter: NumPy, the current GPU."""
    kind, cupy = type(x), sys.modules.get("cupy")
    if kind is not np.ndarray and (cupy is None or kind is not cupy.ndarray):
        return None
    for array in others:
        if array is not None and type(array) is not kind:
            return None
    if cupy is None or kind is np.ndarray:
        return "numpy"
    return "cupy" if x.data.device_id == cupy.cuda.runtime.getDevice() else None


def array_key(array: Array | None, device: execute.Device = "cuda") -> tuple[Any, ...] | None:
    """All of an array that a plan depends on; kernels take vectors where the address allows it."""
    if array is None:
        return None
    return array.shape, array.strides, array.dtype, None if device == "cpu" else address(array) & 15


def option_key(options: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The options of a call as a key; None if one of them is no integer, word or tuple of these."""
    for value in options.values():
        if not (type(value) is bool or _plain(value)):
            return None
    return (*options, *options.values(), *map(type, options.values()))  # True is no 1 here


def _plain(value: Any) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(map(_plain, value)))


class Plan:
    """How one kind of arrays is convolved.

    Args:
        call: the first call.
        device, kernel: see ``execute.prepare``.
        filters: of the layer whose filter and bias all calls share, or None: every call brings its own.

    Attributes:
        run: what ``execute.prepare`` made.
        by_address: whether nothing but the addresses of the arrays is looked at, so that no views are made.
    """

    def __init__(self, call: Call, device: execute.Device, kernel: str | None, filters: Filters | None) -> None:
        self._shape, self._dtype = call.result.shape, call.result.dtype
        self._empty: Empty = np.empty if call.library == "numpy" else type(call.result)
        self._w_memory = _memory(call.operands["w"]) if filters is not None else None
        if filters is not None and device != "cpu" and call.problem.y.size:
            call = filters.pack(call)
        self.run: execute.Run = execute.prepare(call, device, kernel) if call.problem.y.size else _nothing
        self.by_address: bool = getattr(self.run, "by_address", False)
        kept = ("w", "bias") if filters is not None else ()
        self._fixed = {name: call.operands[name] for name in (*kept, "x_zero_point", "w_zero_point")}
        self._x_view, self._y_view = (_as_it_is,) * 2 if self.by_address else (call.x_view, call.y_view)
        self._x_extent, self._y_extent = _extent(call.operands["x"]), _extent(call.result)

    def operands(
        self, x: Array, residual: Array | None, out: Array | None, empty: Empty | None = None, w: Array | None = None
    ) -> tuple[dict[str, Any], Array]:
        """What ``run`` takes, and the array that it writes."""
        if out is None:
            out = (empty or self._empty)(self._shape, self._dtype)
        else:
            self._apart(x, out, w)
        seen = None if residual is None else self._y_view(residual)
        return {**self._fixed, "x": self._x_view(x), "y": self._y_view(out), "residual": seen}, out

    def __call__(self, x: Array, residual: Array | None, out: Array | None) -> Array:
        """Convolve with the filter of the layer."""
        operands, result = self.operands(x, residual, out)
        self.run(operands)
        return result

    def with_filter(self, x: Array, w: Array, bias: Array | None, residual: Array | None, out: Array | None) -> Array:
        """Convolve with another filter of the same geometry (only where ``by_address``)."""
        operands, result = self.operands(x, residual, out, w=w)
        operands["w"], operands["bias"] = w, bias
        self.run(operands)
        return result

    def _apart(self, x: Array, out: Array, w: Array | None) -> None:
        low, high = (address(out) + end for end in self._y_extent)
        start = address(x)
        filter_ = self._w_memory if w is None else _memory(w)
        for begin, end in ((start + self._x_extent[0], start + self._x_extent[1]), filter_ or (0, 0)):
            if low < end and begin < high:
                raise ValueError("out must not share memory with x or w")


def _nothing(operands: Mapping[str, Any]) -> None:
    """An empty result."""


def _as_it_is(array: Array) -> Array:
    return array


def _extent(array: Array) -> tuple[int, int]:
    """The bytes that an array spans, from its first element."""
    if not array.size:
        return 0, 0
    spans = [(n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)]
    return sum(s for s in spans if s < 0), sum(s for s in spans if s > 0) + array.dtype.itemsize


def _memory(array: Array) -> tuple[int, int]:
    low, high = _extent(array)
    return address(array) + low, address(array) + high
