"""Ground truth: the convolution of ``problem.py``'s formula in the widest arithmetic, as plain as possible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from . import requantize
from .problem import ConvProblem

Array = npt.NDArray[Any]
_WIDE = {"f": np.float64, "i": np.int64, "c": np.complex128}


def convolve(problem: ConvProblem, operands: Mapping[str, Any], *, magnitude: bool = False) -> Array:
    """The unrounded result, axes ``n g o *spatial``, as float64, int64 or complex128.

    Args:
        problem: what to compute.
        operands: canonical views by name, as ``arguments.prepare`` makes them; ``y`` is not read.
        magnitude: sum absolute values instead and apply no activation: the scale of the rounding error.
    """
    wide = _WIDE[np.dtype(problem.accumulate).kind]
    shrink = np.abs if magnitude else np.asarray
    x, w = operands["x"].astype(wide), operands["w"].astype(wide)
    if problem.x_zero_point:
        x = x - operands["x_zero_point"].astype(wide)
    if problem.w_zero_point:
        zero = operands["w_zero_point"].astype(wide)
        w = w - zero.reshape(*w.shape[:2], *(1,) * (w.ndim - 2))
    x, w = shrink(x), shrink(w)

    padded = _dilate_and_pad(problem, x)
    y: Array = np.zeros(problem.y.shape, wide)
    for k in np.ndindex(*problem.filter):
        axes = zip(k, problem.dilations, problem.strides, problem.out_spatial, strict=True)
        window = _last(slice(i * d, i * d + max(0, (out - 1) * s + 1), s) for i, d, s, out in axes)
        y += np.einsum("ngc...,goc->ngo...", padded[window], w[_last(k)])
    if problem.requantizes:
        records = requantize.records(operands["bias"]).reshape(*y.shape[1:3], *(1,) * problem.rank)
        return np.zeros_like(y) if magnitude else requantize.apply(y, records, problem.y.dtype)
    if problem.bias:
        bias = shrink(operands["bias"].astype(wide))
        y += bias.reshape(*y.shape[1:3], *(1,) * problem.rank)
    if problem.residual:
        y += shrink(operands["residual"].astype(wide))
    return problem.activation(y) if problem.activation and not magnitude else y


def _last(indices: Iterable[Any]) -> Any:
    """An index of the last axes, one per spatial axis."""
    return (..., *indices)


def _dilate_and_pad(problem: ConvProblem, x: Array) -> Array:
    sizes = [(n - 1) * ld + 1 if n else 0 for n, ld in zip(problem.in_spatial, problem.input_dilations, strict=True)]
    lo = [max(0, -a) for a, _ in problem.padding]
    hi = [n - max(0, -b) for n, (_, b) in zip(sizes, problem.padding, strict=True)]
    dilated: Array = np.zeros((*x.shape[:3], *sizes), x.dtype)
    dilated[_last(slice(None, None, ld) for ld in problem.input_dilations)] = x
    cropped = dilated[_last(slice(a, b) for a, b in zip(lo, hi, strict=True))]
    return np.pad(cropped, [(0, 0)] * 3 + [(max(0, a), max(0, b)) for a, b in problem.padding])
