"""Every row of the dispatch table on every case that it accepts, on the GPU."""

import numpy as np
import pytest

from gpu_conv import dispatch, execute
from gpu_conv.cuda import device

from ..cases import CASES, fill

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def cupy():
    return pytest.importorskip("cupy")


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("row", dispatch.TABLE, ids=lambda row: row.name)
def test_row(row, case, cupy):
    target = execute.target("cuda")
    for exact in (True, False):
        filled = fill(case, exact=exact, asarray=cupy.asarray)
        problem = filled.call.problem
        if row.refuses(problem, target):
            return
        device.run(row.plan(problem, target), filled.call.operands)
        filled.check(to_host=cupy.asnumpy)


@pytest.mark.parametrize("case", CASES[::4], ids=str)
def test_two_runs_are_bitwise_equal(case, cupy):
    results = []
    for _ in range(2):
        filled = fill(case, exact=False, asarray=cupy.asarray)
        problem = filled.call.problem
        device.run(dispatch.plan(problem, execute.target("cuda")), filled.call.operands)
        results.append(cupy.asnumpy(filled.buffer).view(np.uint8))
    np.testing.assert_array_equal(*results)
