"""The tiled convolution in the emulator: groups, filters, strides, ragged edges, every way of reading and writing."""

from functools import partial

import numpy as np
import pytest

from gpu_conv import arguments, reference
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.emulator import EmulationError, Emulator
from gpu_conv.families import Row, tile
from gpu_conv.families.tile_model import Tile
from gpu_conv.testing.tolerance import assert_close
from tests.kernels.checking import ARCHES, TARGETS, arrays, assert_lean, assert_params_match, plant, run

ROW = tile.ROWS[0]


def convolve(channels, outputs, groups, size, taps, *, dtype="float16", w_layout=None, tile_=None, batch=2, **options):
    """One convolution of ``channels`` to ``outputs`` channels, channels last, against float64; the launch."""
    axes = "hw"[-len(size) :]
    w_layout = w_layout or f"o{axes}i"
    exact = options.get("exact", True)
    x, w = arrays(
        dtype,
        channels // groups,
        groups,
        outputs // groups,
        size,
        taps,
        batch=batch,
        last=True,
        w_layout=w_layout,
        exact=exact,
    )
    row = ROW if tile_ is None else Row("conv_tile", tile.refuses, partial(tile.plan, tile=tile_))
    options |= {"input_layout": f"n{axes}c", "filter_layout": w_layout, "groups": groups}
    return run(row, x, w, **options)


def test_params_match_the_header():
    assert_params_match("conv_tile.cuh", tile.PARAMS)


GROUPED = (  # channels, outputs, groups
    (16, 16, 8),
    (32, 32, 8),
    (32, 48, 8),
    (40, 40, 5),
    (32, 48, 4),
    (48, 48, 3),
    (72, 48, 3),
    (64, 64, 2),
    (96, 96, 2),
    (80, 24, 2),
    (64, 64, 1),
    (40, 20, 1),
)


