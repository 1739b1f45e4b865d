"""Any convolution on NumPy and in the emulator, against its definition in float64.

``GPU_CONV_FUZZ=nightly`` runs 100,000 on NumPy and 10,000 emulated, in batches for ``pytest -n``; ``GPU_CONV_SEED``
repeats a run. A failure is shrunk, and belongs into ``test_regressions.py`` then.
"""

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings

import gpu_conv
from gpu_conv import arguments, reference
from gpu_conv.testing.tolerance import assert_close
from tests.fuzz import oracle, plain
from tests.fuzz.rows import taking
from tests.fuzz.strategies import calls, numbers

DRAWN = {None: 150, "emulator": 15}  # by Hypothesis
PROFILES = {"ci": (1, {None: 200, "emulator": 10}), "nightly": (50, {None: 2000, "emulator": 200})}
BATCHES, PLAIN = PROFILES[os.environ.get("GPU_CONV_FUZZ", "ci")]  # and the calls of a batch
GUARD = 64
MONOTONE = (None, "relu", "relu6", "clip")  # exact where the sums are


def run(cases, strategy, check, first_seed):
    """``cases`` examples of the strategy; the error of the smallest that fails."""

    @seed(first_seed)
    @settings(
        max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
    )
    @given(strategy)
    def examples(case):
        check(case)

    examples()


def check(case, device=None):
    """One call: its numbers, its guard bands, and its operands afterwards."""
    o, call = case.options, arguments.prepare
    w = np.flip(case.w, case.spelled["flipped"]) if "flipped" in case.spelled else case.w
    truth = oracle.sums(case.x, w, case.spelled, case.transposed)
    expected = call(case.x, case.w, case.bias, transposed=case.transposed, **o).result
    layout = o["output_layout"]
    axes = "nc" + oracle.letters(case.x.ndim - 2)
    want = truth.transpose([axes.index(a) for a in layout])
    assert expected.shape == want.shape
    rng = np.random.default_rng(want.size)
    residual = None if case.residual is None else numbers(rng, want.shape, expected.dtype, case.exact)

    buffer = np.full(want.size + 2 * GUARD, np.nan if expected.dtype.kind in "fcV" else 77, expected.dtype)
    before = [a.tobytes() for a in (case.x, case.w, buffer[:GUARD])]
    out = buffer[GUARD : GUARD + want.size].reshape(want.shape)
    function = gpu_conv.conv_transpose if case.transposed else gpu_conv.conv
    prepared = call(case.x, case.w, case.bias, residual=residual, out=out, transposed=case.transposed, **o)
    kernels = [None, *(taking(prepared.problem) if case.pick and want.size else ())]
    options = o | {"device": device, "kernel": kernels[case.pick % len(kernels)]}
    got = function(case.x, case.w, case.bias, residual=residual, out=out, **options)
    assert got is out
    assert [a.tobytes() for a in (case.x, case.w, buffer[:GUARD])] == before
    assert buffer[GUARD + want.size :].tobytes() == before[2], "written behind the output"

    compare_with_reference(prepared, truth)
    assert_close(prepared.y_view(got), prepared.problem, prepared.operands)
    activation = prepared.problem.activation
    if case.exact and not prepared.problem.requantizes and (activation.name if activation else None) in MONOTONE:
        view = tuple(-1 if a == "c" else 1 for a in layout)
        want = want + (0 if case.bias is None else oracle.widen(case.bias).reshape(view))
        want = want + (0 if residual is None else oracle.widen(residual))
        want = activation(want) if activation else want
        np.testing.assert_array_equal(got, want.astype(got.dtype))


def compare_with_reference(prepared, truth):
    """The package's own reference, which the tolerance comes from, against the definition."""
    bare = replace(prepared.problem, bias=None, residual=None, activation=None)
    found = reference.convolve(bare, prepared.operands)
    np.testing.assert_allclose(found.reshape(truth.shape), truth, rtol=1e-12, atol=1e-12)


def checked(device):
    """Function of a call: checks it on the device."""
    if device:
        pytest.importorskip("cuda.bindings.nvrtc")
    return lambda case: check(case, device)


@pytest.mark.parametrize("device", DRAWN)
def test_any_convolution(device, seed, record_property):
    record_property("seed", seed)
    run(DRAWN[device], calls(emulated=device is not None), checked(device), seed)


@pytest.mark.parametrize("batch", range(BATCHES))
@pytest.mark.parametrize("device", PLAIN)
def test_many_convolutions(device, batch, seed, record_property):
    record_property("seed", seed)
    plain.run(PLAIN[device], checked(device), seed * 1000 + batch, emulated=device is not None)
