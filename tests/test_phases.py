"""Dilated inputs as phases: the arithmetic by hand, and on the GPU path against float64 in the emulator."""

import numpy as np
import pytest

import gpu_conv
import gpu_conv.testing
from gpu_conv import arguments, dispatch, phases
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.emulator import Emulator

from .cases import Case, fill

TARGET = KNOWN_TARGETS["sm_80"]


@pytest.fixture
def always(monkeypatch):
    """Phases pay for problems of every size."""
    monkeypatch.setattr(dispatch, "PHASE_FLOPS", 0)
    dispatch.steps.cache_clear()
    yield
    dispatch.steps.cache_clear()


def transposed(c, o, size, k, *, dtype=np.float16, last=True, **options):
    """A layer of a decoder: c to o channels, stride 2."""
    x = np.zeros((1, size, size, c) if last else (1, c, size, size), dtype)
    options = {"strides": 2, "input_layout": "nhwc" if last else "nchw", **options}
    return arguments.prepare(x, np.zeros((c, o, k, k), dtype), transposed=True, **options).problem


# -------------------------------------------------------------------------------------------------------- arithmetic


def test_the_phases_of_the_usual_decoder_layers():
    """k4 s2 p1: every output meets 2 of 4 taps; k3 s2 with output padding: 1 or 2 of 3; k1 s2: 1 or none."""

    def rows(k, **options):
        split = phases.split(transposed(8, 8, 5, k, **options))
        return {(p.outputs[0].start, p.problem.filter[0], *p.problem.padding[0]) for p in split}

    assert rows(4, padding=1) == {(0, 2, 1, 0), (1, 2, 0, 1)}
    assert rows(2) == {(0, 1, 0, 0), (1, 1, 0, 0)}
    assert rows(3, padding=1, output_padding=1) == {(0, 1, 0, 0), (1, 2, 0, 1)}
    assert rows(1) == {(0, 1, 0, 0), (1, 0, -1, -1)}


def test_alignment_and_strides_of_the_views():
    problem = transposed(8, 12, 5, 4, padding=1)
    first, second = (p.problem for p in phases.split(problem)[:2])
    assert first.y.strides[2:] == (1, 240, 24) and first.y.align == problem.y.align
    assert second.y.align == 8  # 12 channels of 2 bytes further
    assert second.w.strides[3:] == (-8, -2) and second.w.shape == (1, 12, 8, 2, 2)


def test_an_undilated_problem_is_its_own_phase():
    problem = arguments.prepare(np.ones((1, 2, 6, 7)), np.ones((3, 2, 3, 2)), strides=(2, 3), padding=1).problem
    (phase,) = phases.split(problem)
    assert phase.problem.out_spatial == problem.out_spatial and phase.problem.w == problem.w


