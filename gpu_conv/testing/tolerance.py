"""The computed tolerance: how far a correctly rounded sum may lie from the float64 result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import reference
from ..arguments import prepare
from ..borrow import ARRAYS, borrow
from ..problem import ConvProblem

Array = np.ndarray[Any, Any]

# Unit roundoff; the accumulation of 16-bit inputs is float32.
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53, "tf32": 2.0**-11}
# Largest slope of an activation: what it does to an error of its argument.
SLOPE = {"gelu": 1.13, "silu": 1.1, "hard_swish": 1.5}


def assert_conv_close(y: Any, x: Any, w: Any, bias: Any = None, *, transposed: bool = False, **options: Any) -> None:
    """``y`` against the convolution of these arguments in float64, every element within the computed tolerance.

    Args:
        y: the result under test, in ``output_layout``.
        x, w, bias, **options: the arguments of :func:`gpu_conv.conv`; arrays of any library and device.
        transposed: those of :func:`gpu_conv.conv_transpose` instead.

    Raises:
        AssertionError: another shape or dtype, NaN or infinity in other places, or an error above the tolerance.
    """
    for name in ("device", "kernel", "out"):
        options.pop(name, None)
    call = prepare(**_on_host({"x": x, "w": w, "bias": bias} | options), transposed=transposed)
    got = _on_host({"x": y})["x"]
    assert got.shape == call.result.shape, f"shape {got.shape}, expected {call.result.shape}"
    assert got.dtype == call.result.dtype, f"dtype {got.dtype}, expected {call.result.dtype}"
    assert_close(call.y_view(got), call.problem, call.operands)


def _on_host(arguments: dict[str, Any]) -> dict[str, Any]:
    with borrow(arguments) as lent:
        arrays = {name: array for name, array in lent.arguments.items() if name in ARRAYS and array is not None}
        host = {name: array.get() if lent.library == "cupy" else array for name, array in arrays.items()}
        return {**lent.arguments, **host}


def tolerance(problem: ConvProblem, operands: Mapping[str, Any], truth: Array) -> Array:
    """u_out |truth| + slope (2 sqrt(K) u_acc S [+ 2 u_in S]), and 8 u_acc (S + |truth|) where an activation rounds too.

    S is the sum of magnitudes, K the number of products.
    """
    scale = reference.convolve(problem, operands, magnitude=True)
    accumulate = UNIT[problem.accumulate]
    error = 2 * np.sqrt(problem.taps + 2) * accumulate * scale
    if problem.precision == "tf32":
        error = error + 2 * UNIT["tf32"] * scale
    bound = UNIT[problem.y.dtype] * np.abs(truth)
    if problem.activation:
        name, alpha, beta = problem.activation.name, problem.activation.alpha, problem.activation.beta
        slope = max(SLOPE.get(name, 1.0), abs(alpha) if name in ("elu", "leaky_relu", "hard_sigmoid") else 0.0)
        error = slope * error + 8 * accumulate * (scale * slope + np.abs(truth) + abs(beta))
    smallest = np.finfo(np.float16).smallest_subnormal if problem.y.dtype == "float16" else 1e-40
    total: Array = bound + error + float(smallest)
    return total


def assert_close(got: Array, problem: ConvProblem, operands: Mapping[str, Any]) -> None:
    """``got`` (axes n g o *spatial) against float64, every element within the computed tolerance.

    Integer problems must be equal (modulo the width of the output type).
    """
    truth = reference.convolve(problem, operands)
    assert got.shape == truth.shape
    if truth.dtype.kind == "i":
        np.testing.assert_array_equal(got, truth.astype(got.dtype))
        return
    if truth.dtype.kind == "c":
        np.testing.assert_allclose(got, truth, rtol=1e-5 if got.dtype == np.complex64 else 1e-13, atol=1e-5)
        return
    got = got.astype(np.float64)
    assert np.array_equal(np.isnan(got), np.isnan(truth)), "NaN in other places than the reference"
    infinite = np.isinf(truth) | np.isinf(got)
    rounded = truth.astype(np.dtype(problem.y.dtype)).astype(np.float64)
    assert np.array_equal(got[infinite], rounded[infinite]), "infinities in other places than the reference"
    finite = np.isfinite(truth) & ~infinite
    with np.errstate(invalid="ignore"):
        excess = (np.abs(got - truth) / tolerance(problem, operands, truth))[finite]
    worst = float(excess.max(initial=0.0))
    assert worst <= 1, f"error is {worst:.2f} of the tolerance at {np.argmax(excess)} for {problem}"
