"""The activations: codes shared with the kernels, values against plain Python, NaN and infinities kept."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from gpu_conv.cuda.source import KERNELS
from gpu_conv.epilogue import ACTIVATIONS, CODES, Activation

POINTS = [-100.0, -8.0, -3.0, -1.25, -0.5, -0.0, 0.0, 0.25, 1.0, 2.75, 6.0, 9.0, 88.0]


def clip(v, lo, hi):
    return min(max(v, lo), hi)


BY_HAND = {
    "relu": lambda v: max(v, 0.0),
    "relu6": lambda v: clip(v, 0, 6),
    "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
    "tanh": math.tanh,
    "silu": lambda v: v / (1 + math.exp(-v)),
    "hard_sigmoid": lambda v: clip(0.2 * v + 0.5, 0, 1),
    "hard_swish": lambda v: v * clip(v + 3, 0, 6) / 6,
    "gelu": lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))),
    "elu": lambda v: v if v > 0 else math.exp(v) - 1,
    "softplus": lambda v: math.log1p(math.exp(-abs(v))) + max(v, 0),
    "clip": lambda v: clip(v, -0.75, 2),
    "leaky_relu": lambda v: v if v > 0 else 0.3 * v,
    "softsign": lambda v: v / (1 + abs(v)),
    "linear": lambda v: -2 * v + 0.5,
    "celu": lambda v: max(v, 0) + min(0, 0.5 * (math.exp(v / 0.5) - 1)),
    "selu": lambda v: 1.05070102214813232 * (v if v > 0 else 1.67326319217681885 * (math.exp(v) - 1)),
    "scaled_tanh": lambda v: 1.5 * math.tanh(0.25 * v),
    "parametric_softplus": lambda v: 0.5 * math.log1p(math.exp(2 * v)),
    "thresholded_relu": lambda v: v if v > 1 else 0,
    "shrink": lambda v: v + 0.25 if v < -0.5 else v - 0.25 if v > 0.5 else 0,
}
PARAMETERS = {
    "clip": (-0.75, 2),
    "leaky_relu": (0.3,),
    "linear": (-2, 0.5),
    "celu": (0.5,),
    "scaled_tanh": (1.5, 0.25),
    "parametric_softplus": (0.5, 2),
    "shrink": (0.25, 0.5),
}


def parsed(name):
    return Activation.parse((name, *PARAMETERS.get(name, ())))


def test_the_kernels_use_the_same_codes():
    header = Path(KERNELS, "epilogue.cuh").read_text()
    (body,) = re.findall(r"enum Activation \{(.*?)\};", header, re.S)
    names = re.findall(r"ACT_(\w+)", re.sub(r"//.*", "", body))
    assert {name.lower(): code for code, name in enumerate(names)} == {"none": 0, **CODES}


@pytest.mark.parametrize(("dtype", "unit"), [("float32", 2.0**-24), ("float64", 2.0**-53)])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values(name, dtype, unit):
    points = np.array(POINTS, dtype)
    want = np.array([BY_HAND[name](float(p)) for p in points])
    got = parsed(name)(points.copy())
    assert got.dtype == dtype
    np.testing.assert_allclose(
        got, want, rtol=16 * unit, atol=8 * unit * np.abs(points).max() * (name == "gelu") + 4 * unit
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_not_a_number_stays(name):
    assert np.isnan(parsed(name)(np.array([np.nan, 1], np.float32))).tolist() == [True, False]


def test_in_place_and_into_another_array():
    v = np.array([-1, 7], np.float32)
    out = np.empty_like(v)
    assert parsed("relu6")(v, out=out) is out
    assert out.tolist() == [0, 6]
    assert parsed("silu")(v, out=v) is v


@pytest.mark.parametrize(("lo", "hi"), [(0, 6), (-1.5, 2.5), (-math.inf, math.inf)])
def test_integers_are_clipped_inside_the_bounds(lo, hi):
    v = np.array([-(2**31), -2, -1, 0, 2, 3, 2**31 - 1], np.int32)
    want = [max(math.ceil(lo), min(math.floor(hi), int(i))) if math.isfinite(lo) else int(i) for i in v]
    assert Activation.parse(("clip", lo, hi))(v).tolist() == want
