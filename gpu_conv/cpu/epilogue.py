"""Output side: a block of sums -> ``activation(sum + bias + residual)`` in y, with one rounding."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from ..problem import ConvProblem
from .prepared import Step
from .requantize import Requantize
from .scratch import Array

SHORT = 128  # elements that lie side by side in y: arithmetic on shorter runs costs more than a copy at the end
TILE = 1 << 16  # elements: a bias repeated along the last spatial axis is added twice as fast if it stays cached


class Epilogue:
    """Bias, residual, activation and conversion of blocks in a strategy's working order.

    Args:
        problem: what is convolved.
        bias: with the shape of a block's channel axes, or None.
        carrier: dtype of the sums: the problem's own, or a float that holds its integer sums exactly.
        channels_last: whether blocks are ``(*spatial, *channels)``, or ``(*channels, *spatial)``.
    """

    def __init__(self, problem: ConvProblem, bias: Array | None, carrier: np.dtype[Any], channels_last: bool) -> None:
        self._activation = problem.activation
        self._sum = np.dtype(problem.accumulate)
        self._limits = self._activation and self._activation.limits(self._sum)
        self._last = channels_last
        self._convert = carrier != self._sum
        self._bias: Array | None = None
        self._width = 0  # index of the last spatial axis in a block, from the end, where the bias is repeated along it
        self._requantize: Requantize | None = None
        if bias is not None and problem.requantizes:
            self._requantize = Requantize(problem, bias, carrier, channels_last)
            return
        if bias is None:
            return
        self._bias = bias.astype(self._sum)
        if not channels_last:
            self._bias = self._bias.reshape(*bias.shape, *[1] * problem.rank)
        elif problem.rank and problem.out_spatial[-1] * bias.size <= TILE:
            self._width = -1 - bias.ndim
            self._bias = np.ascontiguousarray(np.broadcast_to(self._bias, (problem.out_spatial[-1], *bias.shape)))

    def steps(
        self, sums: Array, y: Array, residual: Array | None = None, channels: slice = slice(None)
    ) -> Iterator[Step]:
        """Finish one block.

        Args:
            sums: overwritten; may be ``y``.
            y, residual: shaped like ``sums``.
            channels: which of the first channel axis the block holds, where channels come first.
        """
        if self._requantize is not None:
            yield from self._requantize.steps(sums, y, channels)
            return
        if self._convert:  # to 64 bits, which is exact, and from there modulo 2^32
            for dtype in (np.dtype(np.int64), self._sum):
                integers = np.empty(sums.shape, dtype)
                yield partial(np.copyto, integers, sums, casting="unsafe")
                sums = integers
        target = y if y.dtype == sums.dtype and _run(y) >= SHORT else sums
        addends = [a for a in (self._bias_for(sums, channels), residual) if a is not None]
        for i, addend in enumerate(addends, 1):
            goal = target if i == len(addends) and self._activation is None else sums
            yield partial(np.add, sums, addend, out=goal, dtype=sums.dtype, casting="unsafe")
        if self._limits:
            yield partial(sums.clip, *self._limits, out=target)  # the method: np.clip takes 3 us to find it
        elif self._activation is not None:
            yield partial(self._activation, sums, out=target)
        elif not addends and target is not sums:
            yield partial(np.copyto, target, sums)
        if target is not y:
            yield partial(np.copyto, y, sums, casting="unsafe")

    def _bias_for(self, sums: Array, channels: slice) -> Array | None:
        if self._bias is None:
            return None
        if self._last:
            return self._bias[: sums.shape[self._width]] if self._width else self._bias
        return self._bias[channels]


def _run(y: Array) -> int:
    """Elements up to the first gap; all of them where there is none."""
    run = 1
    for size, stride in zip(y.shape[::-1], y.strides[::-1], strict=True):
        if size > 1 and stride != run * y.itemsize:
            return run
        run *= size
    return max(run, SHORT)
