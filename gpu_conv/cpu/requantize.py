"""Output side of a quantised convolution: a block of integer sums -> 8 bits, as ``requantize.py`` above defines it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from ..problem import ConvProblem
from .prepared import Step
from .scratch import Array

_EXACT = 1 << 24  # float32 holds every integer up to here


class Requantize:
    """Bias, scale, rounding, zero point and saturation of blocks in a strategy's working order.

    Args:
        problem: what is convolved.
        records: of ``requantize.RECORD``, with the shape of a block's channel axes.
        carrier: dtype of the sums.
        channels_last: whether blocks are ``(*spatial, *channels)``, or ``(*channels, *spatial)``.
    """

    def __init__(self, problem: ConvProblem, records: Array, carrier: np.dtype[Any], channels_last: bool) -> None:
        if not channels_last:
            records = records.reshape(*records.shape, *[1] * problem.rank)
        bias = records["bias"]
        # A float32 sum is an integer below 2^24. Adding a bias of that size rounds as converting the exact sum would.
        self._floats = carrier == np.float32 and bool((np.abs(bias.astype(np.int64)) <= _EXACT).all())
        self._bias = bias.astype(np.float32 if self._floats else np.int32) if bias.any() else None
        self._scale, self._zero_point = records["scale"].copy(), np.float32(records["zero_point"].flat[0])
        limits = np.iinfo(problem.y.dtype)
        self._limits = np.float32(limits.min), np.float32(limits.max)
        self._last = channels_last

    def steps(self, sums: Array, y: Array, channels: slice) -> Iterator[Step]:
        """As ``Epilogue.steps``."""
        floats = sums
        if not self._floats:
            floats, integers = np.empty(sums.shape, np.float32), sums
            for dtype in (np.int64, np.int32):  # to 64 bits, which is exact, and from there modulo 2^32
                integers = np.empty(sums.shape, dtype)
                yield partial(np.copyto, integers, sums, casting="unsafe")
                sums = integers
        if self._bias is not None:
            yield partial(np.add, sums, self._part(self._bias, channels), out=sums, casting="unsafe")
        if sums is not floats:
            yield partial(np.copyto, floats, sums, casting="unsafe")
        yield partial(np.multiply, floats, self._part(self._scale, channels), out=floats)
        yield partial(np.rint, floats, out=floats)
        if self._zero_point:
            yield partial(np.add, floats, self._zero_point, out=floats)
        yield partial(floats.clip, *self._limits, out=floats)
        yield partial(np.copyto, y, floats, casting="unsafe")

    def _part(self, values: Array, channels: slice) -> Array:
        return values if self._last else values[channels]
