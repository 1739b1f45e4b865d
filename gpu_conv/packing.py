"""The filter of a layer, laid out once in the order in which the kernels read it: 16 bytes of neighbours at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .arguments import Call, tensor
from .arrays import Array, address, namespace
from .locks import new_lock
from .problem import ITEMSIZE, ConvProblem


def order(problem: ConvProblem) -> tuple[int, ...]:
    """The axes ``g o c *filter`` of the filter, slowest first, as the kernels for this problem want them in memory.

    - A depthwise kernel whose neighbouring threads have neighbouring channels: the channels last.
    - Matrix products of 8 and 16 bits: the input channels of a group last. A phase of a transposed convolution takes
      whole taps, so it reads vectors too.
    - Everything else: tap after tap.
    """
    taps = range(3, 3 + problem.rank)
    if problem.is_depthwise and problem.x.strides[1] == 1:
        return (*taps, 1, 2, 0)
    if not problem.is_depthwise and ITEMSIZE[problem.w.dtype] <= 2:
        return (0, 1, *taps, 2)
    return (0, 1, 2, *taps)


class Filters:
    """The packed copies of one filter: one per order, however many input shapes there are."""

    def __init__(self) -> None:
        self._packed: dict[Any, Array] = {}
        self._lock = new_lock()

    def pack(self, call: Call) -> Call:
        """The same call with the packed filter; itself where the filter lies well already."""
        problem, w = call.problem, call.operands["w"]
        axes = order(problem)
        if w is None or (problem.w.is_dense(axes) and problem.w.align == 16):
            return call
        key = call.library, address(w), problem.w, axes
        with self._lock:
            packed = self._packed.get(key)
            if packed is None:
                packed = self._packed[key] = _copied(w, axes, call.library)
        operands = {**call.operands, "w": packed}
        return replace(call, problem=replace(problem, w=tensor(packed)), operands=operands)


def _copied(w: Array, axes: tuple[int, ...], library: str) -> Array:
    packed = namespace(library).ascontiguousarray(w.transpose(axes)).transpose(tuple(np.argsort(axes).tolist()))
    if library == "cupy":
        from .cuda import device

        device.settle()  # a later call may come on another stream
    return packed
