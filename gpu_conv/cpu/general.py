"""The plain sum over taps: any rank, dtype, input dilation and weights.

Every tap is multiplied with exactly the input elements that it meets, so neither padding nor the holes of a dilated
input take part: an infinite weight gives no NaN at the border. Integers are summed in 64 bits and wrap, as in XLA.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import gcd
from typing import Any

import numpy as np

from ..problem import ConvProblem
from .epilogue import Epilogue
from .prepared import Prepared, Step
from .scratch import Array, Workspace
from .staging import copying
from .views import cut


class General(Prepared):
    """Every problem."""

    name = "taps"

    @classmethod
    def refuses(cls, problem: ConvProblem) -> str | None:
        return None

    def __init__(self, problem: ConvProblem, weights: Array, bias: Array | None, carrier: np.dtype[Any]) -> None:
        super().__init__(problem, weights, bias, carrier)
        # (*filter, g, o, c)
        self._weights = np.ascontiguousarray(np.moveaxis(weights, (0, 1, 2), (-3, -2, -1)), carrier)
        shaped = None if bias is None else bias.reshape(problem.y.shape[1:3])
        self._epilogue = Epilogue(problem, shaped, carrier, channels_last=False)
        axes = zip(
            problem.in_spatial, problem.out_spatial, problem.filter, problem.strides, problem.padding,
            problem.dilations, problem.input_dilations, strict=True,
        )  # fmt: skip
        self._meetings = [list(_meetings(size, out, k, s, lo, d, ld)) for size, out, k, s, (lo, _), d, ld in axes]
        if not problem.in_per_group:
            self._meetings = [[], *self._meetings]  # nothing meets
        specs = (problem.x.shape[1:], carrier), (problem.y.shape[1:], carrier)
        self._workspace = Workspace(specs, lambda x, y: (x, y))

    @property
    def workspace_bytes(self) -> int:
        return self._workspace.nbytes

    def _steps(self, x: Array, y: Array, residual: Array | None, zero_point: Array | None) -> Iterator[Step]:
        work, sums = self._workspace()
        for i in range(len(y)):
            yield from copying(work, x[i], zero_point, channels_last=False)
            yield partial(sums.fill, 0)
            for taps in product(*self._meetings):
                read = cut(work, (m.read for m in taps))
                written = cut(sums, (m.written for m in taps))
                weights = self._weights[tuple(m.tap for m in taps)]
                yield partial(_accumulate, written, weights, read)
            yield from self._epilogue.steps(sums, y[i], None if residual is None else residual[i])


def _accumulate(sums: Array, weights: Array, x: Array) -> None:
    sums += np.matmul(weights, x.reshape(*x.shape[:2], -1)).reshape(sums.shape)


@dataclass(frozen=True)
class _Meeting:
    """One tap of one axis: the input elements that it meets, the outputs that they go to."""

    tap: int
    read: slice
    written: slice


def _meetings(
    size: int, out: int, k: int, stride: int, lo: int, dilation: int, input_dilation: int
) -> Iterator[_Meeting]:
    """The taps that meet any input, where ``q * stride + tap * dilation - lo == element * input_dilation``."""
    step = input_dilation // gcd(stride, input_dilation)  # of q
    for tap in range(k):
        offset = tap * dilation - lo
        start = max(0, -(offset // stride))
        first = next((q for q in range(start, start + step) if (q * stride + offset) % input_dilation == 0), out)
        last = min(out - 1, ((size - 1) * input_dilation - offset) // stride)
        if first <= last:
            count = (last - first) // step + 1
            element, leap = (first * stride + offset) // input_dilation, step * stride // input_dilation
            read = slice(element, element + (count - 1) * leap + 1, leap)
            yield _Meeting(tap, read, slice(first, first + (count - 1) * step + 1, step))
