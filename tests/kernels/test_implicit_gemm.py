"""The implicit GEMM in the emulator: every tile, every way of reading and writing, every residue."""

from dataclasses import replace

import numpy as np
import pytest

from gpu_conv import arguments, reference
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.emulator import EmulationError, Emulator
from gpu_conv.families import Row, implicit_gemm
from gpu_conv.families.implicit_gemm_tiles import TILES
from gpu_conv.testing.tolerance import assert_close
from tests.kernels.checking import ARCHES, TARGETS, arrays, assert_lean, assert_params_match, plant, run

ROW = implicit_gemm.ROWS[0]


def with_tile(tile):
    """The row with one tile instead of the planner's choice; k is divided only where multiprocessors are idle."""

    def plan(problem, target):
        return implicit_gemm.plan(problem, KNOWN_TARGETS[target.arch] if tile.split else target, tile)

    return Row("implicit_gemm", implicit_gemm.refuses, plan)


def convolve(channels, outputs, groups, size, taps, *, last=True, dtype="float32", w_layout=None, tile=None, **options):
    """One convolution of ``channels`` to ``outputs`` channels against float64; the launch."""
    axes = "dhw"[3 - len(size) :]
    w_layout = w_layout or (f"o{axes}i" if last else f"oi{axes}")
    sizes = (dtype, channels // groups, groups, outputs // groups, size, taps)
    given = {name: options.pop(name) for name in ("batch", "seed") if name in options}
    x, w = arrays(*sizes, last=last, w_layout=w_layout, exact=options.get("exact", True), **{"batch": 1} | given)
    layouts = {"input_layout": f"n{axes}c" if last else f"nc{axes}", "filter_layout": w_layout}
    return run(ROW if tile is None else with_tile(tile), x, w, groups=groups, **layouts, **options)


def small(in_rows):
    """The smallest tile whose warps stand side by side."""
    return min((t for t in TILES[in_rows] if t.k_warps == 1), key=lambda t: t.rows * t.columns)


def test_params_match_the_header():
    assert_params_match("implicit_gemm.cuh", implicit_gemm.PARAMS)


def every_tile():
    for in_rows, tiles in TILES.items():
        for i, tile in enumerate(tiles):
            name = f"{'rows' if in_rows else 'columns'}-{tile.rows}x{tile.columns}x{tile.slab}-{i}"
            yield pytest.param(in_rows, tile, ARCHES[i % 2], id=name)


@pytest.mark.parametrize(("in_rows", "tile", "arch"), list(every_tile()))
def test_every_tile(in_rows, tile, arch):
    """More than one tile along pixels and channels, ragged slabs of k; bias, residual, split sums added in order."""
    pixels, channels = (tile.rows, tile.columns) if in_rows else (tile.columns, tile.rows)
    depth = 20 if tile.split else 4
    launch = convolve(
        depth, channels + 4, 1, (pixels // 16 + 1, 16), (2, 3),
        last=in_rows, tile=tile, target=arch, bias="float32", residual=True, padding=((1, 0), (1, 1)),
    )  # fmt: skip
    assert tile.cpp in launch.template
    tiles = -(-((pixels // 16 + 1) * 16) // pixels) * 2
    assert launch.grid[0] > tiles if tile.split else launch.grid[0] == tiles


ACCESSES = {  # channels, outputs, groups, size, taps, options
    "nhwc": (8, 12, 1, (7, 9), (3, 3), {"padding": 1, "residual": True}),
    "nchw": (8, 12, 1, (7, 9), (3, 3), {"last": False, "padding": 1, "residual": True}),
    "stem": (3, 16, 1, (9, 11), (3, 3), {"padding": 1, "strides": 2, "bias": "float32"}),
    "stem-first": (3, 16, 1, (9, 11), (7, 7), {"last": False, "padding": 3, "strides": 2, "activation": "relu"}),
    "groups": (24, 15, 3, (6, 7), (3, 2), {"strides": (2, 1), "residual": True}),
    "groups-first": (24, 15, 3, (6, 7), (3, 2), {"last": False, "strides": (2, 1)}),
    "groups-of-two": (6, 9, 3, (5, 7), (3, 3), {"padding": ((0, 2), (1, 0)), "batch": 3}),
    "one-channel": (1, 9, 1, (9, 7), (3, 3), {"padding": 2, "dilations": 2}),
    "patches": (4, 12, 1, (8, 12), (4, 4), {"strides": 4, "batch": 2}),
    "patches-first": (4, 12, 1, (8, 12), (4, 4), {"last": False, "strides": 4, "batch": 2}),
    "cropped": (4, 12, 1, (9, 9), (3, 3), {"padding": ((-1, 1), (2, -2)), "dilations": (1, 2)}),
    "wio": (8, 12, 1, (23,), (5,), {"w_layout": "wio", "padding": ((4, 0),)}),
    "iwo-first": (8, 12, 1, (23,), (5,), {"last": False, "w_layout": "iwo", "padding": ((4, 0),), "strides": 3}),
    "oihw-last": (8, 12, 1, (5, 7), (3, 3), {"w_layout": "oihw", "padding": 1}),
    "ohwi-first": (5, 12, 1, (5, 7), (3, 3), {"last": False, "w_layout": "ohwi", "padding": 1}),
    "to-first": (8, 9, 1, (5, 7), (3, 3), {"output_layout": "nchw", "padding": 1, "residual": True}),
    "to-last": (8, 9, 1, (5, 7), (3, 3), {"last": False, "output_layout": "nhwc", "padding": 1}),
    "to-nhcw": (8, 12, 1, (5, 7), (3, 3), {"output_layout": "nhcw", "padding": 1, "residual": True}),
    "3d": (8, 10, 2, (4, 5, 6), (3, 2, 3), {"padding": ((1, 2), (0, 1), (1, 1)), "dilations": (2, 1, 1)}),
    "3d-first": (6, 10, 2, (4, 5, 6), (3, 2, 3), {"last": False, "padding": 1, "strides": (1, 2, 2)}),
    "3d-rows": (4, 10, 1, (4, 5, 6), (2, 2, 3), {"padding": ((0, 0), (1, 1), (0, 0))}),
    "float16": (8, 12, 2, (4, 5, 6), (3, 3, 3), {"dtype": "float16", "padding": 1, "residual": True}),
    "bfloat16-first": (6, 9, 3, (4, 5, 6), (3, 3, 3), {"last": False, "dtype": "bfloat16", "padding": 1}),
    "half-stem": (3, 12, 1, (2, 9, 9), (2, 3, 3), {"dtype": "float16", "strides": (1, 2, 2), "bias": "float16"}),
    "wide-out": (8, 12, 1, (3, 5, 5), (3, 3, 3), {"dtype": "bfloat16", "out_dtype": "float32", "padding": 1}),
}  # fmt: skip


@pytest.mark.parametrize(("number", "name"), list(enumerate(ACCESSES)))
def test_access(number, name):
    """Layouts, strides, groups, filters, paddings, dtypes: all instantiations of the loads and stores."""
    *sizes, options = ACCESSES[name]
    convolve(*sizes, target=ARCHES[number % 2], **options)


@pytest.mark.parametrize("in_rows", [True, False])
def test_residues(in_rows):
    """Pixels, channels and k of every remainder, around several tiles and slabs, through one instantiation."""
    tile = small(in_rows)
    pixels, channels = (tile.rows, tile.columns) if in_rows else (tile.columns, tile.rows)
    for i in range(8):
        size = (1 + pixels // 32 * (i % 3), 17 + 5 * i)
        options = {"bias": i % 2 and "float32", "residual": i % 3 == 0, "batch": 1 + i % 2, "seed": i}
        convolve(4 * (1 + i), channels + 4 * (i - 1), 1, size, (1, 3), last=in_rows, tile=tile, padding=1, **options)


@pytest.mark.parametrize("last", [True, False])
def test_odd_residues(last):
    """One element at a time, where nothing is aligned."""
    for i in range(1, 10, 2):
        options = {"padding": i // 3, "batch": 2, "seed": i, "bias": "float32"}
        convolve(2 * i + 1, 21 - i, 1, (3, 6 + i), (2, 2), last=last, tile=small(last), **options)


def test_rounding():
    """Normal numbers against the computed tolerance."""
    convolve(40, 24, 1, (6, 7), (3, 3), exact=False, padding=1, bias="float32", residual=True, activation="silu")


def test_strided_views():
    """Every second row and column of a larger image, reversed images, outputs into every second image."""
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (2, 15, 21, 16)).astype("float32")[::-1, ::2, 1::2]
    w = rng.integers(-2, 3, (12, 3, 3, 8)).astype("float32")
    options = {"groups": 2, "padding": 1, "input_layout": "nhwc", "filter_layout": "ohwi"}
    out = np.full((4, *arguments.prepare(x, w, **options).result.shape[1:]), np.nan, "float32")[::2]
    call = arguments.prepare(x, w, out=out, **options)
    assert ROW.refuses(call.problem, TARGETS["sm_80"]) is None
    Emulator("sm_80").run(ROW.plan(call.problem, TARGETS["sm_80"]), call.operands)
    assert_close(call.operands["y"], call.problem, call.operands)


@pytest.mark.parametrize(("last", "groups"), [(True, 1), (False, 1), (True, 3), (False, 3)])
def test_what_is_not_finite_stays_in_its_receptive_field(last, groups):
    """Padding, the end of k and other groups and images next to Inf and NaN."""
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (2, 12, 7, 9)).astype("float32")
    x[0, 3, 4, 5], x[0, 11, 6, 8], x[1, 0, 0, 0], x[1, 6, 3, 8] = np.inf, np.nan, -np.inf, np.nan
    w = rng.integers(1, 3, (6, 12 // groups, 3, 3)).astype("float32")
    options = {"groups": groups, "padding": 1}
    if last:
        x, w = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, w))
        options |= {"input_layout": "nhwc", "filter_layout": "ohwi"}
    call = arguments.prepare(x, w, **options)
    call.operands["y"][...] = np.nan
    Emulator("sm_80").run(ROW.plan(call.problem, TARGETS["sm_80"]), call.operands)
    with np.errstate(invalid="ignore"):
        truth = reference.convolve(call.problem, call.operands).astype("float32")
    assert np.isfinite(truth).any()
    assert not np.isfinite(truth).all()
    np.testing.assert_array_equal(call.operands["y"], truth)


def problem(x_shape, w_shape, *, dtype="float32", **options):
    return arguments.prepare(np.zeros(x_shape, dtype), np.zeros(w_shape, dtype), **options).problem


@pytest.mark.parametrize(
    ("x", "w", "options", "reason"),
    [
        ((1, 4, 8, 8), (4, 4, 3, 3), {"dtype": "float64"}, "float32, float16 and bfloat16"),
        ((1, 4, 8, 8), (4, 4, 3, 3), {"dtype": "int8"}, "float32, float16 and bfloat16"),
        ((1, 4, 8, 8), (4, 1, 3, 3), {"groups": 4}, "depthwise"),
        ((1, 4, 8, 8), (4, 4, 1, 1), {}, "pointwise"),
        ((1, 4, 8, 8), (4, 4, 3, 3), {"input_dilations": 2}, "phases"),
        ((1, 4, 5, 5, 5, 5), (4, 4, 2, 2, 2, 2), {}, "1, 2 or 3 spatial axes"),
        ((0, 4, 8, 8), (4, 4, 3, 3), {}, "at least one output"),
    ],
)
def test_refusals(x, w, options, reason):
    assert reason in ROW.refuses(problem(x, w, **options), KNOWN_TARGETS["sm_80"])


def test_refuses_offsets_beyond_32_bits():
    made = problem((1, 4, 8, 8), (4, 4, 3, 3))
    for name, strides in (("x", (0, 0, 2**29, 8, 1)), ("w", (0, 2**29, 9, 3, 1))):
        wide = replace(made, **{name: replace(getattr(made, name), strides=strides)})
        assert "2**31 elements" in ROW.refuses(wide, KNOWN_TARGETS["sm_80"])


LAYERS = (  # batch, channels, outputs, groups, size, filter, activation
    (32, 64, 64, 1, 56, 3, "gelu"),
    (32, 256, 256, 1, 14, 3, "softplus"),
    (1, 512, 512, 1, 7, 3, "relu"),
    (32, 3, 64, 1, 224, 7, "silu"),
    (32, 512, 512, 32, 14, 3, "gelu"),
    (32, 192, 192, 4, 28, 3, "softplus"),
    (256, 128, 128, 1, 28, 3, "gelu"),
)


@pytest.mark.parametrize(("number", "layer"), list(enumerate(LAYERS)), ids=str)
def test_no_spills(number, layer):
    """Whole layers as planned for real devices, every architecture in turn."""
    batch, channels, outputs, groups, size, k, activation = layer
    arch = ("sm_90a", "sm_120", "sm_80", "sm_86", "sm_75", "sm_89", "sm_100")[number % 7]
    for last in (True, False):
        x, w = (batch, channels, size, size), (outputs, channels // groups, k, k)
        layouts = {}
        if last:
            x, w = (x[0], *x[2:], x[1]), (w[0], *w[2:], w[1])
            layouts = {"input_layout": "nhwc", "filter_layout": "ohwi"}
        made = problem(x, w, groups=groups, padding=k // 2, activation=activation, **layouts)
        assert ROW.refuses(made, KNOWN_TARGETS[arch]) is None
        assert_lean([ROW.plan(made, KNOWN_TARGETS[arch])], [arch])


BUGS = (
    ("copy_wait<kStages - 2>();", ""),
    ("__syncthreads();  // the slab before", "// the slab before"),
    ("make_terms(slab + kStages, stage);", ""),
    ("first_channel + line < p.out_channels && ", ""),
    (" && first_k + k < p.depth", ""),
    ("__syncthreads();  // the ring is free", ""),
    ("pixel < p.pixels ? at[3 - AXES + i] : kNowhere", "at[3 - AXES + i]"),
    ("k < p.depth ? at[3 - AXES + i] : kNowhere", "at[3 - AXES + i]"),
    ("< uint32(size[3 - AXES + i])", "<= uint32(size[3 - AXES + i])"),
    ("index * p.dilations[axis]", "index"),
)


@pytest.mark.parametrize(("old", "new"), BUGS, ids=lambda text: text[:24])
def test_planted_bugs_are_found(old, new, monkeypatch):
    """Early reads, races, missing bounds, a wrong tap."""
    plant(monkeypatch, "implicit_gemm.cu", old, new)  # with the text of its headers
    rng = np.random.default_rng(0)
    x = rng.integers(1, 3, (1, 6, 9, 12)).astype("float32")
    w = rng.integers(1, 3, (13, 3, 3, 12)).astype("float32")
    x[0, 2, 3, 1] = w[3, 0, 0, 2] = np.inf  # the first tap meets no padding, but what lies beyond k if that is read
    options = {"padding": ((0, 4), (0, 4)), "dilations": 2, "input_layout": "nhwc", "filter_layout": "ohwi"}
    call = arguments.prepare(x, w, **options)
    call.operands["y"][...] = np.nan
    launch = implicit_gemm.plan(call.problem, TARGETS["sm_80"], small(True))

    def check():
        Emulator("sm_80").run(launch, call.operands)
        np.testing.assert_array_equal(call.operands["y"], reference.convolve(call.problem, call.operands))

    with pytest.raises((AssertionError, EmulationError)):
        check()
