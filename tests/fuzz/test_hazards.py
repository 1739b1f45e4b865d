"""The sanitizer matrix: every row of the table, in the emulator with all checks, on addresses and numbers that hurt.

Outputs are poisoned and lie between guard bands.
"""

import numpy as np
import pytest

from gpu_conv import arguments, dispatch
from gpu_conv.cuda.targets import KNOWN_TARGETS
from tests.fuzz.rows import ROWS, WITHOUT_RESIDUAL, accepted, usual
from tests.kernels.checking import Case, guarded, numbers

pytest.importorskip("cuda.bindings.nvrtc")

SMALLEST = {"float16": -24, "float32": -149}  # exponent of the smallest subnormal number


def taken(dtypes):
    return [(name, dtype) for name in ROWS for dtype in dtypes if accepted(name, dtype)]


def off(array, wanted):
    """The array, one element behind the address that its memory is aligned to."""
    if not wanted:
        return array
    buffer = np.empty(array.size + 1, array.dtype)
    buffer[1:] = array.ravel()
    return buffer[1:].reshape(array.shape)


def run(name, dtype, x, w, *, exact, misaligned=(), epilogue=1):
    """Run a row with ``epilogue`` times a bias and a residual, and compare, unless it refuses the addresses."""
    arch, _, _, options = accepted(name, dtype)
    rng = np.random.default_rng(2)
    probe = arguments.prepare(x, w, **options)
    shift = int("y" in misaligned)
    flat, clear, check_guards = guarded((probe.result.size + shift,), probe.result.dtype)
    out = flat[shift:].reshape(probe.result.shape)
    given = {"bias": epilogue * numbers(probe.problem.out_channels, probe.problem.accumulate, rng, exact)}
    if dtype != "int8" and name not in WITHOUT_RESIDUAL:
        given["residual"] = epilogue * numbers(out.shape, out.dtype, rng, exact)
    arrays = {key: off(array, key in misaligned) for key, array in (("x", x), ("w", w), *given.items())}
    call = arguments.prepare(**arrays, out=out, **options)
    row = dispatch.row(name)
    if row.refuses(call.problem, KNOWN_TARGETS[arch]) is None:
        launch = row.plan(call.problem, KNOWN_TARGETS[arch])
        Case(call.problem, call.operands, launch, arch, exact, clear, check_guards).check()


def made(name, dtype, exact=True):
    _, x_shape, w_shape, _ = accepted(name, dtype)
    rng = np.random.default_rng(1)
    return numbers(x_shape, dtype, rng, exact), numbers(w_shape, dtype, rng, exact)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_a_shape(name):
    assert usual(name), f"{name} takes no shape of tests/fuzz/rows.py: add one"


@pytest.mark.parametrize("misaligned", [("x", "w"), ("bias", "residual", "y")], ids="-".join)
@pytest.mark.parametrize("name", ROWS)
def test_base_pointers_with_the_alignment_of_one_element(name, misaligned):
    """They are accessed by the element, or refused; on aligned ones the same row runs."""
    dtype = usual(name)
    run(name, dtype, *made(name, dtype), exact=True, misaligned=misaligned)


@pytest.mark.parametrize(("name", "dtype"), taken(SMALLEST))
def test_non_finite_numbers_beside_the_padding_stay_in_their_field(name, dtype):
    """In the corners, where the taps beyond the edge and the vectors of the tails lie: 0 * Inf must not appear."""
    x, w = made(name, dtype, exact=False)
    x[0].flat[0], x[0].flat[-1], x[-1].flat[0], x[-1].flat[-1] = np.inf, np.nan, -np.inf, np.inf
    with np.errstate(invalid="ignore"):
        run(name, dtype, x, w, exact=False)


@pytest.mark.parametrize(("name", "dtype"), taken(SMALLEST))
def test_denormals_and_negative_zeros_are_numbers(name, dtype):
    """Nothing is flushed to zero, on the way in or out: small multiples of the smallest number sum up exactly."""
    x, w = made(name, dtype)
    x = (x * 2.0 ** SMALLEST[dtype]).astype(dtype)
    x[x == 0] = -0.0
    run(name, dtype, x, w, exact=True, epilogue=0)
