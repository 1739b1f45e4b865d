"""The direct kernel: every geometry, layout, dtype and epilogue, in both PTX dialects."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from gpu_conv.emulator import EmulationError
from gpu_conv.epilogue import ACTIVATIONS
from gpu_conv.families import direct

from . import checking
from .checking import ARCHES, arrays, run

ROW = direct.ROWS[0]


def test_params_match_the_header():
    checking.assert_params_match("direct.cu", direct.PARAMS)


# Geometry along one axis: stride, dilation, input dilation, padding.
GEOMETRY = list(product((1, 2, 3), (1, 2), (1, 2, 3), ((0, 0), (2, 1), (-1, 3), (4, -2))))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("arch", ARCHES)
def test_geometry(arch, last):
    """Both thread mappings; every third combination is enough for one dialect, the other third for the other."""
    x, w = arrays("float32", 2, 1, 5, (11,), (3,), last=last)
    for stride, dilation, input_dilation, padding in GEOMETRY[arch == "sm_80" :: 2]:
        options = {"strides": stride, "dilations": dilation, "input_dilations": input_dilation, "padding": (padding,)}
        if checking.problem(x, w, **options, input_layout="nwc" if last else "ncw").y.size:
            run(ROW, x, w, target=arch, input_layout="nwc" if last else "ncw", **options)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("arch", ARCHES)
def test_geometry_of_three_axes(arch, last):
    """Each axis in turn has each stride, dilation, input dilation and padding; one output per thread, and several."""
    axes = ((1, 2, 2, (2, 1)), (2, 1, 3, (-1, 3)), (3, 1, 1, (4, -2)))
    for turn, outputs in product(range(3), (1, 5)):
        x, w = arrays("float32", 2, 2, outputs, (4, 3, 5), (3, 2, 3), last=last)
        names = ("strides", "dilations", "input_dilations", "padding")
        options = dict(zip(names, zip(*(axes[turn:] + axes[:turn]))))
        options |= {"input_layout": "ndhwc" if last else "ncdhw", "residual": outputs == 1}
        run(ROW, x, w, groups=2, target=arch, **options)


@pytest.mark.parametrize("last", [False, True])
def test_residues_of_tile_and_block(last):
    for columns, channels in product(range(1, 10), (1, 3, 4, 5)):
        x, w = arrays("float32", 1, 3, channels, (3, columns), (2, 1), last=last)
        run(ROW, x, w, groups=3, input_layout="nhwc" if last else "nchw", padding=((1, 0), (0, 0)))


@pytest.mark.parametrize(
    ("input_layout", "filter_layout"), [*product(("chwn", "nwch", "whcn"), ("oihw", "hwoi", "iohw"))]
)
def test_any_layout(input_layout, filter_layout):
    rng = np.random.default_rng(0)
    sizes = {"n": 2, "c": 6, "h": 5, "w": 7}
    taps = {"o": 4, "i": 3, "h": 3, "w": 2}
    x = checking.numbers([sizes[a] for a in input_layout], "float32", rng, True)
    w = checking.numbers([taps[a] for a in filter_layout], "float32", rng, True)
    run(ROW, x, w, groups=2, padding=1, strides=(2, 1), input_layout=input_layout, filter_layout=filter_layout)


def test_views_with_any_strides():
    """Reversed, broadcast and stepped arrays."""
    x, w = arrays("float32", 2, 2, 3, (8, 9), (3, 2))
    run(ROW, x[:, ::-1, ::2, ::-1], w[::-1, :, ::-1], groups=2, flip_filter=True)
    run(ROW, np.broadcast_to(x[:1], (3, *x.shape[1:])), w, groups=2, residual=True, output_layout="nhwc")


@pytest.mark.parametrize("arch", ARCHES)
def test_transposed(arch):
    rng = np.random.default_rng(0)
    x, w = checking.numbers((1, 4, 5, 4), "float32", rng, True), checking.numbers((4, 3, 3, 4), "float32", rng, True)
    for strides, padding, last in product((1, 2, (3, 2)), (0, 1), (False, True)):
        layouts = {"input_layout": "nhwc", "output_layout": "nhwc"} if last else {}
        data = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if last else x
        run(ROW, data, w, target=arch, transposed=True, strides=strides, padding=padding, **layouts)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_ranks_and_batch_groups(rank):
    x, w = arrays("float32", 2, 1, 4, (4, 5, 6)[:rank], (2, 3, 2)[:rank], batch=4)
    run(ROW, x, w, batch_groups=2)
    run(ROW, x, w, bias="float32", activation="relu")


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_floating_dtypes(arch, dtype):
    for last, out in product((False, True), ("float16", "bfloat16", "float32", "float64")):
        if last and out != dtype:
            continue
        x, w = arrays(dtype, 3, 2, 5, (6, 7), (3, 3), exact=False, last=last)
        layouts = {"input_layout": "nhwc"} if last else {}
        run(ROW, x, w, target=arch, exact=False, groups=2, padding=1, bias=out, residual=True, out_dtype=out, **layouts)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(("dtype", "zero"), [("int8", -7), ("uint8", 130)])
def test_integers(arch, dtype, zero):
    x, w = arrays(dtype, 3, 2, 5, (6, 7), (3, 3))
    w_zero = np.arange(10, dtype=np.int32) + 4
    for activation in (None, "relu", ("clip", -1000.5, np.inf)):
        run(ROW, x, w, target=arch, groups=2, padding=2, x_zero_point=zero, w_zero_point=w_zero, activation=activation)
    run(ROW, x, w.view("int8"), target=arch, groups=2, bias="int32", residual=True)


@pytest.mark.parametrize(("arch", "w_dtype", "last"), [("sm_80", "int8", True), ("sm_120", "uint8", False)])
def test_four_integers_at_a_time(arch, w_dtype, last):
    """Input channels side by side, in both thread mappings; zero points of both at the borders, or of none."""
    rng = np.random.default_rng(2)
    x = checking.numbers((2, 6, 5, 8), "uint8", rng, True)
    w = checking.numbers((6, 3, 3, 4), w_dtype, rng, True)
    layouts = {"input_layout": "nhwc", "filter_layout": "ohwi", "output_layout": "nhwc" if last else "nchw"}
    options = {"target": arch, "groups": 2, "padding": 1, "strides": (1, 2), **layouts}
    zero_points = {"x_zero_point": np.uint8(200), "w_zero_point": rng.integers(1, 9, 6).astype(w_dtype)}
    shifted = run(ROW, x, w, requantize=(1e-3, 100), **zero_points, **options)
    plain = run(ROW, x, w, bias="int32", **options)
    assert (shifted.template[6], plain.template[6]) == (2, 1)
    assert run(ROW, x[..., ::-1], w, **options).template[6] == 0


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations(name, dtype):
    """Values, and the infinities and NaN that some inputs carry."""
    parameters = {"clip": (-0.5, 0.75), "scaled_tanh": (1.5, 0.5), "parametric_softplus": (0.5, 2)}
    activation = (name, *parameters.get(name, ()))
    x, w = arrays(dtype, 3, 1, 4, (7, 9), (3, 3), exact=False)
    x *= 4
    run(ROW, x, w, exact=False, activation=activation, bias=dtype)
    x[0, 0, 3, 3], x[1, 1, 2, 5], x[0, 2, 0, 0] = np.nan, np.inf, -np.inf
    w[0] = abs(w[0])
    for arch in ARCHES:
        run(ROW, x, w, exact=False, activation=activation, target=arch)


@pytest.mark.parametrize("last", [False, True])
def test_no_input_channels(last):
    x, w = arrays("float32", 0, 1, 3, (4, 5), (3, 3), last=last)
    run(ROW, x, w, bias="float32", input_layout="nhwc" if last else "nchw")


@pytest.mark.parametrize("last", [False, True])
def test_64_bit_offsets(last):
    """The instantiation for more than 2^31 elements gives the same on few."""
    x, w = arrays("float32", 3, 2, 5, (6, 7), (3, 3), last=last)

    def wide(launch):
        assert launch.template[5] == "int32"
        return replace(launch, template=(*launch.template[:5], "int64", *launch.template[6:]))

    run(ROW, x, w, groups=2, padding=1, strides=2, edit=wide, input_layout="nhwc" if last else "nchw")


def test_index_width():
    """64-bit offsets exactly where an element offset needs them."""
    x, w = np.empty((1, 1, 40, 40), "int8"), np.empty((1, 1, 3, 3), "int8")
    problem = checking.problem(x, w)
    for pitch, index in ((2**24, "int32"), (2**26, "int64")):  # 39 rows: an extent of 0.6e9 or 2.6e9 elements
        far = replace(problem.x, strides=(0, 0, 0, pitch, 1))
        launch = ROW.plan(replace(problem, x=far), checking.TARGETS["sm_80"])
        assert launch.template[5] == index


def test_empty_output_is_an_empty_grid():
    x, w = np.empty((0, 2, 5, 5), "float32"), np.empty((3, 2, 3, 3), "float32")
    assert ROW.plan(checking.problem(x, w), checking.TARGETS["sm_80"]).grid[0] == 0


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1, 2, 3, 3, 3, 3), "float32", "4 spatial"),
        ((1, 2, 3), "int16", "int16"),
        ((1, 2, 3), "complex64", "complex64"),
    ],
)
def test_refusals(shape, dtype, reason):
    x, w = np.zeros(shape, dtype), np.zeros((1, *shape[1:2], *[1] * (len(shape) - 2)), dtype)
    assert reason in ROW.refuses(checking.problem(x, w), checking.TARGETS["sm_80"])


PLANTED = [
    ("j < left && at >= 0 && at <", "j <= left && at >= 0 && at <"),
    ("if (j >= left) break;", "if (j > left) break;"),
    ("at_d < 0 || at_d >= ", "at_d < 0 || at_d > "),
    ("at_h < 0 || at_h >= ", "at_h < -1 || at_h >= "),
    ("if (t >= Index(p.threads)) return;", ""),
    ("q / column_step * (column_step * TILE) + q % column_step", "q / column_step * column_step + q % column_step"),
    ("if (at % input_dilation != 0) tap =", "if (false) tap ="),
    ("group) - o;", "group) - o + 1;"),
]


def run_all(row, layouts):
    for layout in layouts:
        x, w = arrays("float32", 1, 2, 5, (3, 3, 5), (2, 2, 2), last=layout == "ndhwc")
        run(row, x, w, groups=2, padding=1, input_layout=layout)
        run(row, x, w, groups=2, padding=1, input_dilations=(1, 1, 3), strides=(1, 1, 2), input_layout=layout)
        run(row, x, w, groups=2, padding=1, input_dilations=(1, 1, 2), dilations=(1, 1, 2), input_layout=layout)


@pytest.mark.parametrize(("old", "new"), PLANTED)
def test_planted_bugs_are_found(monkeypatch, old, new):
    checking.plant(monkeypatch, "direct.cu", old, new)
    with pytest.raises((AssertionError, EmulationError)):
        run_all(ROW, ("ncdhw", "ndhwc"))
