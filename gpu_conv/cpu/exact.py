"""Integers at the speed of floats: NumPy multiplies integer matrices without BLAS, about 50 times slower.

A float32 (float64) sum of integers is exact while the sum of the magnitudes of its terms stays below 2^24 (2^53). The
largest L1 norm of a filter times the largest ``|x - x_zero_point|`` bounds that sum, so the actual weights decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..problem import ConvProblem
from .general import General
from .prepared import Prepared, Step
from .scratch import Array

QUANTISED = ("int8", "uint8")
_EXACT = ((1 << 24, np.float32), (1 << 53, np.float64))


def carried(problem: ConvProblem, w: Array, w_zero_point: Array | None) -> tuple[Array, np.dtype[Any]]:
    """The weights without their zero point, and the dtype to compute in."""
    if problem.x.dtype not in QUANTISED:
        return w, np.dtype("int64" if problem.accumulate.startswith("int") else problem.accumulate)
    weights = w.astype(np.int64)
    if w_zero_point is not None:
        weights -= np.asarray(w_zero_point).reshape(*w.shape[:2], *[1] * (w.ndim - 2))
    norms = np.abs(weights).sum(axis=tuple(range(2, w.ndim)))
    largest = int(norms.max(initial=0)) * (128 if problem.x.dtype == "int8" and not problem.x_zero_point else 255)
    return weights, np.dtype(next((carrier for limit, carrier in _EXACT if largest < limit), np.int64))


class Guarded(Prepared):
    """A strategy whose carrier is exact for zero points that x's dtype can hold, and the plain sum for all others."""

    name = "guarded"

    @classmethod
    def refuses(cls, problem: ConvProblem) -> str | None:
        return None if problem.x_zero_point else "x has no zero point"

    def __init__(self, inner: Prepared, weights: Array, bias: Array | None) -> None:
        super().__init__(inner.problem, weights, bias, inner.carrier)
        self.name = inner.name  # type: ignore[misc]
        self._inner, self._weights, self._bias = inner, weights, bias
        self._limits = np.iinfo(inner.problem.x.dtype)

    @property
    def workspace_bytes(self) -> int:
        return self._inner.workspace_bytes

    def _steps(self, x: Array, y: Array, residual: Array | None, zero_point: Array | None) -> Iterator[Step]:
        inner = self._inner
        if zero_point is not None and not self._limits.min <= int(zero_point) <= self._limits.max:
            inner = General(self.problem, self._weights, self._bias, np.dtype(np.int64))
        return inner._steps(x, y, residual, zero_point)
