"""The NumPy engine on the whole corpus, exact and random tier; the public operators are checked against the same."""

import numpy as np
import pytest

import gpu_conv
from gpu_conv import cpu

from .cases import CASES, fill, last, numbers


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "random"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cpu(case, exact):
    filled = fill(case, exact=exact)
    o = filled.call.operands
    ready = cpu.prepare(filled.call.problem, o["w"], o["bias"], o["w_zero_point"])
    ready.run(o["x"], o["y"], o["residual"], o["x_zero_point"])
    filled.check()


@pytest.mark.parametrize("case", [c for c in CASES if not (c.transposed or c.residual)][::5], ids=str)
def test_layer_is_the_operator(case):
    """A layer, with and without ``out``, gives bit for bit what the function gives."""
    rank = len(case.x) - 2
    options = dict(case.options, **({"input_layout": f"n{'dhw'[3 - rank :]}c"} if case.last else {}))
    x, w = (numbers(np.random.default_rng(1), shape, case.dtype, exact=False) for shape in (case.x, case.w))
    x = last(x) if case.last else x
    layer, want = gpu_conv.Conv(w, **options), gpu_conv.conv(x, w, **options)
    out = np.full_like(want, 5)
    np.testing.assert_array_equal(layer(x), want)
    assert layer(x, out=out) is out
    np.testing.assert_array_equal(out, want)
