"""Depthwise on the tensor cores, channels last: residues of every tile, filters, padding and non-finite values."""

import numpy as np
import pytest

from gpu_conv import arguments, dispatch
from gpu_conv.emulator import EmulationError, Emulator
from gpu_conv.families import Row, depthwise_nhwc_mma

from . import checking
from .checking import ARCHES, arrays, run

(ROW,) = depthwise_nhwc_mma.ROWS
FILE = "depthwise_nhwc_mma.cu"


def go(size, taps, *, channels=16, dtype="float16", batch=2, exact=True, row=ROW, w_layout=None, spoil=None, **options):
    """One problem of dense arrays, channels last, compared with float64; the launch."""
    x, w = arrays(dtype, 1, channels, 1, size, taps, batch=batch, last=True, exact=exact, w_layout=w_layout)
    if spoil:
        spoil(x, w)
    options = {"padding": [t // 2 for t in taps], "input_layout": "nhwc", "groups": channels} | options
    if w_layout:
        options["filter_layout"] = w_layout
    return run(row, x, w, exact=exact, **options)


def tiled(*sizes):
    """The row with one tile."""
    tile = depthwise_nhwc_mma.Tile(*sizes)
    return Row(ROW.name, ROW.refuses, lambda p, target: depthwise_nhwc_mma.plan(p, target, tile))


def test_params_match_the_header():
    checking.assert_params_match(FILE, depthwise_nhwc_mma.PARAMS)


@pytest.mark.parametrize("stride", [1, 2])
def test_residues(stride):
    """Columns modulo the strips, rows modulo the walk, channels modulo the blocks, odd batches that share a product."""
    for i in range(1, 18):
        size = (1 + 5 * i % 23, i if stride == 1 else 2 * i - i % 2)
        options = {"channels": 16 + 8 * (i % 4), "batch": 1 + i % 3, "strides": stride, "target": ARCHES[i % 2]}
        go(size, (3, 3), row=tiled(2, 2, 14), bias="float16", **options)


@pytest.mark.parametrize(("taps", "stride"), [
    ((1, 1), 1), ((2, 2), 2), ((5, 5), 1), ((5, 5), 2), ((7, 7), 1), ((7, 1), 2), ((4, 6), 1), ((6, 3), 2),
])  # fmt: skip
def test_filters(taps, stride):
    """Even and odd rows and columns; several chunks and stages of the walk; padding that differs on the two sides."""
    padding = tuple((k // 2, (k - 1) // 2) for k in taps)
    target = ARCHES[sum(taps) % 2]
    go((31, 19), taps, strides=stride, padding=padding, target=target, row=tiled(2, 4, 28), bias="float32")


@pytest.mark.parametrize("padding", [((-1, 2), (3, -2)), ((4, 5), (6, 1)), ((0, 0), (0, 0)), ((9, 0), (0, 20))])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding(padding, stride):
    """Cropping, and whole windows in the padding."""
    go((13, 18), (3, 3), channels=8, padding=padding, strides=stride, row=tiled(1, 2, 14))


@pytest.mark.parametrize("tile", depthwise_nhwc_mma.TILES)
def test_tiles(tile):
    """Bands, column tiles, blocks of channels whose last one is not full, products of two bands or images."""
    sizes = (tile.groups, tile.strips, tile.rows)
    go((15, 41), (3, 3), channels=24, batch=3, row=tiled(*sizes), target="sm_90a")


def test_no_bank_conflicts():
    for stride, size, taps in ((1, (14, 14), (5, 5)), (2, (28, 28), (3, 3))):
        x, w = arrays("float16", 1, 32, 1, size, taps, last=True)
        options = {"padding": 1, "strides": stride, "input_layout": "nhwc", "groups": 32}
        call = arguments.prepare(x, w, **options)
        call = arguments.prepare(x, w, out=np.empty(call.result.shape, "float16"), **options)
        launch = tiled(4, 2, 14).plan(call.problem, checking.TARGETS["sm_90a"])
        assert Emulator("sm_90a").run(launch, call.operands).counters.bank_conflict_factor < 1.05


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtypes_and_epilogues(dtype):
    for arch, bias, out, activation, stride in (
        ("sm_80", "float32", dtype, "silu", 1),
        ("sm_120", dtype, dtype, ("clip", -0.25, 0.5), 2),
        ("sm_80", "float32", "float32", "gelu", 1),
        ("sm_90a", False, dtype, "hard_swish", 1),
    ):
        options = {"bias": bias, "out_dtype": out, "activation": activation, "strides": stride}
        go((9, 12), (3, 3), dtype=dtype, exact=False, target=arch, residual=True, **options)


def test_strided_filters():
    """Any strides of w."""
    go((9, 9), (3, 5), w_layout="hwio")
    go((9, 9), (5, 3), flip_filter=True)


def infinities(x, w):
    """At corners and borders, in the second image, beside a zero weight, two in one group of channels."""
    x[0, 0, 0, 0], x[0, 10, 11, 9], x[0, 3, 8, 10], x[0, 3, 8, 12] = np.inf, -np.inf, np.inf, -np.inf
    x[0, -1, -1, -1], x[1, 0, -1, 7] = np.nan, np.nan
    w[9, 0, 1, 1] = 0


@pytest.mark.parametrize(("taps", "arch", "options"), [
    ((3, 3), "sm_80", {"activation": "relu6"}),
    ((5, 5), "sm_120", {"activation": "silu", "residual": True, "bias": "float32"}),
    ((7, 7), "sm_80", {"bias": "float16"}),
    ((3, 3), "sm_120", {"strides": 2, "residual": True}),
])  # fmt: skip
def test_non_finite_inputs_stay_in_their_receptive_field_and_channel(taps, arch, options):
    with np.errstate(invalid="ignore"):
        go((20, 19), taps, exact=False, target=arch, spoil=infinities, row=tiled(4, 4, 14), **options)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_every_channel_of_a_non_finite_input(value):
    """None of a group hides it; each in another column and image, the last column of a strip among them."""

    def spoil(x, w):
        for channel in range(16):
            x[channel % 2, channel // 4, channel, channel] = value

    go((5, 17), (3, 3), exact=False, spoil=spoil, dtype="bfloat16")


def test_non_finite_weights_and_sums():
    """They leave other channels alone, sums that overflow as well."""

    def spoil(x, w):
        w[3, 0, 0, 0], w[4, 0, 2, 2], x[0, 4, 4, 8], w[8] = np.inf, np.nan, 3e38, 2

    with np.errstate(over="ignore", invalid="ignore"):
        go((9, 10), (3, 3), exact=False, dtype="bfloat16", spoil=spoil, padding=0)


def test_a_residual_may_be_the_output():
    """Each output is stored once, also those that are computed again."""
    x, w = arrays("float16", 1, 16, 1, (12, 12), (3, 3), last=True)
    infinities(x, w)
    residual = np.full(x.shape, 3, "float16")
    results = []
    for y in (np.empty_like(residual), residual.copy()):
        options = {"padding": 1, "input_layout": "nhwc", "groups": 16}
        call = arguments.prepare(x, w, out=y, residual=y if results else residual, **options)
        Emulator("sm_80").run(ROW.plan(call.problem, checking.TARGETS["sm_80"]), call.operands)
        results.append(y)
    np.testing.assert_array_equal(*results)
    assert np.isfinite(results[0]).mean() > 0.9


def test_registers():
    """Nothing is spilled, with residual and the error function."""
    for taps in (5, 7):
        x, w = arrays("float16", 1, 64, 1, (28, 28), (taps, taps), batch=32, last=True)
        options = {"padding": taps // 2, "input_layout": "nhwc", "groups": 64, "activation": "gelu"}
        problem = checking.problem(x, w, residual=x, **options)
        for arch in ("sm_80", "sm_90a"):
            checking.assert_lean([ROW.plan(problem, checking.TARGETS[arch])], [arch])


@pytest.mark.parametrize(("dtype", "channels", "options", "reason"), [
    ("float32", 8, {}, "float16 and bfloat16"), ("float16", 12, {}, "8 channels at a time"),
    ("float16", 8, {"strides": (1, 2)}, "1 or 2"), ("float16", 8, {"dilations": 2}, "undilated"),
    ("float16", 8, {"input_layout": "nchw"}, "dense with channels last"),
])  # fmt: skip
def test_refusals(dtype, channels, options, reason):
    x, w = arrays(dtype, 1, channels, 1, (16, 16), (3, 3), last=True)
    options = {"groups": channels, "input_layout": "nhwc"} | options
    x = np.moveaxis(x, -1, 1).copy() if options["input_layout"] == "nchw" else x
    assert reason in ROW.refuses(checking.problem(x, w, **options), checking.TARGETS["sm_90a"])


@pytest.mark.parametrize(
    ("images", "size", "k", "kernel"),
    [
        (32, 56, 7, ROW.name),
        (1, 56, 7, "depthwise_nhwc_tile"),
        (512, 7, 5, ROW.name),
        (512, 14, 5, "depthwise_nhwc_tile"),
        (512, 14, 3, "depthwise_nhwc"),
    ],
)
def test_large_filters_and_much_work_come_here(images, size, k, kernel):
    x, w = np.empty((images, size, size, 192), "float16"), np.empty((192, k, k, 1), "float16")
    problem = checking.problem(x, w, groups=192, input_layout="nhwc", filter_layout="ohwi", padding=k // 2)
    assert dispatch.select(problem, checking.TARGETS["sm_90a"]).name == kernel
    assert dispatch.select(problem, checking.TARGETS["sm_90a"], ROW.name) is ROW


@pytest.mark.parametrize(("old", "new"), [
    ("__syncthreads();", ""),
    ("copy_wait_for<kMostStages - 1>(p.stages - 1 - stage);", "copy_wait_for<kMostStages - 1>(p.stages - stage);"),
    ("if (!RESIDUAL && __any_sync(0xffffffffu, probe != probe)) again = first;", ""),
    ("probe = fmaf(0.0f, complete[1][0], fmaf(0.0f, complete[0][0], probe));",
     "probe = fmaf(0.0f, complete[0][0], probe);"),
    ("max_of(again, 0)", "max_of(again, 0) + 1"),
    ("line_unit < units ? line_unit : 0", "2 * tile"),
    ("uint32(from) < uint32(p.in[1])", "from < p.in[1]"),
    ("of.exists && column < p.out[1]", "of.exists"),
    ("min_of(p.rows, p.out[0] - first_row)", "p.rows"),
    ("1u << 16 * (g % 2)", "1u"),
    ("i % 2, top = ", "0, top = "),
    ("lane / 16 * (STRIDE == 1 ? kLine", "lane / 16 * (STRIDE == 1 ? 0"),
])  # fmt: skip
def test_planted_bugs(monkeypatch, old, new):
    """Barriers, waits, the look at sums and what is computed again, a unit, bounds of x and y, the diagonal."""
    checking.plant(monkeypatch, FILE, old, new)
    with pytest.raises((AssertionError, EmulationError)), np.errstate(invalid="ignore"):
        go((19, 19), (3, 3), batch=1, row=tiled(2, 4, 14), exact=False, spoil=infinities_of_one)


def infinities_of_one(x, w):
    """In both units of a product, in the first output row and the last."""
    x[0, 0, 0, 1], x[0, 9, 11, 9], x[0, -1, -1, 2] = np.inf, np.nan, -np.inf
