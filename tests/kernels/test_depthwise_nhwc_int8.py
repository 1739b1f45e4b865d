"""The depthwise kernel of 8-bit integers: tails, strides, filters, types, zero points at the borders, rounding."""

from dataclasses import replace

import numpy as np
import pytest

from gpu_conv.families import depthwise_nhwc_int8 as family

from . import checking
from .checking import ARCHES, TARGETS, arrays, run

(ROW,) = family.ROWS
LAYOUT = {1: "nwc", 2: "nhwc"}
REQUANTIZE = (1 / 64, np.int8(-3))  # many halves


def go(size, taps, *, channels=8, x="uint8", w="int8", batch=2, w_layout=None, **options):
    data, filters = arrays(x, 1, channels, 1, size, taps, batch=batch, last=True, w_layout=w_layout)
    _, filters = arrays(w, 1, channels, 1, size, taps, last=True, w_layout=w_layout)
    zero = {"x_zero_point": np.array(200 if x == "uint8" else -90, x)}
    layouts = {"input_layout": LAYOUT[len(size)]} | ({"filter_layout": w_layout} if w_layout else {})
    return run(ROW, data, filters, groups=channels, **zero | layouts | options)


def test_params():
    checking.assert_params_match("depthwise_nhwc_int8.cu", family.PARAMS)


@pytest.mark.parametrize("stride", [1, 2])
def test_residues(stride):
    """All residues of the columns modulo the strip, rows around the edges of a band; one kernel per PTX dialect."""
    for columns, rows in zip(range(1, 10), (1, 13, 14, 15, 16, 20, 27, 28, 29), strict=True):
        options = {"padding": 1, "strides": stride, "target": ARCHES[stride - 1]}
        launch = go((rows, columns), (3, 3), channels=4, batch=1, w_layout="hwio", edit=taller, **options)
        assert launch.kernel == ROW.name


def taller(launch):
    """One height of a band for all sizes: one compilation."""
    record = np.frombuffer(launch.params, family.PARAMS)[0].copy()
    template = list(launch.template)
    blocks = launch.grid[0] // int(record["bands"])
    template[5], record["bands"] = 2, -(-int(record["out"][0]) // 2)
    grid = (blocks * int(record["bands"]), 1, 1)
    return replace(launch, template=tuple(template), grid=grid, params=record.tobytes())


@pytest.mark.parametrize(
    ("taps", "stride", "types", "w_layout"),
    [
        ((1, 1), 1, ("int8", "int8"), None),
        ((2, 4), 2, ("uint8", "uint8"), "hwio"),
        ((5, 5), 1, ("int8", "uint8"), None),
        ((7, 7), 1, ("uint8", "int8"), "hwio"),
        ((6, 5), 2, ("uint8", "int8"), "hwio"),
        ((4,), 1, ("int8", "int8"), None),
    ],
)
def test_filters_types_and_requantisation(taps, stride, types, w_layout):
    """Extreme zero points, padding that differs on the two sides, a crop, more channels than one block has."""
    x, w = types
    w_layout = w_layout or ("oihw" if len(taps) == 2 else "oiw")
    padding = (*((k // 2, k) for k in taps[:-1]), (-1, 3))
    options = dict(x=x, w=w, w_layout=w_layout, padding=padding, strides=stride, bias="int32", batch=1)
    go((9, 11)[-len(taps) :], taps, channels=12, requantize=REQUANTIZE, target=ARCHES[stride - 1], **options)


def test_activation_and_int32():
    for activation in ("relu", ("clip", -500, 3000.5)):
        go((6, 6), (3, 3), padding=1, bias="int32", activation=activation)


def test_registers_do_not_spill():
    """The kernels that are closest to it."""
    for k, arch in ((3, "sm_75"), (5, "sm_90a"), (7, "sm_120")):
        x, w = arrays("uint8", 1, 64, 1, (32, 32), (k, k), last=True, w_layout="hwio")
        options = {"groups": 64, "input_layout": "nhwc", "filter_layout": "hwio", "requantize": REQUANTIZE}
        problem = checking.problem(x, w, x_zero_point=np.uint8(9), **options)
        checking.assert_lean([family.plan(problem, TARGETS["sm_80"])], [arch])


def test_refusals():
    def reason(taps=(3, 3), channels=8, dtype="uint8", layout="nhwc", **options):
        x, w = arrays(dtype, 1, channels, 1, (12, 12), taps, last=layout == "nhwc")
        problem = checking.problem(x, w, groups=channels, input_layout=layout, **options)
        return ROW.refuses(problem, TARGETS["sm_80"])

    assert reason() is None
    assert "float16" in reason(dtype="float16")
    assert "no multiple of 4" in reason(channels=6)
    assert "channels last" in reason(layout="nchw")
    assert "w has a zero point" in reason(w_zero_point=np.uint8(1))
    assert reason(w_zero_point=np.zeros(8, np.uint8)) is None
    assert "strides are (1, 2)" in reason(strides=(1, 2))
    assert "dilations" in reason(dilations=2)
    assert "unrolled up to 7x7" in reason(taps=(9, 9))
    assert "side by side" in reason(taps=(7, 7))
    assert "residual" in reason(residual=np.zeros((2, 10, 10, 8), np.int32))
