"""The computed tolerance: how far a correctly rounded sum may lie from the float64 result."""

import numpy as np

from gpu_conv import reference

# Unit roundoff; the accumulation of 16-bit inputs is float32.
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53, "tf32": 2.0**-11}
# Largest slope of an activation: what it does to an error of its argument.
SLOPE = {"gelu": 1.13, "silu": 1.1, "hard_swish": 1.5}


def tolerance(problem, operands, truth):
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
    return bound + error + float(smallest)


def assert_close(got, problem, operands):
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