@pytest.mark.parametrize("seed", range(40))
def test_phases_meet_every_element_once(seed):
    """Counted against the definition: taps and outputs that meet an element, on all axes at random."""
    rng = np.random.default_rng(seed)
    size, k, s, d, ld = (int(v) for v in rng.integers(1, (7, 6, 5, 4, 5)))
    lo, hi = (int(v) for v in rng.integers(-2, 5, 2))
    options = dict(strides=s, dilations=d, input_dilations=ld, padding=((lo, hi),))
    problem = arguments.prepare(np.ones((1, 1, size)), np.ones((1, 1, k)), **options).problem
    wanted = {
        (q, t, (q * s + t * d - lo) // ld)
        for q in range(problem.out_spatial[0])
        for t in range(k)
        if (q * s + t * d - lo) % ld == 0
    }
    found = []
    for phase in phases.split(problem):
        part, (outputs,), (taps,) = phase.problem, phase.outputs, phase.taps
        (step,), (apart,), ((before, _),) = part.strides, part.dilations, part.padding
        found += [
            (q, t, i * step + j * apart - before)
            for i, q in enumerate(range(problem.out_spatial[0])[outputs])
            for j, t in enumerate(range(k)[taps])
        ]
        assert part.out_spatial == (len(range(problem.out_spatial[0])[outputs]),)
    assert len(found) == len(set(found)) and set(found) == wanted


# ------------------------------------------------------------------------------------------------------------ choice


@pytest.mark.parametrize(
    ("problem", "kernels"),
    [
        (transposed(64, 32, 28, 4, padding=1), ["conv_tile"]),  # all phases in one launch
        (transposed(64, 32, 28, 4, padding=1, last=False), ["conv_tile"]),
        (transposed(256, 128, 14, 2), ["pointwise"]),
        (transposed(256, 128, 14, 2, last=False), ["pointwise"]),
        (transposed(256, 128, 14, 2, dtype=np.float32), ["pointwise"]),
        (transposed(256, 128, 14, 3, padding=1, output_padding=1), ["conv_tile"]),
        (transposed(256, 128, 14, 3, padding=1), ["pointwise"] + ["conv_tile"] * 3),  # 27 rows: 14 and 13 of them
        (transposed(256, 128, 14, 2, padding=((0, 1), (0, 1))), ["pointwise"] + ["conv_tile"] * 3),
        (transposed(1024, 256, 14, 1), ["pointwise"] + ["direct"] * 3),  # outputs of no tap hold the bias
        (transposed(64, 32, 14, 4, padding=1), ["conv_tile"]),
        (transposed(64, 32, 14, 3, padding=1), ["direct"]),  # 27 rows, and small
        (transposed(256, 128, 14, 4, dtype=np.float32, padding=1), ["implicit_gemm"]),
        (transposed(256, 128, 14, 4, dtype=np.float64, padding=1), ["direct"]),  # no other kernel for the phases
        (transposed(256, 1, 112, 4, padding=1, groups=256), ["direct"]),  # depthwise
    ],
    ids=str,
)
def test_launches(problem, kernels):
    assert [step.launch.kernel for step in dispatch.steps(problem, TARGET)] == kernels


def test_a_forced_kernel_runs_the_whole():
    (step,) = dispatch.steps(transposed(64, 32, 28, 4, padding=1), TARGET, "direct")
    assert step.phase is None and step.launch.kernel == "direct"


def test_explain_says_why():
    options = dict(strides=2, padding=1, transposed=True, dtype="float16", arch="sm_80", input_layout="nhwc")
    one = gpu_conv.explain((1, 28, 28, 64), (64, 32, 4, 4), **options)
    assert one.kernel == "conv_tile" and "one launch of conv_tile computes all phases" in one.rows[0][1]
    large, small = (gpu_conv.explain((1, n, n, 64), (64, 32, 3, 3), **options) for n in (56, 14))
    assert large.kernel == "phases" and large.rows[0] == ("phases", None) and large.launch.kernel == "pointwise"
    assert small.kernel == "direct" and "MFLOP are less" in small.rows[0][1]


# ------------------------------------------------------------------------------------------------------ in the emulator

LAYERS = [
    Case(name, (1, c, 5, 6), (c, o, *k), dtype, last, residual=residual, transposed=True, options=options)
    for name, c, o, k, dtype, last, residual, options in (
        ("k4 s2", 16, 8, (4, 4), "float16", True, True, dict(strides=2, padding=((1, 2), (1, 1)), activation="relu")),
        ("k4 s2", 16, 8, (4, 4), "bfloat16", False, False, dict(strides=2, padding=((1, 1), (2, 1)))),
        ("k2 s2", 16, 24, (2, 2), "float32", True, True, dict(strides=2, padding=((0, 1), (0, 1)))),
        ("k4 s2", 8, 12, (4, 4), "float32", True, True, dict(strides=2, padding=((1, 2), (1, 2)))),
        ("k3 s2", 8, 12, (3, 3), "float32", False, True, dict(strides=2, padding=1)),
        (
            "k2 s2",
            16,
            24,
            (2, 2),
            "float16",
            False,
            False,
            dict(strides=2, padding=((1, 0), (0, 0)), activation="gelu"),
        ),
        ("k3 s2", 16, 8, (3, 3), "float16", True, False, dict(strides=2, padding=1)),
        ("k1 s2", 16, 8, (1, 1), "float16", True, True, dict(strides=2, output_padding=1, activation="relu6")),
        ("k5 s3 groups", 16, 8, (5, 4), "float16", True, False, dict(strides=(3, 2), groups=2, dilations=(1, 2))),
    )
]


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_phases_in_the_emulator(case, always):
    for exact in (True, False) if case is LAYERS[0] else (True,):
        filled = fill(case, exact=exact)
        steps = dispatch.steps(filled.call.problem, TARGET)
        assert len(steps) > 1
        for step in steps:
            report = Emulator("sm_80").run(step.launch, step.operands(filled.call.operands))
            assert report.ok, str(report)
        filled.check()


def test_through_the_public_call(always):
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-2, 3, s).astype(np.float16) for s in ((2, 7, 6, 16), (16, 24, 4, 4)))
    options = dict(strides=2, padding=1, input_layout="nhwc")
    here, there = (gpu_conv.conv_transpose2d(x, w, device=device, **options) for device in (None, "emulator"))
    np.testing.assert_array_equal(here, there, strict=True)


@pytest.mark.parametrize("last", [True, False])
def test_no_zero_is_multiplied(last, always):
    """No more products of the tensor cores than the forward convolution whose gradient it is: the same flops."""
    rng = np.random.default_rng(0)
    small, large = ((1, 16, 16, 64), (1, 32, 32, 32)) if last else ((1, 64, 16, 16), (1, 32, 32, 32))
    x, g, w = (rng.integers(-2, 3, s).astype(np.float16) for s in (small, large, (64, 32, 4, 4)))
    options = dict(strides=2, padding=1, input_layout="nhwc" if last else "nchw")
    products = []
    for call in (arguments.prepare(x, w, transposed=True, **options), arguments.prepare(g, w, **options)):
        steps = dispatch.steps(call.problem, TARGET)
        reports = [Emulator("sm_80").run(s.launch, s.operands(call.operands)) for s in steps]
        products.append(sum(r.counters.mma for r in reports))
    assert 0 < products[0] <= products[1]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("size", [(33,), (5, 40), (3, 4, 6)])
def test_products_for_every_row_of_a_phase_on_numpy(size, groups, residual):
    """A filter as large as its stride: the phases are 1x1 and write between each other's pixels."""
    rng = np.random.default_rng(len(size))
    channels, filters, axes = 4 * groups, 20 * groups, "dhw"[3 - len(size) :]
    arrays = {"x": (2, *size, channels), "w": (channels, filters // groups, *[2] * len(size)), "bias": (filters,)}
    if residual:
        arrays["residual"] = (2, *(2 * n for n in size), filters)
    made = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in arrays.items()}
    options = {"strides": 2, "groups": groups, "input_layout": f"n{axes}c", "activation": "relu6"}
    y = gpu_conv.conv_transpose(**made, **options)
    gpu_conv.testing.assert_conv_close(y, **made, **options, transposed=True)
