"""A kernel of sm_90a with every part of a pipeline, and one mistake at a time: found at its line."""

import re
from functools import cache

import numpy as np
import pytest

from gpu_conv.cuda import compiler
from gpu_conv.emulator import Emulator
from gpu_conv.launch import TensorMap

from .cuda import KERNELS

TEXT = (KERNELS / "gemm.cu").read_text()
ROWS, COLUMNS, STEPS = 72, 104, 5
BUGS = {
    1: "bulk copy read before wait",  # no wait for the stage
    2: "barrier deadlock",  # more bytes expected than come
    3: "missing proxy fence",  # before the store of what was written to shared memory
    4: "wgmma not waited for",  # accumulators read too early
    5: "shared race",  # a stage given back before its products have ended
    6: "missing wgmma fence",
    7: "bulk copy not waited for",  # a stage filled that nobody has given back
    8: "shared race",  # no barrier after the initialisation
    9: "missing proxy fence",  # of the initialised mbarriers
    10: "bulk copy not waited for",  # exit while the store may still read
    11: "bulk copy read before wait",  # a try_wait without its loop
    12: "shared race",  # no barrier before the store
}


@cache
def kernel(bug):
    return compiler.compile(f'#line 1 "gemm.cu"\n{TEXT}', f"gemm<{bug}>", "compute_90a")


def run(bug, seed=None, **options):
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-3, 4, (n, STEPS * 64)).astype(np.float16) for n in (ROWS, COLUMNS))
    y = np.full((ROWS, COLUMNS), np.nan, np.float32)
    maps = [TensorMap(name, "float16", 0, (STEPS * 64, n), (STEPS * 64,), (64, 64), (1, 1), 128)
            for name, n in (("x", ROWS), ("w", COLUMNS))]  # fmt: skip
    maps.append(TensorMap("y", "float32", 0, (COLUMNS, ROWS), (COLUMNS,), (64, 64), (1, 1), 0))
    names = ["x", "w", "y", "steps", "a_map", "b_map", "y_map"]
    report = Emulator("sm_90a", seed=seed, strict=False, **options).execute(
        kernel(bug).ptx, kernel(bug).lowered, (2, 2), 160, [a, b, y, STEPS, *maps], 2 * 16384, outputs=[2], names=names
    )
    return a, b, y, report


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_the_correct_kernel_is_clean(seed):
    a, b, y, report = run(0, seed)
    assert report.ok, report
    np.testing.assert_array_equal(y, a.astype(np.float64) @ b.astype(np.float64).T)


def test_without_checks():
    a, b, y, report = run(0, checks=False)
    assert report.ok
    np.testing.assert_array_equal(y, a.astype(np.float64) @ b.astype(np.float64).T)
    assert run(2, checks=False)[-1].findings[0].kind == "barrier deadlock"


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("bug", BUGS)
def test_the_bug_is_found_at_its_line(bug, seed):
    report = run(bug, seed)[-1]
    lines = {n for n, line in enumerate(TEXT.splitlines(), 1) if re.search(rf"// FOUND.* {bug}\b", line)}
    found = {s.line for f in report.findings if f.kind == BUGS[bug] for s in f.source}
    assert lines & found, report


def test_counters():
    report = run(0)[-1]
    assert report.counters.wgmma == {"m64n64k16.f16.f16": 4 * 4 * STEPS}
    assert report.counters.total("bytes", "cp.async.bulk.shared") == 4 * (STEPS * 16384 + 16384)
    assert report.counters.traffic["x"].read == ROWS * STEPS * 128
    assert report.counters.traffic["y"].written == ROWS * COLUMNS * 4
    shown = str(report.counters)
    assert f"bulk copies: {4 * (2 * STEPS + 1)}, {4 * (STEPS + 1) * 16384} bytes of shared memory" in shown
    assert "80 wgmma m64n64k16.f16.f16" in shown
