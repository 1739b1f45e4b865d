"""The cases of ``tests/kernels/wgmma_cases.py`` on a GPU of sm_90a, with the planner's tile and with every other."""

import numpy as np
import pytest

from gpu_conv import arguments, execute, reference
from gpu_conv.cuda import device
from gpu_conv.families import wgmma
from gpu_conv.testing.tolerance import assert_close
from tests.kernels.checking import numbers
from tests.kernels.wgmma_cases import CASES

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def cupy():
    found = pytest.importorskip("cupy")
    if execute.target("cuda").arch != "sm_90a":
        pytest.skip("needs sm_90a")
    return found


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(case, exact, cupy):
    rng, target = np.random.default_rng(0), execute.target("cuda")
    x, w = case.arrays(exact)
    options = case.layouts | case.options
    made = arguments.prepare(x, w, **options)
    if case.bias:
        options["bias"] = numbers((made.problem.out_channels,), case.bias, rng, exact)
    if case.residual:
        options["residual"] = numbers(made.result.shape, made.result.dtype, rng, exact)
    host = arguments.prepare(x, w, **options)
    there = {name: cupy.asarray(options[name]) for name in ("bias", "residual") if name in options}
    for tile in wgmma.tiles(host.problem, target):
        out = cupy.full(host.result.shape, np.nan, host.result.dtype)
        call = arguments.prepare(cupy.asarray(x), cupy.asarray(w), out=out, **options | there)
        device.run(wgmma.plan(call.problem, target, tile), call.operands)
        y = host.y_view(cupy.asnumpy(out))
        if exact:
            np.testing.assert_array_equal(y, reference.convolve(host.problem, host.operands).astype(y.dtype))
        else:
            assert_close(y, host.problem, host.operands)
