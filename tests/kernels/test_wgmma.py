"""The products of warpgroups in the emulator: every tile, ragged sides, filters, groups, epilogues, planted bugs."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from gpu_conv import arguments, dispatch, reference
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.emulator import EmulationError, Emulator
from gpu_conv.families import Row, wgmma
from gpu_conv.families.wgmma_model import TILES, Tile
from gpu_conv.tune import candidates
from tests.kernels.checking import TARGETS, assert_lean, assert_params_match, plant, run
from tests.kernels.wgmma_cases import CASES, Case

ROW, ARCH = wgmma.ROWS[0], "sm_90a"
SMALLEST = Tile(1, 64, 3, 4)


def convolve(case, tile, **more):
    """One case of small integers exactly; the launch."""
    row = Row("wgmma", wgmma.refuses, partial(wgmma.plan, tile=tile))
    options = case.layouts | case.options | more
    return run(row, *case.arrays(), target=ARCH, bias=case.bias or False, residual=case.residual, **options)


def test_params_match_the_header():
    assert_params_match("wgmma.cu", wgmma.PARAMS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(case):
    """In several tiles of 64 pixels and 64 channels; what is rounded, tests/test_table.py compares."""
    convolve(case, SMALLEST)


@pytest.mark.parametrize("number", range(len(TILES)))
def test_tiles(number):
    """Every tile: ragged in pixels, channels and k, several tiles per block."""
    tile = TILES[number]
    case = Case("", 72, tile.columns + 8, (9, 17), (2, 1), bias="float32", residual=True)
    launch = convolve(case, tile, padding=1, activation="relu")
    assert launch.template[-2] == tile.cpp
    assert launch.grid == (min(tile.blocks, launch.grid[0]), 1, 1)


def test_every_residue():
    """Pixels modulo 64, output channels and k modulo 64 in steps of 8: all through one instantiation."""
    for i in range(64):
        case = Case("", 8 + 8 * (i * 5 % 11), 8 + 8 * (i * 3 % 10), (1 + i + 64 * (i % 2),), (1,), bias="float32")
        launch = convolve(case, SMALLEST)
    assert launch.name_expression == "wgmma<float16, float, float16, 0, Tile<1, 64, 3, 4>, 0>"


def test_what_is_not_finite_stays_in_its_receptive_field():
    """Zeros beside the last channel, beside the map and of the next group meet no Inf."""
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (2, 6, 9, 80)).astype("float16")
    x[0, 3, 4, 5], x[0, 5, 8, 79], x[1, 0, 0, 39], x[1, 4, 2, 40] = np.inf, np.nan, -np.inf, np.nan
    w = rng.integers(1, 3, (48, 3, 3, 40)).astype("float16")
    options = {"groups": 2, "padding": 1, "input_layout": "nhwc", "filter_layout": "ohwi", "activation": "relu6"}
    out = np.full((2, 6, 9, 48), np.nan, "float16")
    call = arguments.prepare(x, w, out=out, **options)
    Emulator(ARCH).run(wgmma.plan(call.problem, TARGETS[ARCH], SMALLEST), call.operands)
    with np.errstate(invalid="ignore"):
        truth = reference.convolve(call.problem, call.operands).astype("float16")
    assert 0 < np.isnan(truth).sum() < truth.size / 2
    np.testing.assert_array_equal(call.operands["y"], truth)


def test_any_order_of_blocks_and_arrivals():
    """Warps and copies in a drawn order: the ring holds, whoever is late."""
    case = Case("", 72, 72, (9, 9))
    x, w = case.arrays()
    out = np.full((1, 9, 9, 72), np.nan, "float16")
    call = arguments.prepare(x, w, out=out, padding=1, **case.layouts)
    launch = wgmma.plan(call.problem, TARGETS[ARCH], SMALLEST)
    Emulator(ARCH, seed=0).run(launch, call.operands)
    np.testing.assert_array_equal(
        out, reference.convolve(call.problem, call.operands).transpose(0, 3, 4, 1, 2).reshape(out.shape)
    )


def views():
    """Arrays that are no copies: every second image, column and channel block; an output inside of a larger one."""
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (4, 7, 18, 64)).astype("float16")[::2, :, ::2, 8:48]
    w = rng.integers(-2, 3, (48, 3, 3, 64)).astype("float16")[::2, :, :, :40]
    out = np.full((2, 7, 9, 32), np.nan, "float16")
    return x, w, out


def test_views():
    x, w, out = views()
    residual = out[..., 8:].copy()
    residual[...] = 3
    options = {"padding": 1, "input_layout": "nhwc", "filter_layout": "ohwi"}
    call = arguments.prepare(x, w, out=out[::, ::-1, :, 8:], residual=residual[:, ::-1], **options)
    assert ROW.refuses(call.problem, TARGETS[ARCH]) is None
    Emulator(ARCH).run(wgmma.plan(call.problem, TARGETS[ARCH], SMALLEST), call.operands)
    truth = reference.convolve(call.problem, call.operands)
    np.testing.assert_array_equal(call.operands["y"], truth.astype("float16"))
    assert np.isnan(out[..., :8]).all(), "written beside the output"


def problem(x_shape, w_shape, *, dtype="float16", **options):
    options = {"input_layout": "nhwc", "filter_layout": "ohwi"} | options
    return arguments.prepare(np.zeros(x_shape, dtype), np.zeros(w_shape, dtype), **options).problem


@pytest.mark.parametrize(
    ("x", "w", "arch", "options", "reason"),
    [
        ((1, 8, 8, 16), (16, 3, 3, 16), "sm_80", {}, "what sm_90a has, sm_80 has none"),
        ((1, 8, 8, 16), (16, 3, 3, 16), "sm_100", {}, "sm_100 has none"),
        ((1, 8, 8, 16), (16, 3, 3, 16), ARCH, {"dtype": "float32"}, "float16 and bfloat16"),
        ((1, 8, 8, 16), (16, 3, 3, 16), ARCH, {"dtype": "float16", "out_dtype": "float64"}, "summed in float64"),
        ((1, 8, 8, 8, 16), (16, 3, 3, 3, 16), ARCH, {"input_layout": "ndhwc", "filter_layout": "odhwi"}, "1 or 2"),
        ((1, 8, 8, 16), (16, 3, 3, 16), ARCH, {"input_dilations": 2}, "no dilated input"),
        ((0, 8, 8, 16), (16, 3, 3, 16), ARCH, {}, "at least one output"),
        ((1, 8, 8, 16), (20, 3, 3, 16), ARCH, {}, "8 channels at a time, got 20"),
        ((1, 8, 8, 20), (16, 3, 3, 20), ARCH, {}, "x must begin and go on at multiples of 16 bytes"),
        ((1, 8, 8, 24), (16, 3, 3, 12), ARCH, {"groups": 2}, "x must begin and go on"),
        ((1, 16, 8, 8), (16, 3, 3, 16), ARCH, {"input_layout": "nchw"}, "x must lie side by side (channels last)"),
        ((1, 8, 8, 16), (16, 16, 3, 3), ARCH, {"filter_layout": "oihw"}, "gpu_conv.Conv, which packs the filter"),
        ((1, 8, 8, 16), (16, 3, 3, 16), ARCH, {"flip_filter": True}, "in one direction"),
        ((1, 8, 8, 32), (32, 3, 3, 2, 16), ARCH, {"filter_layout": "ohwgi", "groups": 2}, "groups of w must follow"),
        ((1, 30, 30, 16), (16, 3, 3, 16), ARCH, {"strides": 9}, "every 8th pixel"),
    ],
)
def test_refusals(x, w, arch, options, reason):
    assert reason in ROW.refuses(problem(x, w, **options), KNOWN_TARGETS[arch])


@pytest.mark.parametrize(
    ("x", "w", "kernel"),
    [
        ((32, 14, 14, 256), (256, 3, 3, 256), "wgmma"),
        ((32, 14, 14, 64), (64, 1, 1, 64), "wgmma"),
        ((1, 14, 14, 256), (256, 3, 3, 256), "conv_tile"),
        ((32, 56, 56, 48), (96, 3, 3, 48), "conv_tile"),
        ((32, 56, 56, 96), (24, 1, 1, 96), "pointwise"),
        ((1, 7, 7, 960), (160, 1, 1, 960), "pointwise"),
    ],
)
def test_it_runs_where_channels_and_pixels_are_many(x, w, kernel):
    made, target = problem(x, w, padding=w[1] // 2), KNOWN_TARGETS[ARCH]
    assert dispatch.select(made, target).name == kernel
    assert (dispatch.passed_over(made, "wgmma") is None) == (kernel == "wgmma")
    assert dispatch.select(made, target, "wgmma") is ROW
    assert any(candidate.kernel == "wgmma" for candidate in candidates(made, target))


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((256, 14, 256, 256, 3), Tile(2, 256, 4, 1)),  # images, size, channels, outputs, filter
        ((32, 56, 64, 64, 3), Tile(2, 64, 4, 2)),
        ((1, 14, 256, 256, 3), Tile(1, 64, 6, 2)),
        ((32, 14, 1024, 256, 1), Tile(2, 128, 6, 1)),
    ],
)
def test_tiles_follow_the_size(shape, tile):
    images, size, channels, outputs, k = shape
    made = problem((images, size, size, channels), (outputs, k, k, channels), padding=k // 2)
    assert wgmma.tiles(made, KNOWN_TARGETS[ARCH])[0] == tile


def test_every_tile_fits():
    """As many blocks as the tile says: shared memory with 1 KB per block, registers beside the sums."""
    for tile in TILES:
        assert tile.blocks * (tile.shared_bytes + 1024) <= 228 * 1024
        assert tile.spare_registers >= 32


@pytest.mark.parametrize("number", range(4))
def test_no_spills(number):
    """The widest sums with the leanest epilogue, and the most registers of an epilogue; no product is serialised."""
    tile, dtype, options = (
        (Tile(2, 256, 4, 1), "float16", {"activation": "relu"}),
        (Tile(2, 128, 3, 2), "float16", {"activation": "relu6"}),
        (Tile(2, 192, 5, 1), "bfloat16", {"activation": "gelu", "out_dtype": "float32"}),
        (Tile(1, 128, 3, 3), "bfloat16", {"activation": "softplus"}),
    )[number]
    made = problem((32, 14, 14, 256), (256, 3, 3, 256), dtype=dtype, padding=1, **options)
    made = replace(made, residual=made.y)
    assert tile in wgmma.tiles(made, KNOWN_TARGETS[ARCH])
    assert_lean([wgmma.plan(made, KNOWN_TARGETS[ARCH], tile)], [ARCH])


BUGS = (
    ("if (lane == 0) barrier_arrive(before);\n}", "}"),
    ("if (step > 0 && lane == 0) barrier_arrive(before);", ""),
    ("barrier_wait(at.free(), at.phase ^ 1);", ""),
    ("barrier_wait(at.full(), at.phase);", ""),
    ("products_wait<1>();", ""),
    ("products_wait<0>();", ""),
    ("products_begin();", ""),
    ("fence_async_proxy();\n    }", "}"),
    ("step > 0 || k > 0);", "true);"),
    ("column + s * p.dilation_columns", "column + s"),
    ("row < p.rows) & (", "row < p.rows) | ("),
    ("TILE::kRows >> log_pixels", "1"),
    ("quarter * 2, eighth", "quarter, eighth"),
    ("__syncwarp();\n        if (lane == 0) part = of;", "if (lane == 0) part = of;"),
)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug[0][:24])
def test_planted_bugs_are_found(bug, monkeypatch):
    """Lost arrivals, waits and fences, a sum that is not cleared, a wrong tap, bound, box and order of channels."""
    plant(monkeypatch, "wgmma.cu", *bug)
    case = Case("", 72, 72, (5, 3), (3, 2), batch=9, bias="float32")
    with pytest.raises((AssertionError, EmulationError)):
        convolve(case, SMALLEST, padding=1, dilations=(1, 2))


def test_a_note_that_is_read_too_early_is_found(monkeypatch):
    """In a tile of one step: later ones order what the lanes of a warp do, through the barriers of the ring."""
    plant(monkeypatch, "wgmma.cu", "        }\n        __syncwarp();\n    }", "        }\n    }")
    with pytest.raises(EmulationError):
        convolve(Case("", 64, 64, (65,), (1,), bias="float32"), SMALLEST)
