"""Integers at the speed of floats: NumPy multiplies integer matrices without BLAS, about 50 times slower.

A float32 (float64) sum of integers is exact while the sum of the magnitudes of its terms stays below 2^24 (2^53). The
largest L1 norm of a filter times the largest ``|x - x_zero_point|`` bounds that sum, so the actual weights decide.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..problem import ConvProblem
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