@pytest.mark.parametrize(("number", "shape"), list(enumerate(GROUPED)), ids=str)
def test_groups(number, shape):
    """Every packing of groups and channels; both dtypes and PTX dialects, strides, bias, activation, residual."""
    launch = convolve(
        *shape,
        (9 + number % 3, 17 - number % 4),
        (3, 3),
        dtype=("float16", "bfloat16")[number % 2],
        target=ARCHES[number // 2 % 2],
        bias="float32" if number % 3 else False,
        residual=number % 4 == 3,
        activation="relu" if number % 2 else None,
        strides=1 + number // 3 % 2,
        padding=1,
    )
    assert launch.kernel == "conv_tile"


FILTERS = (  # taps, options
    ((1, 1), {"strides": 2}),
    ((2, 2), {"strides": 2}),
    ((5, 5), {"padding": ((2, 2), (1, 3))}),
    ((7, 7), {"padding": 3, "strides": 2}),
    ((1, 5), {"padding": ((0, 0), (2, 2))}),
    ((5, 1), {"padding": ((1, 2), (0, 0)), "strides": (2, 1)}),
    ((3, 3), {"padding": 2, "dilations": 2}),
    ((3, 3), {"padding": 2, "dilations": (1, 2), "strides": 2}),
    ((3, 2), {"padding": -1}),
    ((3, 3), {"padding": 4, "strides": 3}),
)


@pytest.mark.parametrize(("number", "taps", "options"), [(i, *f) for i, f in enumerate(FILTERS)], ids=str)
def test_filters(number, taps, options):
    """Odd and even filters, strides, dilations, paddings; with one and with several chunks of channels."""
    groups = (1, 3, 4)[number % 3]
    convolve(48 if groups == 3 else 32, 48, groups, (12, 19), taps, target=ARCHES[number % 2], batch=1, **options)


@pytest.mark.parametrize("options", [{"padding": 2}, {"strides": 2, "padding": ((1, 0),)}, {"dilations": 3}], ids=str)
def test_one_axis(options):
    convolve(24, 40, 1, (283,), (4,), bias="float32", **options)


# images, strips of rows and columns, bars, units, chunks, unit tiles, warps, stages, resident
TILES = {
    "streamed": (1, 2, 1, 4, 1, 2, 2, 1, 3, False),
    "resident slabs": (1, 1, 2, 4, 1, 2, 2, 1, 4, True),
    "odd chunks": (1, 2, 2, 4, 1, 3, 4, 2, 2, False),
    "whole": (2, 1, 1, 4, 1, 7, 3, 1, 2, True),
    "images": (2, 2, 1, 4, 1, 7, 6, 2, 2, True),
    "parts": (1, 1, 2, 7, 1, 4, 2, 1, 2, False),
}


@pytest.mark.parametrize("name", TILES)
def test_walks_over_tiles_and_slabs(name):
    """One block per set of outputs goes through all tiles and slabs, the last of each ragged."""
    chosen = Tile(*TILES[name])
    launch = convolve(56, 44, 1, (18, 11), (3, 3), padding=1, bias="float32", residual=True, tile_=chosen, batch=3)
    assert launch.template[-2].startswith(f"Tile<{', '.join(str(int(n)) for n in TILES[name])}")


@pytest.mark.parametrize("stride", [1, 2])
def test_every_residue_of_the_map(stride):
    """Heights and widths with every remainder of a tile, smaller and larger than it, all through one instantiation."""
    chosen = Tile(1, 2, 2, 4, 4, 1, 1, 1, 2, True)
    for i in range(16):
        size = (8 * stride + i, 1 + i + 7 * (i % 3))
        convolve(32, 32, 8, size, (3, 3), strides=stride, padding=1, tile_=chosen, batch=1 + (i % 4 == 3))


@pytest.mark.parametrize(
    ("outputs", "dtype", "out_dtype", "residual"),
    [
        (33, "float16", None, True),
        (34, "bfloat16", None, True),
        (36, "float16", np.float32, True),
        (12, "float16", np.float32, False),
    ],
)
def test_ragged_outputs(outputs, dtype, out_dtype, residual):
    """Stores of 2, 4, 8 and 16 bytes."""
    options = {"exact": False} if out_dtype is None else {"out_dtype": out_dtype}
    convolve(
        32,
        outputs,
        1,
        (6, 9),
        (3, 3),
        dtype=dtype,
        bias="float32",
        residual=residual,
        activation="silu",
        **options | {"exact": False},
    )


@pytest.mark.parametrize(("groups", "w_layout"), [(8, "oihw"), (2, "oihw"), (1, "hwio"), (4, "ihwo")])
def test_filter_strides(groups, w_layout):
    """Filters in any layout; those without contiguous input channels are gathered."""
    convolve(32, 32, groups, (7, 9), (3, 3), w_layout=w_layout, padding=1, exact=False, bias="float16")


CHANNELS_FIRST = (  # channels, outputs, groups, size, options
    (3, 32, 1, (15, 18), {"strides": 2, "bias": "float32"}),
    (32, 32, 8, (9, 14), {"residual": True, "activation": "relu"}),
    (32, 32, 2, (9, 7), {"residual": True}),
    (12, 20, 1, (9, 24), {"output_layout": "nhwc"}),
    (6, 12, 2, (9, 12), {"out_dtype": np.float32}),
    (20, 15, 5, (12, 9), {"strides": (1, 2), "bias": "float16"}),
)


@pytest.mark.parametrize(("number", "shape"), list(enumerate(CHANNELS_FIRST)), ids=str)
def test_channels_first(number, shape):
    """Pixels gathered from any layout, stores of 8, 4, 2 and 1 pixels, channels of any number."""
    channels, outputs, groups, size, options = shape
    dtype = ("float16", "bfloat16")[number % 2]
    x, w = arrays(dtype, channels // groups, groups, outputs // groups, size, (3, 3), batch=2)
    run(ROW, x, w, target=ARCHES[number % 2], groups=groups, padding=1, **options)


@pytest.mark.parametrize(
    ("channels", "outputs", "groups", "options"),
    [
        (3, 32, 1, {"strides": 2}),
        (4, 16, 1, {}),
        (12, 12, 3, {}),
        (1, 8, 1, {}),
        (18, 34, 2, {"output_layout": "nchw"}),
    ],
)
def test_few_and_odd_channels(channels, outputs, groups, options):
    """Channels-last input whose pixels are no multiple of 16 bytes: stems above all."""
    convolve(channels, outputs, groups, (13, 22), (3, 3), padding=1, residual=True, **options)


INTEGERS = (  # types of x and w, channels, outputs, groups, options
    ("uint8", "int8", 32, 24, 1, {"requantize": (1e-3, np.uint8(9)), "padding": 2}),
    ("int8", "int8", 64, 32, 2, {"padding": 1, "strides": 2, "activation": "relu", "bias": "int32"}),
    ("int8", "uint8", 3, 10, 1, {"requantize": (np.geomspace(1e-4, 1e-2, 10), np.int8(-9)), "strides": 2}),
    ("uint8", "uint8", 48, 21, 3, {"padding": ((1, 2), (0, 3)), "output_layout": "nchw"}),
    ("uint8", "int8", 80, 33, 1, {"requantize": (1e-3, np.int8(3)), "bias": "int32", "batch": 3}),
)


@pytest.mark.parametrize(("number", "case"), list(enumerate(INTEGERS)), ids=str)
def test_integers(number, case):
    """Extreme zero points at the borders, chunks of 16 channels copied and gathered, slabs, 8 and 32 bits out."""
    x_type, w_type, channels, outputs, groups, options = case
    sizes = (channels // groups, groups, outputs // groups, (9, 13), (3, 3))
    x, _ = arrays(x_type, *sizes, batch=options.get("batch", 2), last=True)
    _, w = arrays(w_type, *sizes, w_layout="ohwi")
    options = {k: v for k, v in options.items() if k != "batch"} | {"input_layout": "nhwc", "filter_layout": "ohwi"}
    zero = np.array(255 if x_type == "uint8" else -128, x_type)
    run(ROW, x, w, target=ARCHES[number % 2], groups=groups, x_zero_point=zero, **options)


def test_strided_views():
    """Every second row and column of a larger image, and outputs into every second image of a larger batch."""
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (2, 15, 21, 32)).astype("float16")[:, ::2, 1::2]
    w = rng.integers(-2, 3, (32, 3, 3, 16)).astype("float16")
    options = {"groups": 2, "padding": 1, "input_layout": "nhwc", "filter_layout": "ohwi"}
    out = np.full((4, *arguments.prepare(x, w, **options).result.shape[1:]), np.nan, "float16")[::2]
    call = arguments.prepare(x, w, out=out, **options)
    assert ROW.refuses(call.problem, TARGETS["sm_80"]) is None
    Emulator("sm_80").run(ROW.plan(call.problem, TARGETS["sm_80"]), call.operands)
    assert_close(call.operands["y"], call.problem, call.operands)


@pytest.mark.parametrize(("groups", "activation"), [(1, None), (4, "relu"), (8, None), (8, "relu"), (16, "relu")])
def test_what_is_not_finite_stays_in_its_receptive_field(groups, activation):
    """Also where small groups share a product: zeros of a block-diagonal filter meet Inf and NaN of other groups."""
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (2, 9, 18, 32)).astype("float16")
    x[0, 3, 4, 5], x[0, 8, 17, 31], x[1, 0, 0, 0], x[1, 4, 9, 16] = np.inf, np.nan, -np.inf, np.nan
    w = rng.integers(1, 3, (32, 3, 3, 32 // groups)).astype("float16")
    options = {
        "groups": groups,
        "padding": 1,
        "input_layout": "nhwc",
        "filter_layout": "ohwi",
        "activation": activation,
    }
    out = np.full(arguments.prepare(x, w, **options).result.shape, np.nan, "float16")
    call = arguments.prepare(x, w, out=out, **options)
    Emulator("sm_80").run(ROW.plan(call.problem, TARGETS["sm_80"]), call.operands)
    with np.errstate(invalid="ignore"):
        truth = reference.convolve(call.problem, call.operands).astype("float16")
    assert np.isfinite(truth).any()
    assert not np.isfinite(truth).all()
    np.testing.assert_array_equal(call.operands["y"], truth)


@pytest.mark.parametrize("stride", [1, 2])
def test_every_block_and_every_place_of_a_tile(stride):
    """A block walks over rows, columns, images; the last of the channels is short. Then an Inf in many places."""
    small = Tile(1, 2, 2, 4, 4, 1, 1, 1, 2, True)
    options = {"strides": stride, "padding": 1, "bias": "float32"}
    launch = convolve(56, 56, 14, (8 * stride + 1, 18 * stride), (3, 3), tile_=small, batch=3, **options)
    assert launch.grid[0] > np.frombuffer(launch.params, tile.PARAMS)[0]["workers"]
    x, w = arrays("float16", 4, 14, 4, (2, 12), (3, 3), batch=12, last=True, w_layout="ohwi")
    x.reshape(12, 24, 56)[range(12), range(0, 24, 2), 5] = np.inf
    row = Row("conv_tile", tile.refuses, partial(tile.plan, tile=small))
    with np.errstate(invalid="ignore"):
        run(row, x, w, exact=False, groups=14, input_layout="nhwc", filter_layout="ohwi", **options)


def problem(x_shape, w_shape, *, dtype="float16", **options):
    options = {"input_layout": "nhwc", "filter_layout": "ohwi"} | options
    return arguments.prepare(np.zeros(x_shape, dtype), np.zeros(w_shape, dtype), **options).problem


@pytest.mark.parametrize(
    ("x", "w", "arch", "options", "reason"),
    [
        ((1, 8, 8, 16), (16, 3, 3, 16), "sm_75", {}, "compute capability 8.0"),
        ((1, 8, 8, 16), (16, 3, 3, 16), "sm_80", {"dtype": "float32"}, "float16, bfloat16, int8 and uint8"),
        ((1, 9, 9, 16), (16, 9, 9, 16), "sm_80", {}, "at most 49 taps"),
        ((1, 8, 8, 16), (16, 3, 3, 1), "sm_80", {"groups": 16}, "depthwise"),
        ((1, 8, 8, 16), (16, 3, 3, 16), "sm_80", {"input_dilations": 2, "strides": 3}, "one size"),
        ((1, 8, 8, 8, 16), (16, 3, 3, 3, 16), "sm_80", {"input_layout": "ndhwc", "filter_layout": "odhwi"}, "1 or 2"),
    ],
)
def test_refusals(x, w, arch, options, reason):
    assert reason in ROW.refuses(problem(x, w, **options), KNOWN_TARGETS[arch])


LAYERS = (  # images, channels, groups, size, stride: ResNeXt-50, RegNet-X and ResNet-50 as they are tuned
    (32, 128, 32, 56, 1),
    (256, 256, 32, 28, 1),
    (256, 256, 32, 56, 2),
    (256, 512, 32, 14, 1),
    (256, 1024, 32, 7, 1),
    (256, 192, 4, 28, 1),
    (256, 64, 1, 56, 1),
    (256, 256, 1, 14, 1),
)


@pytest.mark.parametrize(("number", "layer"), list(enumerate(LAYERS)), ids=str)
def test_no_spills(number, layer):
    """Whole layers as planned for real devices, every architecture in turn."""
    images, channels, groups, size, stride = layer
    shapes = (images, size, size, channels), (channels, 3, 3, channels // groups)
    made = problem(*shapes, groups=groups, strides=stride, padding=1)
    arch = ("sm_90a", "sm_120", "sm_80", "sm_86", "sm_100", "sm_89")[number % 6]
    assert ROW.refuses(made, KNOWN_TARGETS[arch]) is None
    assert_lean([ROW.plan(made, KNOWN_TARGETS[arch])], [arch])


@pytest.mark.parametrize(
    ("layer", "arch"),
    [((32, 256, 256, 1, 14), "sm_90a"), ((32, 128, 128, 8, 28), "sm_80"), ((32, 3, 32, 1, 112), "sm_120")],
)
def test_no_spills_of_integers(layer, arch):
    """Layers of quantised networks: images, channels, outputs, groups, size."""
    images, channels, outputs, groups, size = layer
    shapes = (images, size, size, channels), (outputs, 3, 3, channels // groups)
    options = {"x_zero_point": 3, "requantize": (0.1, 0), "groups": groups, "padding": 1}
    assert_lean([ROW.plan(problem(*shapes, dtype="uint8", **options), KNOWN_TARGETS[arch])], [arch])


BUGS = (
    ("__syncthreads();\n            const int free_stage", "const int free_stage"),
    ("copy_wait<TILE::kStages - 2>();", ""),
    ("__syncwarp();\n            constexpr", "constexpr"),
    ("if (__any_sync(0xffffffff, spread))", "if (false)"),
    ("above % kStride != 0 || ", ""),
    (" & (column < p.out_columns)", ""),
    ("(uint32(first_column + i * kPixels) < uint32(p.in_columns)) & (chunk < end)", "chunk < end"),
    ("column -= next_row * p.column_tiles;", ""),
)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug[0][:24])
def test_planted_bugs_are_found(bug, monkeypatch):
    """A race, an early read, a missing order, spread, a wrong tap, two missing bounds, a wrong tile."""
    plant(monkeypatch, "conv_tile.cu", *bug)
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (4, 13, 67, 16)).astype("float16")
    x[0, 5, 5, 5] = np.inf
    w = rng.integers(1, 3, (16, 3, 3, 4)).astype("float16")
    options = {"groups": 4, "padding": 1, "strides": 2, "input_layout": "nhwc", "filter_layout": "ohwi"}
    out = np.full(arguments.prepare(x, w, **options).result.shape, np.nan, "float16")
    call = arguments.prepare(x, w, out=out, **options)
    launch = tile.plan(call.problem, TARGETS["sm_80"], Tile(1, 2, 2, 4, 2, 1, 1, 1, 2, True))

    def check():
        Emulator("sm_80").run(launch, call.operands)
        with np.errstate(invalid="ignore"):
            assert_close(call.operands["y"], call.problem, call.operands)

    with pytest.raises((AssertionError, EmulationError)):
        check()
