"""The first layers of networks in the emulator: channels, filters, strides, padding and every residue of the tile."""

import numpy as np
import pytest

from gpu_conv.emulator import EmulationError
from gpu_conv.families import Row, stem
from tests.kernels.checking import TARGETS, arrays, assert_params_match, plant, problem, run

ROW = stem.ROWS[0]


def convolve(channels, outputs, size, taps, *, batch=2, dtype="float16", exact=True, row=ROW, **options):
    """One problem, channels last, compared with float64; the launch."""
    x, w = arrays(dtype, channels, 1, outputs, size, taps, batch=batch, last=True, exact=exact)
    options = {"strides": 2, "padding": [t // 2 for t in taps], "input_layout": "nhwc", "bias": dtype} | options
    return run(row, x, w, exact=exact, **options)


def test_params_match_the_header():
    assert_params_match("conv_stem.cu", stem.PARAMS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mobilenet(dtype):
    launch = convolve(3, 32, (32, 32), (3, 3), dtype=dtype, exact=False, activation="relu6")
    assert launch.template[3:9] == (3, 3, 3, 2, 1, 16)


@pytest.mark.parametrize(("channels", "taps", "stride", "padding"), [
    (1, (3, 3), 2, 1), (2, (3, 3), 1, 1), (2, (5, 3), 3, (2, 1)), (3, (3, 3), 2, 0), (3, (7, 7), 2, 3),
    (3, (5, 5), 2, [(2, 1), (1, 2)]), (3, (1, 1), 2, 0), (4, (3, 3), 1, 1), (4, (2, 4), 2, (0, 1)),
    (3, (3, 3), 2, [(-1, 2), (-2, 3)]), (4, (7, 7), 4, 3),
])  # fmt: skip
def test_filters(channels, taps, stride, padding):
    padding = [padding] * 2 if isinstance(padding, int) else padding
    convolve(channels, 40, (21, 24), taps, strides=stride, padding=padding, activation="relu")


def test_every_residue():
    """Widths and heights modulo the unit and the tile, output channels modulo the group."""
    for i in range(16):
        convolve(3, 8 + 8 * (i % 9), (1 + 2 * i, 2 + 4 * i), (3, 3), batch=1 + i % 2)


def test_wide():
    """Three tiles of columns, more channels than two groups."""
    launch = convolve(3, 72, (3, 520), (3, 3), batch=1)
    assert launch.grid == (3, 3, 1)


@pytest.mark.parametrize("rows", [t.rows for t in stem.TILES])
def test_tiles(rows):
    row = Row("conv_stem", stem.refuses, lambda p, target: stem.plan(p, target, stem.Tile(rows)))
    assert convolve(3, 16, (22, 20), (3, 3), row=row).shared_bytes == (2 * min(rows, 11) + 1) * 224


def test_what_is_not_finite_stays_in_its_receptive_field():
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (1, 16, 24, 3)).astype("float16")
    x[0, 3, 5, 1], x[0, 12, 0, 2], x[0, 9, 23, 0] = np.inf, np.nan, -np.inf
    w = rng.integers(1, 3, (8, 3, 3, 3)).astype("float16")
    run(ROW, x, w, strides=2, padding=1, input_layout="nhwc", filter_layout="ohwi", bias=False)


def test_float32_results():
    convolve(3, 16, (16, 16), (3, 3), out_dtype="float32")


@pytest.mark.parametrize(("old", "new"), [
    ("copy_wait<0>();\n    __syncthreads();", "copy_wait<0>();"),
    (" &\n                           mask[s][i / 2]", ""),
    ("element >= SHIFT && ", ""),
    ("uint32(element) < uint32(p.in_run)", "element < p.in_run"),
    ("first_column + q >= p.out_columns", "first_column + q > p.out_columns"),
    ("+ i % 2 * 8 * kPixelBytes", "+ i % 2 * 4 * kPixelBytes"),
])  # fmt: skip
def test_planted_bugs(monkeypatch, old, new):
    """A barrier, the mask of a run, its first element, a bound, a column, a shift."""
    plant(monkeypatch, "conv_stem.cu", old, new)

    def both():
        test_what_is_not_finite_stays_in_its_receptive_field()
        convolve(3, 40, (21, 24), (3, 3))

    with pytest.raises((AssertionError, EmulationError)):
        both()


@pytest.mark.parametrize(("x", "w", "options", "reason"), [
    ((1, 8, 8, 3), (8, 3, 3, 3), {"residual": True}, "adds no residual"),
    ((1, 8, 8, 5), (8, 3, 3, 5), {}, "1 to 4 input channels; got 2, 1, 5"),
    ((1, 8, 8, 3), (8, 3, 3, 3), {"strides": 1}, "even ones for odd channels"),
    ((1, 8, 8, 3), (8, 3, 3, 3), {"strides": (2, 1)}, "equal strides"),
    ((1, 8, 8, 3), (8, 3, 3, 3), {"dilations": 2}, "no dilations"),
    ((1, 16, 16, 4), (8, 11, 11, 4), {}, "(11, 11) of 4 channels is too large"),
    ((1, 8, 7, 3), (8, 3, 3, 3), {}, "rows of x must be dense, aligned to 4 bytes"),
    ((1, 8, 8, 3), (12, 3, 3, 3), {}, "8 neighbouring channels of y"),
    ((0, 8, 8, 3), (8, 3, 3, 3), {}, "at least one output"),
])  # fmt: skip
def test_refusals(x, w, options, reason):
    options = {"strides": 2, "padding": 1, "input_layout": "nhwc", "filter_layout": "ohwi"} | options
    if options.pop("residual", False):
        options["residual"] = np.zeros((x[0], 4, 4, w[0]), "float16")
    made = problem(np.zeros(x, "float16"), np.zeros(w, "float16"), **options)
    assert reason in ROW.refuses(made, TARGETS["sm_80"])
